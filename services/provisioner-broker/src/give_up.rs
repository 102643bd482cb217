//! Leases that end before their time, because whoever held them says that it is over.
//!
//! A lease token is all that it takes: only the daemon that was given the job has it, and writes it
//! down where its successor finds it. Names prove nothing here: a second daemon of one name on
//! another machine knows no token of the first.

use berth_db::job;
use berth_domain::id::{LeaseToken, OrganizationId};
use berth_proto::v1;
use tonic::Status;

use crate::broker::Broker;
use crate::error::{self, of_db, of_settle};
use crate::reaper;

/// Most leases of one call.
const LEASES_MAX: usize = 1000;

/// Ends leases and deals with their jobs as the reaper does, in one transaction: no late report
/// renews a lease in between.
#[tracing::instrument(name = "rpc.provisioner.give_up_jobs", skip_all, fields(leases = request.lease_tokens.len()), err(level = "info"))]
pub(crate) async fn give_up(
    broker: &Broker,
    organization: OrganizationId,
    request: &v1::GiveUpJobsRequest,
) -> Result<(), Status> {
    let count = request.lease_tokens.len();
    if count > LEASES_MAX {
        let text = format!("at most {LEASES_MAX} leases are given up in one call, not {count}");
        return Err(Status::invalid_argument(text));
    }
    let tokens = request.lease_tokens.iter().map(|it| error::id(it, "lease token"));
    let leases = tokens.collect::<Result<Vec<LeaseToken>, _>>()?;
    let mut work = broker.backbone.begin().await.map_err(of_db)?;
    let held = job::end_leases(work.conn(), organization, &leases).await.map_err(of_db)?;
    if held == 0 {
        return Ok(());
    }
    tracing::warn!(jobs = held, "a daemon gave its jobs up");
    reaper::requeue(&mut work).await.map_err(of_settle)?;
    reaper::fail(&mut work).await.map_err(of_settle)?;
    work.commit().await.map_err(of_db)
}
