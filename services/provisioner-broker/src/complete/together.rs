//! Results of builds and dry runs that come in at the same time are stored in one transaction. One
//! that cannot be stored with others is looked at alone, by the module above, and its reporter told.

use std::collections::BTreeSet;

use berth_backbone::Work;
use berth_db::completion::Place;
use berth_db::job::{self, Ended, Success};
use berth_db::job_timing;
use berth_domain::id::JobId;
use berth_domain::state::{JobKind, Transition};
use berth_proto::v1;
use v1::complete_job_request::Result as Output;

use super::build::{self, Made};
use super::collect::{self, Collected};
use super::{Report, count, timings};
use crate::broker::Broker;
use crate::effect;
use crate::error::SettleError;
use crate::gather::Gather;

/// A larger result is stored alone, so that a transaction stays short and small. In bytes.
const LARGEST: usize = 256 * 1024;

/// Results that are being stored together. Who gets his own back has to go alone.
pub(crate) type Results = Gather<Reported, Option<Reported>>;

/// A result, read but not stored.
pub(crate) struct Reported {
    pub(super) result: Box<Whole>,
    kind: JobKind,
    found: Collected,
}

/// All of a result.
pub(crate) struct Whole {
    pub(super) report: Report,
    pub(super) output: Output,
    pub(super) timings: Vec<v1::Timing>,
    /// How large it is.
    pub(super) bytes: usize,
}

impl Reported {
    /// Reads a result. `Err`: it is none to be stored with others.
    pub(super) fn read(broker: &Broker, result: Box<Whole>) -> Result<Self, Box<Whole>> {
        let (kind, resources) = match &result.output {
            Output::WorkspaceBuild(it) if it.replacements.is_empty() => {
                (JobKind::WorkspaceBuild, &it.resources)
            }
            Output::TemplateDryRun(it) => (JobKind::TemplateVersionDryRun, &it.resources),
            _ => return Err(result),
        };
        if result.bytes > LARGEST {
            return Err(result);
        }
        match collect::collect(broker.backbone.ids, result.report.job, resources) {
            Ok(found) => Ok(Self { result, kind, found }),
            // The template's doing: its job fails, alone.
            Err(_) => Err(result),
        }
    }

    fn success(&self) -> Success<'_> {
        Success {
            id: self.result.report.job,
            organization_id: self.result.report.organization,
            lease: self.result.report.lease,
            kind: self.kind,
            digest: &self.result.report.digest,
        }
    }
}

/// Stores the result together with those that come in at the same time. Gives it back where it has to
/// be looked at alone.
pub(super) async fn store(
    broker: &Broker,
    reported: Reported,
) -> Result<Option<Reported>, tonic::Status> {
    let shared = broker.clone();
    let answer = move |all| answer(shared.clone(), all);
    broker.results.ask(reported, answer).await
}

async fn answer(broker: Broker, all: Vec<Reported>) -> Vec<Option<Reported>> {
    match store_all(&broker, &all).await {
        Ok(stored) => {
            let is_stored = |it: &Reported| stored.contains(&it.result.report.job);
            // Of two reports on one job only the first was asked for.
            let mut told = BTreeSet::new();
            all.into_iter()
                .map(|it| (!is_stored(&it) || !told.insert(it.result.report.job)).then_some(it))
                .collect()
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::info!(error, results = all.len(), "not stored together; each goes alone");
            all.into_iter().map(Some).collect()
        }
    }
}

/// Gives the jobs whose results were stored.
#[tracing::instrument(name = "job.end", level = "debug", skip_all, fields(results = all.len()))]
async fn store_all(broker: &Broker, all: &[Reported]) -> Result<BTreeSet<JobId>, SettleError> {
    let mut named = BTreeSet::new();
    let first: Vec<&Reported> =
        all.iter().filter(|it| named.insert(it.result.report.job)).collect();
    let successes: Vec<Success<'_>> = first.iter().map(|it| it.success()).collect();
    let mut work = broker.backbone.begin().await?;
    let now = work.now();
    let ended = job::mark_succeeded(work.conn(), &successes, now).await?;
    if ended.is_empty() {
        return Ok(BTreeSet::new());
    }
    let pairs: Vec<(&Ended, &Reported)> = ended
        .iter()
        .filter_map(|it| Some((it, *first.iter().find(|of| of.result.report.job == it.id)?)))
        .collect();
    store_timings(&mut work, &pairs).await?;
    let builds: Vec<Made<'_>> = pairs.iter().filter_map(made).collect();
    if !builds.is_empty() {
        build::store_made((&broker.vault, &mut work), &builds).await?;
    }
    let (places, found): (Vec<_>, Vec<_>) = pairs
        .iter()
        .filter(|(ended, _)| ended.build.is_none())
        .map(|(ended, reported)| (dry(ended.id), &reported.found))
        .unzip();
    build::insert(&mut work, &places, &found).await?;
    let jobs: Vec<JobId> = ended.iter().map(|it| it.id).collect();
    let building: Vec<JobId> = builds.iter().map(|it| it.job).collect();
    effect::ended(&mut work, &jobs, &building).await?;
    work.commit().await?;
    for it in &ended {
        count(broker, it.kind, it.status);
    }
    Ok(jobs.into_iter().collect())
}

fn made<'a>((ended, reported): &(&Ended, &'a Reported)) -> Option<Made<'a>> {
    let Output::WorkspaceBuild(result) = &reported.result.output else { return None };
    let (build, found) = (ended.build?, &reported.found);
    Some(Made { job: ended.id, build, state: &result.state, found })
}

fn dry(job_id: JobId) -> Place {
    Place { job_id, transition: Transition::Start, owner: None }
}

async fn store_timings(work: &mut Work, pairs: &[(&Ended, &Reported)]) -> Result<(), SettleError> {
    let all: Vec<_> =
        pairs.iter().flat_map(|(ended, it)| timings(ended.id, &it.result.timings)).collect();
    if !all.is_empty() {
        job_timing::insert(work.conn(), &all).await?;
    }
    Ok(())
}
