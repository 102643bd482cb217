//! A database for each test, copied from one that has the schema.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use crate::servers::{Servers, chain, servers, unique};

/// What every test's database is a copy of.
const TEMPLATE: &str = "berth_test_template";

/// Copies of one template at once would be refused: it must have no other visitor.
static COPY: Mutex<()> = Mutex::const_new(());

/// A database with the current schema that one test has for itself. It is removed when the next
/// test process starts.
#[derive(Debug, Clone)]
pub struct TestDatabase {
    name: String,
    /// Its address, password included.
    pub url: String,
}

impl TestDatabase {
    /// Makes one; about 50 ms.
    pub async fn create() -> Self {
        let servers = servers().await;
        let name = unique("test_");
        let turn = COPY.lock().await;
        run(servers, "postgres", &format!("create database {name} template {TEMPLATE}")).await;
        drop(turn);
        Self { url: servers.database_url(&name), name }
    }

    /// The rows of a query as text, column by column, without our own code in between.
    pub async fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let text = run(servers().await, &self.name, sql).await;
        let lines = text.lines().filter(|line| !line.is_empty());
        lines.map(|line| line.split('\u{1f}').map(ToOwned::to_owned).collect()).collect()
    }

    /// Runs statements in a session that stays open: what they lock stays locked.
    pub async fn hold(&self, sql: &str) -> HeldSession {
        let mut command = psql(servers().await, &self.name);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = command.spawn().unwrap_or_else(|error| panic!("psql: {error}"));
        let input = psql.stdin.take().expect("it is piped");
        let output = BufReader::new(psql.stdout.take().expect("it is piped")).lines();
        let mut session = HeldSession { psql, input, output };
        session.rows(sql).await;
        session
    }

    /// The tables in whose rows `pg_dump` shows this text, as text or as the hexadecimal of bytes.
    pub async fn tables_with(&self, text: &str) -> Vec<String> {
        let bytes = text.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let dump = dump(servers().await, &self.name).await;
        let (mut table, mut found) = ("", Vec::new());
        for line in dump.lines() {
            if let Some(copied) = line.strip_prefix("COPY public.") {
                table = copied.split(' ').next().unwrap_or_default();
            }
            let shows = line.contains(text) || line.contains(&bytes);
            if shows && found.last().is_none_or(|last| last != table) {
                found.push(table.to_owned());
            }
        }
        found
    }

    /// The only value of a query that gives one.
    pub async fn value(&self, sql: &str) -> String {
        let rows = self.rows(sql).await;
        assert!(rows.len() == 1 && rows[0].len() == 1, "not one value but {rows:?}: {sql}");
        rows.into_iter().flatten().next().unwrap_or_default()
    }

    /// The only value of a query that counts.
    pub async fn count(&self, sql: &str) -> i64 {
        let value = self.value(sql).await;
        value.parse().unwrap_or_else(|_| panic!("not a number but {value:?}: {sql}"))
    }
}

/// A session that stays open, with the locks it has taken. It ends when it is dropped or
/// [released](Self::release).
#[derive(Debug)]
pub struct HeldSession {
    psql: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl HeldSession {
    /// The rows of a query as text, as [`TestDatabase::rows`] has them, but without a connection of
    /// its own. What is no query gives none.
    pub async fn rows(&mut self, sql: &str) -> Vec<Vec<String>> {
        const DONE: &str = "\u{1e}";
        let text = format!("{sql};\n\\echo {DONE}\n");
        self.input.write_all(text.as_bytes()).await.expect("psql reads");
        let mut rows = Vec::new();
        loop {
            let line = self.output.next_line().await.expect("text");
            let line = line.unwrap_or_else(|| panic!("psql gave up, see above: {sql}"));
            if line == DONE {
                return rows;
            }
            if !line.is_empty() {
                rows.push(line.split('\u{1f}').map(ToOwned::to_owned).collect());
            }
        }
    }

    /// Ends the session and returns once it is over.
    pub async fn release(self) {
        let Self { mut psql, input, .. } = self;
        drop(input);
        psql.wait().await.expect("psql ends");
    }
}

/// Removes the databases of earlier processes and makes the one that all are copied from.
pub(crate) async fn prepare_template(servers: &Servers) {
    let stale = "select datname from pg_database where datname like 'test\\_%' or datname = '";
    let stale = run(servers, "postgres", &format!("{stale}{TEMPLATE}'")).await;
    for name in stale.lines().filter(|name| !name.is_empty()) {
        run(servers, "postgres", &format!("drop database {name} with (force)")).await;
    }
    run(servers, "postgres", &format!("create database {TEMPLATE}")).await;
    let pool = berth_db::connect(&servers.database_url(TEMPLATE), 1, "testkit")
        .unwrap_or_else(|error| panic!("the template database: {}", chain(&error)));
    let migrated = berth_db::schema::migrate(&pool).await;
    migrated.unwrap_or_else(|error| panic!("migrations: {}", chain(&error)));
    pool.close().await;
}

/// What psql prints: rows by line, columns by unit separator.
async fn run(servers: &Servers, database: &str, sql: &str) -> String {
    let output = psql(servers, database)
        .args(["--command", sql])
        .output()
        .await
        .unwrap_or_else(|error| panic!("psql: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{sql}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Everything that a dump of a database has, as a backup would be made.
async fn dump(servers: &Servers, database: &str) -> String {
    let mut command = client(servers, "pg_dump", database);
    let output = command.output().await.unwrap_or_else(|error| panic!("pg_dump: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "pg_dump: {}", text(&output.stderr));
    text(&output.stdout)
}

fn psql(servers: &Servers, database: &str) -> Command {
    let mut command = client(servers, "psql", database);
    command
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
        .arg("--field-separator=\u{1f}");
    command
}

/// One of Postgres' own programs.
fn client(servers: &Servers, program: &str, database: &str) -> Command {
    let postgres = &servers.tools.postgres;
    let libraries = std::env::join_paths(&postgres.libraries).unwrap_or_default();
    let mut command = Command::new(postgres.bin.join(program));
    command.arg("--dbname").arg(servers.database_url(database)).kill_on_drop(true);
    if !libraries.is_empty() {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}
