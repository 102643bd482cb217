# A workspace that is a pod, kept by a deployment, with a volume for its home. Written for the public
# kubernetes provider.
#
# Read it as an example of a claim that changes things in place, and of one trap: what Terraform
# calls a change in place may still restart what runs.

terraform {
  required_providers {
    coder = {
      source = "coder/coder"
    }
    kubernetes = {
      source = "hashicorp/kubernetes"
    }
  }
}

variable "namespace" {
  description = "Where the workspaces live; it has to be there."
  type        = string
  default     = "berth-workspaces"
}

variable "use_kubeconfig" {
  description = "Use ~/.kube/config of the provisioner, not the service account it runs under."
  type        = bool
  default     = false
}

provider "kubernetes" {
  config_path = var.use_kubeconfig ? "~/.kube/config" : null
}

data "coder_workspace" "me" {}
data "coder_workspace_owner" "me" {}

# Fixed when the prebuild is made, because the pod has them in its specification.

data "coder_parameter" "cpu" {
  name         = "cpu"
  display_name = "CPUs"
  type         = "number"
  default      = 2
  order        = 1

  option {
    name  = "2"
    value = 2
  }
  option {
    name  = "8"
    value = 8
  }
}

# A volume claim can grow and never shrink. `monotonic` says so to users, before Terraform would have
# to make it anew.
data "coder_parameter" "home_size" {
  name         = "home_size"
  display_name = "Home (GiB)"
  type         = "number"
  default      = 10
  mutable      = true
  order        = 2

  validation {
    min       = 1
    max       = 200
    monotonic = "increasing"
  }
}

# For the agent's environment alone, so it may change at any time.
data "coder_parameter" "editor" {
  name         = "editor"
  display_name = "Editor"
  type         = "string"
  default      = "vi"
  mutable      = true
  order        = 3
}

# Pools.

data "coder_workspace_preset" "standard" {
  name    = "standard"
  default = true
  parameters = {
    (data.coder_parameter.cpu.name)       = "2"
    (data.coder_parameter.home_size.name) = "10"
  }
  prebuilds {
    instances = 1
    expiration_policy {
      ttl = 172800
    }
    # Monday to Friday more, and most of all in the morning. Schedules must not overlap.
    scheduling {
      timezone = "Europe/Berlin"
      schedule {
        cron      = "* 7-10 * * 1-5"
        instances = 6
      }
      schedule {
        cron      = "* 11-18 * * 1-5"
        instances = 3
      }
    }
  }
}

data "coder_workspace_preset" "large" {
  name = "large"
  parameters = {
    (data.coder_parameter.cpu.name)       = "8"
    (data.coder_parameter.home_size.name) = "50"
  }
  prebuilds {
    instances = 1
  }
}

locals {
  # By the workspace's id, which a claim keeps.
  name = "berth-${data.coder_workspace.me.id}"
  labels = {
    "app.kubernetes.io/name"     = "berth-workspace"
    "app.kubernetes.io/instance" = local.name
  }
}

# Nothing of the owner is in here: a changed agent is a new agent.
resource "coder_agent" "main" {
  os   = "linux"
  arch = "amd64"
  dir  = "/home/dev"
}

resource "coder_env" "owner" {
  agent_id = coder_agent.main.id
  name     = "WORKSPACE_OWNER"
  value    = data.coder_workspace_owner.me.name
}

resource "coder_env" "editor" {
  agent_id = coder_agent.main.id
  name     = "EDITOR"
  value    = data.coder_parameter.editor.value
}

resource "coder_script" "welcome" {
  agent_id           = coder_agent.main.id
  display_name       = "Welcome"
  run_on_start       = true
  start_blocks_login = true
  script             = "printf 'This is the workspace of %s.\\n' \"$WORKSPACE_OWNER\" > ~/welcome.txt"
}

# Outlives a stop. The name and the access modes of a claim cannot change: they would make it anew,
# and the home with it. The size grows in place.
resource "kubernetes_persistent_volume_claim_v1" "home" {
  metadata {
    name      = "${local.name}-home"
    namespace = var.namespace
    labels    = local.labels
  }
  wait_until_bound = false
  spec {
    access_modes = ["ReadWriteOnce"]
    resources {
      requests = {
        storage = "${data.coder_parameter.home_size.value}Gi"
      }
    }
  }
}

# What runs. The deployment's own labels and annotations change in place, so they may name the owner:
# whoever looks at the cluster sees whose workspace it is, right after the claim.
#
# The trap is `template`: Terraform changes it in place too, and no rehearsal speaks of a
# replacement, but Kubernetes answers with a new pod. So nothing below `template` may depend on the
# owner, on the workspace's name or on a mutable parameter. `selector` and `name` make the whole
# deployment anew.
resource "kubernetes_deployment_v1" "workspace" {
  count            = data.coder_workspace.me.start_count
  wait_for_rollout = false

  metadata {
    name      = local.name
    namespace = var.namespace
    labels    = local.labels
    annotations = {
      "berth/owner"     = data.coder_workspace_owner.me.name
      "berth/workspace" = data.coder_workspace.me.name
    }
  }

  spec {
    replicas = 1
    selector {
      match_labels = local.labels
    }
    # Two pods cannot have the volume at the same time.
    strategy {
      type = "Recreate"
    }
    template {
      metadata {
        labels = local.labels
      }
      spec {
        hostname = "workspace"
        security_context {
          run_as_user     = 1000
          fs_group        = 1000
          run_as_non_root = true
        }
        container {
          name    = "dev"
          image   = "buildpack-deps:noble"
          command = ["sh", "-c", coder_agent.main.init_script]
          # In a claim the agent keeps its token, so this stays as it is.
          env {
            name  = "CODER_AGENT_TOKEN"
            value = coder_agent.main.token
          }
          env {
            name  = "HOME"
            value = "/home/dev"
          }
          resources {
            requests = {
              cpu    = "250m"
              memory = "512Mi"
            }
            limits = {
              cpu    = data.coder_parameter.cpu.value
              memory = "${data.coder_parameter.cpu.value * 2}Gi"
            }
          }
          volume_mount {
            name       = "home"
            mount_path = "/home/dev"
          }
        }
        volume {
          name = "home"
          persistent_volume_claim {
            claim_name = kubernetes_persistent_volume_claim_v1.home.metadata[0].name
          }
        }
      }
    }
  }
}

resource "coder_metadata" "workspace" {
  count       = data.coder_workspace.me.start_count
  resource_id = kubernetes_deployment_v1.workspace[0].id
  daily_cost  = data.coder_parameter.cpu.value
}
