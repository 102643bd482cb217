mod broker;
mod faults;
mod template;
mod terraform;

use std::net::Ipv4Addr;

use berth_service_kit::{Period, Process};
use tempfile::TempDir;
use v1::complete_job_request::Result as Done;

use self::broker::{Broker, KEY, Server};
use super::*;
use crate::config::ProvisionerConfig;
use std::collections::HashMap;

/// A daemon beside a broker.
struct Scene {
    broker: Broker,
    server: Server,
    host: Host,
    dir: TempDir,
}

impl Scene {
    async fn new(lease_seconds: u32) -> Self {
        Self::with(lease_seconds, |_| {}).await
    }

    async fn with(lease_seconds: u32, change: impl FnOnce(&mut Config)) -> Self {
        let broker = Broker::new(lease_seconds);
        let server = broker.serve((Ipv4Addr::LOCALHOST, 0).into()).await;
        let dir = tempfile::tempdir().unwrap();
        let provisioner = ProvisionerConfig {
            broker_url: format!("http://{}", server.addr),
            key: KEY.into(),
            name: "daemon".into(),
            work_dir: dir.path().join("work"),
            cache_dir: dir.path().join("cache"),
            force_cancel_interval: Period::from_mins(10),
            template_env: BTreeMap::from([(
                "OUT".to_owned(),
                dir.path().join("out").display().to_string(),
            )]),
            ..Default::default()
        };
        let mut config = Config { process: Process::default(), provisioner };
        change(&mut config);
        let shutdown = CancellationToken::new();
        let host = Host {
            tasks: Tasks::new(shutdown.clone()),
            shutdown,
            health: Health::default(),
            metrics: Registry::new(),
        };
        std::fs::create_dir(dir.path().join("out")).unwrap();
        start(&config, &host).await.unwrap();
        Self { broker, server, host, dir }
    }

    /// Queues a job for an exec template with these programs.
    fn queue(&self, id: &str, scripts: [&str; 2], input: v1::job::Input) {
        let manifest = "version = 1\nplan = 'plan'\napply = 'apply'\n\
                        [[parameters]]\nname = 'size'\ndefault = 'small'\n\
                        [[variables]]\nname = 'zone'\ndefault = 'eu'\n\
                        [[presets]]\nname = 'p'\nprebuilds = { instances = 2 }\n";
        let archive = archive(&[
            ("template.toml", manifest),
            ("plan", scripts[0]),
            ("apply", scripts[1]),
            ("README.md", "# Hello"),
        ]);
        self.queue_archive(id, archive, input);
    }

    fn queue_archive(&self, id: &str, archive: Vec<u8>, input: v1::job::Input) {
        self.queue_for("exec", id, (archive, input));
    }

    fn queue_for(&self, kind: &str, id: &str, (archive, input): (Vec<u8>, v1::job::Input)) {
        self.queue_with(kind, id, (archive, input, None));
    }

    fn queue_with(
        &self,
        kind: &str,
        id: &str,
        (archive, input, modules_file_id): (Vec<u8>, v1::job::Input, Option<String>),
    ) {
        let job = v1::Job {
            modules_file_id,
            id: id.to_owned(),
            provisioner_type: kind.into(),
            archive_file_id: format!("file-{id}"),
            access_url: "http://berth/".into(),
            input: Some(input),
            ..Default::default()
        };
        self.broker.with(|state| {
            state.files.insert(job.archive_file_id.clone(), archive);
            state.queue.push_back(job);
        });
    }

    async fn done(&self, id: &str) {
        let done = |state: &broker::State| state.held.get(id).is_some_and(broker::Job::is_done);
        self.broker.until("the job is done", done).await;
    }

    fn job<T>(&self, id: &str, read: impl FnOnce(&broker::Job) -> T) -> T {
        self.broker.with(|state| read(&state.held[id]))
    }

    fn failed(&self, id: &str) -> v1::FailJobRequest {
        self.job(id, |job| job.failed.clone().expect("it did not fail"))
    }

    fn built(&self, id: &str) -> v1::WorkspaceBuildResult {
        let completed = self.job(id, |job| job.completed.clone());
        let Some(Done::WorkspaceBuild(built)) =
            completed.unwrap_or_else(|| panic!("{:?}", self.failed(id))).result
        else {
            panic!("no build")
        };
        built
    }

    async fn until_file(&self, name: &str) -> String {
        let path = self.dir.path().join("out").join(name);
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.ends_with('\n') {
                return text.trim().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.dir.path().join("out").join(name), "").unwrap();
    }

    async fn stop(self) {
        self.host.shutdown.cancel();
        self.host.tasks.drain(Duration::from_secs(20), &CancellationToken::new()).await.unwrap();
    }
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn build(build_stage: v1::BuildStage, state: &[u8]) -> v1::job::Input {
    let metadata = v1::Metadata {
        transition: v1::Transition::Start.into(),
        workspace_id: "w1".into(),
        owner_name: "alice".into(),
        stage: build_stage.into(),
        ..Default::default()
    };
    v1::job::Input::WorkspaceBuild(v1::WorkspaceBuild {
        state: state.to_vec(),
        metadata: Some(metadata),
        ..Default::default()
    })
}

fn start_build() -> v1::job::Input {
    build(v1::BuildStage::None, b"")
}

const PLAN: &str = "#!/bin/sh\necho planning >&2\necho '{\"daily_cost\": 7}'\n";
const APPLY: &str = "#!/bin/sh\necho \"for $CODER_WORKSPACE_OWNER\" >&2\n\
    echo '{\"state\": {\"n\": 1}, \"resources\": [{\"name\": \"box\", \"type\": \"process\",\
    \"agents\": [{\"name\": \"dev\", \"os\": \"linux\", \"token\": \"t\"}]}]}'\n";
/// Notes its process and waits to be told.
const HELD: &str = "#!/bin/sh\necho held >&2\nsleep 600 & echo $! > $OUT/child\n\
    while [ ! -e $OUT/go ]; do sleep 0.02; done\nkill $!\necho '{\"state\": 2}'\n";

fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

async fn gone(pid: &str) {
    while runs(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_build_goes_through_its_steps_and_reports_state_and_agents() {
    let scene = Scene::new(60).await;
    scene.queue("j", [PLAN, APPLY], start_build());
    scene.done("j").await;
    let built = scene.built("j");
    assert_eq!(built.state, br#"{"n":1}"#);
    let agent = &built.resources[0].agents[0];
    assert_eq!((&*agent.name, agent.id.is_empty()), ("dev", false));
    scene.job("j", |job| {
        use v1::Step::{Apply, Graph, Init, Plan};
        assert_eq!(job.steps, [Init, Plan, Apply, Graph]);
        let lines: Vec<_> = job.lines.values().map(String::as_str).collect();
        assert!(lines.contains(&"planning") && lines.contains(&"for alice"), "{lines:?}");
        let stages: Vec<_> =
            job.completed.as_ref().unwrap().timings.iter().map(|it| &*it.action).collect();
        assert_eq!(stages, ["init", "plan", "apply", "graph"]);
    });
    assert_eq!(scene.broker.with(|state| state.costs.clone()), [7]);
    let hello = scene.broker.with(|state| state.hello.clone().unwrap());
    assert!(hello.provisioner_types.contains(&"exec".to_owned()));
    assert!(scene.host.health.report().latches.iter().any(|it| it.name == "broker" && it.ready));
    let jobs = std::fs::read_dir(scene.dir.path().join("work/daemon/jobs")).unwrap().count();
    assert_eq!(jobs, 0, "a work directory stayed");
    scene.stop().await;
}

#[tokio::test]
async fn an_import_reports_what_the_template_asks_for() {
    let scene = Scene::new(60).await;
    let import = v1::TemplateImport { metadata: None };
    scene.queue("j", [PLAN, APPLY], v1::job::Input::TemplateImport(import));
    scene.done("j").await;
    scene.job("j", |job| {
        let result = job.completed.clone().unwrap().result;
        let Some(Done::TemplateImport(import)) = result else { panic!("{result:?}") };
        assert_eq!(import.parameters[0].default_value, "small");
        assert_eq!(import.presets[0].prebuilds.as_ref().unwrap().instances, 2);
        assert_eq!(job.update.readme.as_deref(), Some("# Hello"));
        assert_eq!(job.update.template_variables[0].default_value, "eu");
    });
    scene.stop().await;
}

/// Every kind of answer is lost at least once, and the broker goes away while the tool works.
#[tokio::test]
async fn lost_answers_and_a_broker_restart_cost_no_line_and_no_result() {
    let scene = Scene::new(60).await;
    scene.broker.with(|state| {
        state.lose = HashMap::from([("update", 3), ("quota", 1), ("complete", 2)]);
    });
    let apply = "#!/bin/sh\nfor i in 1 2 3; do echo line $i >&2; done; echo held > $OUT/held\n\
        while [ ! -e $OUT/go ]; do sleep 0.02; done\nfor i in 4 5 6; do echo line $i >&2; done\n\
        echo '{\"state\": 1}'\n";
    scene.queue("j", [PLAN, apply], start_build());
    scene.until_file("held").await;
    let Scene { broker, server, .. } = &scene;
    let (broker, addr) = (broker.clone(), server.addr);
    let Scene { server, host, dir, .. } = scene;
    server.kill().await;
    std::fs::write(dir.path().join("out/go"), "").unwrap();
    let server = broker.serve(addr).await;
    let scene = Scene { broker, server, host, dir };
    scene.done("j").await;
    assert_eq!(scene.built("j").state, b"1");
    scene.job("j", |job| {
        let numbers: Vec<_> = job.lines.keys().copied().collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "a gap");
        let said: Vec<_> = job.lines.values().filter(|line| line.starts_with("line ")).collect();
        assert_eq!(said, ["line 1", "line 2", "line 3", "line 4", "line 5", "line 6"]);
    });
    // It registered with the new server, too.
    scene.queue("k", [PLAN, APPLY], start_build());
    scene.done("k").await;
    scene.stop().await;
}

#[tokio::test]
async fn a_cancel_notice_ends_the_whole_group_and_is_reported_as_canceled() {
    let scene = Scene::new(60).await;
    scene.queue("j", [PLAN, HELD], start_build());
    let child = scene.until_file("child").await;
    let canceled = v1::JobCanceled { job_id: "j".into() };
    scene.broker.say(v1::register_response::Message::JobCanceled(canceled));
    scene.done("j").await;
    let failed = scene.failed("j");
    assert_eq!((&*failed.error_code, failed.state), ("canceled", None));
    gone(&child).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_cancel_that_comes_with_a_heartbeat_works_as_well() {
    let scene = Scene::new(3).await;
    scene.queue("j", [PLAN, HELD], start_build());
    let child = scene.until_file("child").await;
    scene.broker.with(|state| state.held.get_mut("j").unwrap().canceled = true);
    scene.done("j").await;
    assert_eq!(scene.failed("j").error_code, "canceled");
    gone(&child).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_job_given_to_somebody_else_ends_and_is_never_reported() {
    let scene = Scene::new(3).await;
    scene.queue("j", [PLAN, HELD], start_build());
    let child = scene.until_file("child").await;
    scene.broker.with(|state| state.held.get_mut("j").unwrap().taken_away = true);
    gone(&child).await;
    scene.queue("k", [PLAN, APPLY], start_build());
    scene.done("k").await;
    assert!(!scene.job("j", broker::Job::is_done));
    scene.stop().await;
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_ends_the_tool_before_it_ends() {
    let scene = Scene::new(3).await;
    scene.queue("j", [PLAN, HELD], start_build());
    let child = scene.until_file("child").await;
    let Scene { broker, server, host, dir } = scene;
    let (addr, cut) = (server.addr, std::time::Instant::now());
    server.kill().await;
    gone(&child).await;
    assert!(cut.elapsed() < Duration::from_secs(3), "{:?}", cut.elapsed());
    // The broker comes back and hears why.
    let server = broker.serve(addr).await;
    let scene = Scene { broker, server, host, dir };
    scene.done("j").await;
    let failed = scene.failed("j");
    assert_eq!(failed.error_code, "infrastructure");
    assert!(failed.error.contains("lost the broker"), "{failed:?}");
    scene.stop().await;
}

#[tokio::test]
async fn shutdown_lets_a_job_finish_that_can() {
    let scene = Scene::new(60).await;
    scene.queue("j", [PLAN, HELD], start_build());
    scene.until_file("child").await;
    scene.host.shutdown.cancel();
    scene.touch("go");
    scene.done("j").await;
    assert_eq!(scene.built("j").state, b"2");
    scene.stop().await;
}

#[tokio::test]
async fn shutdown_cancels_a_job_that_takes_too_long() {
    let scene = Scene::with(60, |config| config.process.grace = Period::from_secs(2)).await;
    scene.queue("j", [PLAN, HELD], start_build());
    let child = scene.until_file("child").await;
    scene.host.shutdown.cancel();
    scene.done("j").await;
    let failed = scene.failed("j");
    assert_eq!(failed.error_code, "infrastructure");
    assert!(failed.error.contains("daemon was stopped"), "{failed:?}");
    gone(&child).await;
    scene.stop().await;
}

/// Nothing was applied: it is given back at once, and so is the lease that was being asked for.
#[tokio::test]
async fn shutdown_gives_up_a_job_that_takes_too_long_to_plan() {
    let scene = Scene::with(60, |config| config.process.grace = Period::from_secs(2)).await;
    scene.queue("j", [HELD, APPLY], start_build());
    let child = scene.until_file("child").await;
    let asked = scene.broker.clone();
    scene.host.shutdown.cancel();
    scene.broker.until("the job is given up", |state| state.held["j"].taken_away).await;
    gone(&child).await;
    scene.stop().await;
    asked.with(|state| {
        assert!(!state.held["j"].is_done());
        assert_eq!(state.given_up.len(), 2, "a job's lease, and one that was asked for");
    });
}

#[tokio::test]
async fn a_daemon_that_is_asked_to_leave_finishes_its_job_and_ends() {
    let scene = Scene::new(60).await;
    scene.queue("j", [PLAN, HELD], start_build());
    scene.until_file("child").await;
    scene.broker.say(v1::register_response::Message::Drain(v1::Drain { stay: false }));
    scene.touch("go");
    scene.done("j").await;
    scene.host.shutdown.cancelled().await;
    scene.stop().await;
}

#[tokio::test]
async fn a_daemon_that_drains_finishes_its_job_stays_and_takes_the_next_when_told() {
    let scene = Scene::with(60, |config| config.provisioner.capacity = 1).await;
    scene.queue("j", [PLAN, HELD], start_build());
    scene.until_file("child").await;
    scene.broker.say(v1::register_response::Message::Drain(v1::Drain { stay: true }));
    scene.queue("k", [PLAN, APPLY], start_build());
    scene.touch("go");
    scene.done("j").await;
    assert_eq!(scene.built("j").state, b"2");
    let taken = tokio::time::timeout(Duration::from_millis(300), scene.done("k")).await;
    assert!(taken.is_err(), "it took a job");
    assert!(!scene.host.shutdown.is_cancelled(), "it stays");
    scene.broker.say(v1::register_response::Message::Resume(v1::Resume {}));
    scene.done("k").await;
    scene.stop().await;
}

#[tokio::test]
async fn no_more_jobs_run_at_once_than_the_capacity() {
    let scene = Scene::with(60, |config| config.provisioner.capacity = 1).await;
    scene.queue("j", [PLAN, HELD], start_build());
    scene.queue("k", [PLAN, APPLY], start_build());
    scene.until_file("child").await;
    assert_eq!(scene.broker.with(|state| state.queue.len()), 1);
    scene.touch("go");
    scene.done("k").await;
    scene.stop().await;
}

#[tokio::test]
async fn an_over_quota_build_fails_before_apply_without_a_state() {
    let scene = Scene::new(60).await;
    let quota = v1::CommitQuotaResponse { ok: false, credits_consumed: 5, budget: 10 };
    scene.broker.with(|state| state.quota = Some(quota));
    scene.queue("j", [PLAN, APPLY], start_build());
    scene.done("j").await;
    let failed = scene.failed("j");
    assert_eq!((&*failed.error_code, failed.state), ("quota", None));
    assert!(failed.error.contains("costs 7 a day"), "{}", failed.error);
    scene.stop().await;
}

#[tokio::test]
async fn a_failed_plan_has_no_state_and_a_failed_apply_has_what_it_printed() {
    let scene = Scene::new(60).await;
    let broken = "#!/bin/sh\necho 'no room' >&2\nexit 3\n";
    scene.queue("j", [broken, APPLY], start_build());
    scene.done("j").await;
    let failed = scene.failed("j");
    assert_eq!((&*failed.error_code, failed.state), ("template", None));
    assert_eq!(failed.error, "plan failed (exit status: 3): no room");
    let partial = "#!/bin/sh\necho '{\"state\": [\"half\"]}'\nexit 1\n";
    scene.queue("k", [PLAN, partial], start_build());
    scene.done("k").await;
    assert_eq!(scene.failed("k").state.as_deref(), Some(&br#"["half"]"#[..]));
    scene.stop().await;
}

#[tokio::test]
async fn bad_output_fails_the_job_and_is_quoted() {
    let scene = Scene::new(60).await;
    for (id, output, reason) in [
        ("a", "hello", "expected value"),
        ("b", "{\"sate\": 1}", "unknown field `sate`"),
        ("c", "", "EOF while parsing"),
    ] {
        let apply = format!("#!/bin/sh\nprintf '%s' '{output}'\n");
        scene.queue(id, [PLAN, &apply], start_build());
        scene.done(id).await;
        let error = scene.failed(id).error;
        assert!(error.contains(reason) && error.ends_with(&format!("It was: {output}")), "{error}");
    }
    let no_token = "#!/bin/sh\necho '{\"state\": 1, \"resources\": [{\"name\": \"b\", \
        \"type\": \"t\", \"agents\": [{\"name\": \"dev\"}]}]}'\n";
    scene.queue("d", [PLAN, no_token], start_build());
    scene.done("d").await;
    let failed = scene.failed("d");
    assert!(failed.error.contains("\"dev\" has neither"), "{failed:?}");
    assert_eq!(failed.state.as_deref(), Some(&b"1"[..]));
    scene.stop().await;
}

#[tokio::test]
async fn a_claim_warns_of_replacements_and_hands_on_state_and_plan() {
    let scene = Scene::new(60).await;
    let plan = "#!/bin/sh\ncat > $OUT/plan.json\necho '{\"plan\": \"p\", \"replacements\": \
        [{\"resource\": \"box\", \"paths\": [\"image\"]}]}'\n";
    let apply = "#!/bin/sh\ncat > $OUT/apply.json\necho '{\"state\": null}'\n";
    scene.queue("j", [plan, apply], build(v1::BuildStage::Claim, br#"{"n":1}"#));
    scene.done("j").await;
    assert_eq!(scene.built("j").replacements[0].resource, "box");
    let line = "The claim replaces box, because these changed: image";
    assert!(scene.job("j", |job| job.lines.values().any(|it| it == line)));
    let request = |name| -> serde_json::Value {
        let path = scene.dir.path().join("out").join(name);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let (plan, apply) = (request("plan.json"), request("apply.json"));
    assert_eq!((&plan["state"]["n"], &plan["stage"]), (&1.into(), &"claim".into()));
    assert_eq!(plan["parameters"]["size"], "small");
    assert_eq!((&apply["step"], &apply["plan"]), (&"apply".into(), &"p".into()));
    scene.stop().await;
}

#[tokio::test]
async fn an_evil_archive_is_invalid_and_named() {
    let scene = Scene::new(60).await;
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.as_mut_bytes()[..7].copy_from_slice(b"../evil");
    header.set_cksum();
    let mut evil = header.as_bytes().to_vec();
    evil.resize(2048, 0);
    scene.queue_archive("j", evil, start_build());
    scene.done("j").await;
    let failed = scene.failed("j");
    assert_eq!(failed.error_code, "invalid");
    assert!(failed.error.contains("\"../evil\""), "{}", failed.error);
    scene.stop().await;
}

#[tokio::test]
async fn a_file_that_the_broker_does_not_give_is_infrastructure() {
    let scene = Scene::new(60).await;
    scene.queue("j", [PLAN, APPLY], start_build());
    scene.broker.with(|state| state.files.clear());
    scene.done("j").await;
    let failed = scene.failed("j");
    assert_eq!(failed.error_code, "infrastructure");
    assert!(failed.error.contains("no such file"), "{}", failed.error);
    scene.stop().await;
}

/// Our own example template, planned with values that are no shell and no JSON.
#[tokio::test]
async fn the_local_exec_template_plans_whatever_the_values_are() {
    let scene = Scene::new(60).await;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../templates/local-exec");
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", root).unwrap();
    let greeting = "a \"b\" $(touch x) \\ ü\t'";
    let value = v1::ParameterValue { name: "greeting".into(), value: greeting.into() };
    let dry_run = v1::TemplateDryRun { parameters: vec![value], metadata: None };
    let input = v1::job::Input::TemplateDryRun(dry_run);
    scene.queue_archive("j", builder.into_inner().unwrap(), input);
    scene.done("j").await;
    let completed = scene.job("j", |job| job.completed.clone());
    let result = completed.unwrap_or_else(|| panic!("{:?}", scene.failed("j"))).result;
    let Some(Done::TemplateDryRun(it)) = result else { panic!("{result:?}") };
    let agent = &it.resources[0].agents[0];
    assert_eq!(agent.env["GREETING"], greeting);
    assert!(agent.scripts[0].script.contains("\"$GREETING\" \"$WORKSPACE_OWNER\" | tee"));
    assert_eq!(it.resources[1].name, "folder");
    scene.stop().await;
}

fn with_secret(transition: v1::Transition) -> v1::job::Input {
    let v1::job::Input::WorkspaceBuild(mut build) = start_build() else { unreachable!() };
    build.metadata.as_mut().unwrap().transition = transition.into();
    let value = "s3cret-value".to_owned();
    build.user_secrets =
        vec![v1::UserSecret { env_name: "TOKEN".into(), file_path: "~/.key".into(), value }];
    v1::job::Input::WorkspaceBuild(build)
}

/// Each program notes its environment, its request and all command lines of the machine.
#[tokio::test]
async fn a_secret_reaches_the_plan_of_a_start_and_nothing_else() {
    let scene = Scene::new(60).await;
    for (id, transition) in [
        ("start", v1::Transition::Start),
        ("stop", v1::Transition::Stop),
        ("delete", v1::Transition::Delete),
    ] {
        let note = |step: &str| {
            format!(
                "#!/bin/sh\nenv > $OUT/{id}-{step}.env\ncat > $OUT/{id}-{step}.request\n\
                 cat /proc/[0-9]*/cmdline > $OUT/{id}-{step}.ps 2>/dev/null\n\
                 echo '{{\"{}\": 1}}'\n",
                if step == "plan" { "daily_cost" } else { "state" }
            )
        };
        scene.queue(id, [&note("plan"), &note("apply")], with_secret(transition));
        scene.done(id).await;
        assert!(!format!("{:?}", scene.built(id)).contains("s3cret-value"));
        let logged = |job: &broker::Job| job.lines.values().any(|it| it.contains("s3cret-value"));
        assert!(!scene.job(id, logged));
        for step in ["plan", "apply"] {
            let read = |what: &str| {
                let path = scene.dir.path().join(format!("out/{id}-{step}.{what}"));
                String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
            };
            let has = read("env").contains("CODER_SECRET_ENV_TOKEN=s3cret-value");
            assert_eq!(has, id == "start" && step == "plan", "{id} {step}");
            assert_eq!(read("env").contains("s3cret"), has, "{id} {step}");
            assert!(!read("request").contains("s3cret") && !read("ps").contains("s3cret"));
        }
    }
    scene.stop().await;
}
