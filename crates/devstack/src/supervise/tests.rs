use std::sync::{Arc, Mutex};

use super::*;

/// Nothing here takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

fn shell(script: &str) -> CommandSpec {
    CommandSpec::new("/bin/sh").args(["-c", script])
}

/// A program that writes `ready` once `script` has run, and where its lines arrive.
async fn started(script: &str) -> (Supervised, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let ready = Mutex::new(Some(ready));
    let sink = {
        let seen = seen.clone();
        Arc::new(move |_: Source, line: &str| {
            seen.lock().unwrap().push(line.to_owned());
            if line == "ready" {
                let _ = ready.lock().unwrap().take().unwrap().send(());
            }
        })
    };
    let program = Supervised::spawn(&shell(script).output(Output::Lines(sink))).unwrap();
    tokio::time::timeout(PATIENCE, is_ready).await.unwrap().unwrap();
    (program, seen)
}

fn alive(pid: u32) -> bool {
    // A zombie is not alive: what counts is whether it still runs.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.starts_with(" Z")))
}

async fn gone(pid: u32) {
    let gone = async {
        while alive(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("{pid} is still there"));
}

#[tokio::test]
async fn a_program_is_run_with_its_arguments_and_environment() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let spec = shell(r#"echo "$1 $WORD"; echo oops >&2; exit 7"#)
        .args(["sh", "two words"])
        .env("WORD", "x y")
        .output(Output::File(file.path().into()));
    let status = Supervised::spawn(&spec).unwrap().wait().await.unwrap();
    assert_eq!(status.code(), Some(7));
    let written = std::fs::read_to_string(file.path()).unwrap();
    assert!(written.contains("two words x y\n") && written.contains("oops\n"), "{written}");
}

#[tokio::test]
async fn the_pid_is_the_programs_own_and_it_leads_its_group() {
    let (program, seen) = started("echo $$; ps -o pgid= -p $$; echo ready; sleep 1000").await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0], program.pid().to_string());
    assert_eq!(seen[1].trim(), program.pid().to_string());
}

#[tokio::test]
async fn the_program_has_no_child_that_it_did_not_start() {
    let (_program, seen) = started("ps -o comm= --ppid $$; echo ready; sleep 1000").await;
    assert_eq!(*seen.lock().unwrap(), ["ps", "ready"]);
}

#[tokio::test]
async fn a_program_that_stops_when_asked_says_how() {
    let (mut program, _) = started("trap 'exit 3' TERM; echo ready; sleep 1000 & wait").await;
    let status = program.terminate(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(3));
    assert_eq!(program.wait().await.unwrap().code(), Some(3), "the status stays");
}

#[tokio::test]
async fn a_program_that_does_not_stop_is_killed_with_its_children() {
    let script = "trap '' TERM; sleep 1000 & echo $!; echo ready; wait; sleep 1000";
    let (mut program, seen) = started(script).await;
    let child = seen.lock().unwrap()[0].parse().unwrap();
    let status = program.terminate(Duration::from_millis(50)).await.unwrap();
    assert!(!status.success());
    gone(child).await;
}

#[tokio::test]
async fn what_a_crashed_program_leaves_behind_is_killed() {
    let (mut program, seen) = started("sleep 1000 & echo $!; echo ready; wait").await;
    let child = seen.lock().unwrap()[0].parse().unwrap();
    program.kill().await.unwrap();
    gone(child).await;
}

#[tokio::test]
async fn a_dropped_program_is_stopped() {
    let (program, _) = started("echo ready; sleep 1000").await;
    let pid = program.pid();
    drop(program);
    gone(pid).await;
}

#[tokio::test]
async fn a_program_that_does_not_exist_ends_with_127_and_says_so() {
    let mut program = Supervised::spawn(&CommandSpec::new("/nowhere/at-all")).unwrap();
    assert_eq!(program.wait().await.unwrap().code(), Some(127));
    assert!(program.tail().concat().contains("/nowhere/at-all"), "{:?}", program.tail());
}
