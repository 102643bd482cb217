//! The membership reconciler's pass with everything in order.

use super::idle;
use crate::data::{self, Base, Pools};
use crate::report::{Report, Table};
use crate::stage::{Stage, settle_statistics};

/// The metric that times a pass.
const PASS: &str = "berth_membership_pass_duration_seconds";
/// What must not change.
const WORLD: &str = "
    select (select count(*) from organization_members) || ' members, '
        || (select count(*) from groups) || ' groups, '
        || (select count(*) from group_members) || ' in groups'";

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (sizes, measured): (&[u64], _) =
        if stage.quick { (&[100, 1_000], (2, 10)) } else { (&[100, 1_000, 10_000], (3, 100)) };
    let mut table =
        Table::new("A pass with everything in order (figures are of one)", &idle::COLUMNS);
    let mut besides = idle::besides_table();
    for &size in sizes {
        let mut estate = stage.estate("membership").await?;
        let base = Base { organizations: size, users: 100, live: 0, deleted: 0, imports: 0 };
        base.load(&mut estate.sql).await?;
        let pools = Pools { set: "member", to: size, ..Pools::none() };
        pools.load(&mut estate.sql, size).await?;
        settle_statistics(&mut estate.sql).await?;
        report.data(data::size(&mut estate.sql).await?);
        let before = estate.sql.text(WORLD).await?;
        // 100 ms is the least that the service allows itself.
        let often = [("BERTH_MEMBERSHIP__INTERVAL", "100ms")];
        let service =
            stage.start(("membership-reconciler", 0), &estate, &estate.counted_url, &often).await?;
        let idle = idle::measure(stage, &estate, (&service, PASS), measured).await?;
        eprintln!("bench: {size} measured");
        table.row(idle.row(size));
        idle.besides(size, &mut besides);
        idle.detail(size, report);
        // The figures are there; that it does not end well is a fault all the same.
        if let Err(error) = service.stop().await {
            report.check(false, || format!("{size}: {error:#}"));
        }
        let after = estate.sql.text(WORLD).await?;
        report.check(before == after, || {
            format!("{size} organizations were not in order: {before}; then {after}")
        });
        stage.remove(estate).await?;
    }
    report.table(table);
    report.table(besides);
    report.note("aim at 10 000 organizations in order: 1 statement, <= 5 ms (50 ms at most)");
    report.note(
        "grows with organizations, never with presets or workspaces: one statement asks, of every \
         organization, whether anything is missing, and answers only where it is; it cannot be less \
         than a look at each, because what puts one out of order (a group deleted, a member removed) \
         is done by people and tells nobody",
    );
    report.note(
        "each organization has one template with one pool of one; wall is the service's own metric",
    );
    Ok(())
}
