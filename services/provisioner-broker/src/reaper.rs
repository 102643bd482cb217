//! Ends what nobody runs any more. Any replica does it: rows that another one has are skipped.

use std::collections::BTreeMap;

use berth_backbone::{Work, builder};
use berth_bus::event::{Event, LogsAdded};
use berth_db::{job, job_log};
use berth_domain::id::JobId;
use berth_domain::state::LogLevel;

use crate::broker::Broker;
use crate::effect;
use crate::error::SettleError;

const REQUEUED: &str = "The provisioner daemon was lost, or stopped, before it applied anything. \
                        The job is queued once more.";
const LOST: &str = "The provisioner daemon was lost: its lease on the job ended.";
const LOST_IN_APPLY: &str = "The provisioner daemon was lost while it applied changes: its lease \
                             on the job ended. Resources may exist that the state does not name; \
                             the state of the build before is kept.";

/// Looks until shutdown.
pub(crate) async fn run(broker: Broker) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(broker.limits.reap.as_duration()) => {}
            () = broker.stop.cancelled() => return,
        }
        if let Err(error) = pass(&broker).await {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(error, "reaper pass failed; the next one repeats it");
        }
    }
}

/// One look: three transactions, each short.
#[tracing::instrument(name = "reaper.pass", level = "debug", skip_all)]
pub(crate) async fn pass(broker: &Broker) -> Result<(), SettleError> {
    let mut work = broker.backbone.begin().await?;
    if requeue(&mut work).await? {
        work.commit().await?;
    }
    let mut work = broker.backbone.begin().await?;
    if fail(&mut work).await? {
        work.commit().await?;
    }
    cancel_unserved(broker).await
}

/// Puts jobs back whose lease ended before apply. `false`: there were none.
pub(crate) async fn requeue(work: &mut Work) -> Result<bool, SettleError> {
    let lost = job::requeue_lost(work.conn()).await?;
    if lost.is_empty() {
        return Ok(false);
    }
    let ids: Vec<JobId> = lost.iter().map(|it| it.id).collect();
    let now = work.now();
    job_log::insert_notes(work.conn(), &ids, LogLevel::Warn, REQUEUED, now).await?;
    effect::changed(work, &ids).await?;
    for (job_id, last_id) in job_log::last_ids(work.conn(), &ids).await? {
        work.emit(Event::Logs(LogsAdded { job_id, last_id, end: false }));
    }
    let mut kinds: BTreeMap<_, u32> = BTreeMap::new();
    for job in &lost {
        *kinds.entry((job.organization_id, job.provisioner)).or_default() += 1;
    }
    for ((organization, provisioner), count) in kinds {
        builder::post(work, organization, provisioner, count);
    }
    tracing::warn!(jobs = ids.len(), "leases ended before apply; queued once more");
    Ok(true)
}

/// Ends jobs whose lease ended and that are not to be run again. `false`: there were none.
pub(crate) async fn fail(work: &mut Work) -> Result<bool, SettleError> {
    let now = work.now();
    let (mut ids, applied) = job::fail_lost(work.conn(), now).await?;
    if ids.is_empty() && applied.is_empty() {
        return Ok(false);
    }
    job_log::insert_notes(work.conn(), &ids, LogLevel::Error, LOST, now).await?;
    job_log::insert_notes(work.conn(), &applied, LogLevel::Error, LOST_IN_APPLY, now).await?;
    ids.extend(applied);
    effect::failed(work, &ids).await?;
    tracing::warn!(jobs = ids.len(), "leases ended; failed");
    Ok(true)
}

async fn cancel_unserved(broker: &Broker) -> Result<(), SettleError> {
    let pending = broker.limits.pending_timeout;
    let mut work = broker.backbone.begin().await?;
    let now = work.now();
    let ids = job::cancel_unserved(work.conn(), pending.as_duration().as_secs_f64(), now).await?;
    if ids.is_empty() {
        return Ok(());
    }
    let text =
        format!("No provisioner daemon took the job within {pending}. Start one whose tags match.");
    job_log::insert_notes(work.conn(), &ids, LogLevel::Error, &text, now).await?;
    effect::failed(&mut work, &ids).await?;
    tracing::warn!(jobs = ids.len(), "no daemon took them in time; cancelled");
    Ok(work.commit().await?)
}
