//! Daemons that wait for a job, grouped by what they can run: at most one acquire statement in
//! flight per group, which takes as many jobs as are known of and as the group has waiters.
//!
//! After a look that found no more jobs than it asked for, nothing waits for this group: until a job
//! is posted, or the poll's time has come, a daemon that joins asks nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_bus::event::JobPosted;
use berth_db::job::{self, Filter, Held, Taken};
use berth_domain::id::{DaemonId, LeaseToken};
use berth_domain::state::JobKind;
use tokio::sync::{Notify, oneshot};

use crate::broker::Broker;
use crate::effect;
use crate::error::SettleError;

/// Longest pause before jobs are asked for again that others were taking.
const CONTENDED: Duration = Duration::from_millis(4);

/// All groups of this replica.
#[derive(Default)]
pub(crate) struct Queue {
    groups: Mutex<HashMap<Filter, Arc<Group>>>,
    hears: AtomicBool,
}

struct Group {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

struct Waiting {
    /// Longest waiting first.
    waiters: VecDeque<Waiter>,
    /// Jobs that may be there: as many as were posted since the last look, or all one can take.
    expected: usize,
}

struct Waiter {
    daemon: DaemonId,
    /// What the job will be held under; tells this waiter from all others.
    lease: LeaseToken,
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
    /// Wakes the groups that could run the posted jobs.
    pub(crate) fn wake(&self, posted: &JobPosted) {
        for (filter, group) in self.lock().iter() {
            let can_run = filter.provisioners.iter().any(|it| it == posted.provisioner.as_str());
            if can_run && filter.organizations.contains(&posted.organization_id) {
                group.expect(usize::try_from(posted.count).unwrap_or(usize::MAX));
            }
        }
    }

    /// Postings are heard from now on. What was posted before was not, so every group looks.
    pub(crate) fn hears_postings(&self) {
        self.wake_all();
        self.hears.store(true, Ordering::Release);
    }

    /// Has every group look: some of those who wait may take jobs again.
    pub(crate) fn wake_all(&self) {
        self.lock().values().for_each(|group| group.expect(usize::MAX));
    }

    /// Takes a place for a daemon.
    pub(crate) fn wait(
        broker: &Broker,
        filter: Filter,
        (daemon, lease): (DaemonId, LeaseToken),
    ) -> Ticket {
        let (hand, job) = oneshot::channel();
        let mut groups = broker.queue.lock();
        let (group, is_new) = match groups.get(&filter) {
            Some(group) => (group.clone(), false),
            None => (groups.entry(filter.clone()).or_default().clone(), true),
        };
        group.lock().waiters.push_back(Waiter { daemon, lease, hand });
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
        let mut waiting = group.lock();
        waiting.waiters.retain(|it| !it.hand.is_closed());
        let is_empty = waiting.waiters.is_empty();
        if is_empty {
            groups.remove(filter);
        }
        is_empty
    }

    #[cfg(test)]
    pub(crate) fn is_hearing(&self) -> bool {
        self.hears.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn is_waited_in(&self) -> bool {
        self.lock().values().any(|it| !it.lock().waiters.is_empty())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Filter, Arc<Group>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Group {
    /// A group that has not looked yet.
    fn default() -> Self {
        let waiting = Waiting { waiters: VecDeque::new(), expected: usize::MAX };
        Self { waiting: Mutex::new(waiting), wake: Notify::new() }
    }
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that as many jobs more may be there.
    fn expect(&self, jobs: usize) {
        let mut waiting = self.lock();
        waiting.expected = waiting.expected.saturating_add(jobs);
        self.wake.notify_one();
    }

    /// Who asks now: the longest waiting, as many as there may be jobs, without those whose daemon
    /// is not heard of or drains. What nobody asks for is expected on.
    fn askers(&self, broker: &Broker) -> Vec<(DaemonId, LeaseToken)> {
        let mut waiting = self.lock();
        waiting.waiters.retain(|it| !it.hand.is_closed());
        let present = waiting.waiters.iter().map(|it| (it.daemon, it.lease));
        let able = present.filter(|(daemon, _)| broker.registry.takes_jobs(*daemon));
        let askers: Vec<_> = able.take(waiting.expected.min(job::HOLDERS_MAX)).collect();
        if !askers.is_empty() {
            waiting.expected = 0;
        }
        askers
    }

    /// Gives a job to who asked for it; gives it back when that one is gone.
    fn hand_over(&self, held: Held) -> Option<Held> {
        let waiter = {
            let mut waiting = self.lock();
            let place = waiting.waiters.iter().position(|it| it.lease == held.lease);
            place.and_then(|it| waiting.waiters.remove(it))
        };
        match waiter {
            Some(waiter) => waiter.hand.send(held).err(),
            None => Some(held),
        }
    }
}

/// Serves one group for as long as somebody waits in it.
async fn serve(broker: Broker, filter: Filter, group: Arc<Group>) {
    let mut poll = tokio::time::Instant::now() + jittered(&broker);
    while !broker.queue.end_if_empty(&filter, &group) {
        let askers = group.askers(&broker);
        if !askers.is_empty() {
            look(&broker, &filter, (&group, &askers)).await;
            continue;
        }
        tokio::select! {
            () = group.wake.notified() => {}
            () = tokio::time::sleep_until(poll) => {
                group.expect(usize::MAX);
                poll = tokio::time::Instant::now() + jittered(&broker);
            }
            () = broker.stop.cancelled() => {
                group.lock().waiters.clear();
                return;
            }
        }
    }
}

/// Takes what is there for those who ask, once.
async fn look(
    broker: &Broker,
    filter: &Filter,
    (group, askers): (&Group, &[(DaemonId, LeaseToken)]),
) {
    match take(broker, filter, askers).await {
        Ok(Taken { jobs, is_more }) => {
            let is_contended = is_more && jobs.len() < askers.len();
            hand_out(broker, group, jobs);
            if is_contended {
                // Others take the same jobs at this moment: they will have them soon, and then the
                // next ones are first.
                let [random] = broker.backbone.ids.bytes::<1>();
                tokio::time::sleep(CONTENDED.mul_f64(f64::from(random) / 255.0)).await;
            }
            if is_more {
                group.expect(usize::MAX);
            }
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(error, "no jobs taken; the next poll asks again");
        }
    }
}

/// Takes jobs for the waiting daemons and tells of the builds that run from now on.
#[tracing::instrument(name = "job.take", level = "debug", skip_all, fields(waiters = askers.len()))]
async fn take(
    broker: &Broker,
    filter: &Filter,
    askers: &[(DaemonId, LeaseToken)],
) -> Result<Taken, SettleError> {
    let mut work = broker.backbone.begin().await?;
    let lease = broker.limits.lease.as_duration().as_secs_f64();
    let taken = job::acquire(work.conn(), filter, askers, lease).await?;
    if taken.jobs.is_empty() {
        return Ok(taken);
    }
    let jobs = taken.jobs.iter();
    let builds: Vec<_> =
        jobs.filter(|it| it.kind == JobKind::WorkspaceBuild).map(|it| it.id).collect();
    if !builds.is_empty() {
        effect::changed(&mut work, &builds).await?;
    }
    work.commit().await?;
    Ok(taken)
}

fn hand_out(broker: &Broker, group: &Group, jobs: Vec<Held>) {
    for held in jobs {
        if let Some(held) = group.hand_over(held) {
            drop(InHand::new(broker, held));
        }
    }
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
