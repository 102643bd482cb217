//! What scripts find around them: variables, folder, shell.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::manifest::Manifest;
use crate::options::{Options, SCOPE_VARIABLE};

/// Most bytes of a message of the day.
const MAX_MOTD: u64 = 16 << 10;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The surroundings of every script of one manifest.
#[derive(Clone)]
pub(crate) struct Environment {
    pub(crate) variables: BTreeMap<String, String>,
    /// Where scripts start: the manifest's directory, or the nearest thing that exists.
    pub(crate) directory: PathBuf,
    /// The manifest's directory without `~` and variables, existing or not.
    pub(crate) expanded_directory: String,
    pub(crate) shell: String,
    /// The file of the message of the day, if there is to be one.
    motd_file: Option<PathBuf>,
    data_dir: PathBuf,
}

impl Environment {
    /// `token` is what scripts call the deployment with.
    pub(crate) fn new(options: &Options, token: &str, manifest: &Manifest) -> Self {
        let mut variables = options.env.clone();
        let shell = shell(&variables);
        variables.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
        for (name, value) in &manifest.environment_variables {
            // Templates extend what is there: PATH = "$PATH:/opt/tool/bin".
            let value = expand(value, &variables);
            variables.insert(name.clone(), value);
        }
        let bin = options.data_dir.join("bin").to_string_lossy().into_owned();
        let path = variables.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let path = format!("{path}:{bin}");
        for (name, value) in [
            ("CODER", "true"),
            ("CODER_AGENT_URL", &options.url),
            ("CODER_AGENT_TOKEN", token),
            ("CODER_WORKSPACE_NAME", &manifest.workspace_name),
            ("CODER_WORKSPACE_OWNER_NAME", &manifest.owner_name),
            ("CODER_WORKSPACE_AGENT_NAME", &manifest.agent_name),
            ("CODER_SCRIPT_BIN_DIR", &bin),
            ("PATH", &path),
            (SCOPE_VARIABLE, &options.scope),
        ] {
            variables.insert(name.to_owned(), value.to_owned());
        }
        let home = variables.get("HOME").cloned().unwrap_or_else(|| "/".to_owned());
        let expanded_directory = if manifest.directory.is_empty() {
            home.clone()
        } else {
            expand_path(&manifest.directory, &variables)
        };
        let directory = [&expanded_directory, &home]
            .into_iter()
            .map(PathBuf::from)
            .find(|dir| dir.is_dir())
            .unwrap_or_else(|| PathBuf::from("/"));
        let motd_file = match manifest.motd_file.as_str() {
            "" => None,
            // Who does not want it says so as everywhere.
            _ if Path::new(&home).join(".hushlogin").exists() => None,
            file => Some(directory.join(expand_path(file, &variables))),
        };
        let data_dir = options.data_dir.clone();
        Self { variables, directory, expanded_directory, shell, motd_file, data_dir }
    }

    /// What is written on a terminal before its shell begins: at most [`MAX_MOTD`] bytes.
    pub(crate) fn motd(&self) -> Vec<u8> {
        let Some(path) = self.motd_file.as_ref().filter(|path| path.is_file()) else {
            return Vec::new();
        };
        let mut text = Vec::new();
        let read = fs::File::open(path).and_then(|file| file.take(MAX_MOTD).read_to_end(&mut text));
        if let Err(error) = read {
            tracing::warn!(file = %path.display(), %error, "no message of the day");
            return Vec::new();
        }
        // A terminal that no shell has set up yet begins no line by itself.
        let lines =
            text.split(|byte| *byte == b'\n').map(|it| it.strip_suffix(b"\r").unwrap_or(it));
        lines.collect::<Vec<_>>().join(&b"\r\n"[..])
    }

    /// The program and arguments that run `script`: by its `#!` line when it has one, else by the
    /// user's shell.
    pub(crate) fn command(&self, script: &str) -> (String, Vec<String>) {
        let text = script.trim_start();
        let first = text.strip_prefix("#!").and_then(|rest| rest.lines().next()).unwrap_or("");
        let mut words = first.split_whitespace().map(ToOwned::to_owned);
        let (program, mut arguments) = match words.next() {
            Some(program) => (program, words.collect()),
            None => (self.shell.clone(), Vec::new()),
        };
        arguments.extend(["-c".to_owned(), script.to_owned()]);
        (program, arguments)
    }

    /// The file a script's `log_path` means. Relative ones lie in the agent's data folder.
    pub(crate) fn log_file(&self, log_path: &str) -> PathBuf {
        self.data_dir.join(expand_path(log_path, &self.variables))
    }

    /// The folder a script keeps its data in, under a name of its own.
    pub(crate) fn script_data(&self, name: &str) -> PathBuf {
        self.data_dir.join("data").join(name)
    }

    /// Makes the folders that scripts are promised.
    pub(crate) fn ensure_folders(&self) -> std::io::Result<()> {
        fs::create_dir_all(self.data_dir.join("bin"))
    }
}

/// The user's shell: `SHELL`, else what the user database says, else `sh`.
fn shell(variables: &BTreeMap<String, String>) -> String {
    let usable = |shell: &String| {
        let path = Path::new(shell);
        let refuses = path.file_name().is_some_and(|name| name == "nologin" || name == "false");
        path.is_absolute() && path.is_file() && !refuses
    };
    let listed = || {
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let me = rustix::process::getuid().as_raw().to_string();
        let entry = users.lines().find(|line| line.split(':').nth(2) == Some(&me))?;
        entry.split(':').nth(6).map(ToOwned::to_owned)
    };
    let given = variables.get("SHELL").cloned().filter(usable);
    given.or_else(|| listed().filter(usable)).unwrap_or_else(|| "/bin/sh".to_owned())
}

/// Replaces a leading `~` and variables.
fn expand_path(path: &str, variables: &BTreeMap<String, String>) -> String {
    let path = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("$HOME{rest}"),
        _ => path.to_owned(),
    };
    expand(&path, variables)
}

/// Replaces `$NAME` and `${NAME}`; an unknown name is empty, a `$` before anything else stays.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, remainder) = if let Some((name, remainder)) = braced {
            (name, remainder)
        } else {
            let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
            let end = after.find(|char| !is_name(char)).unwrap_or(after.len());
            after.split_at(end)
        };
        if name.is_empty() && braced.is_none() {
            expanded.push('$');
        }
        expanded.push_str(variables.get(name).map_or("", String::as_str));
        rest = remainder;
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Auth, Timing, Token};

    fn environment(directory: &str, manifest_env: &[(&str, &str)]) -> Environment {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let options = Options {
            url: "http://berth".to_owned(),
            auth: Auth::Token(Token::new("secret")),
            scope: "scope".to_owned(),
            env: [("HOME", "/usr"), ("PATH", "/bin"), ("SHELL", "/bin/sh")]
                .iter()
                .map(owned)
                .collect(),
            data_dir: PathBuf::from("/data"),
            timing: Timing::FIELD,
            clock: crate::clock::Clock::system(),
        };
        let manifest = Manifest {
            directory: directory.to_owned(),
            workspace_name: "dev".to_owned(),
            owner_name: "alice".to_owned(),
            environment_variables: manifest_env.iter().map(owned).collect(),
            ..Manifest::default()
        };
        Environment::new(&options, "secret", &manifest)
    }

    #[test]
    fn the_message_of_the_day_is_bounded_and_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let with = |file: &str| {
            let mut it = environment("", &[]);
            it.motd_file = Some(folder.path().join(file));
            it.motd()
        };
        fs::write(folder.path().join("motd"), "one\ntwo\r\n").unwrap();
        assert_eq!(with("motd"), b"one\r\ntwo\r\n");
        fs::write(folder.path().join("large"), "x".repeat(1 << 20)).unwrap();
        assert_eq!(with("large").len(), 16 << 10);
        assert!(with("none").is_empty() && with(".").is_empty());
    }

    #[test]
    fn the_manifest_extends_what_the_agent_was_given_and_cannot_take_its_names() {
        let env =
            environment("", &[("PATH", "${PATH}:/opt/$NONE/x"), ("CODER", "no"), ("P", "5$")]);
        assert_eq!(env.variables["PATH"], "/bin:/opt//x:/data/bin");
        assert_eq!(env.variables["P"], "5$");
        assert_eq!(env.variables["CODER"], "true");
        assert_eq!(env.variables["CODER_WORKSPACE_OWNER_NAME"], "alice");
    }

    #[test]
    fn directories_are_expanded_and_replaced_by_home_when_missing() {
        assert_eq!(environment("~/lib", &[]).directory, Path::new("/usr/lib"));
        assert_eq!(environment("$HOME/lib", &[]).directory, Path::new("/usr/lib"));
        let missing = environment("~/no/such", &[]);
        assert_eq!(missing.directory, Path::new("/usr"));
        assert_eq!(missing.expanded_directory, "/usr/no/such");
        assert_eq!(environment("", &[]).expanded_directory, "/usr");
    }

    #[test]
    fn a_script_names_its_interpreter_or_gets_the_users_shell() {
        let env = environment("", &[]);
        let script = "#!/usr/bin/env python3\nprint(1)";
        let (program, arguments) = env.command(script);
        assert_eq!(program, "/usr/bin/env");
        assert_eq!(arguments, ["python3", "-c", script]);
        assert_eq!(env.command("echo hi").0, "/bin/sh");
    }
}
