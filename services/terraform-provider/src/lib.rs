//! The coder/coder Terraform provider, plugin protocol 6.
