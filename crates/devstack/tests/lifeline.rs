//! No program outlives the process that supervises it.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

#[tokio::test]
async fn a_supervised_program_dies_with_a_parent_that_is_killed() {
    let mut example = std::env::current_exe().expect("this test has a path");
    example.pop();
    example.pop();
    let mut parent = Command::new(example.join("examples/parent"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the example is built by `cargo test`; with `--test lifeline` build it first");
    let mut lines = BufReader::new(parent.stdout.take().expect("piped")).lines();
    let pid = lines.next_line().await.expect("readable").expect("a line");
    let running = || {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| stat.contains("(sleep)") && !stat.contains("(sleep) Z"))
    };
    let becomes = async |expected: bool| {
        while running() != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // The shell in front of it needs a moment to become it.
    tokio::time::timeout(Duration::from_secs(20), becomes(true)).await.expect("it starts");

    parent.kill().await.expect("SIGKILL");
    tokio::time::timeout(Duration::from_secs(20), becomes(false)).await.expect("it is gone");
}
