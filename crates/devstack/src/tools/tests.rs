use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn versions_are_read_from_what_the_programs_say() {
    assert_eq!(postgres_major("postgres (PostgreSQL) 18.6\n"), Some(18));
    assert_eq!(postgres_major("postgres (PostgreSQL) 16.9 (Debian 16.9-1)\n"), Some(16));
    assert_eq!(postgres_major("postgres (PostgreSQL) 19devel\n"), Some(19));
    assert_eq!(postgres_major("sh: not found"), None);
    assert_eq!(nats_version("nats-server: v2.15.1\n"), Some((2, 15)));
    assert_eq!(nats_version("nats-server: v2.9.0\n"), Some((2, 9)));
    assert_eq!(nats_version(""), None);
}

/// A folder whose programs answer `--version` with `answer`.
fn folder_with(programs: &[&str], answer: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for program in programs {
        let path = folder.path().join(program);
        std::fs::write(&path, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

/// Looks in `folders` alone, unlike [`local_postgres`] on a machine that has one.
async fn postgres_in(folders: &[&tempfile::TempDir]) -> Option<PostgresTool> {
    let path: Vec<PathBuf> = folders.iter().map(|folder| folder.path().into()).collect();
    let account = Account::for_postgres().unwrap();
    let found = local_postgres(&path, account.as_ref()).await?;
    path.contains(&found.bin).then_some(found)
}

#[tokio::test]
async fn a_postgres_that_is_too_old_is_passed_over() {
    let old = folder_with(&["postgres", "initdb"], "postgres (PostgreSQL) 15.14");
    let new = folder_with(&["postgres", "initdb"], "postgres (PostgreSQL) 17.2");
    assert_eq!(postgres_in(&[&old]).await, None);
    let found = postgres_in(&[&old, &new]).await.unwrap();
    assert_eq!((found.bin.as_path(), found.major), (new.path(), 17));
}

#[tokio::test]
async fn a_postgres_without_initdb_is_passed_over() {
    let half = folder_with(&["postgres"], "postgres (PostgreSQL) 17.2");
    assert_eq!(postgres_in(&[&half]).await, None);
}

#[tokio::test]
async fn a_nats_server_that_is_too_old_is_passed_over() {
    let old = folder_with(&["nats-server"], "nats-server: v2.10.22");
    let new = folder_with(&["nats-server"], "nats-server: v2.11.0");
    assert_eq!(local_nats(&[old.path().into()]).await, None);
    let found = local_nats(&[old.path().into(), new.path().into()]).await;
    assert_eq!(found, Some(new.path().join("nats-server")));
}
