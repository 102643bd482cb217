//! What NATS tells the broker. Every notice may be lost: a poll stands behind each.

use std::time::Duration;

use berth_bus::Delivery;
use berth_bus::event::{JobCanceled, JobPosted};
use berth_db::{daemon, job};
use berth_domain::id::JobId;
use futures_util::{Stream, StreamExt};
use tokio::sync::Notify;

use crate::broker::Broker;

/// Pause before a failed subscription is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Wakes those who wait for a job when one is posted.
pub(crate) async fn postings(broker: Broker) {
    let subject = broker.backbone.bus.subjects().jobs_posted();
    while let Some(flow) = subscribed(&broker, &subject).await {
        broker.queue.hears_postings();
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

/// Keeps track of the daemons that are to take no new jobs, wherever they are connected: looks when it
/// is told that some are, and as often as waiting daemons look at the queue.
pub(crate) async fn drains(broker: Broker) {
    let told = Notify::new();
    let looks = async {
        loop {
            look_for_drains(&broker).await;
            tokio::select! {
                () = told.notified() => {}
                () = tokio::time::sleep(broker.limits.poll.as_duration()) => {}
                () = broker.stop.cancelled() => return,
            }
        }
    };
    tokio::join!(looks, hear_of_drains(&broker, &told));
}

async fn hear_of_drains(broker: &Broker, told: &Notify) {
    let subject = broker.backbone.bus.subjects().daemons_drained();
    while let Some(flow) = subscribed(broker, &subject).await {
        // What was said before is not heard any more.
        told.notify_one();
        let mut flow = std::pin::pin!(flow.take_until(broker.stop.cancelled()));
        while flow.next().await.is_some() {
            told.notify_one();
        }
    }
}

async fn look_for_drains(broker: &Broker) {
    match daemon::list_draining(&broker.backbone.db).await {
        Ok(draining) => {
            if broker.registry.set_draining(draining.into_iter().collect()) {
                broker.queue.wake_all();
            }
        }
        Err(error) => tracing::warn!(error = %error, "not known which daemons drain; again soon"),
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
