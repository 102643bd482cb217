//! The closed sets that tables, events and wire formats share. Each has one spelling, given by
//! `as_str` and read back by `FromStr`; serde uses the same.

/// A text that is none of the values of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {}; known are {known}", words(set))]
pub struct UnknownValue {
    /// What was read.
    pub text: String,
    /// The set it should belong to.
    pub set: &'static str,
    /// All values of the set, joined by commas.
    pub known: String,
}

/// The name of a set in words: `BuildStage` is a `build stage`.
fn words(set: &str) -> String {
    let mut words = String::with_capacity(set.len() + 4);
    for letter in set.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

macro_rules! closed_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize,
            serde::Deserialize,
        )]
        pub enum $name {
            $(#[doc = concat!("`", $text, "`")] $(#[$vdoc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// Every value, in order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The one spelling of this value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::state::UnknownValue;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|it| it.as_str() == text).ok_or_else(|| $crate::state::UnknownValue {
                    text: text.to_owned(),
                    set: stringify!($name),
                    known: Self::ALL.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

closed_set! {
    /// What a build does to a workspace.
    Transition { Start = "start", Stop = "stop", Delete = "delete" }
}

closed_set! {
    /// Why a build was made.
    BuildReason {
        /// A person asked, or the prebuilds orchestrator did.
        Initiator = "initiator",
        /// The autostart schedule.
        Autostart = "autostart",
        /// The deadline.
        Autostop = "autostop",
        /// Unused for too long.
        Dormancy = "dormancy",
        /// Dormant for too long.
        Autodelete = "autodelete",
        /// Asked for on the web page.
        Dashboard = "dashboard",
        /// Asked for by the command line.
        Cli = "cli",
        /// Started by an SSH connection.
        SshConnection = "ssh_connection",
        /// Started by an editor.
        VscodeConnection = "vscode_connection",
        /// Started by an editor.
        JetbrainsConnection = "jetbrains_connection",
    }
}

closed_set! {
    /// What a build is in the life of a prebuild.
    BuildStage {
        /// An ordinary build.
        None = "none",
        /// A build of an unclaimed prebuild.
        Prebuild = "prebuild",
        /// The build that hands a prebuild to its new owner.
        Claim = "claim",
    }
}

closed_set! {
    /// What a job is for.
    JobKind {
        /// Reads a template version's parameters, presets and resources.
        TemplateVersionImport = "template_version_import",
        /// Plans a version with given parameter values.
        TemplateVersionDryRun = "template_version_dry_run",
        /// One build of a workspace.
        WorkspaceBuild = "workspace_build",
        /// Plans the claim of a prebuild for a stand-in owner, and applies nothing.
        Rehearsal = "prebuild_rehearsal",
    }
}

closed_set! {
    /// What came of a pool's rehearsal.
    RehearsalOutcome {
        /// A claim replaces nothing.
        Clean = "clean",
        /// A claim replaces resources.
        Replaces = "replaces",
        /// The template cannot be planned for another owner: claims will fail.
        Failed = "failed",
        /// Nothing is known: no fault of the template's. It is ordered again, a few times.
        Lost = "lost",
    }
}

closed_set! {
    /// Where a job stands, computed from its columns.
    JobStatus {
        /// Not started.
        Pending = "pending",
        /// Held by a daemon.
        Running = "running",
        /// Completed without error.
        Succeeded = "succeeded",
        /// A cancel was asked while it ran.
        Canceling = "canceling",
        /// Completed after a cancel was asked.
        Canceled = "canceled",
        /// Completed with an error.
        Failed = "failed",
    }
}

impl JobStatus {
    /// Whether the job can still change.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Canceled | Self::Failed)
    }
}

closed_set! {
    /// Whose fault a failure is.
    JobErrorCode {
        /// Plan, apply or agent start-up of the template failed.
        Template = "template",
        /// Lost daemon, reaped lease, broken transfer.
        Infrastructure = "infrastructure",
        /// The owner's quota does not cover the cost.
        Quota = "quota",
        /// Somebody asked for it.
        Canceled = "canceled",
        /// The builder refused the input for good.
        Invalid = "invalid",
        /// No daemon took it in time.
        NoProvisioner = "no_provisioner",
        /// The template declares variables that have neither value nor default.
        RequiredVariables = "required_template_variables",
    }
}

closed_set! {
    /// Which tool runs a template.
    ProvisionerType { Terraform = "terraform", Exec = "exec" }
}

closed_set! {
    /// The queue's classes, most urgent first.
    JobClass {
        /// A person waits for a prebuild to change hands.
        Claim = "claim",
        /// A person waits for a start, stop or delete.
        Human = "human",
        /// Template import and dry run.
        Template = "template",
        /// A prebuild goes away.
        PrebuildDelete = "prebuild_delete",
        /// A prebuild is made.
        PrebuildCreate = "prebuild_create",
    }
}

impl JobClass {
    /// The number stored in the queue's index; lower runs first.
    #[must_use]
    pub const fn rank(self) -> i16 {
        match self {
            Self::Claim => 0,
            Self::Human => 1,
            Self::Template => 2,
            Self::PrebuildDelete => 3,
            Self::PrebuildCreate => 4,
        }
    }
}

closed_set! {
    /// Where an agent is in its life.
    AgentLifecycle {
        /// Known, never heard of.
        Created = "created",
        /// Startup scripts run.
        Starting = "starting",
        /// A startup script took too long.
        StartTimeout = "start_timeout",
        /// A startup script failed.
        StartError = "start_error",
        /// Startup is done.
        Ready = "ready",
        /// Stop scripts run.
        ShuttingDown = "shutting_down",
        /// A stop script took too long.
        ShutdownTimeout = "shutdown_timeout",
        /// A stop script failed.
        ShutdownError = "shutdown_error",
        /// Gone in good order.
        Off = "off",
    }
}

closed_set! {
    /// Where a prebuild stands in its pool. Kept on the workspace row by the transaction that
    /// changes it; NULL on workspaces that are no prebuilds.
    PoolState {
        /// Latest build is a start whose job is pending or running.
        Starting = "starting",
        /// Started, but an agent that counts is not ready yet.
        Unready = "unready",
        /// Started and ready: claimable unless expired or inactive.
        Ready = "ready",
        /// Latest build is a stop whose job is pending or running.
        Stopping = "stopping",
        /// Parked by an operator.
        Stopped = "stopped",
        /// Latest build is a delete whose job is pending or running.
        Deleting = "deleting",
        /// Latest build is a failed start.
        Failed = "failed",
        /// Latest build is a failed delete.
        FailedDelete = "failed_delete",
    }
}

closed_set! {
    /// Health of a preset's pool.
    PrebuildStatus {
        /// Creation goes on.
        Healthy = "healthy",
        /// The breaker is open.
        HardLimited = "hard_limited",
        /// The builder refused the preset's input for good.
        ValidationFailed = "validation_failed",
    }
}

closed_set! {
    /// What came of asking for a prebuild.
    ClaimOutcome { Hit = "hit", Miss = "miss" }
}

closed_set! {
    /// Why no prebuild was handed out.
    MissReason {
        /// No preset's values are all in the request.
        NoMatchingPreset = "no_matching_preset",
        /// The preset has no prebuild configuration.
        NotAPool = "not_a_pool",
        /// The pool has no prebuild at all.
        Empty = "empty",
        /// Prebuilds run but none is ready.
        NoneReady = "none_ready",
        /// All that are ready are expired or invalidated.
        Expired = "expired",
        /// All claimable ones are being claimed at this very moment.
        AllLocked = "all_locked",
        /// Empty, and creation is paused.
        Paused = "paused",
        /// Empty, and the breaker is open.
        HardLimited = "hard_limited",
        /// Empty, and the preset's input was refused for good.
        ValidationFailed = "validation_failed",
        /// Empty, and creation waits after failures.
        Backoff = "backoff",
        /// Empty, and no daemon could build one.
        Capacity = "capacity",
        /// Claims are switched off.
        Disabled = "disabled",
    }
}

closed_set! {
    /// How a warm promotion ended.
    PromotionOutcome {
        /// The candidate became the active version.
        Promoted = "promoted",
        /// It could not; the active version stayed.
        CalledOff = "called_off",
        /// A person ended it.
        Canceled = "canceled",
        /// A person made a version the active one without waiting.
        Superseded = "superseded",
    }
}

closed_set! {
    /// Severity of a log line.
    LogLevel { Trace = "trace", Debug = "debug", Info = "info", Warn = "warn", Error = "error" }
}

closed_set! {
    /// Who wrote a job's log line.
    LogSource { ProvisionerDaemon = "provisioner_daemon", Provisioner = "provisioner" }
}
