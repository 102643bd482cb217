//! What a service that has nothing to do costs: measured in rounds between yardsticks.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::figure::{Cell, mean, mean_count, mebibytes, quantile};
use crate::proxy::{Proxy, Tally, Task};
use crate::report::{Report, Table};
use crate::service::{Service, sum, until};
use crate::stage::{Estate, Stage};
use crate::yardstick::{Load, Yardstick};

/// How long the next look may take to come.
const SOON: Duration = Duration::from_mins(2);
/// After a look's last statement, so that what is counted ends between two looks.
const QUIET: Duration = Duration::from_millis(50);

/// The columns of [`Idle::row`], after the size.
pub(super) const COLUMNS: [&str; 14] = [
    "size",
    "looks",
    "statements",
    "round trips",
    "bytes read",
    "rows",
    "wall ms",
    "server ms",
    "slowest p50 ms",
    "slowest p99 ms",
    "select 1 ms",
    "RSS MiB",
    "RSS at most",
    "/metrics MiB",
];

/// What the rounds found.
pub(super) struct Idle {
    tally: Tally,
    looks: u64,
    seconds: f64,
    /// Seconds of the service's own looks, and how many.
    wall: (f64, f64),
    /// Resident bytes after the rounds, and at most.
    memory: (u64, u64),
    /// Bytes of `/metrics`.
    metrics: u64,
    yardstick: Yardstick,
}

/// Measures in `rounds` of at least `looks` each. `histogram`: the metric that times a look.
pub(super) async fn measure(
    stage: &Stage,
    estate: &Estate,
    (service, histogram): (&Service, &str),
    (rounds, looks): (u32, u64),
) -> anyhow::Result<Idle> {
    let timed = |metrics: &str, kind| sum(metrics, &format!("{histogram}_{kind}"));
    let mut idle = Idle {
        tally: Tally::default(),
        looks: 0,
        seconds: 0.0,
        wall: (0.0, 0.0),
        memory: (0, 0),
        metrics: 0,
        yardstick: Yardstick::default(),
    };
    let before = service.metrics().await?;
    for _ in 0..rounds {
        idle.yardstick.run(stage, Load::Nothing, 1, Some(estate.proxy.port())).await?;
        between_looks(&estate.proxy).await?;
        estate.proxy.take();
        let started = Instant::now();
        let mut round = Tally::default();
        while round.runs(Task::Work) < looks {
            between_looks(&estate.proxy).await?;
            round.merge(estate.proxy.take());
        }
        idle.seconds += started.elapsed().as_secs_f64();
        idle.looks += round.runs(Task::Work);
        idle.tally.merge(round);
    }
    idle.memory = service.memory()?;
    let after = service.metrics().await?;
    idle.metrics = after.len() as u64;
    let [took, looks] = ["sum", "count"].map(|kind| timed(&after, kind) - timed(&before, kind));
    idle.wall = (took, looks);
    Ok(idle)
}

/// Returns shortly after the next look.
async fn between_looks(proxy: &Proxy) -> anyhow::Result<()> {
    let before = proxy.statements(Task::Work);
    until("the service looks", SOON, async || {
        Ok((proxy.statements(Task::Work) > before).then_some(()))
    })
    .await?;
    tokio::time::sleep(QUIET).await;
    Ok(())
}

impl Idle {
    /// A row of the main table; `slowest` is the statement with the most time in all.
    pub(super) fn row(&self, size: u64) -> [Cell; 14] {
        let cost = self.tally.of(Task::Work);
        let each = |all| mean_count(all, self.looks);
        let slowest = self.tally.slowest(Task::Work);
        let at = |q| slowest.map_or(Cell::None, |it| quantile(it, q));
        let wall = if self.wall.1 > 0.0 {
            Cell::Number(self.wall.0 * 1e3 / self.wall.1, 3)
        } else {
            Cell::None
        };
        [
            size.into(),
            self.looks.into(),
            each(cost.statements),
            each(cost.round_trips),
            each(cost.bytes_read),
            each(cost.rows),
            wall,
            mean(cost.server.as_secs_f64() * 1e3, self.looks),
            at(0.5),
            at(0.99),
            self.yardstick.latency(),
            mebibytes(self.memory.0),
            mebibytes(self.memory.1),
            mebibytes(self.metrics),
        ]
    }

    /// How the yardstick was measured.
    pub(super) fn yardstick(&self) -> String {
        self.yardstick.describe(Load::Nothing)
    }

    /// What the process asks for besides, a minute.
    pub(super) fn besides(&self, size: u64, table: &mut Table) {
        let minutes = self.seconds / 60.0;
        let each = |all: u64| {
            let all = u32::try_from(all).map_or(f64::INFINITY, f64::from);
            Cell::Number(all / minutes, 0)
        };
        for task in self.tally.tasks() {
            let cost = self.tally.of(task);
            table.row([
                size.into(),
                task.name().into(),
                each(cost.statements),
                each(cost.bytes_read),
                Cell::Number(cost.server.as_secs_f64() * 1e3 / minutes, 1),
            ]);
        }
    }

    /// Every statement, for programs.
    pub(super) fn detail(&self, size: u64, report: &mut Report) {
        report.detail(json!({ "size": size, "statements": statements(&self.tally) }));
    }
}

/// A table for [`Idle::besides`].
pub(super) fn besides_table() -> Table {
    let columns =
        ["size", "task", "statements a minute", "bytes read a minute", "server ms a minute"];
    Table::new("The whole process, a minute", &columns)
}

/// Every statement of a tally, for programs.
pub(super) fn statements(tally: &Tally) -> serde_json::Value {
    let lines = tally.statements().into_iter().map(|(task, sql, cost)| {
        let sql: String = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        json!({
            "task": task.name(),
            "sql": sql.chars().take(160).collect::<String>(),
            "statements": cost.statements,
            "prepares": cost.prepares,
            "rows": cost.rows,
            "bytes_read": cost.bytes_read,
            "bytes_written": cost.bytes_written,
            "server_ms": cost.server.as_secs_f64() * 1e3,
        })
    });
    lines.collect()
}
