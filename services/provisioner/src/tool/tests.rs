use rustix::process::test_kill_process;
use tempfile::TempDir;

use super::*;
use crate::stop::Reason;

struct Run {
    dir: TempDir,
    env: BTreeMap<String, String>,
}

impl Run {
    fn new() -> Self {
        let env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let dir = tempfile::tempdir().unwrap();
        Self { dir, env }
    }

    async fn shell(&self, script: &str, stop: &Stop) -> (Exit, Vec<(Stream, String)>) {
        let mut lines = Vec::new();
        let exit = run(self.call(script, None), stop, |stream, line| {
            lines.push((stream, line.to_owned()));
        });
        let exit = exit.await.unwrap();
        (exit, lines)
    }

    fn call(&self, script: &str, capture: Option<u64>) -> Call<'_> {
        Call {
            program: Path::new("/bin/sh"),
            args: vec!["-c".into(), script.into()],
            dir: self.dir.path(),
            env: &self.env,
            input: Vec::new(),
            capture,
            job: self.dir.path(),
        }
    }

    /// Waits until the script has written `name`, and reads the process id in it.
    async fn pid(&self, name: &str) -> Pid {
        let path = self.dir.path().join(name);
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n') {
                return Pid::from_raw(pid.parse().unwrap()).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Gone, or only its entry is left because nobody has reaped it.
async fn wait_until_gone(pid: Pid) {
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        let zombie = stat.is_ok_and(|stat| stat.contains(") Z "));
        if zombie || test_kill_process(pid).is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const PATIENT: Duration = Duration::from_mins(10);

#[tokio::test]
async fn lines_of_both_outputs_arrive_and_only_the_given_environment_is_seen() {
    let run = Run::new();
    let script = "echo one; echo two >&2; printf 'no newline'; env | cut -d= -f1 >&2";
    let (exit, lines) = run.shell(script, &Stop::new(PATIENT)).await;
    assert!(exit.status.success());
    let of = |wanted| -> Vec<&str> {
        lines.iter().filter(|(from, _)| *from == wanted).map(|(_, line)| &**line).collect()
    };
    assert_eq!(of(Stream::Stdout), ["one", "no newline"]);
    let mut seen = of(Stream::Stderr);
    seen.retain(|name| !["two", "PWD", "OLDPWD", "SHLVL", "_", MARK].contains(name));
    assert_eq!(seen, ["PATH"]);
}

#[tokio::test]
async fn captured_output_is_bounded_and_says_so() {
    let run = Run::new();
    let stop = Stop::new(PATIENT);
    for (limit, expected, truncated) in [(3, "abc", true), (6, "abcdef", false)] {
        let exit =
            super::run(run.call("printf abcdef", Some(limit)), &stop, |_, _| {}).await.unwrap();
        assert_eq!((&exit.stdout[..], exit.truncated), (expected.as_bytes(), truncated));
    }
}

#[tokio::test]
async fn input_reaches_the_tool() {
    let run = Run::new();
    let call = Call { input: b"hello".to_vec(), ..run.call("cat", Some(100)) };
    let exit = super::run(call, &Stop::new(PATIENT), |_, _| {}).await.unwrap();
    assert_eq!(exit.stdout, b"hello");
}

/// The tool obeys; the child that it put in the background ignores the interrupt, as shells arrange.
#[tokio::test]
async fn a_stop_ends_the_whole_group_with_its_background_children() {
    let run = Run::new();
    let stop = Stop::new(PATIENT);
    let script = "sleep 600 & echo $! > child; echo $$ > leader; wait";
    let started = async {
        let pids = (run.pid("child").await, run.pid("leader").await);
        stop.ask(Reason::Canceled);
        pids
    };
    let ((exit, _), (child, leader)) = tokio::join!(run.shell(script, &stop), started);
    assert!(!exit.status.success());
    wait_until_gone(child).await;
    wait_until_gone(leader).await;
}

#[tokio::test]
async fn a_tool_that_ignores_the_interrupt_is_killed_when_patience_ends() {
    let run = Run::new();
    let stop = Stop::new(Duration::from_millis(50));
    let script = "trap '' INT; echo $$ > leader; while :; do sleep 600; done";
    let started = async {
        let leader = run.pid("leader").await;
        stop.ask(Reason::Canceled);
        leader
    };
    let ((exit, _), leader) = tokio::join!(run.shell(script, &stop), started);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&exit.status), Some(9));
    wait_until_gone(leader).await;
}

#[tokio::test]
async fn a_dropped_run_leaves_no_process() {
    let run = Run::new();
    let stop = Stop::new(PATIENT);
    let script = "trap '' INT; sleep 600 & echo $! > child; echo $$ > leader; wait";
    let (child, leader) = tokio::select! {
        _ = run.shell(script, &stop) => panic!("it ended by itself"),
        pids = async { (run.pid("child").await, run.pid("leader").await) } => pids,
    };
    wait_until_gone(child).await;
    wait_until_gone(leader).await;
}

#[tokio::test]
async fn a_process_left_behind_by_a_success_neither_holds_up_the_job_nor_dies() {
    let run = Run::new();
    let call = run.call("echo result; sleep 600 & echo $! > child", Some(100));
    let exit = super::run(call, &Stop::new(PATIENT), |_, _| {}).await.unwrap();
    assert!(exit.status.success());
    assert_eq!((&exit.stdout[..], exit.truncated), (&b"result\n"[..], false));
    let child = run.pid("child").await;
    test_kill_process(child).unwrap();
    rustix::process::kill_process(child, Signal::KILL).unwrap();
}

/// Detached as far as a shell can: a session of its own, another parent, its outputs closed.
const DETACH: &str = "cd /; setsid sh -c 'trap \"\" INT TERM HUP; echo $$ > $DIR/child; \
    while :; do sleep 600; done' </dev/null >/dev/null 2>&1 & ";

#[tokio::test]
async fn a_child_that_left_the_group_ends_with_a_canceled_tool_and_with_a_failed_one() {
    for (rest, canceled) in
        [("cd $DIR; wait", true), ("while [ ! -s $DIR/child ]; do sleep 0.01; done; exit 3", false)]
    {
        let mut run = Run::new();
        run.env.insert("DIR".to_owned(), run.dir.path().display().to_string());
        let stop = Stop::new(PATIENT);
        let started = async {
            let child = run.pid("child").await;
            if canceled {
                stop.ask(Reason::Canceled);
            }
            child
        };
        let script = format!("{DETACH}{rest}");
        let ((exit, _), child) = tokio::join!(run.shell(&script, &stop), started);
        assert!(!exit.status.success());
        wait_until_gone(child).await;
    }
}
