//! The provisioner protocol: generated gRPC code and its conversions from and to the domain.

pub mod convert;

/// `berth.provisioner.v1`, generated from proto/.
pub mod v1 {
    #![expect(
        clippy::pedantic,
        missing_docs,
        reason = "generated code: its documentation is the .proto file"
    )]
    tonic::include_proto!("berth.provisioner.v1");
}

impl v1::Job {
    /// The workspace build that it runs, or rehearses.
    #[must_use]
    pub fn build(&self) -> Option<&v1::WorkspaceBuild> {
        match self.input.as_ref()? {
            v1::job::Input::WorkspaceBuild(build) => Some(build),
            v1::job::Input::Rehearsal(rehearsal) => rehearsal.claim.as_ref(),
            v1::job::Input::TemplateImport(_) | v1::job::Input::TemplateDryRun(_) => None,
        }
    }
}

/// Version of the protocol that this binary speaks, "major.minor".
pub const API_VERSION: &str = "1.1";

/// Metadata key that carries a daemon's provisioner key.
pub const KEY_HEADER: &str = "berth-provisioner-key";

/// Largest piece of a file in one message, in bytes.
pub const MAX_CHUNK: usize = 2 * 1024 * 1024;

/// Largest gRPC message either side accepts, in bytes. A build's state travels in one message.
pub const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// Largest file, in bytes.
pub const MAX_FILE: u64 = 100 * 1024 * 1024;
