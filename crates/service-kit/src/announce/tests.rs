use super::*;

#[test]
fn every_fact_is_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("api.json");
    let announcement = Announcement::new("api", Some(file.clone()));
    announcement.tell("admin_addr", "127.0.0.1:1").unwrap();
    announcement.tell("http", "127.0.0.1:2").unwrap();

    let read: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(read["service"], "api");
    assert_eq!(read["pid"], std::process::id());
    assert_eq!(read["admin_addr"], "127.0.0.1:1");
    assert_eq!(read["http"], "127.0.0.1:2");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let file = PathBuf::from("/nowhere/at/all/api.json");
    let error = Announcement::new("api", Some(file)).tell("http", "x").unwrap_err();
    assert_eq!(error.to_string(), "cannot write the announce file /nowhere/at/all/api.json");
}
