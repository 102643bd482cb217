//! Quota, asked between plan and apply.

use berth_db::completion::{self, Charge};
use berth_domain::id::OrganizationId;
use berth_proto::v1;
use tonic::Status;

use crate::broker::Broker;
use crate::complete::{Checked, Report, check};
use crate::error::of_db;

/// Whether the owner's quota covers the cost. What the build is charged already is covered, so that no
/// claim fails for what its owner was granted. What is granted is charged at once, under a lock per
/// owner and organization, so that two builds never spend the same credits.
#[tracing::instrument(name = "rpc.provisioner.commit_quota", skip_all, fields(job.id = request.job_id, cost = request.daily_cost), err(level = "info"))]
pub(crate) async fn commit(
    broker: &Broker,
    organization: OrganizationId,
    request: &v1::CommitQuotaRequest,
) -> Result<v1::CommitQuotaResponse, Status> {
    if request.daily_cost < 0 {
        let text = format!("daily_cost is {}: it cannot be negative", request.daily_cost);
        return Err(Status::invalid_argument(text));
    }
    let report = Report::new(organization, &request.job_id, &request.lease_token, &[])?;
    let mut work = broker.backbone.begin().await.map_err(of_db)?;
    let Checked::Held(job) = check(&mut work, &report).await? else {
        return Err(Status::failed_precondition("the job has ended"));
    };
    let found = completion::quota(work.conn(), job.id).await.map_err(of_db)?;
    let Charge { build_id: build, quota, previous, charged } =
        found.ok_or_else(|| Status::failed_precondition("only workspace builds have a quota"))?;
    let cost = i64::from(request.daily_cost);
    let ok = cost <= charged || quota.check(cost, previous).is_ok();
    if ok {
        let now = work.now();
        completion::set_cost(work.conn(), build, request.daily_cost, now).await.map_err(of_db)?;
    } else {
        let noted = completion::note_refused_cost(work.conn(), build, request.daily_cost).await;
        noted.map_err(of_db)?;
    }
    work.commit().await.map_err(of_db)?;
    let consumed = if ok { quota.consumed.saturating_add(cost) } else { quota.consumed };
    Ok(v1::CommitQuotaResponse {
        ok,
        credits_consumed: i32::try_from(consumed).unwrap_or(i32::MAX),
        budget: i32::try_from(quota.budget).unwrap_or(i32::MAX),
    })
}
