//! The daemons that are connected to this replica.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_db::job::Filter;
use berth_domain::id::{DaemonId, JobId, OrganizationId};
use berth_proto::v1;
use tokio::sync::mpsc;
use tonic::Status;
use uuid::Uuid;

/// A daemon that is silent for longer counts for no capacity.
pub(crate) const SILENT: Duration = Duration::from_secs(15);

/// What goes out on a registration's stream.
pub(crate) type Outgoing = Result<v1::RegisterResponse, Status>;

/// One registration.
pub(crate) struct Entry {
    /// Tells this registration from a later one of the same daemon.
    pub(crate) session: Uuid,
    pub(crate) name: String,
    /// The daemon's process; empty where it does not say.
    pub(crate) incarnation: String,
    pub(crate) filter: Filter,
    pub(crate) heard: Instant,
    /// Whether the daemon was told to take no new jobs.
    pub(crate) is_told: bool,
    pub(crate) outgoing: mpsc::Sender<Outgoing>,
}

/// The daemons that are connected to this replica.
#[derive(Default)]
pub(crate) struct Registry(Mutex<Daemons>);

#[derive(Default)]
struct Daemons {
    connected: HashMap<DaemonId, Entry>,
    /// Those that are to take no new jobs, wherever they are connected.
    draining: HashSet<DaemonId>,
}

impl Entry {
    /// Tells the daemon whether to take jobs, unless it knows. One that does not read is told later,
    /// and is given no jobs meanwhile.
    fn tell(&mut self, is_draining: bool) {
        if self.is_told == is_draining {
            return;
        }
        let message = if is_draining {
            v1::register_response::Message::Drain(v1::Drain { stay: true })
        } else {
            v1::register_response::Message::Resume(v1::Resume {})
        };
        let message = v1::RegisterResponse { message: Some(message) };
        if self.outgoing.try_send(Ok(message)).is_ok() {
            self.is_told = is_draining;
        }
    }
}

impl Registry {
    /// How long ago another process of that name was heard of, if it is there: its stream stands, and
    /// it is none of `own`, which are the process that asks and the one it succeeded.
    pub(crate) fn rival(
        &self,
        organization: OrganizationId,
        name: &str,
        own: [&str; 2],
    ) -> Option<Duration> {
        let daemons = self.lock();
        let rival = daemons.connected.values().find(|it| {
            it.name == name
                && it.filter.organizations.contains(&organization)
                && !it.incarnation.is_empty()
                && !own.contains(&it.incarnation.as_str())
                && !it.outgoing.is_closed()
        })?;
        Some(rival.heard.elapsed()).filter(|silence| *silence < SILENT)
    }

    /// Adds a registration; an earlier one of the same daemon ends.
    pub(crate) fn insert(&self, daemon: DaemonId, mut entry: Entry, is_draining: bool) {
        let mut daemons = self.lock();
        entry.tell(is_draining);
        if is_draining {
            daemons.draining.insert(daemon);
        } else {
            daemons.draining.remove(&daemon);
        }
        daemons.connected.insert(daemon, entry);
    }

    /// Takes note of the daemons that are to take no new jobs, and tells those that are connected
    /// here. `true`: some may take jobs again.
    pub(crate) fn set_draining(&self, draining: HashSet<DaemonId>) -> bool {
        let mut daemons = self.lock();
        for (id, entry) in &mut daemons.connected {
            entry.tell(draining.contains(id));
        }
        let are_back = daemons.draining.difference(&draining).next().is_some();
        daemons.draining = draining;
        are_back
    }

    /// Ends a registration, unless a later one took its place.
    pub(crate) fn remove(&self, daemon: DaemonId, session: Uuid) {
        let daemons = &mut self.lock().connected;
        if daemons.get(&daemon).is_some_and(|it| it.session == session) {
            daemons.remove(&daemon);
        }
    }

    /// Notes a heartbeat. `false`: a later registration took this one's place.
    pub(crate) fn touch(&self, daemon: DaemonId, session: Uuid) -> bool {
        match self.lock().connected.get_mut(&daemon) {
            Some(entry) if entry.session == session => {
                entry.heard = Instant::now();
                true
            }
            _ => false,
        }
    }

    /// Which jobs a connected daemon can run.
    pub(crate) fn filter(&self, daemon: DaemonId) -> Option<Filter> {
        self.lock().connected.get(&daemon).map(|it| it.filter.clone())
    }

    /// Tells a daemon to stop a job. A daemon that does not read is told by `UpdateJob` instead.
    pub(crate) fn cancel(&self, daemon: DaemonId, job: JobId) {
        if let Some(entry) = self.lock().connected.get(&daemon) {
            let message = v1::register_response::Message::JobCanceled(v1::JobCanceled {
                job_id: job.to_string(),
            });
            if entry.outgoing.try_send(Ok(v1::RegisterResponse { message: Some(message) })).is_err()
            {
                tracing::debug!(%job, %daemon, "cancel notice not taken; UpdateJob will tell");
            }
        }
    }

    /// Whether a daemon may be given jobs: it is not draining, and has been heard of lately, without
    /// which they might be lost. Whether one was heard of whose stream stands with another replica is
    /// not known here.
    pub(crate) fn takes_jobs(&self, daemon: DaemonId) -> bool {
        let daemons = self.lock();
        let entry = daemons.connected.get(&daemon);
        let is_silent = entry.is_some_and(|it| it.heard.elapsed() >= SILENT);
        !is_silent && !daemons.draining.contains(&daemon)
    }

    /// Daemons that were heard of lately.
    pub(crate) fn alive(&self) -> usize {
        self.lock().connected.values().filter(|it| it.heard.elapsed() < SILENT).count()
    }

    #[cfg(test)]
    pub(crate) fn set_heard(&self, daemon: DaemonId, heard: Instant) {
        if let Some(entry) = self.lock().connected.get_mut(&daemon) {
            entry.heard = heard;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Daemons> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
