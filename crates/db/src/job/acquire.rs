//! Taking jobs off the queue, and giving them back.

use berth_domain::build::Tags;
use berth_domain::id::{DaemonId, FileId, JobId, LeaseToken, OrganizationId};
use berth_domain::state::{JobKind, ProvisionerType};
use uuid::Uuid;

use crate::{DbError, Executor};

/// A job that waits longer than this moves up one class, in seconds.
pub const AGEING_SECONDS: f64 = 15.0 * 60.0;

/// Most jobs that one statement takes. The statement has this bound, plus one, as a number: its plan
/// must not depend on how many jobs wait.
pub const HOLDERS_MAX: usize = 256;

/// Which jobs a daemon can run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Of these organizations, sorted.
    pub organizations: Vec<OrganizationId>,
    /// For one of these tools, sorted.
    pub provisioners: Vec<String>,
    /// With tags among these.
    pub tags: Tags,
}

/// A job that was taken.
#[derive(Debug, Clone)]
pub struct Held {
    /// The job.
    pub id: JobId,
    /// This holding of it.
    pub lease: LeaseToken,
    /// Who holds it.
    pub worker: DaemonId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// What for.
    pub kind: JobKind,
    /// The tool it needs.
    pub provisioner: ProvisionerType,
    /// The template's archive.
    pub file_id: FileId,
    /// What to do: see [`super::NewJob::input`].
    pub input: serde_json::Value,
    /// W3C trace context of whoever queued it.
    pub trace: serde_json::Value,
    /// Seconds it waited.
    pub waited_seconds: f64,
}

/// What one look at the queue found.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// The jobs, each with its holder, at most one per holder.
    pub jobs: Vec<Held>,
    /// There may be more jobs for such daemons. Without it, whatever was not taken now is being taken
    /// by somebody else.
    pub is_more: bool,
}

/// Takes as many jobs as there are holders, in queue order, each for one holder.
///
/// The order: class, where a job older than [`AGEING_SECONDS`] counts for the class above its own; in
/// a class whoever's turn it is, the organization with the fewest jobs running first and each job
/// taken counting as one more; then the oldest. Rows that another replica is taking are skipped, never
/// waited for. The lease begins at Postgres' `now()`.
///
/// At most [`HOLDERS_MAX`] holders. One statement. It reads the first jobs of each kind that waits
/// (organization, tool, tags, class) off the index of what is pending; what was done before is not
/// touched.
#[tracing::instrument(name = "db.job.acquire", level = "debug", skip_all, fields(holders = holders.len()), err)]
#[expect(clippy::too_many_lines, reason = "one statement and its row")]
pub async fn acquire(
    db: impl Executor<'_>,
    filter: &Filter,
    holders: &[(DaemonId, LeaseToken)],
    lease_seconds: f64,
) -> Result<Taken, DbError> {
    let organizations: Vec<Uuid> = filter.organizations.iter().map(|it| it.0).collect();
    let workers: Vec<Uuid> = holders.iter().map(|(worker, _)| worker.0).collect();
    let leases: Vec<Uuid> = holders.iter().map(|(_, lease)| lease.0).collect();
    let rows = sqlx::query!(
        r#"
        with recursive asked as materialized (
            -- Out of the planner's sight: it takes the plan that fits any number, and keeps it.
            select $1::uuid[] as organizations, $2::text[] as provisioners, $3::jsonb as tags,
                   cardinality($4::uuid[]) as holders
        ), kind as (
            -- A loose scan: one probe per kind of job that waits, however many wait.
            select o.organization_id, p.provisioner, k.tag_set_id, k.class
            from asked a
            cross join unnest(a.organizations) o (organization_id)
            cross join unnest(a.provisioners) p (provisioner)
            cross join lateral (
                select j.tag_set_id, j.class from provisioner_jobs j
                where j.organization_id = o.organization_id and j.provisioner = p.provisioner
                  and j.started_at is null and j.canceled_at is null and j.completed_at is null
                order by j.tag_set_id, j.class
                limit 1
            ) k
            union all
            select l.organization_id, l.provisioner, k.tag_set_id, k.class
            from kind l cross join lateral (
                select j.tag_set_id, j.class from provisioner_jobs j
                where j.organization_id = l.organization_id and j.provisioner = l.provisioner
                  and (j.tag_set_id, j.class) > (l.tag_set_id, l.class)
                  and j.started_at is null and j.canceled_at is null and j.completed_at is null
                order by j.tag_set_id, j.class
                limit 1
            ) k
        ), fitting as materialized (
            select k.*
            from kind k join provisioner_tag_sets t on t.id = k.tag_set_id cross join asked a
            where t.tags <@ a.tags
              and (t.tags <> '{"scope": "organization", "owner": ""}'::jsonb or t.tags = a.tags)
        ), running as materialized (
            -- Up to a thousand each: past it nobody's turn changes. One organization has no turns.
            select o.organization_id, r.jobs
            from asked a cross join unnest(a.organizations) o (organization_id)
            cross join lateral (
                select count(*) as jobs
                from (
                    select from provisioner_jobs j
                    where j.organization_id = o.organization_id
                      and j.started_at is not null and j.completed_at is null
                    limit 1000
                ) first
            ) r
            where cardinality(a.organizations) > 1
              and o.organization_id in (select organization_id from fitting)
        ), head as (
            select f.organization_id, f.provisioner, f.tag_set_id, f.class, h.created_at, h.id,
                   f.class
                   - (h.created_at < now() - $7::double precision * interval '1 second')::int
                       as counts_as
            from fitting f cross join lateral (
                select j.created_at, j.id
                from (
                    select j.created_at, j.id from provisioner_jobs j
                    where j.organization_id = f.organization_id and j.provisioner = f.provisioner
                      and j.tag_set_id = f.tag_set_id and j.class = f.class
                      and j.started_at is null and j.canceled_at is null and j.completed_at is null
                    order by j.created_at, j.id
                    limit (select holders + 1 from asked)
                ) j
                limit 257
            ) h
        ), ranked as (
            select h.*,
                   coalesce(r.jobs, 0) + row_number() over (
                       partition by h.counts_as, h.organization_id order by h.created_at, h.id
                   ) as turn
            from head h left join running r on r.organization_id = h.organization_id
        ), planned as materialized (
            select r.*, row_number() over (order by counts_as, turn, created_at, id) as place
            from ranked r
            order by counts_as, turn, created_at, id
            limit (select holders + 1 from asked)
        ), quota as materialized (
            select organization_id, provisioner, tag_set_id, class, count(*) as jobs
            from planned
            where place <= (select holders from asked)
            group by organization_id, provisioner, tag_set_id, class
        ), picked as materialized (
            -- Of each kind as many as planned, and the next ones in place of those that are locked.
            select p.id
            from quota q cross join lateral (
                select j.id
                from (
                    select j.id from provisioner_jobs j
                    where j.organization_id = q.organization_id and j.provisioner = q.provisioner
                      and j.tag_set_id = q.tag_set_id and j.class = q.class
                      and j.started_at is null and j.canceled_at is null and j.completed_at is null
                    order by j.created_at, j.id
                    limit q.jobs
                    for update skip locked
                ) j
                limit 257
            ) p
        ), numbered as (
            select p.id, row_number() over (order by l.place nulls last, p.id) as place
            from picked p left join planned l on l.id = p.id
        ), taken as (
            update provisioner_jobs j
            set started_at = now(), updated_at = now(), worker_id = h.worker,
                lease_token = h.lease, attempts = j.attempts + 1,
                lease_expires_at = now() + $6::double precision * interval '1 second'
            from numbered n
            join unnest($4::uuid[], $5::uuid[]) with ordinality as h (worker, lease, place)
                on h.place = n.place
            -- By their ids: a join alone may read all of history.
            where j.id = any(array(select id from picked)) and n.id = j.id
            returning j.id, h.lease, h.worker, j.organization_id, j.kind, j.provisioner, j.file_id,
                      j.input, j.trace_metadata, n.place,
                      extract(epoch from now() - j.created_at)::double precision as waited
        )
        select (select count(*) from planned) as "planned!", t.id as "id?", t.lease as "lease?",
               t.worker as "worker?", t.organization_id as "organization_id?", t.kind as "kind?",
               t.provisioner as "provisioner?", t.file_id as "file_id?", t.input as "input?",
               t.trace_metadata as "trace?", t.waited as "waited?"
        from (values (1)) one left join taken t on true
        order by t.place"#,
        &organizations,
        &filter.provisioners,
        serde_json::json!(filter.tags),
        &workers,
        &leases,
        lease_seconds,
        AGEING_SECONDS
    )
    .fetch_all(db)
    .await?;
    let mut taken = Taken::default();
    for row in rows {
        taken.is_more = row.planned > i64::try_from(holders.len()).unwrap_or(i64::MAX);
        let Some(id) = row.id else { continue };
        let null = || DbError::NotFound { what: "column of the taken job", id: id.to_string() };
        taken.jobs.push(Held {
            id: JobId(id),
            lease: LeaseToken(row.lease.ok_or_else(null)?),
            worker: DaemonId(row.worker.ok_or_else(null)?),
            organization_id: OrganizationId(row.organization_id.ok_or_else(null)?),
            kind: row.kind.ok_or_else(null)?.parse()?,
            provisioner: row.provisioner.ok_or_else(null)?.parse()?,
            file_id: FileId(row.file_id.ok_or_else(null)?),
            input: row.input.ok_or_else(null)?,
            trace: row.trace.ok_or_else(null)?,
            waited_seconds: row.waited.ok_or_else(null)?,
        });
    }
    Ok(taken)
}

/// Puts a job back that was taken for a caller who is gone. `false`: it is held by another already,
/// or ended.
#[tracing::instrument(name = "db.job.release", skip_all, fields(job.id = %id), err)]
pub async fn release(db: impl Executor<'_>, id: JobId, lease: LeaseToken) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update provisioner_jobs
        set started_at = null, worker_id = null, lease_token = null, lease_expires_at = null,
            attempts = attempts - 1, updated_at = now()
        where id = $1 and lease_token = $2 and completed_at is null and canceled_at is null
          and not apply_started",
        id.0,
        lease.0
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
