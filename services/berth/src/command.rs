//! The commands that talk to the API.

pub(crate) mod claims;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod prebuild;
pub(crate) mod promotion;
pub(crate) mod provisioner;
pub(crate) mod provisioner_certificate;
pub(crate) mod provisioner_key;
pub(crate) mod server;
pub(crate) mod setup;
pub(crate) mod shell;
pub(crate) mod template;
pub(crate) mod watch;
pub(crate) mod workspace;
