//! Bringing every stored secret to the current key, or to none.

use berth_db::build_state::{self, KeyedState};
use berth_db::{DbError, Pool, Stored, encryption_key, user_secret, variable};
use berth_domain::id::{BuildId, VersionId};
use berth_vault::{Place, VaultError};
use uuid::Uuid;

use super::{SecretError, Vault, state_place, user_secret_place, variable_place, variable_row};
use crate::Clock;

/// Values that are read at once. States may have megabytes.
const BATCH: i64 = 50;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rekeyed {
    /// Values that were changed.
    pub values: u64,
    /// Names of keys by which nothing is sealed any more.
    pub retired: Vec<String>,
}

/// Why it stopped. What was done until then stays, and doing it again goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum RekeyError {
    /// The database.
    #[error("change the keys of stored values")]
    Db(#[from] DbError),
    /// A value that does not open. It was left as it is.
    #[error("the state of build {0}")]
    State(BuildId, #[source] SecretError),
    /// The same of a user's secret.
    #[error("the user secret {0}")]
    UserSecret(Uuid, #[source] SecretError),
    /// The same of a template variable's value.
    #[error("the value of variable {1:?} of template version {0}")]
    Variable(VersionId, String, #[source] SecretError),
}

/// Brings all states, users' secrets and values of template variables to the current key of the vault:
/// those of other keys are sealed by it (states, which are large, get their data key encrypted anew),
/// readable ones are sealed, and where the vault does not seal all are opened.
/// Services may run meanwhile if they have the same keys.
pub async fn rekey(db: &Pool, vault: &Vault, clock: &Clock) -> Result<Rekeyed, RekeyError> {
    let mut done = Rekeyed::default();
    let current = vault.current();
    loop {
        let before = done.values;
        let mut after = BuildId(Uuid::nil());
        loop {
            let page = (after, BATCH);
            let states =
                build_state::list_keyed_otherwise(db, current, page, current.is_none()).await?;
            let Some(last) = states.last() else { break };
            after = last.build_id;
            for state in states {
                done.values += u64::from(change(db, vault, state).await?);
            }
        }
        done.values += user_secrets(db, vault).await?;
        done.values += variables(db, vault).await?;
        // Once more from the beginning, until nothing came between.
        if done.values == before {
            break;
        }
    }
    done.retired = encryption_key::retire_others(db, current, clock.now()).await?;
    Ok(done)
}

/// Brings the secrets of users to the current key; gives how many. They are small: each is sealed
/// anew.
async fn user_secrets(db: &Pool, vault: &Vault) -> Result<u64, RekeyError> {
    let (mut after, mut changed) = (Uuid::nil(), 0);
    loop {
        let page = (after, BATCH);
        let stored = user_secret::list_keyed_otherwise(db, vault.current(), page).await?;
        let Some((last, _)) = stored.last() else { return Ok(changed) };
        after = *last;
        for (id, old) in stored {
            let text = id.to_string();
            let new = sealed_anew(vault, user_secret_place(&text), &old);
            let new = new.map_err(|error| RekeyError::UserSecret(id, error.into()))?;
            changed += u64::from(user_secret::replace(db, id, &old, &new).await?);
        }
    }
}

/// The same for the values of template variables.
async fn variables(db: &Pool, vault: &Vault) -> Result<u64, RekeyError> {
    let (mut after, mut changed) = ((VersionId(Uuid::nil()), String::new()), 0);
    loop {
        let from = (after.0, after.1.as_str());
        let stored = variable::list_keyed_otherwise(db, vault.current(), from, BATCH).await?;
        let Some(last) = stored.last() else { return Ok(changed) };
        after = (last.version, last.name.clone());
        for old in stored {
            let row = variable_row(old.given_in, &old.name);
            let new = sealed_anew(vault, variable_place(&row), &old.value).map_err(|error| {
                RekeyError::Variable(old.version, old.name.clone(), error.into())
            })?;
            changed += u64::from(variable::replace(db, &old, &new).await?);
        }
    }
}

fn sealed_anew(vault: &Vault, place: Place<'_>, old: &Stored) -> Result<Stored, VaultError> {
    vault.seal(place, vault.open(place, old.clone())?)
}

/// Changes one; `false`: somebody stored another meanwhile.
async fn change(db: &Pool, vault: &Vault, state: KeyedState) -> Result<bool, RekeyError> {
    let build = state.build_id;
    let failed = |error| RekeyError::State(build, error);
    let workspace = state.workspace_id.to_string();
    let place = state_place(&workspace);
    if let Some(seal) = &state.seal
        && let Some(new) = vault.rotate(place, seal).map_err(|it| failed(it.into()))?
    {
        return Ok(build_state::reseal(db, build, seal, &new).await?);
    }
    // Not sealed yet, or sealed no longer: the bytes themselves change.
    let bytes = state.bytes.unwrap_or_default();
    let old = state.seal;
    let plain =
        vault.open(place, Stored { bytes, seal: old.clone() }).map_err(|it| failed(it.into()))?;
    let new = vault.seal(place, plain).map_err(|it| failed(it.into()))?;
    Ok(build_state::replace(db, build, old.as_ref(), &new).await?)
}
