# A workspace that is a container, with a volume for its home. Written for the public docker
# provider; the provisioner needs a Docker daemon that it can reach.
#
# Read it as an example of what a claim may change. A prebuild is built for nobody, and its claim is
# one more apply with the new owner in place: whatever then differs is changed, and what cannot be
# changed is made anew, while the user waits and with everything lost that was prepared in it.

terraform {
  required_providers {
    coder = {
      source = "coder/coder"
    }
    docker = {
      source = "kreuzwerker/docker"
    }
  }
}

variable "docker_host" {
  description = "Address of the Docker daemon, such as \"ssh://build@host\"; the local one without."
  type        = string
  default     = null
}

provider "docker" {
  host = var.docker_host
}

data "coder_provisioner" "me" {}
data "coder_workspace" "me" {}
data "coder_workspace_owner" "me" {}

# Parameters that are not `mutable` are fixed when the prebuild is made: a claim can only ask for
# what its preset has, so what they lead to never changes. The image and the memory are of that
# kind, because a container cannot change them while it runs.

data "coder_parameter" "image" {
  name         = "image"
  display_name = "Image"
  type         = "string"
  default      = "buildpack-deps:noble-scm"
  order        = 1

  option {
    name  = "Ubuntu"
    value = "buildpack-deps:noble-scm"
  }
  option {
    name  = "Debian"
    value = "buildpack-deps:trixie-scm"
  }
}

data "coder_parameter" "memory" {
  name         = "memory"
  display_name = "Memory (GiB)"
  type         = "number"
  default      = 2
  order        = 2

  validation {
    min = 1
    max = 32
  }
}

# A `mutable` parameter may have another value in the claim. That is cheap as long as nothing but
# the agent's environment depends on it.
data "coder_parameter" "repository" {
  name         = "repository"
  display_name = "Repository"
  description  = "Cloned into the home when the workspace starts for its owner; may be empty."
  type         = "string"
  default      = ""
  mutable      = true
  order        = 3

  validation {
    regex = "^(https://[^\\s]+)?$"
    error = "Use an https:// address, or nothing."
  }
}

# Pools. Each preset with `prebuilds` is kept ready in that number.

data "coder_workspace_preset" "small" {
  name    = "small"
  default = true
  parameters = {
    (data.coder_parameter.image.name)  = "buildpack-deps:noble-scm"
    (data.coder_parameter.memory.name) = "2"
  }
  prebuilds {
    instances = 2
    # Not older than a day: images and packages go stale.
    expiration_policy {
      ttl = 86400
    }
  }
}

data "coder_workspace_preset" "large" {
  name = "large"
  parameters = {
    (data.coder_parameter.image.name)  = "buildpack-deps:noble-scm"
    (data.coder_parameter.memory.name) = "8"
  }
  prebuilds {
    instances = 0
    # Memory costs something: one is ready while people work.
    scheduling {
      timezone = "Europe/Berlin"
      schedule {
        cron      = "* 8-17 * * 1-5"
        instances = 1
      }
    }
  }
}

locals {
  # By the workspace's id, which a claim keeps. Its name and its owner change hands with it.
  name = "berth-${data.coder_workspace.me.id}"
}

# Nothing of the owner is in the agent itself: a change of any argument makes a new one, and what
# runs it would follow.
resource "coder_agent" "main" {
  os   = data.coder_provisioner.me.os
  arch = data.coder_provisioner.me.arch
  dir  = "/root"

  # What takes long and is for nobody in particular belongs here: it runs when the prebuild is made,
  # and again when it is claimed, when there is nothing left to do. While it runs the prebuild is not
  # ready, because it blocks the login.
  startup_script_behavior = "blocking"
  startup_script          = <<-EOT
    set -eu
    command -v make >/dev/null || { apt-get update && apt-get install --yes make; }
  EOT

  metadata {
    key          = "memory"
    display_name = "Memory"
    script       = "cat /sys/fs/cgroup/memory.current"
    interval     = 30
    timeout      = 5
  }
}

# What is for the owner travels in the environment: the agent fetches it anew when it is claimed.
resource "coder_env" "owner" {
  agent_id = coder_agent.main.id
  name     = "GIT_AUTHOR_NAME"
  value    = data.coder_workspace_owner.me.full_name
}

resource "coder_env" "email" {
  agent_id = coder_agent.main.id
  name     = "GIT_AUTHOR_EMAIL"
  value    = data.coder_workspace_owner.me.email
}

resource "coder_env" "repository" {
  agent_id = coder_agent.main.id
  name     = "REPOSITORY"
  value    = data.coder_parameter.repository.value
}

# The text of the script is the same for everybody; what differs is in its environment.
resource "coder_script" "clone" {
  agent_id     = coder_agent.main.id
  display_name = "Clone the repository"
  run_on_start = true
  script       = <<-EOT
    set -eu
    [ -n "$REPOSITORY" ] || exit 0
    dir=$(basename "$REPOSITORY" .git)
    [ -e "$dir" ] || git clone -- "$REPOSITORY" "$dir"
  EOT
}

# Outlives a stop, and goes with the workspace.
resource "docker_volume" "home" {
  name = "${local.name}-home"

  # A volume that is made anew is empty: better an old label than that.
  lifecycle {
    ignore_changes = all
  }

  labels {
    label = "berth.workspace_id"
    value = data.coder_workspace.me.id
  }
}

# What runs: there while the workspace is started. Docker changes hardly anything of a container in
# place, so each of these arguments makes it anew when it changes: name, hostname, image, env,
# entrypoint, labels. None of them may depend on the owner, on the workspace's name, or on a mutable
# parameter. In a claim the agent keeps its token, so `env` stays as it is.
#
# Try it: put data.coder_workspace_owner.me.name into `hostname` and push. Once the first prebuild is
# ready, `berth templates versions` tells that a claim replaces docker_container.workspace because of
# hostname, before anybody claims one.
resource "docker_container" "workspace" {
  count      = data.coder_workspace.me.start_count
  name       = local.name
  hostname   = "workspace"
  image      = data.coder_parameter.image.value
  memory     = data.coder_parameter.memory.value * 1024
  entrypoint = ["sh", "-c", replace(coder_agent.main.init_script, "/localhost|127\\.0\\.0\\.1/", "host.docker.internal")]
  env        = ["CODER_AGENT_TOKEN=${coder_agent.main.token}"]

  host {
    host = "host.docker.internal"
    ip   = "host-gateway"
  }

  volumes {
    container_path = "/root"
    volume_name    = docker_volume.home.name
  }

  labels {
    label = "berth.workspace_id"
    value = data.coder_workspace.me.id
  }
}

resource "coder_metadata" "workspace" {
  count       = data.coder_workspace.me.start_count
  resource_id = docker_container.workspace[0].id
  daily_cost  = data.coder_parameter.memory.value

  item {
    key   = "image"
    value = data.coder_parameter.image.value
  }
}
