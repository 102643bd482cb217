//! Whether and by what name the folder of `init` is kept between builds of one workspace.

use std::io;
use std::path::Path;
use std::sync::Arc;

use berth_proto::v1;

use crate::reuse::Kept;

/// One build's part in what is kept.
#[derive(Debug, Clone)]
pub(crate) struct Reuse {
    kept: Arc<Kept>,
    workspace: String,
    /// Archive and modules: with others nothing of it fits.
    key: String,
}

impl Reuse {
    /// For a build whose template wants it.
    pub(crate) fn of(kept: &Arc<Kept>, job: &v1::Job) -> Option<Self> {
        let Some(v1::job::Input::WorkspaceBuild(build)) = &job.input else { return None };
        let workspace = build.metadata.as_ref()?.workspace_id.clone();
        let modules = job.modules_file_id.as_deref().unwrap_or_default();
        let key = format!("{} {modules}", job.archive_file_id);
        job.reuse_terraform_workspace.then(|| Self { kept: Arc::clone(kept), workspace, key })
    }

    pub(super) fn take(&self, template: &Path) -> bool {
        self.kept.take(&self.workspace, &self.key, template)
    }

    pub(super) fn leave(&self, template: &Path, transition: v1::Transition) -> io::Result<()> {
        if transition == v1::Transition::Delete {
            self.kept.forget(&self.workspace);
            return Ok(());
        }
        self.kept.keep(&self.workspace, &self.key, template)
    }
}
