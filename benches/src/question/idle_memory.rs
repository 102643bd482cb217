//! What every process has resident while nothing happens.

use std::time::Duration;

use crate::data::{self, Base, Pools};
use crate::figure::mebibytes;
use crate::fleet::Fleet;
use crate::report::{Report, Table};
use crate::service::Memory;
use crate::stage::{Stage, settle_statistics};

/// Prebuilds with an agent each.
const AGENTS: u64 = 4;

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("idle_memory").await?;
    let base = Base::of(stage.quick);
    base.load(&mut estate.sql).await?;
    Pools::whole(stage.quick).load(&mut estate.sql, base.organizations).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let fleet = Fleet::start(stage, &mut estate, AGENTS).await?;
    tokio::time::sleep(Duration::from_secs(if stage.quick { 2 } else { 30 })).await;
    let columns = ["process", "RSS MiB", "of it the binary's MiB", "RSS at most MiB"];
    let mut table = Table::new("Memory with nothing to do", &columns);
    let mut row = |name: String, memory: Memory| {
        table.row([
            name.into(),
            mebibytes(memory.now),
            mebibytes(memory.of_files),
            mebibytes(memory.most),
        ]);
    };
    row("api".to_owned(), fleet.api.service.memory_in_parts()?);
    for (name, service) in &fleet.services {
        row((*name).to_owned(), service.memory_in_parts()?);
    }
    let agents = fleet.agents()?;
    report.check(agents.len() as u64 == AGENTS, || format!("{} agents run", agents.len()));
    for (number, memory) in agents.into_iter().enumerate() {
        row(format!("agent {number}"), memory);
    }
    report.table(table);
    report.note(
        "resident memory as the kernel counts it; the part of files is the binary's pages, which all \
         processes of a machine share; aim: <= 15 MiB, the API <= 25",
    );
    fleet.stop().await?;
    stage.remove(estate).await
}
