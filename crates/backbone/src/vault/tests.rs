use berth_domain::id::{BuildId, WorkspaceId};
use berth_testkit::TestDatabase;
use uuid::Uuid;

use super::*;

const WORKSPACE: WorkspaceId = WorkspaceId(Uuid::from_u128(1));
const OTHER: WorkspaceId = WorkspaceId(Uuid::from_u128(2));
const BUILD: BuildId = BuildId(Uuid::from_u128(3));
const STATE: &[u8] = br#"{"password":"correct horse battery staple"}"#;

fn vault(keys: &[&str]) -> Vault {
    EncryptionConfig { keys: keys.join(",").into(), ..EncryptionConfig::default() }.vault().unwrap()
}

fn off(keys: &[&str]) -> Vault {
    EncryptionConfig { keys: keys.join(",").into(), off: true, ..EncryptionConfig::default() }
        .vault()
        .unwrap()
}

fn key(name: &str) -> String {
    berth_vault::new_key(name).unwrap()
}

struct World {
    database: TestDatabase,
    db: Pool,
}

/// A database with one build of one workspace.
async fn given_build() -> World {
    let database = TestDatabase::create().await;
    // States hang on builds alone here, so that the test is about them and nothing else.
    database
        .rows(&format!(
            "set session_replication_role = replica;
             insert into workspace_builds
                 (id, workspace_id, build_number, transition, stage, template_version_id, job_id,
                  initiator_id, created_at, updated_at)
             select '{BUILD}', '{WORKSPACE}', 1, 'start', 'none', gen_random_uuid(),
                    gen_random_uuid(), gen_random_uuid(), now(), now();"
        ))
        .await;
    let db = berth_db::connect(&database.url, 2, "test").unwrap();
    World { database, db }
}

impl World {
    async fn store(&self, vault: &Vault) {
        let stored = vault.seal_state(WORKSPACE, STATE).unwrap();
        berth_db::build_state::insert(&self.db, BUILD, &stored).await.unwrap();
        vault.check(&self.db, &Clock::default()).await.unwrap();
    }

    async fn stored(&self) -> Stored {
        berth_db::build_state::find(&self.db, BUILD).await.unwrap().unwrap()
    }

    async fn rekey(&self, vault: &Vault) -> Result<Rekeyed, RekeyError> {
        rekey(&self.db, vault, &Clock::default()).await
    }
}

#[tokio::test]
async fn a_state_opens_for_its_workspace_alone() {
    let world = given_build().await;
    let vault = vault(&[&key("a")]);
    world.store(&vault).await;
    let stored = world.stored().await;
    assert_eq!(vault.open_state(WORKSPACE, stored.clone()).unwrap(), STATE);
    assert!(matches!(vault.open_state(OTHER, stored), Err(SecretError::Damaged(_))));
}

#[tokio::test]
async fn keys_rotate_without_the_values_changing_until_the_old_one_can_go() {
    let world = given_build().await;
    let (old, new) = (key("old"), key("new"));
    world.store(&vault(&[&old])).await;
    let before = world.stored().await;

    let both = vault(&[&new, &old]);
    both.check(&world.db, &Clock::default()).await.unwrap();
    let done = world.rekey(&both).await.unwrap();
    assert_eq!(done, Rekeyed { values: 1, retired: vec!["old".to_owned()] });
    assert_eq!(world.rekey(&both).await.unwrap(), Rekeyed::default());

    let after = world.stored().await;
    assert_eq!(after.bytes, before.bytes);
    let alone = vault(&[&new]);
    alone.check(&world.db, &Clock::default()).await.unwrap();
    assert_eq!(alone.open_state(WORKSPACE, after).unwrap(), STATE);
}

#[tokio::test]
async fn values_are_sealed_later_and_opened_again_as_encryption_goes_on_and_off() {
    let world = given_build().await;
    let key = key("a");
    let plain = off(&[]);
    world.store(&plain).await;
    assert_eq!(world.stored().await.seal, None);

    let sealing = vault(&[&key]);
    sealing.check(&world.db, &Clock::default()).await.unwrap();
    assert_eq!(world.rekey(&sealing).await.unwrap().values, 1);
    assert_eq!(sealing.open_state(WORKSPACE, world.stored().await).unwrap(), STATE);
    assert_eq!(world.stored().await.key_id(), Some("a"));

    let opening = off(&[&key]);
    let done = world.rekey(&opening).await.unwrap();
    assert_eq!(done, Rekeyed { values: 1, retired: vec!["a".to_owned()] });
    plain.check(&world.db, &Clock::default()).await.unwrap();
    assert_eq!(plain.open_state(WORKSPACE, world.stored().await).unwrap(), STATE);
}

#[tokio::test]
async fn a_missing_or_another_key_is_noticed_before_anything_is_opened() {
    let world = given_build().await;
    world.store(&vault(&[&key("a")])).await;
    let clock = Clock::default();
    for (wrong, reason) in [
        (vault(&[&key("a")]), "does not open"),
        (vault(&[&key("b")]), "is not in encryption.keys"),
        (off(&[]), "is not in encryption.keys"),
    ] {
        let error = wrong.check(&world.db, &clock).await.unwrap_err();
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains(reason), "{error}");
        assert!(wrong.open_state(WORKSPACE, world.stored().await).is_err());
        assert!(world.rekey(&wrong).await.is_err() || wrong.current() == Some("a"));
    }
}

#[tokio::test]
async fn nothing_of_a_state_shows_in_the_database() {
    let world = given_build().await;
    world.store(&vault(&[&key("a")])).await;
    let hex =
        world.database.rows("select encode(state, 'escape') from workspace_build_states").await;
    let hex = format!("{hex:?}");
    assert!(!hex.contains("horse"), "{hex}");
}

#[test]
fn without_keys_encryption_must_be_put_off_on_purpose() {
    let error = EncryptionConfig::default().vault().unwrap_err().to_string();
    assert!(error.contains("dbcrypt keygen"), "{error}");
    let dir = std::path::Path::new("/nonexistent");
    let both = EncryptionConfig {
        keys: key("a").into(),
        keys_file: dir.join("keys"),
        ..EncryptionConfig::default()
    };
    assert!(both.vault().unwrap_err().to_string().contains("keep one"));
    let missing = EncryptionConfig { keys_file: dir.join("keys"), ..EncryptionConfig::default() };
    assert!(missing.vault().unwrap_err().to_string().contains("cannot read"));
}
