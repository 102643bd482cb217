use berth_db::user_secret::{self, UserSecret};
use berth_db::variable::{self, NewValue};
use berth_db::version::NewVersion;
use berth_domain::build::Tags;
use berth_domain::id::{
    BuildId, FileId, JobId, OrganizationId, TemplateId, UserId, VersionId, WorkspaceId,
};
use berth_domain::state::ProvisionerType;
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

const VERSION: VersionId = VersionId(Uuid::from_u128(10));
const LATER: VersionId = VersionId(Uuid::from_u128(11));
const TOKEN: &str = "opal-7f3a-variable";

/// A database with a version that came with the value of a variable, and a later one that keeps it.
async fn given_variable(vault: &Vault) -> World {
    let database = TestDatabase::create().await;
    database
        .rows(&format!(
            "do $$ begin
                 execute format('alter database %I set session_replication_role = replica',
                                current_database());
             end $$;
             set session_replication_role = replica;
             insert into templates (id, organization_id, name, provisioner, active_version_id,
                                    created_by, created_at, updated_at)
             select '{WORKSPACE}', '{OTHER}', 'x', 'terraform', '{VERSION}', '{OTHER}', now(), now();"
        ))
        .await;
    let db = berth_db::connect(&database.url, 2, "test").unwrap();
    vault.check(&db, &Clock::default()).await.unwrap();
    for (id, given) in [(VERSION, true), (LATER, false)] {
        let value = vault.seal_variable(id, "token", TOKEN.to_owned()).unwrap();
        let values = vec![NewValue { name: "token".to_owned(), value }];
        let new = NewVersion {
            id,
            job_id: JobId(Uuid::from_u128(id.0.as_u128() + 100)),
            organization_id: OrganizationId(OTHER.0),
            template_id: Some(TemplateId(WORKSPACE.0)),
            name: id.to_string(),
            message: String::new(),
            provisioner: ProvisionerType::Terraform,
            file_id: FileId(OTHER.0),
            variables: if given { values } else { Vec::new() },
            tags: Tags::default(),
            created_by: UserId(OTHER.0),
            trace: serde_json::Value::Null,
            now: Clock::default().now(),
        };
        berth_db::version::insert(&db, &new).await.unwrap();
    }
    World { database, db }
}

/// What a job of either version is given, and by which key it is sealed.
async fn variables(
    world: &World,
    vault: &Vault,
) -> Result<Vec<(String, Option<String>)>, SecretError> {
    let mut found = Vec::new();
    for version in [VERSION, LATER] {
        for it in variable::list_values(&world.db, version).await.unwrap() {
            let key = it.value.key_id().map(ToOwned::to_owned);
            found.push((vault.open_variable(it.given_in, &it.name, it.value)?, key));
        }
    }
    Ok(found)
}

#[tokio::test]
async fn values_of_template_variables_are_sealed_from_the_push_on_and_rotate() {
    let (old, new) = (key("old"), key("new"));
    let world = given_variable(&vault(&[&old])).await;
    let of = |key: Option<&str>| vec![(TOKEN.to_owned(), key.map(ToOwned::to_owned)); 2];
    assert_eq!(variables(&world, &vault(&[&old])).await.unwrap(), of(Some("old")));
    assert_eq!(world.database.tables_with(TOKEN).await, Vec::<String>::new());

    let both = vault(&[&new, &old]);
    both.check(&world.db, &Clock::default()).await.unwrap();
    let done = world.rekey(&both).await.unwrap();
    assert_eq!(done, Rekeyed { values: 2, retired: vec!["old".to_owned()] });
    assert_eq!(world.rekey(&both).await.unwrap(), Rekeyed::default());
    let alone = vault(&[&new]);
    assert_eq!(variables(&world, &alone).await.unwrap(), of(Some("new")));
    let missing = variables(&world, &vault(&[&old])).await;
    assert!(matches!(missing, Err(SecretError::Key(_))), "{missing:?}");

    let opening = off(&[&new]);
    assert_eq!(world.rekey(&opening).await.unwrap().values, 2);
    assert_eq!(variables(&world, &off(&[])).await.unwrap(), of(None));
    assert_eq!(world.database.tables_with(TOKEN).await, ["template_version_variables"]);
    assert_eq!(world.rekey(&alone).await.unwrap().values, 2);
    assert_eq!(variables(&world, &alone).await.unwrap(), of(Some("new")));
    assert_eq!(world.database.tables_with(TOKEN).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_variables_value_opens_for_its_own_name_and_version_alone() {
    let vault = vault(&[&key("a")]);
    let stored = vault.seal_variable(VERSION, "token", TOKEN.to_owned()).unwrap();
    for (version, name) in [(LATER, "token"), (VERSION, "shown")] {
        let moved = vault.open_variable(version, name, stored.clone());
        assert!(matches!(moved, Err(SecretError::Damaged(_))), "{version} {name}");
    }
}

/// Users' secrets under two keys, then under the newer one alone.
#[tokio::test]
async fn users_secrets_rotate_until_the_old_key_can_go() {
    let (old, new) = (key("old"), key("new"));
    let world = given_variable(&off(&[])).await;
    let (first, id) = (vault(&[&old]), Uuid::from_u128(20));
    first.check(&world.db, &Clock::default()).await.unwrap();
    world.rekey(&first).await.unwrap();
    let (row, now) = (id.to_string(), Clock::default().now());
    let stored = first.seal(user_secret_place(&row), TOKEN.into()).unwrap();
    let secret = UserSecret {
        id,
        name: "deploy".to_owned(),
        description: String::new(),
        env_name: "DEPLOY".to_owned(),
        file_path: String::new(),
        size: 1,
        created_at: now,
        updated_at: now,
    };
    user_secret::insert(&world.db, UserId(OTHER.0), &secret, &stored).await.unwrap();

    let both = vault(&[&new, &old]);
    both.check(&world.db, &Clock::default()).await.unwrap();
    let done = world.rekey(&both).await.unwrap();
    assert_eq!((done.values, done.retired), (3, vec!["old".to_owned()]));
    let alone = vault(&[&new]);
    alone.check(&world.db, &Clock::default()).await.unwrap();
    let values = user_secret::list_values(&world.db, UserId(OTHER.0)).await.unwrap();
    let [value] = &values[..] else { panic!("{values:?}") };
    assert_eq!(alone.open(user_secret_place(&row), value.value.clone()).unwrap(), TOKEN.as_bytes());
    assert!(first.open(user_secret_place(&row), value.value.clone()).is_err());
    assert_eq!(world.database.tables_with(TOKEN).await, Vec::<String>::new());
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
