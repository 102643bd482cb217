//! The rate of the queue where it is long, and where somebody's old snapshot keeps what is dead.

use std::time::Duration;

use super::{Ran, drain};
use crate::daemon::{Broker, fill};
use crate::figure::Cell;
use crate::report::{Report, Table};
use crate::stage::{Estate, Stage, settle_statistics};

/// Daemons of these runs.
const DAEMONS: u32 = 32;

/// How long each run takes, and how much it works on.
struct Size {
    few: u64,
    many: u64,
    slice: Duration,
    /// Slices under the snapshot.
    slices: usize,
}

impl Size {
    fn of(quick: bool) -> Self {
        if quick {
            Self { few: 2_000, many: 10_000, slice: Duration::from_secs(1), slices: 3 }
        } else {
            Self { few: 10_000, many: 300_000, slice: Duration::from_secs(10), slices: 6 }
        }
    }
}

/// Measures both.
pub(super) async fn measure(
    stage: &Stage,
    estate: &mut Estate,
    broker: &Broker,
    report: &mut Report,
) -> anyhow::Result<()> {
    let size = Size::of(stage.quick);
    let mut table = Table::new(
        "Jobs a second, by how many wait and under an old snapshot",
        &["daemons", "waiting", "snapshot held s", "jobs/s", "of the first"],
    );
    fill(&mut estate.sql, size.few + 3_000 * size.slice.as_secs()).await?;
    settle_statistics(&mut estate.sql).await?;
    let first = drain(broker, DAEMONS, size.slice).await?;
    let mut row = |waiting: u64, held: Cell, ran: Ran| {
        let ratio = match (first.per_second(), ran.per_second()) {
            (Some(first), Some(ran)) => Cell::Number(ran / first, 2),
            _ => Cell::None,
        };
        table.row([u64::from(DAEMONS).into(), waiting.into(), held, ran.rate(), ratio]);
    };
    row(size.few, Cell::None, first);
    fill(&mut estate.sql, size.many).await?;
    settle_statistics(&mut estate.sql).await?;
    row(size.many, Cell::None, drain(broker, DAEMONS, size.slice).await?);

    let mut holder = stage.sql(estate.name())?;
    holder.run("begin isolation level repeatable read").await?;
    // A snapshot is taken by the first statement.
    holder.count("select count(*) from organizations").await?;
    for slice in 1..=size.slices {
        fill(&mut estate.sql, size.many).await?;
        let ran = drain(broker, DAEMONS, size.slice).await?;
        let held = size.slice.as_secs() * u64::try_from(slice)?;
        row(size.many, held.into(), ran);
    }
    holder.run("rollback").await?;
    report.table(table);
    Ok(())
}
