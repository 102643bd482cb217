//! Daemons that wait for a job, grouped by what they can run: at most one acquire statement in
//! flight per group, which takes as many jobs as the group has waiters.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_db::job::{self, Filter, Held};
use berth_domain::id::{DaemonId, LeaseToken, OrganizationId};
use berth_domain::state::ProvisionerType;
use tokio::sync::{Notify, oneshot};

use crate::broker::Broker;
use crate::effect;
use crate::error::SettleError;

/// All groups of this replica.
#[derive(Default)]
pub(crate) struct Queue {
    groups: Mutex<HashMap<Filter, Arc<Group>>>,
}

#[derive(Default)]
struct Group {
    waiters: Mutex<VecDeque<Waiter>>,
    wake: Notify,
}

struct Waiter {
    daemon: DaemonId,
    hand: oneshot::Sender<Held>,
}

/// A place in the queue. Dropping it gives the place up, and a job that came at that very moment
/// back.
pub(crate) struct Ticket {
    job: oneshot::Receiver<Held>,
    broker: Broker,
}

/// A job in hand. Dropping it puts the job back.
pub(crate) struct InHand {
    held: Option<Held>,
    broker: Broker,
}

impl Queue {
    /// Wakes the groups that could run a job.
    pub(crate) fn wake(&self, organization: OrganizationId, provisioner: ProvisionerType) {
        for (filter, group) in self.lock().iter() {
            let can_run = filter.provisioners.iter().any(|it| it == provisioner.as_str());
            if filter.organization_id == organization && can_run {
                group.wake.notify_one();
            }
        }
    }

    /// Takes a place for a daemon.
    pub(crate) fn wait(broker: &Broker, filter: Filter, daemon: DaemonId) -> Ticket {
        let (hand, job) = oneshot::channel();
        let mut groups = broker.queue.lock();
        let (group, is_new) = match groups.get(&filter) {
            Some(group) => (group.clone(), false),
            None => (groups.entry(filter.clone()).or_default().clone(), true),
        };
        group.lock().push_back(Waiter { daemon, hand });
        group.wake.notify_one();
        drop(groups);
        if is_new {
            tokio::spawn(serve(broker.clone(), filter, group));
        }
        Ticket { job, broker: broker.clone() }
    }

    /// Ends a group that nobody waits in. Under the lock, so that no new waiter is forgotten.
    fn end_if_empty(&self, filter: &Filter, group: &Group) -> bool {
        let mut groups = self.lock();
        let mut waiters = group.lock();
        waiters.retain(|it| !it.hand.is_closed());
        if waiters.is_empty() {
            groups.remove(filter);
        }
        waiters.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Filter, Arc<Group>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn daemons(&self) -> Vec<DaemonId> {
        let mut waiters = self.lock();
        waiters.retain(|it| !it.hand.is_closed());
        waiters.iter().map(|it| it.daemon).collect()
    }

    /// Gives a job to its daemon; gives it back when that one is gone.
    fn hand_over(&self, held: Held) -> Option<Held> {
        let waiter = {
            let mut waiters = self.lock();
            let place = waiters.iter().position(|it| it.daemon == held.worker);
            place.and_then(|it| waiters.remove(it))
        };
        match waiter {
            Some(waiter) => waiter.hand.send(held).err(),
            None => Some(held),
        }
    }
}

/// Serves one group for as long as somebody waits in it.
async fn serve(broker: Broker, filter: Filter, group: Arc<Group>) {
    while !broker.queue.end_if_empty(&filter, &group) {
        let daemons = group.daemons();
        let taken = match take(&broker, &filter, &daemons).await {
            Ok(jobs) => hand_out(&broker, &group, jobs),
            Err(error) => {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "no jobs taken"
                );
                0
            }
        };
        // As many as were asked for: there may be more for those who came meanwhile.
        if taken > 0 && taken == daemons.len() {
            continue;
        }
        tokio::select! {
            () = group.wake.notified() => {}
            () = tokio::time::sleep(jittered(&broker)) => {}
            () = broker.stop.cancelled() => {
                group.lock().clear();
                return;
            }
        }
    }
}

/// Takes jobs for the waiting daemons and tells of the builds that run from now on.
#[tracing::instrument(name = "job.take", level = "debug", skip_all, fields(waiters = daemons.len()))]
async fn take(
    broker: &Broker,
    filter: &Filter,
    daemons: &[DaemonId],
) -> Result<Vec<Held>, SettleError> {
    if daemons.is_empty() {
        return Ok(Vec::new());
    }
    let ids = broker.backbone.ids;
    let holders: Vec<_> =
        daemons.iter().map(|daemon| (*daemon, LeaseToken(ids.secret()))).collect();
    let mut work = broker.backbone.begin().await?;
    let lease = broker.limits.lease.as_duration().as_secs_f64();
    let jobs = job::acquire(work.conn(), filter, &holders, lease).await?;
    if jobs.is_empty() {
        return Ok(jobs);
    }
    let builds: Vec<_> = jobs.iter().map(|it| it.id).collect();
    effect::changed(&mut work, &builds).await?;
    work.commit().await?;
    Ok(jobs)
}

fn hand_out(broker: &Broker, group: &Group, jobs: Vec<Held>) -> usize {
    let taken = jobs.len();
    for held in jobs {
        if let Some(held) = group.hand_over(held) {
            drop(InHand::new(broker, held));
        }
    }
    taken
}

/// The backup poll's pause, a fifth more or less, so that replicas do not ask in step.
fn jittered(broker: &Broker) -> Duration {
    let [random] = broker.backbone.ids.bytes::<1>();
    broker.limits.poll.as_duration().mul_f64(0.8 + 0.4 * f64::from(random) / 255.0)
}

impl Ticket {
    /// Waits for a job. `None`: the process stops.
    pub(crate) async fn job(&mut self) -> Option<InHand> {
        let held = (&mut self.job).await.ok()?;
        Some(InHand::new(&self.broker, held))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.job.close();
        if let Ok(held) = self.job.try_recv() {
            drop(InHand::new(&self.broker, held));
        }
    }
}

impl InHand {
    fn new(broker: &Broker, held: Held) -> Self {
        Self { held: Some(held), broker: broker.clone() }
    }

    /// The job.
    pub(crate) fn held(&self) -> &Held {
        self.held.as_ref().expect("a job is in hand until it is handed over")
    }

    /// The caller has it: from here on the lease watches over it.
    pub(crate) fn handed_over(mut self) {
        self.held = None;
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let broker = self.broker.clone();
        self.broker.errands.spawn(async move {
            tracing::info!(job.id = %held.id, "caller gone; the job goes back to the queue");
            if let Err(error) = effect::put_back(&broker, &held).await {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, job.id = %held.id, "job not put back; its lease will end");
            }
        });
    }
}
