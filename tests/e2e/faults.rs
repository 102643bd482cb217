//! What dies between real processes while a job is under way: brokers in each call, daemons in each
//! step, both at once, and the network between them. No job is lost, none runs to its end twice, every
//! line of its log is there once, its state is right, and nothing of it stays behind.
//!
//! But where a story is about leases, they have the length that they have in production: what would
//! have to wait for the end of one comes too late for the story.

mod relay;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use berth_testkit::{Archive, SOON, Service, TestStack, processes_of, servers, wait_until};
use serde_json::{Value, json};

use crate::BERTH;
use relay::{Moment, Relay};

const MANIFEST: &str = "version = 1\nplan = \"plan.sh\"\napply = \"apply.sh\"\n";

/// Writes twenty lines, and waits while the file `hold-plan` is there.
const PLAN: &str = r#"#!/bin/sh
cat > /dev/null
seq -f 'plan line %g' 20 >&2
if [ -e "$E2E_DIR/hold-plan" ]; then
  echo $$ > "$E2E_DIR/held"
  while [ -e "$E2E_DIR/hold-plan" ]; do sleep 0.05; done
fi
echo '{"resources": []}'
"#;

/// Writes twenty lines, waits while the file `hold-apply` is there, and says in `applies` that it came
/// to its end. It keeps the request, which has the state of the build before.
const APPLY: &str = r#"#!/bin/sh
cat > "$E2E_DIR/given-$CODER_WORKSPACE_NAME-$CODER_WORKSPACE_TRANSITION"
seq -f 'apply line %g' 20 >&2
if [ -e "$E2E_DIR/hold-apply" ]; then
  echo $$ > "$E2E_DIR/held"
  while [ -e "$E2E_DIR/hold-apply" ]; do sleep 0.05; done
fi
echo "$CODER_WORKSPACE_NAME $CODER_WORKSPACE_TRANSITION" >> "$E2E_DIR/applies"
if [ "$CODER_WORKSPACE_TRANSITION" = delete ]; then
  echo '{"state": {}, "resources": []}'
  exit 0
fi
echo "{\"state\": {\"of\": \"$CODER_WORKSPACE_NAME\"}, \"resources\": []}"
case "$CODER_WORKSPACE_NAME" in fail-*)
  # The error quotes the last lines.
  seq -f 'last word %g' 5 >&2
  exit 1 ;;
esac
"#;

/// A stack whose daemon reaches the broker through a relay.
struct Scene {
    stack: TestStack,
    relay: Relay,
}

impl Scene {
    async fn new(settings: &[(Service, &str, &str)]) -> Self {
        let port = berth_devstack::free_port().expect("a free port");
        let relay = Relay::before(port).await;
        let (broker, daemon) = (format!("127.0.0.1:{port}"), format!("http://{}", relay.addr));
        let builder = TestStack::builder(BERTH)
            .set(Service::Broker, "BERTH_GRPC__ADDR", &broker)
            .set(Service::Provisioner, "BERTH_PROVISIONER__BROKER_URL", &daemon);
        let all = settings
            .iter()
            .fold(builder, |it, (service, name, value)| it.set(*service, name, value));
        Self { stack: all.start().await, relay }
    }

    async fn given_exec(&self) -> Value {
        let archive = Archive::default()
            .file("template.toml", MANIFEST)
            .file("plan.sh", PLAN)
            .file("apply.sh", APPLY);
        self.stack.given_template("faulty", archive.bytes()).await
    }

    async fn create(&self, template: &Value, name: &str) -> Value {
        let stack = &self.stack;
        stack.app.create_workspace(&stack.owner, template, None, name).await.ok()
    }

    async fn built(&self, workspace: &Value) -> Value {
        self.stack.app.built(&self.stack.owner, workspace).await["latest_build"].clone()
    }

    async fn build(&self, workspace: &Value, transition: &str) -> Value {
        let path = format!("/workspaces/{}/builds", text(workspace, "id"));
        let body = json!({ "transition": transition });
        self.stack.app.post(&self.stack.owner, &path, body).await.ok();
        self.built(workspace).await
    }

    async fn log(&self, build: &Value) -> Vec<String> {
        let path = format!("/workspacebuilds/{}/logs", text(build, "id"));
        let lines = self.stack.app.get(&self.stack.owner, &path).await.ok();
        let lines = lines.as_array().expect("lines");
        lines.iter().map(|it| text(it, "output").to_owned()).collect()
    }

    /// Each of the twenty lines of both programs is there once, in order.
    async fn log_is_whole(&self, build: &Value) {
        let log = self.log(build).await;
        for program in ["plan", "apply"] {
            let head = format!("{program} line ");
            let numbers: Vec<u32> =
                log.iter().filter_map(|it| it.strip_prefix(&head)?.parse().ok()).collect();
            assert_eq!(numbers, (1..=20).collect::<Vec<_>>(), "{}: {log:#?}", build["id"]);
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.stack.dir().join(name)
    }

    fn hold(&self, program: &str) {
        std::fs::write(self.file(&format!("hold-{program}")), "").expect("a file can be made");
    }

    fn let_go(&self, program: &str) {
        std::fs::remove_file(self.file(&format!("hold-{program}"))).expect("it is held");
    }

    /// Waits until a program is held. Gives its process.
    async fn held(&self) -> String {
        let pid = noted(&self.file("held")).await;
        std::fs::remove_file(self.file("held")).expect("it is there");
        pid
    }

    /// How often apply came to its end, by workspace and transition.
    fn applies(&self) -> BTreeMap<String, usize> {
        let text = std::fs::read_to_string(self.file("applies")).unwrap_or_default();
        let mut times = BTreeMap::new();
        for line in text.lines() {
            *times.entry(line.to_owned()).or_default() += 1;
        }
        times
    }

    /// Deletes a workspace: its state is that of the build before.
    async fn delete(&self, workspace: &Value) {
        let build = self.build(workspace, "delete").await;
        assert_eq!(build["job"]["status"], "succeeded", "{build:#}");
        let name = text(workspace, "name");
        let given = std::fs::read(self.file(&format!("given-{name}-delete"))).expect("it ran");
        let given: Value = serde_json::from_slice(&given).expect("a request");
        assert_eq!(given["state"], json!({ "of": name }), "{name}");
    }

    /// The daemon's process.
    fn daemon(&self) -> u32 {
        let all = processes_of(self.stack.dir());
        let daemon = all.into_iter().find(|(_, args)| args.contains("provisioner start"));
        daemon.expect("a daemon").0
    }

    /// Files that the daemon has open; connections come and go.
    fn open_files(&self) -> usize {
        let links = std::fs::read_dir(format!("/proc/{}/fd", self.daemon())).expect("it runs");
        let paths = links.flatten().filter_map(|it| std::fs::read_link(it.path()).ok());
        paths.filter(|it| !it.to_string_lossy().starts_with("socket:")).count()
    }

    /// No directory, no process and no lease of a job is left; one lease is being asked for.
    async fn nothing_is_left(&self) {
        let root = self.file("work/daemon-0");
        let entries = |name: &str| {
            let entries = std::fs::read_dir(root.join(name)).into_iter().flatten().flatten();
            entries.map(|it| it.path()).collect::<Vec<_>>()
        };
        wait_until("nothing of the jobs is left", SOON, async || {
            let jobs = root.join("jobs");
            let idle = entries("jobs").is_empty() && entries("leases").len() <= 1;
            (idle && processes_of(&jobs).is_empty()).then_some(())
        })
        .await;
    }
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_else(|| panic!("no {member}: {value:#}"))
}

/// What a program wrote into a file, once the line is there.
async fn noted(path: &Path) -> String {
    wait_until(&format!("{} is written", path.display()), SOON, async || {
        let text = std::fs::read_to_string(path).ok()?;
        text.ends_with('\n').then(|| text.trim().to_owned())
    })
    .await
}

async fn gone(pid: &str) {
    let stat = format!("/proc/{pid}/stat");
    wait_until(&format!("process {pid} is gone"), SOON, async || {
        let stat = std::fs::read_to_string(&stat);
        stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
    })
    .await;
}

/// Before the broker heard of the call, and after the call took effect but before its answer arrived;
/// then both processes at once; then a network that stands still while a job ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_in_any_call_costs_no_job_no_line_and_no_state() {
    use Moment::{After, Before};
    let mut scene = Scene::new(&[]).await;
    let template = scene.given_exec().await;
    let mut made = Vec::new();
    let first = scene.create(&template, "first").await;
    scene.built(&first).await;
    scene.nothing_is_left().await;
    let (daemon, files) = (scene.daemon(), scene.open_files());
    for (call, moment) in [
        ("acquire", Before),
        ("acquire", After),
        ("download", Before),
        ("update", Before),
        ("update", After),
        ("quota", Before),
        ("quota", After),
        ("complete", Before),
        ("complete", After),
        ("fail", Before),
        ("fail", After),
    ] {
        let name = format!("{call}-{moment:?}").to_lowercase();
        let stopped = scene.relay.stop_at(call, moment);
        let workspace = scene.create(&template, &name).await;
        let stopped = tokio::time::timeout(SOON, stopped).await.expect(&name).expect("the relay");
        scene.stack.kill9(Service::Broker, 0).await;
        drop(stopped);
        scene.stack.restart(Service::Broker, 0).await;
        made.push(workspace);
    }
    // Nothing else is to be held in apply.
    for workspace in &made {
        scene.built(workspace).await;
    }
    made.push(short_cut(&scene, &template).await);
    for workspace in made.iter().chain([&first]) {
        let build = scene.built(workspace).await;
        let fails = text(workspace, "name").starts_with("fail-");
        assert_eq!(build["job"]["status"], if fails { "failed" } else { "succeeded" }, "{build:#}");
        scene.log_is_whole(&build).await;
    }
    scene.nothing_is_left().await;
    assert_eq!((scene.daemon(), scene.open_files()), (daemon, files), "a file stayed open");
    made.push(both_killed(&mut scene, &template).await);
    for workspace in &made {
        scene.delete(workspace).await;
    }
    scene.nothing_is_left().await;
    let twice: Vec<_> = scene.applies().into_iter().filter(|(_, times)| *times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(scene.applies().len(), 2 * made.len() + 1);
    scene.stack.settled().await;
}

/// The network stands still from apply until after its end, for less than a lease.
async fn short_cut(scene: &Scene, template: &Value) -> Value {
    scene.hold("apply");
    let workspace = scene.create(template, "cut").await;
    scene.held().await;
    scene.relay.cut(true);
    scene.let_go("apply");
    wait_until("apply is done", SOON, async || scene.applies().get("cut start").copied()).await;
    scene.relay.cut(false);
    workspace
}

/// Both die while a job plans. It runs again at once: nobody waits for the end of a lease.
async fn both_killed(scene: &mut Scene, template: &Value) -> Value {
    scene.hold("plan");
    let workspace = scene.create(template, "both").await;
    let program = scene.held().await;
    scene.stack.kill9(Service::Broker, 0).await;
    scene.stack.kill9(Service::Provisioner, 0).await;
    scene.stack.restart(Service::Broker, 0).await;
    scene.stack.restart(Service::Provisioner, 0).await;
    gone(&program).await;
    scene.held().await;
    scene.let_go("plan");
    let build = scene.built(&workspace).await;
    assert_eq!(build["job"]["status"], "succeeded", "{build:#}");
    let log = scene.log(&build).await;
    assert!(log.iter().any(|it| it.contains("queued once more")), "{log:#?}");
    workspace
}

/// The tools end before their leases do. What was planning runs again, what was applying does not.
/// The leases are short, but not shorter than the broker takes to see that a daemon is silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_cut_longer_than_the_lease_ends_the_tool_and_loses_no_job() {
    let scene = Scene::new(&[
        (Service::Broker, "BERTH_LIMITS__LEASE", "18s"),
        (Service::Broker, "BERTH_LIMITS__APPLY_LEASE", "18s"),
        (Service::Broker, "BERTH_LIMITS__REAP", "200ms"),
    ])
    .await;
    let template = scene.given_exec().await;
    scene.hold("apply");
    let applying = scene.create(&template, "apply").await;
    let in_apply = scene.held().await;
    scene.hold("plan");
    let planning = scene.create(&template, "plan").await;
    let in_plan = scene.held().await;
    scene.relay.cut(true);
    gone(&in_apply).await;
    gone(&in_plan).await;
    let held = "select count(*) from provisioner_jobs where lease_expires_at is not null";
    wait_until("the broker gives the jobs up", SOON, async || {
        (scene.stack.database().count(held).await == 0).then_some(())
    })
    .await;
    scene.let_go("apply");
    scene.let_go("plan");
    scene.relay.cut(false);

    let planned = scene.built(&planning).await;
    let log = scene.log(&planned).await.join("\n");
    assert_eq!(planned["job"]["status"], "succeeded", "{planned:#}");
    assert!(log.contains("queued once more"), "{log}");
    let applied = scene.built(&applying).await;
    let log = scene.log(&applied).await.join("\n");
    assert_eq!(applied["error_class"], "infrastructure", "{applied:#}");
    assert!(log.contains("Resources may exist"), "{log}");
    let next = scene.build(&applying, "start").await;
    assert_eq!(next["job"]["status"], "succeeded", "{next:#}");
    scene.nothing_is_left().await;
    for workspace in [&planning, &applying] {
        scene.delete(workspace).await;
    }
    let once = ["apply delete", "apply start", "plan delete", "plan start"];
    assert_eq!(scene.applies(), once.map(|it| (it.to_owned(), 1)).into());
    scene.stack.settled().await;
}

/// Terraform; it hangs for good in the step that the file `hang` names, and so does what it started,
/// outside its group and deaf to every signal that can be ignored.
const TERRAFORM: &str = r#"#!/bin/sh
step=$1
[ "$1 $#" != 'show 3' ] || step=graph
if [ "$(cat "ROOT/hang" 2> /dev/null)" = "$step" ]; then
  trap '' INT TERM HUP PIPE
  setsid sleep 600 < /dev/null > /dev/null 2>&1 &
  echo $! > "ROOT/detached"
  echo $$ > "ROOT/held"
  while :; do sleep 1; done
fi
exec terraform "$@"
"#;

/// Has a module that an import fetches, and notes in `applies` which job applied it.
const MAIN: &str = r#"
module "fetched" { source = "ROOT/module" }
resource "terraform_data" "counted" {
  provisioner "local-exec" { command = "basename $BERTH_PROVISIONER_JOB >> ROOT/applies" }
}
"#;

/// With real Terraform. What was lost before apply runs again, what was lost later is ended: both as
/// soon as the daemon is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_in_any_step_of_terraform_is_made_up_for_as_soon_as_it_is_back() {
    let root = servers().await.folder();
    let at = |name: &str| root.path().join(name);
    let rooted = |text: &str| text.replace("ROOT", &root.path().display().to_string());
    std::fs::create_dir(at("module")).expect("a folder");
    std::fs::write(at("module/main.tf"), "resource \"terraform_data\" \"in\" {}\n")
        .expect("a file");
    std::fs::write(at("terraform"), rooted(TERRAFORM)).expect("a file");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(at("terraform"), executable).expect("its mode");
    let program = at("terraform").display().to_string();
    let mut scene =
        Scene::new(&[(Service::Provisioner, "BERTH_PROVISIONER__TERRAFORM_PATH", &program)]).await;
    let Some(template) = given_terraform(&mut scene, &rooted(MAIN)).await else { return };
    for step in ["init", "plan", "apply", "graph"] {
        std::fs::write(at("hang"), step).expect("a file");
        let workspace = scene.create(&template, step).await;
        let (held, detached) = (noted(&at("held")).await, noted(&at("detached")).await);
        scene.stack.kill9(Service::Provisioner, 0).await;
        for name in ["hang", "held", "detached"] {
            std::fs::remove_file(at(name)).expect("it is there");
        }
        scene.stack.restart(Service::Provisioner, 0).await;
        gone(&held).await;
        gone(&detached).await;
        let build = scene.built(&workspace).await;
        let log = scene.log(&build).await.join("\n");
        if ["init", "plan"].contains(&step) {
            assert_eq!(build["job"]["status"], "succeeded", "{step}: {build:#}");
            assert!(log.contains("queued once more"), "{step}: {log}");
        } else {
            assert_eq!(build["error_class"], "infrastructure", "{step}: {build:#}");
            assert!(log.contains("Resources may exist"), "{step}: {log}");
            let next = scene.build(&workspace, "start").await;
            assert_eq!(next["job"]["status"], "succeeded", "{step}: {next:#}");
        }
        scene.nothing_is_left().await;
    }
    let text = std::fs::read_to_string(at("applies")).expect("applies");
    let mut jobs: Vec<_> = text.lines().collect();
    jobs.sort_unstable();
    jobs.dedup();
    // The one that died in graph had applied; so did each that came to its end.
    assert_eq!((jobs.len(), text.lines().count()), (5, 5), "{text}");
    scene.stack.settled().await;
}

/// Imports the template while the broker dies over its modules, before it heard of them and after it
/// stored them. `None`, and a word about it, where there is no Terraform.
async fn given_terraform(scene: &mut Scene, main: &str) -> Option<Value> {
    let path = std::env::var_os("PATH")?;
    if !std::env::split_paths(&path).any(|it| it.join("terraform").is_file()) {
        eprintln!("skipped: there is no terraform on PATH");
        return None;
    }
    let archive = || Archive::default().file("main.tf", main).bytes();
    let mut id = Value::Null;
    for moment in [Moment::Before, Moment::After] {
        let stopped = scene.relay.stop_at("upload", moment);
        let stack = &scene.stack;
        let version = stack.app.given_version(&stack.owner, archive(), "terraform", None).await;
        let stopped =
            tokio::time::timeout(SOON, stopped).await.expect("upload").expect("the relay");
        scene.stack.kill9(Service::Broker, 0).await;
        drop(stopped);
        scene.stack.restart(Service::Broker, 0).await;
        let version = scene.stack.app.imported(&scene.stack.owner, &version, SOON).await;
        assert_eq!(version["job"]["status"], "succeeded", "{version:#}");
        id = version["id"].clone();
    }
    let files = "select count(*) from template_versions v join files f on f.id = v.modules_file_id";
    assert_eq!(scene.stack.database().count(files).await, 2, "modules are stored");
    let body = json!({ "name": "faulty", "template_version_id": id });
    let path = format!("/organizations/{}/templates", scene.stack.owner.organization);
    Some(scene.stack.app.post(&scene.stack.owner, &path, body).await.ok())
}
