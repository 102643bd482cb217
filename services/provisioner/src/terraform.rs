//! Sessions that run Terraform or OpenTofu.

mod agents;
mod binary;
mod declared;
mod graph;
mod model;
mod output;
mod parameters;
mod resources;
mod reuse;
mod state;
mod tag_rules;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use berth_proto::v1;

pub(crate) use self::binary::Setup;
use self::graph::Graph;
use self::model::{Node, Plan, ResourceChange, State};
use self::output::{Heard, Readable};
pub(crate) use self::reuse::Reuse;
use self::state::{STATE_FILE, Written};
use crate::modules;
use crate::report::Findings;
use crate::session::{Applied, Code, Declared, Failure, Planned, Session};
use crate::tool::{self, Call, Exit, Stream};

/// Most bytes of a plan, state or graph that are read.
const MAX_SHOWN: u64 = 128 * 1024 * 1024;

/// The modules that came with a job, beside its template.
pub(crate) const MODULES: &str = "modules";

/// One job's Terraform.
pub(crate) struct Terraform {
    setup: Arc<Setup>,
    /// The archive it works on.
    archive: String,
    /// What may be kept between builds; `None`: nothing is.
    reuse: Option<Reuse>,
    graph: Option<Arc<Graph>>,
    /// The last plan and what it is for.
    plan: Option<(PathBuf, v1::Transition)>,
    /// Whether apply began: from then on the state file is what it wrote.
    applying: bool,
    /// The state that Terraform printed, because it could write it nowhere.
    printed: Option<Vec<u8>>,
}

impl Terraform {
    /// Nothing has run yet.
    pub(crate) fn new(setup: Arc<Setup>, archive: &str, reuse: Option<Reuse>) -> Self {
        let graph = setup.graphs.get(archive);
        let archive = archive.to_owned();
        Self { setup, archive, reuse, graph, plan: None, applying: false, printed: None }
    }

    /// Puts the previous state in place and fetches modules and providers.
    pub(crate) async fn init(&self, session: &Session, state: &[u8]) -> Result<(), Failure> {
        let version = format!("Terraform {}", self.setup.version);
        session.reporter.daemon(v1::LogLevel::Debug, &version);
        let file = session.template().join(STATE_FILE);
        // An archive may hold these, from whoever ran Terraform where it was packed.
        let _ = tokio::fs::remove_file(&file).await;
        let _ = tokio::fs::remove_dir_all(session.template().join(".terraform")).await;
        let (packed, template) = (session.dir.file(MODULES), session.template());
        let reuse = self.reuse.clone();
        let restored = tokio::task::spawn_blocking(move || {
            let taken = reuse.is_some_and(|it| it.take(&template));
            if !taken && packed.exists() {
                modules::restore(&packed, &template)?;
            }
            Ok::<_, modules::RestoreError>(taken)
        });
        if restored.await.map_err(Failure::local)?.map_err(Failure::local)? {
            session.reporter.daemon(v1::LogLevel::Debug, "With the providers of the build before");
        }
        if !state.is_empty() {
            tokio::fs::write(&file, state).await.map_err(Failure::local)?;
        }
        let _turn = tokio::select! {
            turn = self.setup.init.lock() => turn,
            () = session.reporter.stop().asked() => return Err(stopped(session)),
        };
        let args = ["init", "-input=false", "-no-color"].map(OsString::from);
        self.run(session, v1::Transition::Start, args.into(), &mut Heard::default()).await
    }

    /// The variables that the template declares; `None` where its files cannot be read.
    pub(crate) async fn declared(&self, session: &Session) -> Option<Declared> {
        let start = (OsStr::new("validate"), v1::Transition::Start);
        let (dir, env) = (session.template(), self.env(session, start));
        tokio::task::spawn_blocking(move || declared::read(&dir, &env)).await.ok()?
    }

    /// Plans, and reads the plan.
    pub(crate) async fn plan(
        &mut self,
        session: &Session,
        transition: v1::Transition,
    ) -> Result<Planned, Failure> {
        let file = session.dir.file("plan");
        let mut args: Vec<OsString> =
            ["plan", "-input=false", "-no-color", "-json"].map(OsString::from).into();
        if transition == v1::Transition::Delete {
            args.push("-destroy".into());
        }
        let mut out = OsString::from("-out=");
        out.push(&file);
        args.push(out);
        self.run(session, transition, args, &mut Heard::default()).await?;
        let show = ["show".into(), "-json".into(), "-no-color".into(), file.clone().into()];
        let show = self.show(session, transition, show.into());
        let plan = if self.graph.is_some() {
            show.await?
        } else {
            let graph = ["graph".into(), "-type=plan".into()].into();
            let (plan, dot) = tokio::join!(show, self.show(session, transition, graph));
            let graph = Arc::new(Graph::parse(&String::from_utf8_lossy(&dot?)));
            self.setup.graphs.put(&self.archive, &graph);
            self.graph = Some(graph);
            plan?
        };
        self.plan = Some((file, transition));
        let plan: Plan =
            serde_json::from_slice(&plan).map_err(|error| unreadable("plan", &error))?;
        let dir = session.template();
        let written = tokio::task::spawn_blocking(move || tag_rules::read(&dir)).await;
        Ok(planned(plan, self.graph.as_deref(), transition, &written.unwrap_or_default()))
    }

    /// Carries out the last plan.
    pub(crate) async fn apply(&mut self, session: &Session) -> Result<(), Failure> {
        let Some((plan, transition)) = self.plan.clone() else {
            return Err(Failure::new(Code::Infrastructure, "apply was asked for before plan"));
        };
        let args = ["apply", "-input=false", "-no-color", "-json", "-auto-approve"];
        let args = args.map(OsString::from).into_iter().chain([plan.into()]).collect();
        self.applying = true;
        let mut heard = Heard::default();
        let applied = self.run(session, transition, args, &mut heard).await;
        self.printed = heard.printed_state;
        match applied {
            Ok(()) => Ok(()),
            Err(failure) => Err(failure.with_state(self.written(session).await)),
        }
    }

    /// Reads the state that apply wrote.
    pub(crate) async fn graph(&self, session: &Session) -> Result<Applied, Failure> {
        let transition = self.plan.as_ref().map_or(v1::Transition::Start, |(_, it)| *it);
        let args = ["show", "-json", "-no-color"].map(OsString::from).into();
        let read = async {
            let shown = self.show(session, transition, args).await?;
            serde_json::from_slice::<State>(&shown).map_err(|error| unreadable("state", &error))
        };
        let written = self.written(session).await;
        let nodes = match read.await {
            Ok(state) => state.values.unwrap_or_default().nodes(),
            Err(failure) => return Err(failure.with_state(written)),
        };
        let running = transition == v1::Transition::Start;
        let graph = self.graph.as_deref().unwrap_or(&EMPTY);
        let resources = resources::resources(&nodes, graph, running);
        Ok(Applied { state: written.unwrap_or_default(), resources })
    }

    /// The state as apply wrote it; `None` before apply, and when it wrote none.
    pub(crate) async fn written(&self, session: &Session) -> Option<Vec<u8>> {
        if !self.applying {
            return None;
        }
        match state::written(&session.template(), self.printed.clone()).await {
            Written::State(state) => Some(state),
            Written::Nothing => None,
            Written::Damaged(error) => {
                let text = format!(
                    "The state that apply wrote cannot be read ({error}), so the state of the \
                     build before stands. Resources may exist that it does not name."
                );
                session.reporter.daemon(v1::LogLevel::Error, &text);
                None
            }
        }
    }

    /// Keeps what the workspace's next build can use.
    pub(crate) async fn leave(&self, session: &Session, transition: v1::Transition) {
        let Some(reuse) = self.reuse.clone() else { return };
        let template = session.template();
        let left = tokio::task::spawn_blocking(move || reuse.leave(&template, transition)).await;
        if let Ok(Err(error)) = left {
            tracing::warn!(%error, "nothing is kept for the workspace's next build");
        }
    }

    fn env(
        &self,
        session: &Session,
        (command, transition): (&OsStr, v1::Transition),
    ) -> BTreeMap<String, String> {
        let mut env = match command.to_str() {
            Some("plan") => session.env_for_plan(transition),
            _ => session.env_for(transition),
        };
        env.extend(self.setup.env.clone());
        env
    }

    /// Runs a command whose output is the job's log.
    async fn run(
        &self,
        session: &Session,
        transition: v1::Transition,
        args: Vec<OsString>,
        heard: &mut Heard,
    ) -> Result<(), Failure> {
        let name = args[0].to_string_lossy().into_owned();
        let reporter = &session.reporter;
        let exit = self.call(session, transition, (args, None), |stream, line| {
            let readable = match stream {
                Stream::Stdout => heard.hear(line),
                Stream::Stderr => heard.hear_plain(line, v1::LogLevel::Error),
            };
            if let Some(Readable { level, text }) = readable {
                reporter.tool(level, &text);
            }
        });
        let exit = exit.await?;
        for timing in std::mem::take(&mut heard.timings) {
            session.timing(timing);
        }
        settle(session, &exit, &name, heard.error())
    }

    /// Runs a command whose output is read.
    async fn show(
        &self,
        session: &Session,
        transition: v1::Transition,
        args: Vec<OsString>,
    ) -> Result<Vec<u8>, Failure> {
        let name = args[0].to_string_lossy().into_owned();
        let mut heard = Heard::default();
        let exit = self.call(session, transition, (args, Some(MAX_SHOWN)), |_, line| {
            heard.hear_plain(line, v1::LogLevel::Error);
        });
        let exit = exit.await?;
        settle(session, &exit, &name, heard.error())?;
        if exit.truncated {
            let text = format!("terraform {name} printed more than {MAX_SHOWN} bytes");
            return Err(Failure::new(Code::Template, text));
        }
        Ok(exit.stdout)
    }

    async fn call(
        &self,
        session: &Session,
        transition: v1::Transition,
        (args, capture): (Vec<OsString>, Option<u64>),
        on_line: impl FnMut(Stream, &str) + Send,
    ) -> Result<Exit, Failure> {
        session.reporter.going()?;
        let (dir, env) = (session.template(), self.env(session, (&args[0], transition)));
        let call = Call {
            program: &self.setup.program,
            args,
            dir: &dir,
            env: &env,
            input: Vec::new(),
            capture,
            job: session.dir.path(),
        };
        tool::run(call, session.reporter.stop(), on_line).await.map_err(Failure::local)
    }
}

static EMPTY: Graph = Graph::EMPTY;

/// What became of a run: a stop explains more than the failure that it caused.
fn settle(session: &Session, exit: &Exit, name: &str, error: &str) -> Result<(), Failure> {
    session.reporter.going()?;
    if exit.status.success() {
        return Ok(());
    }
    let error = if error.is_empty() { String::new() } else { format!(": {error}") };
    Err(Failure::new(Code::Template, format!("terraform {name} failed ({}){error}", exit.status)))
}

fn stopped(session: &Session) -> Failure {
    match session.reporter.going() {
        Err(stopped) => stopped.into(),
        Ok(()) => Failure::new(Code::Canceled, "the job was stopped"),
    }
}

fn unreadable(what: &str, error: &serde_json::Error) -> Failure {
    Failure::new(Code::Template, format!("the {what} that terraform shows cannot be read: {error}"))
}

/// Everything that a plan says.
fn planned(
    plan: Plan,
    graph: Option<&Graph>,
    transition: v1::Transition,
    written: &[tag_rules::Written],
) -> Planned {
    let graph = graph.unwrap_or(&EMPTY);
    // A data source that was read while planning is in the state that the plan began with; one that
    // waits for apply is among the planned values.
    let planned = plan.planned_values.nodes();
    let read = plan.prior_state.and_then(|state| state.values).unwrap_or_default().nodes();
    let waiting: Vec<Node> = planned.iter().filter(|it| it.is_data()).cloned().collect();
    let again = |node: &Node| waiting.iter().any(|it| it.address == node.address);
    let read = read.into_iter().filter(|node| node.is_data() && !again(node));
    let data: Vec<Node> = read.chain(waiting.iter().cloned()).collect();
    let running = transition == v1::Transition::Start;
    let (tag_rules, unclear_tags) = parameters::tag_rules(&data, written);
    Planned {
        resources: resources::resources(&planned, graph, running),
        daily_cost: resources::daily_cost(&planned),
        replacements: plan.resource_changes.iter().filter_map(replacement).collect(),
        parameters: parameters::parameters(&data),
        presets: parameters::presets(&data),
        refused: parameters::check_tags(&data, &waiting).err(),
        findings: Findings {
            readme: None,
            variables: parameters::variables(&plan.configuration.root_module),
            tags: parameters::tags(&data),
            tag_rules,
            unclear_tags,
        },
    }
}

/// What is torn down and made anew, with the attributes that force it. Descriptions do not count:
/// nothing of the user's is lost with them; nor does what is replaced for no attribute, which the
/// template or a taint asked for.
fn replacement(resource: &ResourceChange) -> Option<v1::Replacement> {
    let has = |action: &str| resource.change.actions.iter().any(|it| it == action);
    let replaced = has("delete") && has("create") && !resource.kind.starts_with("coder_");
    let paths: Vec<_> =
        resource.change.replace_paths.iter().map(|path| model::path_text(path)).collect();
    (replaced && !paths.is_empty())
        .then(|| v1::Replacement { resource: resource.address.clone(), paths })
}

#[cfg(test)]
mod tests;
