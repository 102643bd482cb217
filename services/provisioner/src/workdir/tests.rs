use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use super::*;

#[test]
fn a_name_is_taken_once_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let held = WorkRoot::open(dir.path(), "one").unwrap();
    let error = WorkRoot::open(dir.path(), "one").unwrap_err().to_string();
    assert!(error.contains("another provisioner daemon named \"one\""), "{error}");
    WorkRoot::open(dir.path(), "two").unwrap();
    drop(held);
    WorkRoot::open(dir.path(), "one").unwrap();
}

#[test]
fn a_job_directory_goes_with_the_job_and_its_id_is_no_path() {
    let dir = tempfile::tempdir().unwrap();
    let root = WorkRoot::open(dir.path(), "one").unwrap();
    let job = root.job("../../x").unwrap();
    assert!(job.template().starts_with(dir.path().join("one/jobs")), "{job:?}");
    let path = job.template();
    drop(job);
    assert!(!path.exists());
}

#[test]
fn what_a_killed_daemon_left_is_removed_and_its_tool_ended() {
    let dir = tempfile::tempdir().unwrap();
    let job = dir.path().join("one/jobs/stale");
    fs::create_dir_all(&job).unwrap();
    let mut tool =
        Command::new("sleep").arg("600").current_dir(&job).process_group(0).spawn().unwrap();
    fs::write(job.join(GROUP_FILE), tool.id().to_string()).unwrap();
    WorkRoot::open(dir.path(), "one").unwrap();
    assert_eq!(tool.wait().unwrap().signal(), Some(9));
    assert!(!job.exists());
}

#[test]
fn a_process_that_only_has_the_noted_number_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let job = dir.path().join("one/jobs/stale");
    fs::create_dir_all(&job).unwrap();
    let mut other =
        Command::new("sleep").arg("600").current_dir("/").process_group(0).spawn().unwrap();
    fs::write(job.join(GROUP_FILE), other.id().to_string()).unwrap();
    WorkRoot::open(dir.path(), "one").unwrap();
    assert_eq!(other.try_wait().unwrap(), None);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_detached_process_of_a_killed_daemons_job_is_ended_with_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let job = dir.path().join("one/jobs/stale");
    fs::create_dir_all(&job).unwrap();
    let mut detached = Command::new("sleep")
        .arg("600")
        .current_dir("/")
        .env(leftovers::MARK, &job)
        .process_group(0)
        .spawn()
        .unwrap();
    WorkRoot::open(dir.path(), "one").unwrap();
    assert_eq!(detached.wait().unwrap().signal(), Some(9));
    assert!(!job.exists());
}
