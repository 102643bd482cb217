//! What a broker costs that has many daemons and nothing to give them.

use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinSet;

use crate::daemon::Broker;
use crate::data::{Base, size};
use crate::figure::{Cell, mean_count};
use crate::proxy::Task;
use crate::report::{Report, Table};
use crate::stage::{Stage, settle_statistics};

/// Answers `broker-idle`.
pub(super) async fn answer(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("broker_idle").await?;
    Base::QUICK.load(&mut estate.sql).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(size(&mut estate.sql).await?);
    let seconds = if stage.quick { 5 } else { 30 };
    let sizes: &[usize] = if stage.quick { &[0, 50] } else { &[0, 100, 1_000] };
    let columns =
        ["daemons", "RSS MiB", "RSS at most", "KiB per daemon", "statements/min", "acquires/min"];
    let mut table = Table::new("A broker whose daemons all wait", &columns);
    let mut empty = 0;
    for count in sizes {
        let url = estate.counted_url.clone();
        let broker = Broker::start(stage, &mut estate, 0, (&url, &[])).await?;
        let mut waiting = JoinSet::new();
        for mut daemon in broker.daemons(*count).await? {
            waiting.spawn(async move {
                while daemon.acquire(20).await?.is_none() {}
                anyhow::Ok(())
            });
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        estate.proxy.take();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let tally = estate.proxy.take();
        let (now, most) = broker.service.memory()?;
        if *count == 0 {
            empty = now;
        }
        report.check(waiting.try_join_next().is_none(), || "a daemon did not wait".to_owned());
        let acquires: u64 = tally
            .statements()
            .iter()
            .filter(|(_, sql, _)| sql.trim_start().starts_with("with recursive asked"))
            .map(|(_, _, cost)| cost.statements)
            .sum();
        let per_minute = |it: u64| mean_count(it * 60, seconds);
        let each = u64::try_from(*count).context("a count")?;
        table.row([
            each.into(),
            mebibytes(now),
            mebibytes(most),
            mean_count(now.saturating_sub(empty) / 1024, each),
            per_minute(tally.of(Task::Work).statements),
            per_minute(acquires),
        ]);
        report.detail(super::idle::statements(&tally));
        waiting.shutdown().await;
        broker.service.stop().await?;
    }
    report.table(table);
    report.note(
        "each daemon has a connection, a registration with heartbeats, and a long poll of 20 s",
    );
    stage.remove(estate).await
}

/// Bytes as MiB.
fn mebibytes(bytes: u64) -> Cell {
    let tenths = u32::try_from(bytes * 10 / (1 << 20)).unwrap_or(u32::MAX);
    Cell::Number(f64::from(tenths) / 10.0, 1)
}
