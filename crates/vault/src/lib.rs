//! Values that nobody may read in the database: sealed before they are stored, opened after they
//! are read, with AES-256-GCM.
//!
//! Envelope encryption: each value is encrypted by a data key of its own, and the data key by one
//! of the installation's keys. Rotating a key rewrites the data keys (60 bytes each), never the
//! values, which may be megabytes.
//!
//! A value is bound to its [`Place`]: what was sealed for one row opens for no other, so whoever
//! can write to the database cannot hand one person another's secret.
//!
//! ```
//! use berth_vault::{Keyring, Place};
//!
//! let text = berth_vault::new_key("2026-11")?;
//! let keyring: Keyring = text.parse()?;
//! let place = Place { table: "user_secrets", column: "value", row: "0197-…" };
//! let sealed = keyring.seal(place, b"hunter2")?;
//! assert_eq!(keyring.open(place, &sealed)?, b"hunter2");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod keyring;

pub use crate::keyring::{KeyError, Keyring, Place, Sealed, VaultError, new_key};
