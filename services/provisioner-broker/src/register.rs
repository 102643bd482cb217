//! Registration: a stream for as long as a daemon is there.

use std::time::{Duration, Instant};

use berth_backbone::Work;
use berth_bus::event::Wake;
use berth_db::DbError;
use berth_db::daemon::{self, NewDaemon};
use berth_db::job::Filter;
use berth_domain::build::{TAG_OWNER, TAG_SCOPE, Tags, normalize_tags};
use berth_domain::id::{DaemonId, OrganizationId, PREBUILDS_USER};
use berth_domain::state::ProvisionerType;
use berth_proto::{API_VERSION, v1};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming};
use uuid::Uuid;

use crate::auth::{Admission, Credentials, authenticate, check_again};
use crate::broker::Broker;
use crate::error::of_db;
use crate::registry::{Entry, Outgoing, SILENT};

/// How long a daemon may take to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How often, at most, a heartbeat is written down and key and certificate are looked at again.
const WRITE_EVERY: Duration = Duration::from_mins(1);
/// Notices that wait for a daemon to read them.
const OUTGOING: usize = 64;
/// Longest name of a daemon, in characters.
const NAME_MAX: usize = 128;
/// Longest name of a daemon's process, in bytes: a UUID's.
const INCARNATION_MAX: usize = 36;

/// How long nothing may be heard of a daemon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Silence {
    /// From then on it counts for no capacity.
    pub(crate) noticed: Duration,
    /// As long after that it is gone.
    pub(crate) gone: Duration,
}

impl Default for Silence {
    /// 90 s in all.
    fn default() -> Self {
        Self { noticed: SILENT, gone: Duration::from_secs(75) }
    }
}

/// One registration that stands.
struct Session {
    broker: Broker,
    admission: Admission,
    daemon: DaemonId,
    id: Uuid,
    name: String,
    incarnation: String,
    /// The tools it drives, and its tags.
    provisioners: Vec<String>,
    tags: Tags,
    /// What the daemon's row says: the guard of every later write.
    seen: Timestamp,
    written: Instant,
    outgoing: mpsc::Sender<Outgoing>,
}

/// Registers the caller and serves its stream in the background.
#[tracing::instrument(name = "rpc.provisioner.register", skip_all, err(level = "info"))]
pub(crate) async fn register(
    broker: &Broker,
    request: Request<Streaming<v1::RegisterRequest>>,
) -> Result<mpsc::Receiver<Outgoing>, Status> {
    let admission = authenticate(broker, Credentials::of(&request)).await?;
    let mut incoming = request.into_inner();
    let hello = read_hello(&mut incoming).await?;
    check_version(&hello.api_version)?;
    let provisioners = provisioners(&hello)?;
    let name_len = hello.name.chars().count();
    if !(1..=NAME_MAX).contains(&name_len) {
        let text = format!("a daemon's name has 1 to {NAME_MAX} characters, not {name_len}");
        return Err(Status::invalid_argument(text));
    }
    admission.check_name(&hello.name)?;
    refuse_second(broker, admission.organization_id, &hello)?;
    let tags = tags(&admission, &hello);
    let Stored { daemon, is_draining, seen } =
        store(broker, &admission, &hello, (&provisioners, &tags)).await.map_err(of_db)?;

    let (outgoing, stream) = mpsc::channel(OUTGOING);
    let session = Session {
        broker: broker.clone(),
        daemon,
        id: broker.backbone.ids.next(),
        name: hello.name,
        incarnation: hello.incarnation,
        seen,
        written: Instant::now(),
        outgoing,
        admission,
        provisioners,
        tags,
    };
    session.accept(is_draining);
    broker.errands.spawn(session.serve(incoming));
    Ok(stream)
}

async fn read_hello(incoming: &mut Streaming<v1::RegisterRequest>) -> Result<v1::Hello, Status> {
    let first = tokio::time::timeout(HELLO_WITHIN, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello within 10 s of connecting"))??;
    match first.and_then(|it| it.message) {
        Some(v1::register_request::Message::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message of a registration is hello")),
    }
}

/// An older minor version works; anything else would not understand or not be understood.
fn check_version(theirs: &str) -> Result<(), Status> {
    let read = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    match (read(theirs), read(API_VERSION)) {
        (Some((major, minor)), Some(ours)) if major == ours.0 && minor <= ours.1 => Ok(()),
        _ => Err(Status::failed_precondition(format!(
            "the daemon speaks API version {theirs:?}, this broker {API_VERSION}: upgrade the older \
             of the two"
        ))),
    }
}

/// Two processes of one name would take each other's place for ever: whoever is there stays. What a
/// second one at another replica does harms nobody: jobs go by their leases.
fn refuse_second(
    broker: &Broker,
    organization: OrganizationId,
    hello: &v1::Hello,
) -> Result<(), Status> {
    let own = [hello.incarnation.as_str(), hello.former_incarnation.as_str()];
    if let Some(length) = own.iter().map(|it| it.len()).find(|it| *it > INCARNATION_MAX) {
        let text = format!("an incarnation has at most {INCARNATION_MAX} bytes, not {length}");
        return Err(Status::invalid_argument(text));
    }
    if hello.incarnation.is_empty() {
        return Ok(());
    }
    match broker.registry.rival(organization, &hello.name, own) {
        None => Ok(()),
        Some(silence) => Err(Status::already_exists(format!(
            "another daemon named {:?} is connected and was heard of {} s ago: give one of the two \
             another name",
            hello.name,
            silence.as_secs()
        ))),
    }
}

fn provisioners(hello: &v1::Hello) -> Result<Vec<String>, Status> {
    let mut types = hello
        .provisioner_types
        .iter()
        .map(|it| it.parse::<ProvisionerType>().map(|it| it.to_string()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    types.sort();
    types.dedup();
    Ok(types)
}

/// The key's or certificate's tags, where it has any, else the daemon's own. Either belongs to an
/// organization, and so do the daemons that enter with it.
fn tags(admission: &Admission, hello: &v1::Hello) -> Tags {
    let mut tags: Tags = if admission.tags().is_empty() {
        hello.tags.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    } else {
        admission.tags().clone()
    };
    tags.remove(TAG_SCOPE);
    tags.remove(TAG_OWNER);
    normalize_tags(tags, PREBUILDS_USER)
}

/// What is written down of a daemon that registers.
struct Stored {
    daemon: DaemonId,
    is_draining: bool,
    seen: Timestamp,
}

/// Writes the daemon down and wakes the pools that may have waited for one.
async fn store(
    broker: &Broker,
    admission: &Admission,
    hello: &v1::Hello,
    (provisioners, tags): (&[String], &Tags),
) -> Result<Stored, DbError> {
    let mut work = broker.backbone.begin().await?;
    let now = work.now();
    let new = NewDaemon {
        id: DaemonId(work.id()),
        organization_id: admission.organization_id,
        key_id: admission.key.as_ref().map(|it| it.id),
        certificate: admission.fingerprint(),
        incarnation: &hello.incarnation,
        name: &hello.name,
        version: &hello.version,
        api_version: &hello.api_version,
        provisioners,
        tags,
        capacity: i32::try_from(hello.capacity).unwrap_or(i32::MAX),
        now,
    };
    let (daemon, is_draining) = daemon::upsert(work.conn(), &new).await?;
    if !is_draining {
        wake_pools(&mut work, admission.organization_id, (provisioners, tags)).await?;
    }
    work.commit().await?;
    Ok(Stored { daemon, is_draining, seen: now })
}

/// Has the pools looked at that waited for such a daemon.
async fn wake_pools(
    work: &mut Work,
    organization: OrganizationId,
    abilities: (&[String], &Tags),
) -> Result<(), DbError> {
    let now = work.now();
    let marked = daemon::mark_pools_dirty(work.conn(), organization, abilities, now).await?;
    for event in Wake::pools(&marked) {
        work.emit(event);
    }
    Ok(())
}

impl Session {
    /// Puts the daemon on the list and says so on its stream.
    fn accept(&self, is_draining: bool) {
        let accepted = v1::Accepted {
            daemon_id: self.daemon.to_string(),
            tags: self.tags.clone().into_iter().collect(),
            organization_id: self.admission.organization_id.to_string(),
        };
        let message = v1::register_response::Message::Accepted(accepted);
        let sent = self.outgoing.try_send(Ok(v1::RegisterResponse { message: Some(message) }));
        debug_assert!(sent.is_ok(), "the channel is new and empty");
        let filter = Filter {
            organizations: vec![self.admission.organization_id],
            provisioners: self.provisioners.clone(),
            tags: self.tags.clone(),
        };
        let entry = Entry {
            session: self.id,
            name: self.name.clone(),
            incarnation: self.incarnation.clone(),
            filter,
            heard: Instant::now(),
            is_told: false,
            outgoing: self.outgoing.clone(),
        };
        self.broker.registry.insert(self.daemon, entry, is_draining);
        let with = self.admission.fingerprint().map_or("a key", |_| "a certificate");
        tracing::info!(daemon.id = %self.daemon, daemon.name = self.name, with, "daemon registered");
    }

    /// Listens to heartbeats until the daemon leaves, falls silent or loses its key, or the process
    /// stops.
    async fn serve(mut self, mut incoming: Streaming<v1::RegisterRequest>) {
        let mut is_silent = false;
        loop {
            let Silence { noticed, gone } = self.broker.silence;
            let patience = if is_silent { gone } else { noticed };
            let heard = tokio::select! {
                heard = tokio::time::timeout(patience, incoming.message()) => heard,
                () = self.outgoing.closed() => break,
                () = self.broker.stop.cancelled() => {
                    self.end(Status::unavailable("the broker stops: connect again"));
                    break;
                }
            };
            match heard {
                Ok(Ok(Some(_))) => {}
                Ok(_) => break,
                Err(_) if !is_silent => {
                    is_silent = true;
                    self.mark_silent().await;
                    continue;
                }
                Err(_) => {
                    self.end(Status::deadline_exceeded("no heartbeat for 90 s"));
                    break;
                }
            }
            if !self.broker.registry.touch(self.daemon, self.id) {
                self.end(Status::aborted("the daemon registered anew under this name"));
                break;
            }
            let is_back = std::mem::take(&mut is_silent);
            if (is_back || self.written.elapsed() >= WRITE_EVERY)
                && let Err(status) = self.write_down().await
            {
                self.end(status);
                break;
            }
        }
        self.leave().await;
    }

    /// Writes down that the daemon is there, and looks whether it still may be. Pools that hold for
    /// want of such a daemon are looked at: it may have been silent for too long to count, or have
    /// registered while they were being looked at.
    async fn write_down(&mut self) -> Result<(), Status> {
        check_again(&self.broker, &self.admission).await?;
        if let Ok(Some(now)) = self.mark_seen().await {
            self.seen = now;
            self.written = Instant::now();
        }
        Ok(())
    }

    /// Writes down that nothing is heard of the daemon.
    async fn mark_silent(&self) {
        tracing::warn!(daemon.id = %self.daemon, "no heartbeat for 15 s; it counts for no capacity");
        let now = self.broker.backbone.clock.now();
        let db = &self.broker.backbone.db;
        if let Err(error) = daemon::mark_silent(db, self.daemon, self.seen, now).await {
            tracing::warn!(error = %error, "daemon's silence not written down");
        }
    }

    /// `None`: the daemon's row is not this registration's any more.
    async fn mark_seen(&self) -> Result<Option<Timestamp>, DbError> {
        let mut work = self.broker.backbone.begin().await?;
        let now = work.now();
        if !daemon::mark_seen(work.conn(), self.daemon, self.seen, now).await? {
            return Ok(None);
        }
        let organization = self.admission.organization_id;
        wake_pools(&mut work, organization, (&self.provisioners, &self.tags)).await?;
        work.commit().await?;
        Ok(Some(now))
    }

    fn end(&self, status: Status) {
        if self.outgoing.try_send(Err(status)).is_err() {
            tracing::debug!(daemon.id = %self.daemon, "daemon does not read; its stream just ends");
        }
    }

    async fn leave(self) {
        self.broker.registry.remove(self.daemon, self.id);
        let now = self.broker.backbone.clock.now();
        let db = &self.broker.backbone.db;
        match daemon::mark_gone(db, self.daemon, self.seen, now).await {
            Ok(_) => tracing::info!(daemon.id = %self.daemon, "daemon left"),
            Err(error) => tracing::warn!(error = %error, "daemon's leave not written down"),
        }
    }
}
