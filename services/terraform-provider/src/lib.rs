//! The Terraform provider `coder/coder` (plugin protocol 6), for machines without a registry.
//!
//! [`serve`] is what the binary runs when Terraform or OpenTofu starts it as a plugin;
//! [`mirror`] writes the filesystem mirror through which they find it.
//!
//! From the outside in: `serve` speaks go-plugin's handshake, `provider` answers the plugin
//! protocol, `resource` and `data_source` hold one table each with a module per type, `schema`
//! is the language of those tables, `plan` turns configuration and state into what is planned,
//! and `value` is Terraform's wire format of values.

mod check;
mod cron;
mod data_source;
mod diagnostic;
mod env;
mod identity;
mod mirror;
mod parameter;
mod plan;
mod platform;
mod plugin;
mod provider;
mod resource;
mod schema;
mod serve;
mod value;
mod wire;

pub use mirror::mirror;
pub use serve::serve;

/// The version the provider presents itself as. Templates constrain `coder/coder` to a range of
/// the public provider's versions, so this follows those, not Berth's own version.
pub const VERSION: &str = "2.13.0";
