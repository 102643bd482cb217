//! Whether the data set is what the reconciler would leave behind: it looks at the pools and finds
//! nothing to do.

use std::time::Duration;

use crate::psql::Psql;
use crate::report::Report;
use crate::service::until;

/// How long the look at all of them may take.
const LIMIT: Duration = Duration::from_mins(10);
/// What must not change.
const WORLD: &str = "
    select (select count(*) from provisioner_jobs) || ' jobs, '
        || (select count(*) from workspaces where not deleted) || ' live workspaces, '
        || (select count(*) from prebuild_decisions where actions <> '[]') || ' decisions to act'";

/// The world before the first look at it.
pub(super) struct Before(String);

/// Marks up to `limit` pools. A reconciler that starts looks at marked pools first of all; one that
/// runs, in its next sweep.
pub(super) async fn mark(sql: &mut Psql, limit: u64) -> anyhow::Result<Before> {
    let before = sql.text(WORLD).await?;
    // The newest are as good as any, and the ones that were just loaded.
    let marks = format!(
        "insert into prebuild_pool_marks (preset_id, created_at)
         select preset_id, now() from prebuild_pools order by preset_id desc limit {limit}"
    );
    sql.run(&marks).await?;
    Ok(Before(before))
}

/// Waits until each marked pool was looked at, and checks that nothing came of it.
pub(super) async fn check(
    sql: &mut Psql,
    report: &mut Report,
    Before(before): Before,
) -> anyhow::Result<()> {
    until("every marked pool was looked at", LIMIT, async || {
        let left = sql.count("select count(*) from prebuild_pool_marks").await?;
        Ok((left == 0).then_some(()))
    })
    .await?;
    let after = sql.text(WORLD).await?;
    report.check(before == after, || {
        format!("the first look at the pools found something to do: {before}; then {after}")
    });
    Ok(())
}
