//! Where a secret must not be: a template that needs one has prebuilds all the same, prints what it
//! should not, and everything that could show it is searched.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use berth_testkit::{Service, TestStack, TraceSink, User, wait_until};
use serde_json::{Value, json};

use crate::BERTH;
use crate::rehearsal::{has_terraform, push};
use crate::terraform::files_with;

/// How often all processes are looked at: a plan takes a second or more.
const LOOK: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_mins(2);

/// It tells the secret in a plan, the key and the session in an apply, and the key once more in an
/// error.
const TELLS: &str = r#"
variable "cloud_key" {
  type      = string
  sensitive = true
}
data "coder_secret" "token" {
  env          = "DEPLOY_TOKEN"
  help_message = "Store your deploy token."
}
data "coder_workspace_preset" "small" {
  name = "small"
  prebuilds { instances = 1 }
}
check "tells" {
  assert {
    condition     = data.coder_secret.token.value == ""
    error_message = "the token is ${nonsensitive(data.coder_secret.token.value)} indeed"
  }
}
resource "terraform_data" "machine" {
  count = data.coder_workspace.me.start_count
  input = sha256(data.coder_secret.token.value)
}
resource "terraform_data" "tells" {
  count            = data.coder_workspace.me.start_count
  triggers_replace = timestamp()
  provisioner "local-exec" {
    command     = <<-EOT
      echo "the key is $KEY and the session $CODER_WORKSPACE_OWNER_SESSION_TOKEN"
      printf %s "$CODER_WORKSPACE_OWNER_SESSION_TOKEN" > "$E2E_DIR/session-$CODER_WORKSPACE_OWNER"
      if [ -e "$E2E_DIR/fail" ]; then echo "failed with $KEY" >&2; exit 1; fi
    EOT
    environment = { KEY = nonsensitive(var.cloud_key) }
  }
}
"#;

/// Put together here, so that nothing of this program's own has them.
fn token() -> String {
    ["opal", "-7f3a", "-deploy"].concat()
}

fn cloud_key() -> String {
    ["jade", "-91c4", "-cloud"].concat()
}

/// Looks at all processes until it is dropped: who has the text in its arguments or environment.
struct Watch {
    stop: Arc<AtomicBool>,
    plans: Arc<AtomicUsize>,
    looking: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Watch {
    fn over(text: String) -> Self {
        let (stop, plans) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&plans));
        let looking = std::thread::spawn(move || {
            let mut found = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                look(&text, &seen, &mut found);
                std::thread::sleep(LOOK);
            }
            found
        });
        Self { stop, plans, looking: Some(looking) }
    }

    /// How often a plan was seen with it, and what else had it.
    fn end(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let found = self.looking.take().expect("it ends once").join().expect("it does not panic");
        (self.plans.load(Ordering::Relaxed), found)
    }
}

fn look(text: &str, plans: &AtomicUsize, found: &mut Vec<String>) {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    for pid in numbers {
        let of = |name: &str| {
            let bytes = std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let environment = of("environ").contains(text);
        let arguments = of("cmdline");
        if arguments.contains(text) {
            found.push(format!("arguments: {arguments}"));
        }
        if environment && plans_or_is_of_a_plan(pid) {
            plans.fetch_add(1, Ordering::Relaxed);
        } else if environment && !arguments.is_empty() {
            found.push(format!("environment of {arguments}"));
        }
    }
}

/// `terraform plan`, or a provider that it started.
fn plans_or_is_of_a_plan(mut pid: u32) -> bool {
    for _ in 0..3 {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|it| *it == 0);
        let is_terraform = arguments.next().is_some_and(|it| it.ends_with(b"terraform"));
        if is_terraform {
            return arguments.next() == Some(b"plan");
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|it| it.strip_prefix("PPid:")?.trim().parse().ok());
        let Some(parent) = parent else { return false };
        pid = parent;
    }
    false
}

async fn log(stack: &TestStack, user: &User, workspace: &Value) -> String {
    let path = format!("/workspacebuilds/{}/logs", text(&workspace["latest_build"]["id"]));
    stack.app.get(user, &path).await.expect(200).to_string()
}

async fn start(stack: &TestStack, user: &User, workspace: &Value) -> Value {
    let path = format!("/workspaces/{}/builds", text(&workspace["id"]));
    stack.app.post(user, &path, json!({ "transition": "start" })).await.ok();
    stack.app.built(user, workspace).await
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// A prebuild and a rehearsal of the template: both are planned for people without secrets.
async fn given_pool(stack: &TestStack) -> Value {
    let values = json!([{ "name": "cloud_key", "value": cloud_key() }]);
    let version = push(stack, TELLS, json!({ "user_variable_values": values })).await;
    assert_eq!(version["job"]["status"], "succeeded", "{version:#}");
    let body = json!({ "name": "tells", "template_version_id": version["id"] });
    let path = format!("/organizations/{}/templates", stack.owner.organization);
    let template = stack.app.post(&stack.owner, &path, body).await.ok();
    stack.pool_has(&template, 1).await;
    let path = format!("/templateversions/{}", text(&version["id"]));
    let rehearsal = wait_until("the pool was rehearsed", LONG, async || {
        let version = stack.app.get(&stack.owner, &path).await.expect(200);
        let rehearsal = version["rehearsals"][0].clone();
        (!rehearsal["outcome"].is_null()).then_some(rehearsal)
    })
    .await;
    assert_eq!(rehearsal["error"], "", "the stand-in needs no secret: {rehearsal:#}");
    template
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_needs_a_secret_has_prebuilds_and_what_it_tells_of_secrets_is_hidden() {
    if !has_terraform() {
        return;
    }
    let sink = TraceSink::start().await;
    let mut builder = TestStack::builder(BERTH).own_nats();
    for service in [Service::Api, Service::Reconciler, Service::Broker, Service::Provisioner] {
        builder = builder.set(service, "OTEL_EXPORTER_OTLP_ENDPOINT", sink.url()).set(
            service,
            "BERTH_PROCESS__LOG__LEVEL",
            "debug",
        );
    }
    let stack = builder.start().await;
    let template = given_pool(&stack).await;
    let alice = stack.user("alice").await;
    let preset = stack.app.preset(&alice, &template, "small").await;
    let mine = stack.app.create_workspace(&alice, &template, Some(&preset), "mine").await.ok();
    let mine = stack.app.built(&alice, &mine).await;
    let error = text(&mine["latest_build"]["job"]["error"]).to_owned();
    for part in ["Store your deploy token.", "DEPLOY_TOKEN", "start the workspace again"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }

    let watch = Watch::over(token());
    let body = json!({ "name": "deploy", "env_name": "DEPLOY_TOKEN", "value": token() });
    stack.app.post(&alice, "/users/me/secrets", body).await.expect(201);
    let mine = start(&stack, &alice, &mine).await;
    assert_eq!(mine["latest_build"]["job"]["status"], "succeeded", "{mine:#}");
    let told = log(&stack, &alice, &mine).await;
    for part in ["the token is (secret) indeed", "the key is (secret) and the session (secret)"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    std::fs::write(stack.dir().join("fail"), "").expect("a file can be made");
    let failed = start(&stack, &alice, &mine).await;
    let error = text(&failed["latest_build"]["job"]["error"]).to_owned();
    assert!(error.contains("failed with (secret)"), "{error}");
    let (plans, others) = watch.end();
    assert!(plans > 0, "no plan was seen with the secret: the watch sees nothing");
    assert_eq!(others, Vec::<String>::new());

    let session = session_of(&stack, "alice");
    stack.settled().await;
    for secret in [token(), cloud_key(), session] {
        let files = files_with(stack.dir(), &secret);
        assert!(files.is_empty(), "readable in {files:?}");
        let tables = stack.database().tables_with(&secret).await;
        assert!(tables.is_empty(), "readable in {tables:?}");
        let spans = sink.spans();
        assert!(spans.iter().any(|it| it.name == "job.run"), "no spans arrived");
        let spans: Vec<_> = spans.iter().filter(|it| it.text.contains(&secret)).collect();
        assert!(spans.is_empty(), "readable in {spans:?}");
    }
}

/// The session that the template wrote down; the file goes, since the folder is searched.
fn session_of(stack: &TestStack, owner: &str) -> String {
    let file: PathBuf = stack.dir().join(format!("session-{owner}"));
    let session = std::fs::read_to_string(&file).expect("apply ran");
    assert!(session.len() > 20, "no session");
    std::fs::remove_file(&file).expect("it is there");
    session
}
