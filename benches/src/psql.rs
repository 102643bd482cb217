//! SQL of the measuring itself: a session of psql, so that only `berth-db` names a Postgres driver
//! and no code of ours is between the question and its answer.

use std::process::Stdio;

use anyhow::{Context as _, bail};
use berth_devstack::PostgresTool;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Between two columns.
const SEPARATOR: char = '\u{1f}';
/// The answer that ends every other answer.
const END: &str = "-- that was all --";

/// How much of a statement that failed is shown, in characters.
const SHOWN: usize = 300;

/// One connection. A statement that fails ends it.
#[derive(Debug)]
pub(crate) struct Psql {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Psql {
    /// Opens a session.
    pub(crate) fn open(postgres: &PostgresTool, url: &str) -> anyhow::Result<Self> {
        let mut child = program(postgres, "psql")
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args(["--set=ON_ERROR_STOP=1", &format!("--field-separator={SEPARATOR}"), url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run psql")?;
        let input = child.stdin.take().context("psql has an input")?;
        let output = child.stdout.take().context("psql has an output")?;
        Ok(Self { child, input, output: BufReader::new(output).lines() })
    }

    /// The rows of a statement, column by column; of several statements, all their rows.
    pub(crate) async fn rows(&mut self, sql: &str) -> anyhow::Result<Vec<Vec<String>>> {
        let asked = format!("{sql}\n;\nselect '{END}';\n");
        // When psql is gone, what it said is more to the point than the broken pipe.
        let _ = self.input.write_all(asked.as_bytes()).await;
        let _ = self.input.flush().await;
        let mut rows = Vec::new();
        while let Some(line) = self.output.next_line().await? {
            if line == END {
                return Ok(rows);
            }
            if !line.is_empty() {
                rows.push(line.split(SEPARATOR).map(ToOwned::to_owned).collect());
            }
        }
        let mut said = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            errors.read_to_string(&mut said).await?;
        }
        let begins: String = sql.trim().chars().take(SHOWN).collect();
        bail!("psql: {}: {begins}", said.trim())
    }

    /// Runs statements that answer nothing.
    pub(crate) async fn run(&mut self, sql: &str) -> anyhow::Result<()> {
        self.rows(sql).await.map(drop)
    }

    /// The one number that a statement answers.
    pub(crate) async fn count(&mut self, sql: &str) -> anyhow::Result<u64> {
        let text = self.text(sql).await?;
        text.parse().with_context(|| format!("{text:?} is no count: {sql}"))
    }

    /// The one value that a statement answers.
    pub(crate) async fn text(&mut self, sql: &str) -> anyhow::Result<String> {
        let mut rows = self.rows(sql).await?;
        match rows.as_mut_slice() {
            [row] if row.len() == 1 => Ok(std::mem::take(&mut row[0])),
            rows => bail!("not one value but {rows:?}: {sql}"),
        }
    }
}

/// A program of that Postgres.
pub(crate) fn program(postgres: &PostgresTool, name: &str) -> Command {
    let beside = postgres.bin.join(name);
    // Some packages have pgbench in another folder: then it is looked up on PATH.
    let mut command = if beside.is_file() { Command::new(beside) } else { Command::new(name) };
    if let Ok(libraries) = std::env::join_paths(&postgres.libraries)
        && !libraries.is_empty()
    {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}
