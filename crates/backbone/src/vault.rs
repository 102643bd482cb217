//! Secrets on their way into the database and out of it.

mod rekey;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_db::{DbError, Pool, Seal, Stored, encryption_key};
use berth_domain::id::{VersionId, WorkspaceId};
use berth_service_kit::{Context, Latch, Secret};
use berth_vault::{Keyring, Place, Sealed, VaultError};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use self::rekey::{RekeyError, Rekeyed, rekey};
use crate::Clock;

/// What each key seals in `encryption_keys`, so that a service knows its own again.
const PROBE: &[u8] = b"berth";
/// How often the keys are compared again while they are not as they should be.
const RETRY: Duration = Duration::from_millis(500);
/// Compression of states: the higher levels cost more time than they save space.
const ZSTD_LEVEL: i32 = 3;

/// With which keys secrets are sealed in the database.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncryptionConfig {
    /// `NAME:BASE64` of 32 bytes each, separated by commas; the first seals, all open. Only from the
    /// environment (`BERTH_ENCRYPTION__KEYS`). `berth server dbcrypt keygen` makes one.
    pub keys: Secret,
    /// A file with the same, one per line; empty: none. Read at the start.
    pub keys_file: PathBuf,
    /// Stores secrets as they are. What was sealed before still opens if its key is configured.
    pub off: bool,
}

impl EncryptionConfig {
    /// Reads the keys. Without any, `off` must say that this is meant.
    pub fn vault(&self) -> anyhow::Result<Vault> {
        let file = self.keys_file.as_path();
        let text = if file.as_os_str().is_empty() {
            self.keys.expose().to_owned()
        } else {
            anyhow::ensure!(
                self.keys.is_empty(),
                "both encryption.keys and encryption.keys_file are set: keep one"
            );
            std::fs::read_to_string(file)
                .with_context(|| format!("cannot read encryption.keys_file {}", file.display()))?
        };
        let keyring: Keyring = text.parse().context("encryption.keys")?;
        anyhow::ensure!(
            self.off || !keyring.is_empty(),
            "no encryption key: set BERTH_ENCRYPTION__KEYS_FILE to a file that \
             `berth server dbcrypt keygen --file FILE` made (keep a copy: without it provisioner \
             state is lost), or BERTH_ENCRYPTION__OFF=true to store secrets readable"
        );
        Ok(Vault { keyring: Arc::new(keyring), seals: !self.off })
    }
}

/// Why a stored secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The key is not there. An operator can put it back; nothing is lost.
    #[error("the key is missing")]
    Key(#[source] VaultError),
    /// This value is damaged, and stays so.
    #[error("the stored value is damaged")]
    Damaged(#[source] anyhow::Error),
}

impl From<VaultError> for SecretError {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Tampered(_) => Self::Damaged(error.into()),
            VaultError::NoKey | VaultError::UnknownKey(_) | VaultError::Random => Self::Key(error),
        }
    }
}

/// Seals secrets before they are stored and opens them after they are read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vault {
    keyring: Arc<Keyring>,
    /// Whether new values are sealed.
    seals: bool,
}

impl Vault {
    /// Seals a value for its place; where encryption is off, it stays as it is.
    pub fn seal(&self, place: Place<'_>, value: Vec<u8>) -> Result<Stored, VaultError> {
        if !self.seals {
            return Ok(Stored { bytes: value, seal: None });
        }
        let Sealed { key_id, data_key, value } = self.keyring.seal(place, &value)?;
        Ok(Stored { bytes: value, seal: Some(Seal { key_id, data_key }) })
    }

    /// The value that was stored at this place.
    pub fn open(&self, place: Place<'_>, stored: Stored) -> Result<Vec<u8>, VaultError> {
        let Stored { bytes, seal } = stored;
        let Some(Seal { key_id, data_key }) = seal else { return Ok(bytes) };
        self.keyring.open(place, &Sealed { key_id, data_key, value: bytes })
    }

    /// The seal of the same value under the current key; `None` where encryption is off.
    pub fn rotate(&self, place: Place<'_>, seal: &Seal) -> Result<Option<Seal>, VaultError> {
        if !self.seals {
            return Ok(None);
        }
        let (key_id, data_key) = self.keyring.rotate(place, &seal.key_id, &seal.data_key)?;
        Ok(Some(Seal { key_id, data_key }))
    }

    /// The name of the key that seals; `None` where encryption is off.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        self.keyring.current().filter(|_| self.seals)
    }

    /// Compresses and seals the state that a build of this workspace left. It is bound to the
    /// workspace, not to the build: a build that leaves none takes over the one before as it is.
    ///
    /// # Panics
    ///
    /// Never: compressing memory into memory does not fail.
    pub fn seal_state(&self, workspace: WorkspaceId, state: &[u8]) -> Result<Stored, VaultError> {
        let packed = zstd::encode_all(state, ZSTD_LEVEL)
            .expect("compressing memory into memory does not fail");
        self.seal(state_place(&workspace.to_string()), packed)
    }

    /// The state that [`Vault::seal_state`] sealed.
    pub fn open_state(
        &self,
        workspace: WorkspaceId,
        stored: Stored,
    ) -> Result<Vec<u8>, SecretError> {
        let packed = self.open(state_place(&workspace.to_string()), stored)?;
        zstd::decode_all(packed.as_slice()).map_err(|error| SecretError::Damaged(error.into()))
    }

    /// Seals the value of a template variable that comes with this version. A later version that keeps
    /// the value has it as it is.
    pub fn seal_variable(
        &self,
        version: VersionId,
        name: &str,
        value: String,
    ) -> Result<Stored, VaultError> {
        self.seal(variable_place(&variable_row(version, name)), value.into_bytes())
    }

    /// The value that [`Vault::seal_variable`] sealed; `given_in` is the version that it came with.
    pub fn open_variable(
        &self,
        given_in: VersionId,
        name: &str,
        stored: Stored,
    ) -> Result<String, SecretError> {
        let bytes = self.open(variable_place(&variable_row(given_in, name)), stored)?;
        String::from_utf8(bytes).map_err(|error| SecretError::Damaged(error.utf8_error().into()))
    }

    /// Compares the keys with those that the database knows, again and again until they fit; the
    /// latch says what does not. Runs as a task of `ctx`.
    pub fn watch<C>(&self, ctx: &Context<C>, db: Pool, clock: Clock) {
        let (vault, latch) = (self.clone(), ctx.health.latch("encryption"));
        ctx.spawn("encryption", watch(vault, db, clock, latch, ctx.shutdown.clone()));
    }

    /// Compares the keys with those that the database knows, and makes the current one known.
    pub async fn check(&self, db: &Pool, clock: &Clock) -> Result<(), KeyCheckError> {
        if let Some(current) = self.current() {
            let sealed = self.keyring.seal(probe_place(current), PROBE)?;
            let row = (current, sealed.data_key.as_slice(), sealed.value.as_slice());
            encryption_key::put(db, row, clock.now()).await?;
        }
        for key in encryption_key::list(db).await?.into_iter().filter(|it| !it.is_retired) {
            self.open(probe_place(&key.id), key.probe)?;
        }
        Ok(())
    }
}

/// Why the configured keys do not fit the database.
#[derive(Debug, thiserror::Error)]
pub enum KeyCheckError {
    /// The database.
    #[error("read the encryption keys' names")]
    Db(#[from] DbError),
    /// A key that seals values is missing or is another one.
    #[error("the encryption keys do not fit this database")]
    Key(#[from] VaultError),
}

/// Where a workspace's states are.
#[must_use]
pub fn state_place(workspace: &str) -> Place<'_> {
    Place { table: "workspace_build_states", column: "state", row: workspace }
}

/// Where a user's secret is.
#[must_use]
pub fn user_secret_place(id: &str) -> Place<'_> {
    Place { table: "user_secrets", column: "value", row: id }
}

/// Where the value of a template variable is, for the row that [`variable_row`] names.
fn variable_place(row: &str) -> Place<'_> {
    Place { table: "template_version_variables", column: "value", row }
}

/// The version that a value came with, and the variable's name.
fn variable_row(given_in: VersionId, name: &str) -> String {
    format!("{given_in}/{name}")
}

fn probe_place(key_id: &str) -> Place<'_> {
    Place { table: "encryption_keys", column: "probe", row: key_id }
}

async fn watch(vault: Vault, db: Pool, clock: Clock, latch: Latch, stop: CancellationToken) {
    loop {
        match vault.check(&db, &clock).await {
            Ok(()) => break latch.set_ready(),
            Err(error) => latch.set_failed(format!("{:#}", anyhow::Error::from(error))),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
    stop.cancelled().await;
}

#[cfg(test)]
mod tests;
