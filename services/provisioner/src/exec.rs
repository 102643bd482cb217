//! Sessions of the exec provisioner: a template's own programs plan and apply.
//!
//! The contract is in docs/exec-provisioner.md, with JSON Schemas in docs/schemas.

mod manifest;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use berth_proto::v1;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::manifest::Manifest;
use self::wire::{ApplyResult, PlanResult, Request};
use crate::session::{Applied, Code, Declared, Failure, Planned, Session};
use crate::tool::{self, Call, Exit, Stream};

/// Most bytes of a result.
const MAX_RESULT: u64 = 16 * 1024 * 1024;
/// Most bytes of `template.toml`.
const MAX_MANIFEST: u64 = 1024 * 1024;
/// How much of a bad output is quoted, in bytes.
const QUOTE: usize = 512;
/// Lines of stderr that a failure repeats.
const LAST_WORDS: usize = 5;

/// One job's exec provisioner.
pub(crate) struct Exec {
    job: v1::Job,
    manifest: Manifest,
    state: Value,
    /// What the last plan wants passed on, and what it is for.
    plan: Option<(Value, v1::Transition)>,
    /// What apply answered.
    applied: Option<ApplyResult>,
}

impl Exec {
    /// Nothing has run yet.
    pub(crate) fn new(job: v1::Job) -> Self {
        let manifest = Manifest::default();
        Self { job, manifest, state: Value::Null, plan: None, applied: None }
    }

    /// Reads `template.toml` and the previous state.
    pub(crate) async fn init(&mut self, session: &Session, state: &[u8]) -> Result<(), Failure> {
        let path = session.template().join("template.toml");
        let wrong =
            |reason: String| Failure::new(Code::Template, format!("template.toml: {reason}"));
        let size =
            tokio::fs::metadata(&path).await.map_err(|error| wrong(error.to_string()))?.len();
        if size > MAX_MANIFEST {
            return Err(wrong(format!("it has {size} bytes, at most {MAX_MANIFEST}")));
        }
        let text =
            tokio::fs::read_to_string(&path).await.map_err(|error| wrong(error.to_string()))?;
        self.manifest = Manifest::parse(&text).map_err(|error| wrong(format!("{error:#}")))?;
        if !state.is_empty() {
            self.state = serde_json::from_slice(state).map_err(|error| {
                Failure::new(Code::Infrastructure, format!("the stored state is no JSON: {error}"))
            })?;
        }
        Ok(())
    }

    /// The variables that the manifest declares.
    pub(crate) fn declared(&self) -> Declared {
        let variables = self.manifest.findings().variables;
        let is_given = |name: &str| self.job.variables.iter().any(|it| it.name == name);
        let missing = variables.iter().filter(|it| it.required && !is_given(&it.name));
        Declared { missing: missing.map(|it| it.name.clone()).collect(), variables }
    }

    /// Runs the template's plan program.
    pub(crate) async fn plan(
        &mut self,
        session: &Session,
        transition: v1::Transition,
    ) -> Result<Planned, Failure> {
        let request = self.request("plan", transition, Value::Null);
        let program = self.manifest.plan.clone();
        let exit = self.call(session, ("plan", transition), &program, &request).await?;
        if !exit.exit.status.success() {
            return Err(exit.failure("plan"));
        }
        let result: PlanResult = exit.result("plan")?;
        let resources = wire::resources(result.resources, self.workspace_id());
        let cost = resources.iter().map(|it| it.daily_cost).fold(0, i32::saturating_add);
        self.plan = Some((result.plan, transition));
        Ok(Planned {
            daily_cost: result.daily_cost.unwrap_or(cost),
            resources,
            replacements: result.replacements.into_iter().map(Into::into).collect(),
            parameters: self.manifest.parameters(),
            presets: self.manifest.presets(),
            findings: self.manifest.findings(),
            refused: None,
        })
    }

    /// Runs the template's apply program. A result that it prints counts even when it then fails:
    /// that is how it says what exists.
    pub(crate) async fn apply(&mut self, session: &Session) -> Result<(), Failure> {
        let Some((plan, transition)) = self.plan.clone() else {
            return Err(Failure::new(Code::Infrastructure, "apply was asked for before plan"));
        };
        let request = self.request("apply", transition, plan);
        let program = self.manifest.apply.clone();
        let exit = self.call(session, ("apply", transition), &program, &request).await?;
        let result = exit.result::<ApplyResult>("apply");
        if exit.exit.status.success() && !exit.stopped {
            let result = result?;
            let checked = wire::check_tokens(&result.resources);
            self.applied = Some(result);
            return checked
                .map_err(|error| Failure::new(Code::Template, error).with_state(self.written()));
        }
        self.applied = result.ok();
        let failure = match session.reporter.going() {
            Err(stopped) => stopped.into(),
            Ok(()) => exit.failure("apply"),
        };
        Err(failure.with_state(self.written()))
    }

    /// What apply made.
    pub(crate) fn graph(&self, _: &Session) -> std::future::Ready<Result<Applied, Failure>> {
        let resources = self.applied.as_ref().map(|it| it.resources.clone()).unwrap_or_default();
        let resources = wire::resources(resources, self.workspace_id());
        std::future::ready(Ok(Applied { state: self.written().unwrap_or_default(), resources }))
    }

    /// The state that apply printed; `None` when it printed none.
    pub(crate) fn written(&self) -> Option<Vec<u8>> {
        Some(self.applied.as_ref()?.state.to_string().into_bytes())
    }

    fn workspace_id(&self) -> &str {
        let metadata = self.job.build().and_then(|it| it.metadata.as_ref());
        metadata.map_or("", |it| &it.workspace_id)
    }

    fn request(&self, step: &'static str, transition: v1::Transition, plan: Value) -> Vec<u8> {
        let mut request = Request::new(&self.job, &self.manifest, transition);
        request.step = step;
        request.state = &self.state;
        request.plan = plan;
        serde_json::to_vec(&request).expect("a request has only strings for keys")
    }

    async fn call(
        &self,
        session: &Session,
        (step, transition): (&str, v1::Transition),
        program: &Path,
        request: &[u8],
    ) -> Result<Ended, Failure> {
        session.reporter.going()?;
        let dir = session.template();
        let program: PathBuf = dir.join(program);
        let env: BTreeMap<_, _> = match step {
            "plan" => session.env_for_plan(transition),
            _ => session.env_for(transition),
        };
        let call = Call {
            program: &program,
            args: Vec::new(),
            dir: &dir,
            env: &env,
            input: request.to_vec(),
            capture: Some(MAX_RESULT),
            job: session.dir.path(),
        };
        let mut last_words = Vec::new();
        let exit = tool::run(call, session.reporter.stop(), |stream, line| {
            if stream == Stream::Stderr {
                session.reporter.tool(v1::LogLevel::Info, line);
                if last_words.len() == LAST_WORDS {
                    last_words.remove(0);
                }
                last_words.push(line.to_owned());
            }
        });
        // That it cannot be run is the template's doing: it is not there or not executable.
        let exit = exit.await.map_err(|error| {
            let error = anyhow::Error::from(error);
            Failure::new(Code::Template, format!("{error:#} (is it there, and executable?)"))
        })?;
        let stopped = session.reporter.going().is_err();
        Ok(Ended { exit, stopped, last_words })
    }
}

/// A program of the template that has ended.
struct Ended {
    exit: Exit,
    stopped: bool,
    last_words: Vec<String>,
}

impl Ended {
    fn failure(&self, name: &str) -> Failure {
        let words = self.last_words.join("\n");
        Failure::new(Code::Template, format!("{name} failed ({}): {words}", self.exit.status))
    }

    fn result<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let wrong = |reason: String| Failure::new(Code::Template, format!("{name}: {reason}"));
        if self.exit.truncated {
            return Err(wrong(format!("its output has more than {MAX_RESULT} bytes")));
        }
        serde_json::from_slice(&self.exit.stdout).map_err(|error| {
            let output = &self.exit.stdout[..self.exit.stdout.len().min(QUOTE)];
            let output = String::from_utf8_lossy(output);
            wrong(format!(
                "its output is not the JSON that was expected: {error}. It was: {output}"
            ))
        })
    }
}

#[cfg(test)]
mod tests;
