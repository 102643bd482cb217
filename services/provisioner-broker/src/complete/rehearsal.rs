//! What claims replace: found by a rehearsal, or met by a claim build.

use std::collections::BTreeMap;

use berth_backbone::Work;
use berth_bus::event::{Event, Notify, Wake};
use berth_db::job::{self, BuildInput, Locked};
use berth_db::rehearsal::{self, Replacements};
use berth_db::{DbError, job_log};
use berth_domain::id::{BuildId, PresetId};
use berth_domain::notification::NotificationTemplate;
use berth_domain::state::{LogLevel, RehearsalOutcome};
use berth_proto::v1;

use super::Refusal;
use crate::update::storable;

/// Stores what a rehearsal found, and tells template admins of it if it is news.
pub(super) async fn store(
    work: &mut Work,
    job: &Locked,
    result: &v1::RehearsalResult,
) -> Result<(), Refusal> {
    let build = rehearsed(job)
        .ok_or_else(|| Refusal::Template("the job's input names no build".to_owned()))?;
    let found = replacements(&result.replacements);
    let outcome = if !found.is_empty() {
        RehearsalOutcome::Replaces
    } else if rehearsal::is_current(work.conn(), build).await? {
        RehearsalOutcome::Clean
    } else {
        // What a plan finds of a prebuild that goes away meanwhile says nothing.
        RehearsalOutcome::Lost
    };
    let now = work.now();
    if outcome == RehearsalOutcome::Lost {
        let text = "The prebuild was claimed or deleted meanwhile: its plan says nothing.";
        job_log::insert_notes(work.conn(), &[job.id], LogLevel::Warn, text, now).await?;
    }
    let settled = rehearsal::settle(work.conn(), job.id, outcome, &found, now).await?;
    let Some(preset) = settled else { return Ok(()) };
    if outcome == RehearsalOutcome::Lost {
        work.emit(Wake::pool(preset));
    }
    if found.is_empty() {
        return Ok(());
    }
    let build = job::find_build_input(work.conn(), build)
        .await?
        .ok_or_else(|| Refusal::Template(format!("build {build} does not exist")))?;
    Ok(tell(work, preset, &build, &found, FoundBy::Rehearsal).await?)
}

/// The build that a rehearsal plans on.
fn rehearsed(job: &Locked) -> Option<BuildId> {
    job.input.get("rehearsed_build_id")?.as_str()?.parse().ok()
}

/// Replacements as they are stored and told.
pub(super) fn replacements(reported: &[v1::Replacement]) -> Replacements {
    let one = |it: &v1::Replacement| {
        (storable(it.resource.clone()), it.paths.iter().cloned().map(storable).collect())
    };
    reported.iter().map(one).collect()
}

/// Who met a replacement.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundBy {
    /// A plan, before anybody claimed.
    Rehearsal,
    /// A user.
    Claim,
}

/// Tells template admins what claims of a preset replace, unless they were told.
pub(super) async fn tell(
    work: &mut Work,
    preset: PresetId,
    build: &BuildInput,
    found: &Replacements,
    by: FoundBy,
) -> Result<(), DbError> {
    if !rehearsal::mark_told(work.conn(), preset, found).await? {
        return Ok(());
    }
    let mut labels = vec![
        ("org", build.organization_name.as_str()),
        ("template", &build.template_name),
        ("version", &build.version_name),
        ("preset", build.preset_name.as_deref().unwrap_or_default()),
    ];
    let mut targets = vec![build.template_id.0, build.version_id.0];
    if by == FoundBy::Claim {
        labels.push(("workspace", &build.workspace_name));
        labels.push(("claimant", &build.owner.username));
        targets.push(build.workspace_id.0);
    }
    let labels = labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    work.emit(Event::Notify(Notify {
        template: NotificationTemplate::ResourceReplaced.id(),
        organization_id: build.organization_id,
        user_id: None,
        labels: labels.collect::<BTreeMap<_, _>>(),
        data: serde_json::json!({ "replacements": found }),
        targets,
    }));
    Ok(())
}
