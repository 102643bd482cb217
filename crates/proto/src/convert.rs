//! Conversions between wire enums and the domain's closed sets.

use berth_domain::state::{BuildStage, LogLevel, LogSource, Transition};

use crate::v1;

/// A wire value that the protocol does not define.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value} is not a {kind} of berth.provisioner.v1; is the other side newer than this one?")]
pub struct UnknownWireValue {
    /// The number on the wire.
    pub value: i32,
    /// The enum it should belong to.
    pub kind: &'static str,
}

impl From<Transition> for v1::Transition {
    fn from(transition: Transition) -> Self {
        match transition {
            Transition::Start => Self::Start,
            Transition::Stop => Self::Stop,
            Transition::Delete => Self::Delete,
        }
    }
}

/// Reads a transition off the wire.
pub fn transition(value: i32) -> Result<Transition, UnknownWireValue> {
    match v1::Transition::try_from(value) {
        Ok(v1::Transition::Start) => Ok(Transition::Start),
        Ok(v1::Transition::Stop) => Ok(Transition::Stop),
        Ok(v1::Transition::Delete) => Ok(Transition::Delete),
        Ok(v1::Transition::Unspecified) | Err(_) => {
            Err(UnknownWireValue { value, kind: "Transition" })
        }
    }
}

impl From<BuildStage> for v1::BuildStage {
    fn from(stage: BuildStage) -> Self {
        match stage {
            BuildStage::None => Self::None,
            BuildStage::Prebuild => Self::Prebuild,
            BuildStage::Claim => Self::Claim,
        }
    }
}

/// Reads a build stage off the wire.
pub fn build_stage(value: i32) -> Result<BuildStage, UnknownWireValue> {
    match v1::BuildStage::try_from(value) {
        Ok(v1::BuildStage::None) => Ok(BuildStage::None),
        Ok(v1::BuildStage::Prebuild) => Ok(BuildStage::Prebuild),
        Ok(v1::BuildStage::Claim) => Ok(BuildStage::Claim),
        Ok(v1::BuildStage::Unspecified) | Err(_) => {
            Err(UnknownWireValue { value, kind: "BuildStage" })
        }
    }
}

impl From<LogLevel> for v1::LogLevel {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Trace => Self::Trace,
            LogLevel::Debug => Self::Debug,
            LogLevel::Info => Self::Info,
            LogLevel::Warn => Self::Warn,
            LogLevel::Error => Self::Error,
        }
    }
}

/// Reads a log level off the wire; a level this version does not know counts as `info`, because a
/// line is worth more than its level.
#[must_use]
pub fn log_level(value: i32) -> LogLevel {
    match v1::LogLevel::try_from(value) {
        Ok(v1::LogLevel::Trace) => LogLevel::Trace,
        Ok(v1::LogLevel::Debug) => LogLevel::Debug,
        Ok(v1::LogLevel::Warn) => LogLevel::Warn,
        Ok(v1::LogLevel::Error) => LogLevel::Error,
        Ok(v1::LogLevel::Info | v1::LogLevel::Unspecified) | Err(_) => LogLevel::Info,
    }
}

/// Reads a log source off the wire; anything unknown counts as the tool's own.
#[must_use]
pub fn log_source(value: i32) -> LogSource {
    match v1::LogSource::try_from(value) {
        Ok(v1::LogSource::Daemon) => LogSource::ProvisionerDaemon,
        Ok(v1::LogSource::Provisioner | v1::LogSource::Unspecified) | Err(_) => {
            LogSource::Provisioner
        }
    }
}
