//! A psql that stays open: looking at everything after every step must not cost a process each time.

use std::process::Stdio;

use berth_testkit::{TestDatabase, servers};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// What psql prints after the rows of a statement.
const END: &str = "-- end of rows --";

/// One session of psql with a test's database.
pub(super) struct Psql {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// Killed with the session.
    _child: Child,
}

impl Psql {
    pub(super) async fn open(database: &TestDatabase) -> Self {
        let postgres = &servers().await.tools.postgres;
        let libraries = std::env::join_paths(&postgres.libraries).unwrap();
        let mut command = Command::new(postgres.bin.join("psql"));
        command
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .arg("--set=ON_ERROR_STOP=1")
            .arg(&database.url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if !libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { stdin: child.stdin.take().unwrap(), lines, _child: child }
    }

    /// What statements print, line by line.
    pub(super) async fn lines(&mut self, sql: &str) -> Vec<String> {
        let text = format!("{sql};\n\\echo {END}\n");
        self.stdin.write_all(text.as_bytes()).await.unwrap();
        let mut found = Vec::new();
        loop {
            match self.lines.next_line().await.unwrap() {
                Some(line) if line == END => return found,
                Some(line) => found.push(line),
                None => panic!("psql says above why it cannot do this: {sql}"),
            }
        }
    }

    /// Statements that print nothing.
    pub(super) async fn run(&mut self, sql: &str) {
        let printed = self.lines(sql).await;
        assert!(printed.is_empty(), "{sql}: {printed:?}");
    }

    /// The one JSON value that a query gives.
    pub(super) async fn json(&mut self, sql: &str) -> Value {
        let lines = self.lines(sql).await;
        let text = lines.concat();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{sql}: {error}: {text}"))
    }
}
