//! Single workspaces that are watched: each is read once, however many watch it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use berth_db::workspace;
use berth_domain::authz::Resource;
use berth_domain::id::WorkspaceId;
use prometheus::{IntCounter, Registry};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::app::App;
use crate::error::ApiError;
use crate::live::encoded::Encoded;
use crate::routes::workspace_view;

/// How often a watched workspace is looked at while nothing is told: notices may be lost.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A workspace as it is sent.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Grows with each change.
    pub(crate) revision: i64,
    /// As authorization sees it.
    pub(crate) resource: Resource,
    /// What is sent.
    pub(crate) encoded: Encoded,
}

struct Looked {
    at: Instant,
    /// Notices that had come before.
    notices: u64,
    /// `None`: it does not exist.
    shown: Option<Arc<Shown>>,
}

/// One workspace, shared by all who watch it.
pub(crate) struct Watched {
    id: WorkspaceId,
    /// Counts notices.
    notices: watch::Sender<u64>,
    looked: tokio::sync::Mutex<Option<Looked>>,
    /// Counts reads of all workspaces.
    reads: IntCounter,
}

impl Watched {
    /// Hears of changes from now on.
    pub(crate) fn notices(&self) -> watch::Receiver<u64> {
        self.notices.subscribe()
    }

    /// The workspace as it is now, or as somebody else found it after the newest notice.
    pub(crate) async fn look(&self, app: &App) -> Result<Option<Arc<Shown>>, ApiError> {
        let mut looked = self.looked.lock().await;
        // Before the read: a notice that comes meanwhile may tell of something later.
        let notices = *self.notices.borrow();
        if let Some(it) = &*looked
            && it.notices == notices
            && it.at.elapsed() < LOOK_EVERY
        {
            return Ok(it.shown.clone());
        }
        self.reads.inc();
        let before = looked.as_ref().and_then(|it| it.shown.clone());
        let shown = self.read(app, before).await?;
        *looked = Some(Looked { at: Instant::now(), notices, shown: shown.clone() });
        Ok(shown)
    }

    async fn read(
        &self,
        app: &App,
        before: Option<Arc<Shown>>,
    ) -> Result<Option<Arc<Shown>>, ApiError> {
        let Some(row) = workspace::find(app.db(), self.id).await? else { return Ok(None) };
        if let Some(before) = before.filter(|it| it.revision == row.revision) {
            return Ok(Some(before));
        }
        let view = workspace_view::workspace(app, self.id).await?;
        Ok(Some(Arc::new(Shown {
            revision: row.revision,
            resource: workspace_view::resource_of(&row),
            encoded: Encoded::data(&view),
        })))
    }
}

/// The workspaces that are watched at this replica. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Workspaces {
    watched: Arc<Mutex<HashMap<WorkspaceId, Weak<Watched>>>>,
    pub(crate) reads: IntCounter,
}

impl Workspaces {
    pub(crate) fn new() -> Self {
        let help = "Looks at workspaces that are watched one by one.";
        let reads = IntCounter::new("berth_watch_looks_total", help).expect("the name is valid");
        Self { watched: Arc::default(), reads }
    }

    /// Shows its counter.
    pub(crate) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.reads.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkspaceId, Weak<Watched>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The workspace, for one more watcher.
    pub(crate) fn watch(&self, id: WorkspaceId) -> Arc<Watched> {
        let mut watched = self.lock();
        if let Some(it) = watched.get(&id).and_then(Weak::upgrade) {
            return it;
        }
        let it = Arc::new(Watched {
            id,
            notices: watch::Sender::new(0),
            looked: tokio::sync::Mutex::default(),
            reads: self.reads.clone(),
        });
        // Where one comes, those that left are forgotten.
        watched.retain(|_, it| it.strong_count() > 0);
        watched.insert(id, Arc::downgrade(&it));
        it
    }

    /// Something happened to this workspace.
    pub(crate) fn notice(&self, id: WorkspaceId) {
        if let Some(it) = self.lock().get(&id).and_then(Weak::upgrade) {
            it.notices.send_modify(|count| *count += 1);
        }
    }

    /// Something may have happened to any of them.
    pub(crate) fn notice_all(&self) {
        let all: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        for it in all {
            it.notices.send_modify(|count| *count += 1);
        }
    }
}
