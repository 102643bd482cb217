//! `berth shell` at a terminal and between pipes.

use std::process::{Output, Stdio};
use std::time::Duration;

use berth_testkit::{SOON, Service, TestStack, User};
use rustix::termios::tcgetattr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::BERTH;
use crate::shell::{given_workspace, stack};

/// Runs `berth shell` between pipes.
async fn piped(stack: &TestStack, user: &User, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(BERTH)
        .arg("shell")
        .args(arguments)
        .env("BERTH_URL", stack.via(1).url())
        .env("BERTH_TOKEN", user.token())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = tokio::spawn(async move { stdin.write_all(&input).await });
    let output = timeout(SOON, child.wait_with_output()).await.expect("an end").unwrap();
    // A command that reads nothing closes its end.
    let _ = writer.await.unwrap();
    output
}

/// Bytes arrive as they are both ways, the command's status is ours, and an error says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_is_a_pipe_and_a_terminal() {
    let mut stack = stack().await;
    let alice = stack.user("alice").await;
    given_workspace(&stack, &alice, "mine").await;
    let binary: Vec<u8> = (0..1_000_000_u32).map(|it| (it % 251) as u8).collect();
    let copied = piped(&stack, &alice, &["mine", "--", "cat"], &binary).await;
    assert!(copied.status.success(), "{copied:?}");
    assert!(copied.stdout == binary, "{} bytes came back", copied.stdout.len());

    let failed = piped(&stack, &alice, &["mine.main", "--", "pwd; exit 7"], b"").await;
    assert_eq!(failed.status.code(), Some(7), "{failed:?}");
    let words = piped(&stack, &alice, &["mine", "--", "printf", "%s|", "a b", "it's"], b"").await;
    assert_eq!(String::from_utf8_lossy(&words.stdout), "a b|it's|");
    let nothing = piped(&stack, &alice, &["mine.other"], b"").await;
    assert_eq!(nothing.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(complaint.contains("there are: main"), "{complaint}");
    at_a_terminal(&mut stack, &alice).await;
    stack.settled().await;
}

/// Raw while it runs, resized with the window, connected again when the server died, and set back.
async fn at_a_terminal(stack: &mut TestStack, alice: &User) {
    let (mut terminal, other_end) = pty_process::open().unwrap();
    terminal.resize(pty_process::Size::new(30, 90)).unwrap();
    let before = tcgetattr(&other_end).unwrap();
    let mut child = pty_process::Command::new(BERTH)
        .args(["shell", "mine"])
        .env("BERTH_URL", stack.via(1).url())
        .env("BERTH_TOKEN", alice.token())
        .kill_on_drop(true)
        .spawn_borrowed(&other_end)
        .unwrap();
    let mut seen = String::new();
    let mut shows = async |terminal: &mut pty_process::Pty, keys: &str, text: &str| {
        terminal.write_all(keys.as_bytes()).await.unwrap();
        let mut buffer = [0; 4096];
        while !seen.contains(text) {
            let read = timeout(SOON, terminal.read(&mut buffer)).await;
            let count = read.unwrap_or_else(|_| panic!("no {text:?} in {seen:?}")).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    shows(&mut terminal, "stty size\n", "30 90\r\n").await;
    assert!(tcgetattr(&other_end).unwrap().local_modes != before.local_modes, "keys are not raw");
    terminal.resize(pty_process::Size::new(31, 91)).unwrap();
    // The new size travels its own way; the shell is asked until it has it.
    let ask = "until stty size | grep '31 91'; do sleep 0.1; done; echo now-$((1 + 1))\n";
    shows(&mut terminal, ask, "now-2\r\n").await;
    // Ctrl-C is the program's there.
    shows(&mut terminal, "cat\nparrot\n", "parrot\r\n").await;
    shows(&mut terminal, "\u{3}", "^C").await;
    shows(&mut terminal, "echo after-$((1 + 1))\n", "after-2\r\n").await;
    stack.kill9(Service::Api, 1).await;
    stack.restart(Service::Api, 1).await;
    shows(&mut terminal, "", "connected again").await;
    shows(&mut terminal, "echo back-$((1 + 1))\n", "back-2\r\n").await;
    terminal.write_all(b"exit 5\n").await.unwrap();
    let status = timeout(Duration::from_secs(20), child.wait()).await.expect("an end").unwrap();
    assert_eq!(status.code(), Some(5));
    let after = tcgetattr(&other_end).unwrap();
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!(after.output_modes, before.output_modes);
}
