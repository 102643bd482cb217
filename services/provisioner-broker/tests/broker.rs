//! The broker as a daemon sees it, over real Postgres and NATS.

#![expect(clippy::unwrap_used, reason = "an unwrap that fails is a failed test, helpers included")]

use std::sync::OnceLock;
use std::time::Duration;

use berth_proto::v1::file_part::Part;
use berth_proto::v1::provisioner_service_client::ProvisionerServiceClient;
use berth_proto::{API_VERSION, KEY_HEADER, v1};
use berth_service_kit::Args;
use berth_testkit::{TestDatabase, servers, subject_space, wait_until};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};

const USER: &str = "00000000-0000-0000-0000-0000000000a1";
const ORG: &str = "00000000-0000-0000-0000-0000000000b1";
const KEY: &str = "00000000-0000-0000-0000-0000000000c1";
const FILE: &str = "00000000-0000-0000-0000-0000000000d1";
const VERSION: &str = "00000000-0000-0000-0000-0000000000e1";
const TOKEN: &str = "00000000-0000-0000-0000-0000000000f1";
const PREBUILDS: &str = "c42fdf75-3097-471c-8c33-fb52454d81c0";

/// A broker in its own thread, with a database of its own.
struct World {
    db: TestDatabase,
    addr: String,
}

impl World {
    async fn new() -> Self {
        static ONE: OnceLock<()> = OnceLock::new();
        assert!(ONE.set(()).is_ok(), "logging is set up once a process: one broker, one test");
        let db = TestDatabase::create().await;
        let dir = tempfile::tempdir().unwrap().keep();
        let (config, announce) = (dir.join("config.toml"), dir.join("announce.json"));
        let text = format!(
            "[database]\nurl = {:?}\n[nats]\nurl = {:?}\nprefix = {:?}\n[encryption]\noff = true\n[limits]\nreap = \"200ms\"\n",
            db.url,
            servers().await.nats_url,
            subject_space()
        );
        std::fs::write(&config, text).unwrap();
        let args = Args {
            config_file: Some(config),
            announce_file: Some(announce.clone()),
            ..Args::default()
        };
        std::thread::spawn(move || {
            berth_service_kit::run("provisioner-broker", args, berth_provisioner_broker::run)
        });
        let addr = loop {
            let facts = std::fs::read(&announce).unwrap_or_default();
            let facts: serde_json::Value = serde_json::from_slice(&facts).unwrap_or_default();
            if let Some(addr) = facts["grpc"].as_str() {
                break addr.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let world = Self { db, addr };
        world.given_template().await;
        world
    }

    async fn sql(&self, sql: &str) {
        self.db.rows(sql).await;
    }

    async fn given_template(&self) {
        self.sql(
            "create table told (subject text);
             create function tell() returns trigger language plpgsql as
                 $$ begin insert into told values (new.subject); return new; end $$;
             create trigger tell after insert on outbox for each row execute function tell();",
        )
        .await;
        self.sql(&format!(
            "insert into organizations (id, name, created_at, updated_at) values ('{ORG}', 'acme', now(), now());
             insert into users (id, username, email, created_at, updated_at) values ('{USER}', 'alice', 'a@x', now(), now());
             insert into organization_members (organization_id, user_id, created_at, updated_at) values ('{ORG}', '{USER}', now(), now());
             insert into provisioner_keys (id, organization_id, name, secret_hash, created_at) values ('{KEY}', '{ORG}', 'k', sha256('hush'), now());
             insert into files (id, hash, created_by, created_at, data) values ('{FILE}', encode(sha256('tar'), 'hex'), '{USER}', now(), 'tar');
             insert into files (id, hash, kind, created_by, created_at, data) values ('{VERSION}', 'other', 'other', '{USER}', now(), 'x');"
        )).await;
    }

    /// A version with its import job, queued.
    async fn given_import(&self, job: &str) {
        self.sql(&format!(
            "begin;
             insert into template_versions (id, organization_id, name, job_id, provisioner, created_by, created_at, updated_at)
             values ('{VERSION}', '{ORG}', 'v1', '{job}', 'terraform', '{USER}', now(), now())
             on conflict (id) do update set job_id = excluded.job_id;
             insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class, file_id, input, created_at, updated_at)
             values ('{job}', '{ORG}', '{USER}', 'template_version_import', 'terraform', 2, '{FILE}', '{{\"template_version_id\": \"{VERSION}\"}}', now(), now());
             commit;"
        )).await;
    }

    /// A build of the workspace, queued behind those that it has.
    async fn given_build(&self, build: &str, number: i32, stage: &str, initiator: &str) {
        self.sql(&format!(
            "begin;
             insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class, file_id, input, created_at, updated_at)
             values ('{build}', '{ORG}', '{initiator}', 'workspace_build', 'terraform', 0, '{FILE}', '{{\"workspace_build_id\": \"{build}\"}}', now(), now());
             insert into workspace_builds (id, workspace_id, template_version_id, preset_id, build_number, transition, initiator_id, stage, job_id, created_at, updated_at)
             values ('{build}', '{VERSION}', '{VERSION}', (select id from template_version_presets), {number}, 'start', '{initiator}', '{stage}', '{build}', now(), now());
             update workspaces set latest_build_id = '{build}', latest_build_number = {number};
             commit;"
        )).await;
    }
}

impl World {
    /// The rehearsal of the pool, ordered as the reconciler does.
    async fn given_rehearsal(&self, job: &str) {
        self.sql(&format!(
            "begin;
             insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class, file_id, input, created_at, updated_at)
             select '{job}', '{ORG}', '{PREBUILDS}', 'prebuild_rehearsal', 'terraform', 3, '{FILE}',
                    jsonb_build_object('template_version_id', '{VERSION}', 'preset_id', pool_preset_id, 'rehearsed_build_id', latest_build_id),
                    now(), now()
             from workspaces;
             insert into prebuild_rehearsals (preset_id, job_id, build_id, ordered_at)
             select pool_preset_id, '{job}', latest_build_id, now() from workspaces
             on conflict (preset_id) do update set job_id = excluded.job_id, outcome = null, ended_at = null;
             commit;"
        )).await;
    }

    /// How many messages about replacements were ever told to be sent.
    async fn notified(&self) -> i64 {
        self.db.count("select count(*) from told where subject like '%notify%'").await
    }
}

/// A registered daemon.
struct Daemon {
    client: ProvisionerServiceClient<Channel>,
    id: String,
    _hello: mpsc::Sender<v1::RegisterRequest>,
    _stream: Streaming<v1::RegisterResponse>,
}

fn with_key<T>(message: T, secret: &str) -> Request<T> {
    let mut request = Request::new(message);
    let key = AsciiMetadataValue::try_from(format!("{KEY}-{secret}")).unwrap();
    request.metadata_mut().insert(KEY_HEADER, key);
    request
}

impl Daemon {
    async fn register(world: &World) -> Self {
        let address = format!("http://{}", world.addr);
        let mut client = ProvisionerServiceClient::connect(address).await.unwrap();
        let (hello, requests) = mpsc::channel(4);
        let message = v1::register_request::Message::Hello(v1::Hello {
            name: "one".into(),
            version: "1".into(),
            api_version: API_VERSION.into(),
            provisioner_types: vec!["terraform".into()],
            capacity: 1,
            ..v1::Hello::default()
        });
        hello.send(v1::RegisterRequest { message: Some(message) }).await.unwrap();
        let answer = client.register(with_key(ReceiverStream::new(requests), "hush")).await;
        let mut stream = answer.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap().message;
        let Some(v1::register_response::Message::Accepted(accepted)) = first else {
            panic!("not accepted: {first:?}");
        };
        Self { client, id: accepted.daemon_id, _hello: hello, _stream: stream }
    }

    async fn acquire(&mut self) -> v1::Job {
        let request = v1::AcquireJobRequest {
            daemon_id: self.id.clone(),
            wait_seconds: 20,
            ..Default::default()
        };
        let answer = self.client.acquire_job(with_key(request, "hush")).await.unwrap();
        answer.into_inner().job.expect("a job is queued")
    }

    async fn fail(&mut self, job: &v1::Job, error_code: &str) {
        let request = v1::FailJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            error_code: error_code.into(),
            error: "it went wrong".into(),
            ..v1::FailJobRequest::default()
        };
        self.client.fail_job(with_key(request, "hush")).await.unwrap();
    }

    async fn complete(
        &mut self,
        job: &v1::Job,
        result: v1::complete_job_request::Result,
    ) -> Result<(), Code> {
        let request = v1::CompleteJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            timings: Vec::new(),
            result: Some(result),
        };
        let answer = self.client.complete_job(with_key(request, "hush")).await;
        answer.map(drop).map_err(|status| status.code())
    }
}

fn preset(ttl_seconds: i64) -> v1::complete_job_request::Result {
    v1::complete_job_request::Result::TemplateImport(v1::TemplateImportResult {
        parameters: vec![v1::Parameter {
            name: "size".into(),
            r#type: "number".into(),
            default_value: "1".into(),
            ..v1::Parameter::default()
        }],
        presets: vec![v1::Preset {
            name: "small".into(),
            parameters: vec![v1::ParameterValue { name: "size".into(), value: "2".into() }],
            prebuilds: Some(v1::Prebuilds { instances: 2, ttl_seconds, ..Default::default() }),
            ..v1::Preset::default()
        }],
        ..v1::TemplateImportResult::default()
    })
}

fn built(replacements: Vec<v1::Replacement>) -> v1::complete_job_request::Result {
    let agent = v1::Agent {
        id: "agent-in-state".into(),
        name: "main".into(),
        auth: Some(v1::agent::Auth::Token(TOKEN.into())),
        scripts: vec![v1::Script { script: "true".into(), ..v1::Script::default() }],
        apps: vec![v1::App { slug: "web".into(), ..v1::App::default() }],
        ..v1::Agent::default()
    };
    let on_instance = v1::Agent {
        id: "agent-on-instance".into(),
        name: "cloud".into(),
        auth: Some(v1::agent::Auth::InstanceId("i-1".into())),
        ..v1::Agent::default()
    };
    v1::complete_job_request::Result::WorkspaceBuild(v1::WorkspaceBuildResult {
        state: b"state of the tool".to_vec(),
        resources: vec![v1::Resource {
            name: "box".into(),
            r#type: "terraform_data".into(),
            agents: vec![agent, on_instance],
            ..v1::Resource::default()
        }],
        replacements,
    })
}

fn build_of(job: &v1::Job) -> &v1::WorkspaceBuild {
    match &job.input {
        Some(v1::job::Input::WorkspaceBuild(build)) => build,
        other => panic!("not a build: {other:?}"),
    }
}

/// Register, import, prebuild, claim, a lost daemon: the journey of a template to a user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_imported_prebuilt_claimed_and_survives_a_lost_daemon() {
    let world = World::new().await;
    let mut daemon = Daemon::register(&world).await;

    let request = v1::AcquireJobRequest {
        daemon_id: daemon.id.clone(),
        wait_seconds: 0,
        ..Default::default()
    };
    let refused = daemon.client.acquire_job(with_key(request, "wrong")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    bad_import_fails(&world, &mut daemon).await;
    variables(&world, &mut daemon).await;
    import(&world, &mut daemon).await;
    prebuild(&world, &mut daemon).await;
    rehearsal(&world, &mut daemon).await;
    claim(&world, &mut daemon).await;
    files(&mut daemon).await;
    uploads(&world, &mut daemon).await;
}

async fn bad_import_fails(world: &World, daemon: &mut Daemon) {
    let id = "10000000-0000-0000-0000-000000000001";
    world.given_import(id).await;
    let job = daemon.acquire().await;
    assert_eq!(daemon.complete(&job, preset(5)).await, Ok(()));
    let error = world
        .db
        .value(&format!(
            "select error from provisioner_jobs where id = '{id}' and status = 'failed'"
        ))
        .await;
    assert!(error.contains("preset \"small\"") && error.contains('5'), "{error}");
    assert_eq!(daemon.complete(&job, preset(5)).await, Ok(()), "the same report again");
}

/// Values that were given for what the template does not declare, and what a push keeps.
async fn variables(world: &World, daemon: &mut Daemon) {
    let id = "10000000-0000-0000-0000-000000000003";
    world.sql(&format!(
        "insert into template_version_variables (template_version_id, name, value, origin, declared)
         values ('{VERSION}', 'region', 'eu', 'given', false), ('{VERSION}', 'tpyo', 'x', 'given', false),
                ('{VERSION}', 'gone', 'old', 'kept', false);"
    )).await;
    world.given_import(id).await;
    let job = daemon.acquire().await;
    let names: Vec<_> = job.variables.iter().map(|it| (&*it.name, &*it.value)).collect();
    assert_eq!(names, [("gone", "old"), ("region", "eu"), ("tpyo", "x")]);
    let declared = |name: &str, default: &str| v1::TemplateVariable {
        name: name.into(),
        default_value: default.into(),
        ..v1::TemplateVariable::default()
    };
    let update = v1::UpdateJobRequest {
        job_id: job.id.clone(),
        lease_token: job.lease_token.clone(),
        template_variables: vec![declared("region", "us"), declared("size", "2")],
        ..v1::UpdateJobRequest::default()
    };
    daemon.client.update_job(with_key(update, "hush")).await.unwrap();
    assert_eq!(daemon.complete(&job, preset(0)).await, Ok(()));
    let error =
        format!("select error from provisioner_jobs where id = '{id}' and status = 'failed'");
    let error = world.db.value(&error).await;
    assert!(error.contains("declare: tpyo") && !error.contains("gone"), "{error}");
    let values =
        "select name, value, origin from template_version_variables where declared order by 1";
    let rows = world.db.rows(values).await;
    assert_eq!(rows, [["region", "eu", "given"], ["size", "2", "default"]]);
    world.sql("delete from template_version_variables where not declared").await;
}

async fn import(world: &World, daemon: &mut Daemon) {
    world.given_import("10000000-0000-0000-0000-000000000002").await;
    let job = daemon.acquire().await;
    let given: Vec<_> = job.variables.iter().map(|it| &*it.name).collect();
    assert_eq!(given, ["region"], "what has its default needs no mention");
    let line = |number: u64| v1::LogLine {
        number,
        output: format!("line {number}"),
        ..Default::default()
    };
    for _ in 0..2 {
        let update = v1::UpdateJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            logs: vec![line(1), line(2)],
            readme: Some("# Read".into()),
            workspace_tags: [("zone".to_owned(), "z-1".to_owned())].into(),
            tag_rules: tag_rules(),
            ..v1::UpdateJobRequest::default()
        };
        let answer = daemon.client.update_job(with_key(update, "hush")).await.unwrap();
        assert_eq!(answer.into_inner().lease_seconds, 60);
    }
    let count = world
        .db
        .count(&format!("select count(*) from provisioner_job_logs where job_id = '{}'", job.id))
        .await;
    assert_eq!(count, 2, "each line is stored once");
    let mut stale = job.clone();
    KEY.clone_into(&mut stale.lease_token);
    assert_eq!(daemon.complete(&stale, preset(0)).await, Err(Code::FailedPrecondition));
    assert_eq!(daemon.complete(&job, preset(0)).await, Ok(()));
    assert_eq!(world.db.value("select readme from template_versions").await, "# Read");
    assert_eq!(world.db.count("select count(*) from prebuild_pools").await, 1);
    assert_eq!(world.db.value("select value from template_version_preset_parameters").await, "2");
    let zones = "select j.tags ->> 'zone', p.job_tags ->> 'zone', v.tag_rules::text
                 from prebuild_pools p join template_versions v on v.id = p.template_version_id
                 join provisioner_jobs j on j.id = v.job_id";
    let rules = r#"{"zone": ["z-", {"parameter": "size"}]}"#;
    assert_eq!(world.db.rows(zones).await, [["z-1", "z-2", rules]]);
    // The daemon of what follows has no tags.
    world
        .sql(
            "update prebuild_pools set job_tags = null; update template_versions set tag_rules = null;
             update provisioner_jobs set tags = tags - 'zone'",
        )
        .await;
}

/// One that the pool's preset decides, and one that no parameter may decide.
fn tag_rules() -> Vec<v1::TagRule> {
    let piece = |it| v1::TagPiece { piece: Some(it) };
    let size = || piece(v1::tag_piece::Piece::Parameter("size".into()));
    let text = piece(v1::tag_piece::Piece::Text("z-".into()));
    vec![
        v1::TagRule { name: "zone".into(), pieces: vec![text, size()] },
        v1::TagRule { name: "owner".into(), pieces: vec![size()] },
    ]
}

async fn prebuild(world: &World, daemon: &mut Daemon) {
    world.sql(&format!(
        "insert into templates (id, organization_id, name, provisioner, active_version_id, created_by, created_at, updated_at)
         values ('{VERSION}', '{ORG}', 'local', 'terraform', '{VERSION}', '{USER}', now(), now());
         insert into workspaces (id, owner_id, organization_id, template_id, name, created_at, updated_at, last_used_at, pool_preset_id, pool_state)
         select '{VERSION}', '{PREBUILDS}', '{ORG}', '{VERSION}', 'prebuild-x', now(), now(), now(), id, 'starting' from template_version_presets;"
    )).await;
    world.given_build("20000000-0000-0000-0000-000000000001", 1, "prebuild", PREBUILDS).await;
    let job = daemon.acquire().await;
    let metadata = build_of(&job).metadata.clone().unwrap();
    assert_eq!(
        (metadata.owner_name.as_str(), metadata.owner_session_token.as_str()),
        ("prebuilds", "")
    );
    assert_eq!(daemon.complete(&job, built(Vec::new())).await, Ok(()));
    assert_eq!(world.db.value("select pool_state from workspaces").await, "unready");
    assert_eq!(world.db.value("select created_total from prebuild_pools").await, "1");
    assert_eq!(world.db.count("select count(*) from workspace_agent_log_sources").await, 1);
}

/// A rehearsal that is lost, one that the template fails, and one that finds something.
async fn rehearsal(world: &World, daemon: &mut Daemon) {
    let outcome = "select outcome from prebuild_rehearsals";
    world.sql("update workspaces set pool_state = 'ready'").await;
    world.given_rehearsal("30000000-0000-0000-0000-000000000001").await;
    let job = daemon.acquire().await;
    let Some(v1::job::Input::Rehearsal(rehearsal)) = &job.input else { panic!("{job:?}") };
    let claim = rehearsal.claim.clone().unwrap();
    assert_eq!(claim.state, b"state of the tool");
    assert_eq!(claim.running_agents[0].token, TOKEN);
    let metadata = claim.metadata.unwrap();
    assert_eq!(metadata.stage, i32::from(v1::BuildStage::Claim));
    let told = [&metadata.owner_id, &metadata.owner_name, &metadata.owner_email];
    assert!(!told.contains(&&PREBUILDS.to_owned()) && metadata.owner_name == "rehearsal");
    assert_ne!((&*metadata.workspace_name, &*metadata.owner_session_token), ("prebuild-x", ""));
    daemon.fail(&job, "infrastructure").await;
    assert_eq!(world.db.value(outcome).await, "lost");
    assert!(world.db.count("select count(*) from prebuild_pool_marks").await > 0, "again");

    world.given_rehearsal("30000000-0000-0000-0000-000000000002").await;
    let job = daemon.acquire().await;
    daemon.fail(&job, "template").await;
    assert_eq!(world.db.value(outcome).await, "failed");
    let error = world.db.value("select error from prebuild_rehearsals").await;
    assert_eq!(error, "it went wrong");

    world.given_rehearsal("30000000-0000-0000-0000-000000000003").await;
    let job = daemon.acquire().await;
    assert_eq!(daemon.complete(&job, rehearsed()).await, Ok(()));
    assert_eq!(world.db.value(outcome).await, "replaces");
    for kept in [
        "select replacements from prebuild_rehearsals",
        "select replacements_told from prebuild_pools",
    ] {
        assert_eq!(world.db.value(kept).await, r#"{"terraform_data.box": ["input"]}"#);
    }
    let states = "select string_agg(convert_from(state, 'latin1'), '') from workspace_build_states";
    let count = "select count(*) from workspace_builds";
    assert_eq!(
        world.db.count(count).await,
        1,
        "nothing was built: {}",
        world.db.value(states).await
    );
    assert_eq!(world.notified().await, 1);
}

fn rehearsed() -> v1::complete_job_request::Result {
    v1::complete_job_request::Result::Rehearsal(v1::RehearsalResult {
        replacements: vec![replaced()],
    })
}

fn replaced() -> v1::Replacement {
    v1::Replacement { resource: "terraform_data.box".into(), paths: vec!["input".into()] }
}

async fn claim(world: &World, daemon: &mut Daemon) {
    world.sql(&format!(
        "update workspace_agents set lifecycle_state = 'ready';
         update workspaces set owner_id = '{USER}', name = 'mine', pool_preset_id = null, pool_state = null;"
    )).await;
    world.given_build("20000000-0000-0000-0000-000000000002", 2, "claim", USER).await;
    // The first try is lost in apply: it fails, and another is queued by itself.
    let lost = daemon.acquire().await;
    world.sql(&format!(
        "update provisioner_jobs set lease_expires_at = now() - interval '1 s', apply_started = true where id = '{}'", lost.id
    )).await;
    let job = daemon.acquire().await;
    assert_ne!(job.id, lost.id);
    assert_eq!(daemon.complete(&lost, built(Vec::new())).await, Err(Code::FailedPrecondition));
    let build = build_of(&job);
    assert_eq!(build.state, b"state of the tool", "the lost build kept the state before it");
    assert_eq!(build.running_agents[0].agent_id, "agent-in-state");
    assert_eq!(build.running_agents[0].token, TOKEN);
    let metadata = build.metadata.clone().unwrap();
    assert_eq!(metadata.owner_name, "alice");
    assert!(metadata.owner_session_token.contains('-'));
    assert_eq!(metadata.stage, i32::from(v1::BuildStage::Claim));
    assert_eq!(daemon.complete(&job, built(vec![replaced()])).await, Ok(()));
    assert_eq!(world.notified().await, 1, "admins know it from the rehearsal");
    let agents = world
        .db
        .rows("select lifecycle_state, retired from workspace_agents order by retired")
        .await;
    let expected = [["ready", "f"], ["ready", "f"], ["ready", "t"], ["ready", "t"]];
    assert_eq!(agents, expected, "the agents' processes run on");
    let tokens = "select count(*), count(distinct auth_token) from workspace_agents \
                  where auth_instance_id = 'i-1'";
    assert_eq!(world.db.rows(tokens).await, [["2", "1"]], "the token that it was given stays good");
    assert_eq!(world.db.value("select replaced_total from prebuild_pools").await, "1");
    let statuses = "select string_agg(j.status, ',' order by b.build_number) from workspace_builds b join provisioner_jobs j on j.id = b.job_id";
    assert_eq!(world.db.value(statuses).await, "succeeded,failed,succeeded");
    wait_until("all events are published", Duration::from_secs(10), async || {
        (world.db.count("select count(*) from outbox").await == 0).then_some(())
    })
    .await;
}

/// A file as its pieces come: how many bytes, and their hash; or the error.
async fn read(daemon: &mut Daemon, file: &str) -> Result<(usize, Vec<u8>), String> {
    let request = v1::DownloadFileRequest { daemon_id: daemon.id.clone(), file_id: file.into() };
    let answer = daemon.client.download_file(with_key(request, "hush")).await;
    let mut stream = answer.unwrap().into_inner();
    let (mut size, mut hash) = (0, Sha256::new());
    while let Some(message) = stream.message().await.unwrap() {
        if !message.error.is_empty() {
            return Err(message.error);
        }
        if let Some(Part::Chunk(chunk)) = message.part.unwrap().part {
            size += chunk.data.len();
            hash.update(&chunk.data);
        }
    }
    Ok((size, hash.finalize().to_vec()))
}

async fn files(daemon: &mut Daemon) {
    assert_eq!(read(daemon, FILE).await, Ok((3, Sha256::digest("tar").to_vec())));
    let strange = read(daemon, VERSION).await;
    assert_eq!(strange, read(daemon, TOKEN).await, "another's file and no file are told alike");
    assert!(strange.is_err());
}

/// A file of `size` bytes on its way.
struct Upload {
    header: v1::FileHeader,
    /// Indexes of the chunks in the order in which they are sent.
    order: Vec<u32>,
}

const CHUNK: u64 = 2 * 1024 * 1024;

/// What chunk `index` of a file holds; never the same twice.
fn content(index: u32, size: u64) -> Vec<u8> {
    let length = (size - u64::from(index) * CHUNK).min(CHUNK);
    let mut data = vec![7; usize::try_from(length).unwrap()];
    data[..4].copy_from_slice(&index.to_be_bytes());
    data
}

impl Upload {
    fn new(size: u64) -> Self {
        let chunks = u32::try_from(size.div_ceil(CHUNK)).unwrap();
        let mut hash = Sha256::new();
        (0..chunks).for_each(|index| hash.update(content(index, size)));
        let sha256 = hash.finalize().to_vec();
        let header = v1::FileHeader { kind: "modules".into(), sha256, size, chunks };
        Self { header, order: (0..chunks).collect() }
    }

    /// Sends it for the job; gives the file's id or the broker's error, and how many chunks it took.
    async fn send(&self, daemon: &mut Daemon, job: &v1::Job) -> Result<String, String> {
        let part = |part| Some(v1::FilePart { part: Some(part) });
        let first = v1::UploadFileRequest {
            part: part(Part::Header(self.header.clone())),
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
        };
        let header = self.header.clone();
        let chunks = self.order.clone().into_iter().map(move |index| {
            let data = content(index, header.size);
            let chunk = v1::FileChunk { sha256: header.sha256.clone(), index, data };
            v1::UploadFileRequest { part: part(Part::Chunk(chunk)), ..Default::default() }
        });
        let messages = tokio_stream::iter([first].into_iter().chain(chunks));
        let answer = daemon.client.upload_file(with_key(messages, "hush")).await.unwrap();
        let v1::UploadFileResponse { file_id, error } = answer.into_inner();
        if error.is_empty() { Ok(file_id) } else { Err(error) }
    }
}

/// Most memory that this process, broker and daemon in one, had since the last call, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn uploads(world: &World, daemon: &mut Daemon) {
    world.given_import("10000000-0000-0000-0000-00000000000f").await;
    let job = daemon.acquire().await;
    let small = || Upload::new(CHUNK + 5);
    let mut wrong_hash = small();
    wrong_hash.header.sha256[0] ^= 1;
    let mut large = small();
    large.header.size = 100 * 1024 * 1024 + 1;
    for (upload, expected) in [
        (wrong_hash, "does not have the announced sha256"),
        (Upload { order: vec![0], ..small() }, "1 chunks with 2097152 bytes came"),
        (Upload { order: vec![1, 0], ..small() }, "chunk 1 came where chunk 0 of 2 was due"),
        (Upload { order: vec![0, 0], ..small() }, "chunk 0 came where chunk 1 of 2 was due"),
        (Upload { order: Vec::new(), ..large }, "at most 104857600 fit"),
    ] {
        let error = upload.send(daemon, &job).await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(world.db.count("select count(*) from file_pieces").await, 0, "a piece stayed");
    assert_eq!(world.db.count("select count(*) from file_uploads").await, 0);

    let largest = Upload::new(100 * 1024 * 1024);
    let before = peak_kib();
    let began = std::time::Instant::now();
    let file = largest.send(daemon, &job).await.unwrap();
    let sent = (began.elapsed(), peak_kib());
    assert_eq!(world.db.count("select count(*) from file_pieces").await, 50);
    // The same content is not sent twice: none of these chunks would be taken.
    let again = Upload { header: largest.header.clone(), order: vec![49, 49] };
    assert_eq!(again.send(daemon, &job).await, Ok(file.clone()));
    let result =
        v1::TemplateImportResult { modules_file_id: Some(file.clone()), ..Default::default() };
    let result = v1::complete_job_request::Result::TemplateImport(result);
    assert_eq!(daemon.complete(&job, result).await, Ok(()));
    let began = std::time::Instant::now();
    let whole = (100 * 1024 * 1024, largest.header.sha256.clone());
    assert_eq!(read(daemon, &file).await, Ok(whole));
    let read = (began.elapsed(), peak_kib());
    println!("100 MiB: sent {sent:?}, read {read:?}; before {before} KiB");
    // Nobody has the file whole.
    assert!(sent.1.max(read.1) < before + 48 * 1024, "{before} KiB, then {sent:?}, {read:?}");
}
