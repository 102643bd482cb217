//! Configuration: built-in defaults, then a TOML file, then the environment.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use figment::providers::Serialized;
use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Period;

/// What every environment variable of the configuration begins with.
const PREFIX: &str = "BERTH_";

/// What every process has. A service's configuration embeds it as `process`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    /// Where `/livez`, `/readyz`, `/metrics` and `/log-level` are served; port 0 takes a free one.
    /// It has no authentication: keep it off the internet.
    pub admin_addr: SocketAddr,
    /// Logs.
    pub log: LogConfig,
    /// How long tasks may take to stop after a signal before they are dropped.
    pub grace: Period,
    /// Threads that run the process' tasks.
    pub worker_threads: usize,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            admin_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            log: LogConfig::default(),
            grace: Period::from_secs(20),
            worker_threads: 2,
        }
    }
}

/// How a process logs. Logs go to stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// The shape of a line.
    pub format: LogFormat,
    /// A level (`info`) or levels by module (`info,berth_api=debug`); also settable at run time by
    /// `PUT /log-level` on the admin port.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".into() }
    }
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `pretty` when stderr is a terminal, `json` otherwise.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// A service's configuration: it has a [`Process`] in it.
pub trait HasProcess {
    /// The part that all processes share.
    fn process(&self) -> &Process;
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or not readable.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML. The text is the parser's message with its line, never the line
    /// itself, which may hold a secret.
    #[error("{}, line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// Values that are wrong, one per line, each with its key and where it was set.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
}

/// Reads a configuration: the defaults of `C`, then `file` (which must exist when given), then
/// environment variables that start with `BERTH_`, in which `__` separates levels, so that
/// `BERTH_PROCESS__LOG__LEVEL` sets `process.log.level`.
///
/// Variables whose first segment is no field of `C` are left alone: services share one
/// environment. Below that, and in the file, an unknown key is an error that names it. A variable
/// whose key is a string by default is taken as it is; others are read as a TOML value (`3`, `true`,
/// `["a", "b"]`) or else as a word.
pub fn load<C>(file: Option<&Path>) -> Result<C, ConfigError>
where
    C: Default + Serialize + DeserializeOwned,
{
    load_from(file, std::env::vars_os())
}

fn load_from<C>(
    file: Option<&Path>,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<C, ConfigError>
where
    C: Default + Serialize + DeserializeOwned,
{
    let defaults = Serialized::defaults(C::default());
    let known = defaults.data().map_err(invalid)?.remove(&Profile::Default).unwrap_or_default();
    let mut figment = Figment::from(defaults);
    if let Some(path) = file {
        figment = figment.merge(read_file(path)?);
    }
    let mut variables: Vec<_> = environment
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter_map(|(name, value)| variable(&known, name, &value))
        .collect();
    // The environment has no order; an error must not depend on it.
    variables.sort_by(|a, b| a.name.cmp(&b.name));
    for variable in variables {
        figment = figment.merge(variable);
    }
    figment.extract().map_err(invalid)
}

/// One source of values with the name that errors give it.
struct Source {
    name: String,
    dict: Dict,
}

impl Provider for Source {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone()).interpolater(|_: &Profile, keys: &[&str]| keys.join("."))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

fn read_file(path: &Path) -> Result<Source, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let offset = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        ConfigError::Syntax { path: path.to_owned(), line, message: error.message().to_owned() }
    })?;
    let value = Value::serialize(table).map_err(invalid)?;
    Ok(Source { name: path.display().to_string(), dict: value.into_dict().unwrap_or_default() })
}

/// The value that an environment variable sets, or `None` when it is not for this configuration.
fn variable(known: &Dict, name: String, text: &str) -> Option<Source> {
    let key = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
    let segments: Vec<&str> = key.split("__").collect();
    known.get(*segments.first()?)?;
    let default = segments[1..]
        .iter()
        .try_fold(known.get(segments[0])?, |value, segment| value.as_dict()?.get(*segment));
    let value = match default {
        // A password of digits stays a string.
        Some(Value::String(..)) => Value::from(text),
        _ => match text.parse::<toml::Value>().map(Value::serialize) {
            Ok(Ok(value)) => value,
            // A bare word, as `pretty`.
            Ok(Err(_)) | Err(_) => Value::from(text),
        },
    };
    let nested = segments.iter().rev().fold(value, |value, segment| {
        Value::Dict(Tag::Default, Dict::from([((*segment).to_owned(), value)]))
    });
    Some(Source { name, dict: nested.into_dict()? })
}

/// Each wrong value in one line: key, what is wrong, where it was set.
fn invalid(error: figment::Error) -> ConfigError {
    let line = |error: figment::Error| {
        let key = error.path.join(".");
        let place = error.metadata.as_ref().map(|metadata| metadata.name.clone());
        match (key.as_str(), place) {
            ("", None) => error.kind.to_string(),
            ("", Some(place)) => format!("{} ({place})", error.kind),
            (key, None) => format!("`{key}`: {}", error.kind),
            (key, Some(place)) => format!("`{key}`: {} ({place})", error.kind),
        }
    };
    ConfigError::Invalid(error.into_iter().map(line).collect())
}

#[cfg(test)]
mod tests;
