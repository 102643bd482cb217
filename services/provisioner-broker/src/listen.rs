//! What NATS tells the broker. Every notice may be lost: a poll stands behind each.

use std::time::Duration;

use berth_bus::Delivery;
use berth_bus::event::{JobCanceled, JobPosted};
use berth_db::job;
use berth_domain::id::JobId;
use futures_util::{Stream, StreamExt};

use crate::broker::Broker;

/// Pause before a failed subscription is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Wakes those who wait for a job when one is posted.
pub(crate) async fn postings(broker: Broker) {
    let subject = broker.backbone.bus.subjects().jobs_posted();
    while let Some(flow) = subscribed(&broker, &subject).await {
        let mut flow = std::pin::pin!(flow.take_until(broker.stop.cancelled()));
        while let Some(delivery) = flow.next().await {
            if let Ok(posted) = serde_json::from_slice::<JobPosted>(&delivery.payload) {
                broker.queue.wake(&posted);
            }
        }
    }
}

/// Hands cancel notices to the daemons that this replica serves.
pub(crate) async fn cancels(broker: Broker) {
    let subject = broker.backbone.bus.subjects().jobs_canceled();
    while let Some(flow) = subscribed(&broker, &subject).await {
        let mut flow = std::pin::pin!(flow.take_until(broker.stop.cancelled()));
        while let Some(delivery) = flow.next().await {
            if let Ok(notice) = serde_json::from_slice::<JobCanceled>(&delivery.payload) {
                cancel(&broker, notice.job_id).await;
            }
        }
    }
}

async fn cancel(broker: &Broker, id: JobId) {
    match job::find_worker(&broker.backbone.db, id).await {
        Ok(Some(daemon)) => broker.registry.cancel(daemon, id),
        Ok(None) => {}
        Err(error) => tracing::warn!(error = %error, "cancel notice not passed on"),
    }
}

/// Subscribes, however long it takes. `None`: the process stops.
async fn subscribed(
    broker: &Broker,
    subject: &str,
) -> Option<impl Stream<Item = Delivery> + use<>> {
    while !broker.stop.is_cancelled() {
        let subscribed = tokio::select! {
            subscribed = broker.backbone.bus.subscribe(subject.to_owned()) => subscribed,
            () = broker.stop.cancelled() => return None,
        };
        match subscribed {
            Ok(flow) => return Some(flow),
            Err(error) => tracing::debug!(error = %error, subject, "not subscribed yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = broker.stop.cancelled() => return None,
        }
    }
    None
}
