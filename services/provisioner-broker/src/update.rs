//! Progress: the heartbeat of a job, its log lines, and what an import tells early.

use berth_backbone::Work;
use berth_bus::event::{Event, LogsAdded};
use berth_db::DbError;
use berth_db::import::{self, TagPiece};
use berth_db::job::{self, Locked};
use berth_db::job_log::{self, NewLine};
use berth_db::variable::{self, Declared};
use berth_domain::build::{TAG_OWNER, TAG_SCOPE, Tags};
use berth_domain::id::OrganizationId;
use berth_domain::state::{JobKind, JobStatus, LogLevel, LogSource};
use berth_proto::{convert, v1};
use jiff::Timestamp;
use tonic::Status;

use crate::broker::Broker;
use crate::complete::{Checked, Report, check};
use crate::error::of_db;

/// Distance between the line numbers of two attempts at one job: each counts from 1.
const ATTEMPT: i64 = 1 << 32;

/// Takes progress and renews the lease.
#[tracing::instrument(name = "rpc.provisioner.update_job", level = "debug", skip_all, fields(job.id = request.job_id, lines = request.logs.len()), err(level = "info"))]
pub(crate) async fn update(
    broker: &Broker,
    organization: OrganizationId,
    request: v1::UpdateJobRequest,
) -> Result<v1::UpdateJobResponse, Status> {
    let report = Report::new(organization, &request.job_id, &request.lease_token, &[])?;
    let mut work = broker.backbone.begin().await.map_err(of_db)?;
    let Checked::Held(job) = check(&mut work, &report).await? else {
        return Err(Status::failed_precondition("the job has ended"));
    };
    let applies = job.apply_started || request.step == i32::from(v1::Step::Apply);
    let lease = if applies { broker.limits.apply_lease } else { broker.limits.lease };
    let canceled = job.status == JobStatus::Canceling;
    store(&mut work, &job, request, (lease.as_duration().as_secs_f64(), applies), broker)
        .await
        .map_err(of_db)?;
    work.commit().await.map_err(of_db)?;
    let lease_seconds = u32::try_from(lease.as_duration().as_secs()).unwrap_or(u32::MAX);
    Ok(v1::UpdateJobResponse { canceled, lease_seconds })
}

async fn store(
    work: &mut Work,
    job: &Locked,
    request: v1::UpdateJobRequest,
    (lease_seconds, applies): (f64, bool),
    broker: &Broker,
) -> Result<(), DbError> {
    job::renew(work.conn(), job.id, lease_seconds, applies).await?;
    if !request.logs.is_empty() {
        store_lines(work, job, request.logs, broker.limits.log_bytes).await?;
    }
    if job.kind != JobKind::TemplateVersionImport {
        return Ok(());
    }
    let Some(version) = import::find_version(work.conn(), job.id).await? else { return Ok(()) };
    let now = work.now();
    if let Some(readme) = request.readme {
        import::set_readme(work.conn(), version, &storable(readme), now).await?;
    }
    if !request.template_variables.is_empty() {
        let variables: Vec<_> = request.template_variables.into_iter().map(declared).collect();
        variable::put(work.conn(), version, &variables).await?;
    }
    if !request.workspace_tags.is_empty() {
        let tags: Tags = request.workspace_tags.into_iter().collect();
        job::merge_tags(work.conn(), job.id, &tags).await?;
        let rules = request.tag_rules.into_iter().filter_map(tag_rule).collect();
        import::set_tag_rules(work.conn(), version, &rules, now).await?;
    }
    Ok(())
}

/// `None`: it is no tag that depends on anything. Whose daemons may take a job, and whether a user's
/// own, is not for parameters to say.
fn tag_rule(rule: v1::TagRule) -> Option<(String, Vec<TagPiece>)> {
    let pieces: Vec<_> = rule
        .pieces
        .into_iter()
        .filter_map(|it| {
            Some(match it.piece? {
                v1::tag_piece::Piece::Text(text) => TagPiece::Text(storable(text)),
                v1::tag_piece::Piece::Parameter(name) => {
                    TagPiece::Parameter { parameter: storable(name) }
                }
            })
        })
        .collect();
    let is_rule = !pieces.is_empty() && ![TAG_SCOPE, TAG_OWNER].contains(&rule.name.as_str());
    is_rule.then_some((rule.name, pieces))
}

fn declared(it: v1::TemplateVariable) -> Declared {
    Declared {
        name: it.name,
        description: it.description,
        r#type: it.r#type,
        default_value: it.default_value,
        required: it.required,
        sensitive: it.sensitive,
    }
}

/// Stores new lines up to the cap; the first that does not fit becomes a line that says so.
async fn store_lines(
    work: &mut Work,
    job: &Locked,
    lines: Vec<v1::LogLine>,
    cap: u32,
) -> Result<(), DbError> {
    let kept = keep(job, lines, cap, work.now());
    if kept.lines.is_empty() {
        return Ok(());
    }
    let newest = job_log::insert(work.conn(), job.id, &kept.lines).await?;
    job::mark_logged(work.conn(), job.id, kept.length, kept.overflowed, kept.last).await?;
    if let Some(last_id) = newest {
        work.emit(Event::Logs(LogsAdded { job_id: job.id, last_id, end: false }));
    }
    Ok(())
}

/// What is stored of a batch of lines.
struct Kept {
    lines: Vec<NewLine>,
    length: i32,
    overflowed: bool,
    last: i64,
}

fn keep(job: &Locked, lines: Vec<v1::LogLine>, cap: u32, now: Timestamp) -> Kept {
    let base = i64::from(job.attempts.max(1) - 1) * ATTEMPT;
    let mut length = i64::from(job.logs_length);
    let mut kept = Kept {
        lines: Vec::new(),
        length: job.logs_length,
        overflowed: job.logs_overflowed,
        last: job.last_log_number,
    };
    for line in lines {
        let number = base.saturating_add(i64::try_from(line.number).unwrap_or(i64::MAX));
        if number <= kept.last || kept.overflowed {
            continue;
        }
        kept.last = number;
        let output = storable(line.output);
        let bytes = i64::try_from(output.len()).unwrap_or(i64::MAX);
        if length.saturating_add(bytes) > i64::from(cap) {
            kept.overflowed = true;
            let output = format!("The log exceeds {cap} bytes; the rest of it is dropped.");
            kept.lines.push(NewLine {
                number,
                created_at: now,
                source: LogSource::ProvisionerDaemon,
                level: LogLevel::Warn,
                stage: storable(line.stage),
                output,
            });
            break;
        }
        length += bytes;
        kept.lines.push(NewLine {
            number,
            created_at: Timestamp::from_microsecond(line.created_at_us).unwrap_or(now),
            source: convert::log_source(line.source),
            level: convert::log_level(line.level),
            stage: storable(line.stage),
            output,
        });
    }
    kept.length = i32::try_from(length).unwrap_or(i32::MAX);
    kept
}

/// Postgres' texts hold no NUL.
pub(crate) fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

#[cfg(test)]
mod tests {
    use berth_domain::id::{JobId, UserId};
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn job(attempts: i32, last: i64, length: i32) -> Locked {
        Locked {
            id: JobId(Uuid::nil()),
            organization_id: OrganizationId(Uuid::nil()),
            initiator_id: UserId(Uuid::nil()),
            kind: JobKind::WorkspaceBuild,
            input: serde_json::Value::Null,
            lease: None,
            status: JobStatus::Running,
            report_digest: None,
            apply_started: false,
            attempts,
            logs_length: length,
            logs_overflowed: false,
            last_log_number: last,
        }
    }

    fn line(number: u64, output: &str) -> v1::LogLine {
        v1::LogLine { number, output: output.to_owned(), ..v1::LogLine::default() }
    }

    #[test]
    fn lines_that_were_sent_before_are_left_out() {
        let kept = keep(&job(1, 2, 0), vec![line(2, "b"), line(3, "c")], 100, NOW);
        assert_eq!(kept.lines.iter().map(|it| it.output.as_str()).collect::<Vec<_>>(), ["c"]);
        assert_eq!((kept.last, kept.length), (3, 1));
    }

    #[test]
    fn a_second_attempt_counts_its_lines_anew() {
        let kept = keep(&job(2, 7, 0), vec![line(1, "a")], 100, NOW);
        assert_eq!(kept.last, ATTEMPT + 1);
        assert_eq!(kept.lines.len(), 1);
    }

    #[test]
    fn at_the_cap_one_line_says_so_and_the_rest_is_dropped() {
        let lines = vec![line(1, "12345"), line(2, "678901"), line(3, "x")];
        let kept = keep(&job(1, 0, 0), lines, 10, NOW);
        assert_eq!(kept.lines.len(), 2);
        assert!(kept.lines[1].output.contains("10 bytes"), "{}", kept.lines[1].output);
        assert!(kept.overflowed);
        assert_eq!(kept.length, 5);
    }

    #[test]
    fn a_nul_in_a_line_is_replaced() {
        assert_eq!(storable("a\0b".to_owned()), "a\u{fffd}b");
    }
}
