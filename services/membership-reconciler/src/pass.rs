//! One pass: one statement tells what is missing, and only that is inserted.

use berth_backbone::{Clock, Ids};
use berth_db::membership::{self, Standing};
use berth_db::{DbError, Pool, pool};
use berth_domain::id::{GroupId, OrganizationId, PresetId};
use futures_util::StreamExt;

use crate::metrics::Metrics;

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
    /// What it counts.
    pub metrics: Metrics,
}

/// What came of a pass.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Organizations where something was missing.
    pub out_of_order: usize,
    /// Memberships that this pass added.
    pub members: usize,
    /// Groups that this pass added.
    pub groups: usize,
    /// Group memberships that this pass added.
    pub group_members: usize,
    /// Organizations that could not be set right; each was logged.
    pub failed: Vec<OrganizationId>,
    /// Pools whose budget may have changed. They are marked; waking the reconciler only makes it
    /// sooner.
    pub pools: Vec<PresetId>,
}

/// What was added in one organization.
struct Added {
    member: bool,
    group: bool,
    group_member: bool,
    pools: Vec<PresetId>,
}

impl Membership {
    /// Looks at all organizations, or at `only` one, and sets them right. Fails only when the
    /// looking fails: one organization's error never stops another's.
    #[tracing::instrument(name = "membership.pass", skip_all, err)]
    pub async fn pass(&self, only: Option<OrganizationId>) -> Result<Outcome, DbError> {
        let timer = self.metrics.pass_seconds.start_timer();
        let standings = membership::list_out_of_order(&self.db, only)
            .await
            .inspect_err(|_| self.metrics.passes.with_label_values(&["failed"]).inc())?;
        if only.is_none() {
            let found = i64::try_from(standings.len()).unwrap_or(i64::MAX);
            self.metrics.out_of_order.set(found);
        }
        let mut outcome = Outcome { out_of_order: standings.len(), ..Outcome::default() };
        let mut results =
            futures_util::stream::iter(standings)
                .map(|standing| async move {
                    (standing.organization_id, self.set_right(standing).await)
                })
                .buffer_unordered(self.concurrency.max(1));
        while let Some((organization, result)) = results.next().await {
            match result {
                Ok(added) => outcome.add(added),
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(error, organization.id = %organization, "the prebuilds user is not where it has to be; the next pass tries again");
                    self.metrics.errors.inc();
                    outcome.failed.push(organization);
                }
            }
        }
        drop(results);
        self.count(&outcome);
        timer.observe_duration();
        Ok(outcome)
    }

    /// Inserts what is missing in one organization. Who finds a row already there goes on: somebody
    /// else did it.
    #[tracing::instrument(name = "membership.set_right", skip_all, fields(organization.id = %standing.organization_id))]
    async fn set_right(&self, standing: Standing) -> Result<Added, DbError> {
        let organization = standing.organization_id;
        let now = self.clock.now();
        let mut transaction = berth_db::begin(&self.db).await?;
        let conn = &mut *transaction;
        let member =
            !standing.is_member && membership::insert_member(&mut *conn, organization, now).await?;
        let group = standing.group_id.is_none()
            && membership::insert_group(&mut *conn, GroupId(self.ids.next()), organization, now)
                .await?;
        let group_member = !standing.is_in_group
            && membership::insert_group_member(&mut *conn, organization).await?;
        // The budget of the prebuilds user is what its groups allow, and plans read it.
        let pools = if member || group_member {
            pool::mark_organization_dirty(&mut *conn, organization, now).await?
        } else {
            Vec::new()
        };
        transaction.commit().await?;
        if member || group || group_member {
            tracing::info!(organization.id = %organization, member, group, group_member, "prebuilds user added");
        }
        Ok(Added { member, group, group_member, pools })
    }

    fn count(&self, outcome: &Outcome) {
        let result = if outcome.failed.is_empty() { "ok" } else { "partial" };
        self.metrics.passes.with_label_values(&[result]).inc();
        let inserts = [
            ("member", outcome.members),
            ("group", outcome.groups),
            ("group_member", outcome.group_members),
        ];
        for (kind, count) in inserts {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.metrics.inserts.with_label_values(&[kind]).inc_by(count);
        }
    }
}

impl Outcome {
    fn add(&mut self, added: Added) {
        self.members += usize::from(added.member);
        self.groups += usize::from(added.group);
        self.group_members += usize::from(added.group_member);
        self.pools.extend(added.pools);
    }
}
