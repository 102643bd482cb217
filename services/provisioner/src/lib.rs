//! The provisioner daemon: runs Terraform or an exec provisioner, one process group a job.
