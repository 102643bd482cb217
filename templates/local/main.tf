# A workspace that is a folder on this machine, with an agent as an ordinary process. `berth up`
# pushes this template; it needs nothing but Terraform. Read it as an example of a template whose
# prebuilds can be claimed without anything being made anew.

terraform {
  required_providers {
    coder = {
      source = "coder/coder"
    }
  }
}

variable "local_root" {
  description = "Folder that holds the workspaces' folders."
  type        = string
  default     = "~/.local/share/berth/workspaces"
}

variable "berth" {
  description = "The berth program that runs as the agent."
  type        = string
  default     = "berth"
}

data "coder_provisioner" "me" {}
data "coder_workspace" "me" {}
data "coder_workspace_owner" "me" {}

# What a user chooses. `mutable` ones may change in any later build, a claim included; the others
# are fixed when the prebuild is made, so a claim can only ask for what the preset has.

data "coder_parameter" "greeting" {
  name         = "greeting"
  display_name = "Greeting"
  description  = "What the workspace says to its owner."
  type         = "string"
  default      = "Hello"
  mutable      = true
  order        = 1

  validation {
    regex = "^[^\\n]{1,60}$"
    error = "Use one line of 1 to 60 characters."
  }
}

data "coder_parameter" "size" {
  name         = "size"
  display_name = "Size"
  description  = "How big the workspace is. It makes no difference to a folder."
  type         = "string"
  default      = "small"
  order        = 2

  option {
    name  = "Small"
    value = "small"
  }
  option {
    name  = "Large"
    value = "large"
  }
}

data "coder_parameter" "history" {
  name         = "history"
  display_name = "History"
  description  = "How many greetings are remembered."
  type         = "number"
  default      = 3
  mutable      = true
  order        = 3

  validation {
    min = 1
    max = 100
  }
}

# Pools. A preset names values; with `prebuilds` it is kept ready in that number.

data "coder_workspace_preset" "small" {
  name    = "small"
  default = true
  parameters = {
    (data.coder_parameter.greeting.name) = "Hello"
    (data.coder_parameter.size.name)     = "small"
    (data.coder_parameter.history.name)  = "3"
  }
  prebuilds {
    instances = 2
  }
}

data "coder_workspace_preset" "large" {
  name = "large"
  parameters = {
    (data.coder_parameter.greeting.name) = "Good day"
    (data.coder_parameter.size.name)     = "large"
    (data.coder_parameter.history.name)  = "10"
  }
  prebuilds {
    instances = 1
  }
}

locals {
  # By the id, which a claim keeps. The name and the owner change hands with it: whatever depended
  # on them would be made anew while the user waits.
  dir = "${pathexpand(var.local_root)}/${data.coder_workspace.me.id}"
}

# A change of the agent makes a new one, with another id, in place of it. It would still keep its
# token in a claim, but templates with several agents could not tell which is which: so nothing of
# the owner is in here. The `coder_env`s below carry that.
resource "coder_agent" "main" {
  os   = data.coder_provisioner.me.os
  arch = data.coder_provisioner.me.arch
  env  = { WORKSPACE_DIR = local.dir }

  startup_script_behavior = "blocking"
  startup_script          = <<-EOT
    set -eu
    cd "$WORKSPACE_DIR"
    printf '%s, %s!\n' "$GREETING" "$WORKSPACE_OWNER" | tee welcome.txt
    cat welcome.txt >> greetings.txt
  EOT

  metadata {
    key          = "files"
    display_name = "Files"
    script       = "ls \"$WORKSPACE_DIR\" | wc -l"
    interval     = 30
    timeout      = 5
  }
}

# What a claim changes. The agent fetches it again once the claim build is done, and runs its scripts
# for the new owner. Values travel in the environment, not in a script's text: nothing in them is
# shell.
resource "coder_env" "owner" {
  agent_id = coder_agent.main.id
  name     = "WORKSPACE_OWNER"
  value    = data.coder_workspace_owner.me.name
}

resource "coder_env" "greeting" {
  agent_id = coder_agent.main.id
  name     = "GREETING"
  value    = data.coder_parameter.greeting.value
}

resource "coder_env" "history" {
  agent_id = coder_agent.main.id
  name     = "HISTORY"
  value    = data.coder_parameter.history.value
}

resource "coder_script" "tidy" {
  agent_id     = coder_agent.main.id
  display_name = "Forget old greetings"
  run_on_start = true
  script       = <<-EOT
    cd "$WORKSPACE_DIR" || exit 1
    if [ -e greetings.txt ]; then
      tail -n "$HISTORY" greetings.txt > greetings.new && mv greetings.new greetings.txt
    fi
  EOT
}

resource "coder_app" "welcome" {
  agent_id     = coder_agent.main.id
  slug         = "welcome"
  display_name = "Welcome"
  command      = "cat '${local.dir}/welcome.txt'"
}

# The folder outlives a stop and goes with the workspace.
resource "terraform_data" "folder" {
  input = { dir = local.dir }

  provisioner "local-exec" {
    command     = "mkdir -p \"$DIR\""
    environment = { DIR = self.input.dir }
  }

  provisioner "local-exec" {
    when        = destroy
    command     = "rm -rf \"$DIR\""
    environment = { DIR = self.input.dir }
  }
}

# What runs: there while the workspace is started, and the resource that the agent belongs to.
#
# A change of `input` only updates it, but what is in `triggers_replace` makes it anew, which
# restarts the agent: so nothing of the owner may get there. The environment of a provisioner is
# free: it is looked at when the resource is created and never again.
resource "terraform_data" "agent" {
  count = data.coder_workspace.me.start_count
  input = {
    berth = var.berth
    dir   = terraform_data.folder.output.dir
  }

  provisioner "local-exec" {
    command = "\"$BERTH\" agent --detach --dir \"$DIR\""
    environment = {
      BERTH             = self.input.berth
      DIR               = self.input.dir
      BERTH_AGENT_URL   = data.coder_workspace.me.access_url
      BERTH_AGENT_TOKEN = coder_agent.main.token
    }
  }

  # On stop and on delete. It may only use `self`; the berth of back then may have moved since.
  provisioner "local-exec" {
    when    = destroy
    command = "command -v \"$BERTH\" >/dev/null || BERTH=berth; \"$BERTH\" agent --stop --dir \"$DIR\""
    environment = {
      BERTH = self.input.berth
      DIR   = self.input.dir
    }
  }
}

resource "coder_metadata" "folder" {
  resource_id = terraform_data.folder.id

  item {
    key   = "folder"
    value = local.dir
  }
  item {
    key   = "size"
    value = data.coder_parameter.size.value
  }
}
