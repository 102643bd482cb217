use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn an_account_is_read_from_its_line() {
    let users = "root:x:0:0:root:/root:/bin/bash\npostgresql:x:1:1::/:/bin/sh\n\
                 postgres:x:101:104:PostgreSQL,,,:/var/lib/postgresql:/bin/bash\n";
    let found = find(users, "postgres");
    assert_eq!(found, Some(Account { name: "postgres".into(), uid: 101, gid: 104 }));
    assert_eq!(find(users, "nobody"), None);
}

#[test]
fn a_private_folder_cannot_be_entered_by_another_user() {
    let Ok(Some(account)) = Account::for_postgres() else {
        assert!(!rustix::process::geteuid().is_root(), "root always has an account to drop to");
        return;
    };
    let private = tempfile::tempdir().unwrap();
    std::fs::set_permissions(private.path(), Permissions::from_mode(0o700)).unwrap();
    assert!(!account.can_enter(private.path()));
    account.own(private.path()).unwrap();
    assert!(account.can_enter(private.path()));
}
