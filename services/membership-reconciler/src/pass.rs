//! One pass: one statement tells what is out of order, and only that is set right.

use std::time::Duration;

use berth_backbone::{Clock, Ids};
use berth_db::membership::{self, Removed, Standing, Unused};
use berth_db::{DbError, Pool};
use berth_domain::id::{GroupId, OrganizationId};
use futures_util::StreamExt;
use jiff::SignedDuration;
use prometheus::IntCounterVec;

use crate::metrics::Metrics;

/// How long an organization must be without pools before anything is removed from it.
pub const UNUSED_FOR: SignedDuration = SignedDuration::from_hours(24);

/// How long one organization may wait for a lock, and for one statement. Past it the organization
/// counts as failed and the next pass tries again; the others do not wait for it.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const STATEMENT_WAIT: Duration = Duration::from_secs(5);

/// Puts the prebuilds user where it has to be. Any number of these may run at once.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Postgres.
    pub db: Pool,
    /// The time.
    pub clock: Clock,
    /// Ids of groups.
    pub ids: Ids,
    /// Organizations at once; at least 1.
    pub concurrency: usize,
    /// Removes what was added where it has not been needed for [`UNUSED_FOR`].
    pub remove_unused: bool,
    /// What it counts.
    pub metrics: Metrics,
}

/// What came of a pass.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Organizations where something that prebuilds need was missing.
    pub out_of_order: usize,
    /// Memberships that this pass added.
    pub members: usize,
    /// Groups that this pass added.
    pub groups: usize,
    /// Group memberships that this pass added.
    pub group_members: usize,
    /// Rows of all three kinds that this pass removed as unused.
    pub removed: usize,
    /// Organizations that could not be set right; each was logged.
    pub failed: Vec<OrganizationId>,
    /// Pools that were marked because the budget that held them back changed. One wake of the
    /// reconciler only makes it sooner.
    pub pools: u64,
}

/// What was done in one organization.
#[derive(Debug, Default)]
struct Done {
    member: bool,
    group: bool,
    group_member: bool,
    removed: Removed,
    pools: u64,
}

impl Membership {
    /// Looks at all organizations, or at `only` one, and sets them right. Fails only when the
    /// looking fails: one organization's error never stops another's.
    #[tracing::instrument(name = "membership.pass", skip_all, err)]
    pub async fn pass(&self, only: Option<OrganizationId>) -> Result<Outcome, DbError> {
        let timer = self.metrics.pass_seconds.start_timer();
        let standings = self
            .look(only)
            .await
            .inspect_err(|_| self.metrics.passes.with_label_values(&["failed"]).inc())?;
        let missing = standings.iter().filter(|it| it.is_needed && !it.holds()).count();
        let mut outcome = Outcome { out_of_order: missing, ..Outcome::default() };
        if only.is_none() {
            self.metrics.out_of_order.set(as_gauge(missing));
        }
        let mut results =
            futures_util::stream::iter(standings)
                .map(|standing| async move {
                    (standing.organization_id, self.set_right(standing).await)
                })
                .buffer_unordered(self.concurrency.max(1));
        while let Some((organization, result)) = results.next().await {
            match result {
                Ok(done) => outcome.add(&done),
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(error, organization.id = %organization, "the prebuilds user is not where it has to be; the next pass tries again");
                    self.metrics.errors.inc();
                    outcome.failed.push(organization);
                }
            }
        }
        drop(results);
        if only.is_none() {
            self.metrics.out_of_order.set(as_gauge(outcome.failed.len()));
        }
        let result = if outcome.failed.is_empty() { "ok" } else { "partial" };
        self.metrics.passes.with_label_values(&[result]).inc();
        timer.observe_duration();
        Ok(outcome)
    }

    /// The one statement of a pass.
    async fn look(&self, only: Option<OrganizationId>) -> Result<Vec<Standing>, DbError> {
        let unused = self.unused();
        match only {
            None => membership::list_out_of_order(&self.db, unused).await,
            Some(id) => {
                let standing = membership::find_out_of_order(&self.db, id, unused).await?;
                Ok(standing.into_iter().collect())
            }
        }
    }

    fn unused(&self) -> Unused {
        Unused { remove: self.remove_unused, since: self.clock.now() - UNUSED_FOR }
    }

    /// Sets one organization right. A refused write usually means that somebody else changed it in
    /// between: it is read again, and what is still out of order is tried once more.
    #[tracing::instrument(name = "membership.set_right", skip_all, fields(organization.id = %standing.organization_id))]
    async fn set_right(&self, standing: Standing) -> Result<Done, DbError> {
        let organization = standing.organization_id;
        match self.carry_out(standing).await {
            Err(error) if error.constraint().is_some() => {
                let again =
                    membership::find_out_of_order(&self.db, organization, self.unused()).await?;
                match again {
                    Some(standing) => self.carry_out(standing).await,
                    None => Ok(Done::default()),
                }
            }
            result => result,
        }
    }

    /// One organization in one transaction.
    async fn carry_out(&self, standing: Standing) -> Result<Done, DbError> {
        let organization = standing.organization_id;
        let mut transaction = berth_db::begin(&self.db).await?;
        let conn = &mut *transaction;
        membership::limit_waits(&mut *conn, LOCK_WAIT, STATEMENT_WAIT).await?;
        let done = if standing.is_needed {
            self.add_missing(conn, standing).await?
        } else if standing.unused_since.is_none() {
            membership::set_unused_since(&mut *conn, organization, Some(self.clock.now())).await?;
            Done::default()
        } else {
            let removed = membership::remove_additions(&mut *conn, organization).await?;
            Done { removed, ..Done::default() }
        };
        transaction.commit().await?;
        self.count(&done);
        done.tell(organization);
        Ok(done)
    }

    /// Inserts what is missing. Who finds a row already there goes on: somebody else did it.
    async fn add_missing(
        &self,
        conn: &mut berth_db::Connection,
        standing: Standing,
    ) -> Result<Done, DbError> {
        let organization = standing.organization_id;
        let now = self.clock.now();
        if standing.unused_since.is_some() {
            membership::set_unused_since(&mut *conn, organization, None).await?;
        }
        let member =
            !standing.is_member && membership::insert_member(&mut *conn, organization, now).await?;
        let group = standing.group_id.is_none()
            && membership::insert_group(&mut *conn, GroupId(self.ids.next()), organization, now)
                .await?;
        let group_member = !standing.is_in_group
            && membership::insert_group_member(&mut *conn, organization).await?;
        // The budget of the prebuilds user is what its groups allow, and plans read it.
        let pools = if member || group_member {
            membership::mark_held_by_quota(&mut *conn, organization, now).await?
        } else {
            0
        };
        Ok(Done { member, group, group_member, pools, removed: Removed::default() })
    }

    fn count(&self, done: &Done) {
        let added = [done.member, done.group, done.group_member];
        let removed = [done.removed.member, done.removed.group, done.removed.group_member];
        for (counter, rows) in [(&self.metrics.inserts, added), (&self.metrics.removals, removed)] {
            count_kinds(counter, rows);
        }
    }
}

/// Counts a row of each kind for which `rows` is true.
fn count_kinds(counter: &IntCounterVec, rows: [bool; 3]) {
    for (kind, is_there) in ["member", "group", "group_member"].into_iter().zip(rows) {
        counter.with_label_values(&[kind]).inc_by(u64::from(is_there));
    }
}

fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Done {
    fn tell(&self, organization: OrganizationId) {
        let Self { member, group, group_member, removed, .. } = *self;
        if member || group || group_member {
            tracing::info!(organization.id = %organization, member, group, group_member, "prebuilds user added");
        }
        if removed != Removed::default() {
            tracing::info!(organization.id = %organization, member = removed.member, group = removed.group, group_member = removed.group_member, "prebuilds user removed: no pools for 24 h");
        }
    }
}

impl Outcome {
    fn add(&mut self, done: &Done) {
        self.members += usize::from(done.member);
        self.groups += usize::from(done.group);
        self.group_members += usize::from(done.group_member);
        let removed = &done.removed;
        self.removed += usize::from(removed.member)
            + usize::from(removed.group)
            + usize::from(removed.group_member);
        self.pools += done.pools;
    }
}
