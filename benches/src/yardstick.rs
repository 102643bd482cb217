//! What the same Postgres does at the same time without Berth: pgbench.

use std::time::Duration;

use anyhow::Context as _;

use crate::figure::Cell;
use crate::stage::Stage;

/// The database that pgbench has for itself.
const DATABASE: &str = "yardstick";
/// Rows of its table: 100 000 times this.
const SCALE: &str = "5";

/// What pgbench is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// `select 1`: a round trip and nothing else.
    Nothing,
    /// One row updated and committed: what a durable answer costs at least.
    OneRow,
    /// Its own simple update: three statements and a commit.
    SimpleUpdate,
}

impl Load {
    /// As the tables say it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "select 1",
            Self::OneRow => "one-row commit",
            Self::SimpleUpdate => "pgbench simple-update",
        }
    }

    const fn script(self) -> Option<&'static str> {
        match self {
            Self::Nothing => Some("select 1;\n"),
            Self::OneRow => Some(
                "\\set aid random(1, 100000 * :scale)\n\
                 update pgbench_accounts set abalance = abalance + 1 where aid = :aid;\n",
            ),
            Self::SimpleUpdate => None,
        }
    }
}

/// What came of one or more runs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Yardstick {
    seconds: f64,
    transactions: f64,
    clients: u32,
    runs: u32,
}

impl Yardstick {
    /// Makes the database.
    pub(crate) async fn prepare(stage: &Stage) -> anyhow::Result<()> {
        stage.sql("postgres")?.run(&format!("create database {DATABASE}")).await?;
        let mut pgbench = stage.program("pgbench");
        pgbench.args(["-i", "-q", "-s", SCALE, &stage.url(DATABASE)]);
        let made = pgbench.output().await.context(
            "pgbench is the yardstick and cannot be run: install it with Postgres' server package",
        )?;
        anyhow::ensure!(made.status.success(), "pgbench: {}", text(&made.stderr));
        Ok(())
    }

    /// One more run. `port`: through that proxy.
    pub(crate) async fn run(
        &mut self,
        stage: &Stage,
        load: Load,
        clients: u32,
        port: Option<u16>,
    ) -> anyhow::Result<()> {
        let seconds = if stage.quick { 1 } else { 3 };
        let mut url = stage.url(DATABASE);
        if let (Some(port), Some((before, _))) = (port, url.rsplit_once(':')) {
            url = format!("{before}:{port}/{DATABASE}");
        }
        let (seconds, clients_text) = (f64::from(seconds), clients.to_string());
        let time = format!("{seconds:.0}");
        let mut pgbench = stage.program("pgbench");
        pgbench.args(["-n", "-M", "prepared", "-j", "1", "-c", &clients_text, "-T", &time]);
        match load.script() {
            Some(script) => {
                let file = stage.dir().join("yardstick.sql");
                std::fs::write(&file, script)?;
                pgbench.args(["-s", SCALE, "-f"]).arg(file);
            }
            None => {
                pgbench.arg("-N");
            }
        }
        let ran = pgbench.arg(url).output().await.context("run pgbench")?;
        let said = text(&ran.stdout);
        anyhow::ensure!(ran.status.success(), "pgbench: {}", text(&ran.stderr));
        let tps = said.lines().find_map(|line| line.strip_prefix("tps = "));
        let tps = tps.and_then(|it| it.split(' ').next()?.parse::<f64>().ok());
        // In a short run on a busy machine nothing may have come to its end.
        let none = said.contains("transactions actually processed: 0").then_some(0.0);
        let tps = tps.or(none).with_context(|| format!("pgbench tells no tps: {said}"))?;
        self.seconds += seconds;
        self.transactions += tps * seconds;
        self.clients = clients;
        self.runs += 1;
        Ok(())
    }

    /// Mean latency of a transaction.
    pub(crate) fn latency(&self) -> Cell {
        if self.transactions <= 0.0 {
            return Cell::None;
        }
        let each = self.seconds * f64::from(self.clients) / self.transactions;
        Cell::from(Duration::from_secs_f64(each))
    }

    /// Transactions a second.
    pub(crate) fn rate(&self) -> Cell {
        if self.seconds <= 0.0 {
            return Cell::None;
        }
        Cell::Number(self.transactions / self.seconds, 0)
    }

    /// How it was measured.
    pub(crate) fn describe(&self, load: Load) -> String {
        let Self { runs, clients, .. } = self;
        format!("{} by pgbench, {clients} client(s), {runs} run(s) in between", load.name())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
