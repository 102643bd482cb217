//! What services share that needs both the database and the bus: opening them, the clock and the
//! ids, the unit of work whose events commit with its rows, the outbox relay, the builder, and the
//! sealing of secrets.

pub mod builder;
mod clock;
mod config;
mod open;
pub mod promotion;
mod relay;
mod single;
#[cfg(test)]
mod tests;
mod vault;
mod work;

pub use clock::{Clock, Ids};
pub use config::{DatabaseConfig, HasStores};
pub use open::Backbone;
pub use relay::Publisher;
pub use single::Single;
pub use vault::{
    EncryptionConfig, KeyCheckError, RekeyError, Rekeyed, SecretError, Vault, rekey, state_place,
    user_secret_place,
};
pub use work::Work;
