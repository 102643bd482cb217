//! A real daemon and a real broker over TLS, by certificates of a private authority.

#![expect(clippy::unwrap_used, reason = "an unwrap that fails is a failed test, helpers included")]

use std::path::PathBuf;
use std::time::Duration;

use berth_service_kit::{Context, Health, Period};
use berth_testkit::{Archive, TestDatabase, servers, subject_space, wait_until};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

const IT: &str = "00000000-0000-0000-0000-0000000000a1";
const KEY: &str = "00000000-0000-0000-0000-0000000000a1-hush";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.as_ref().pem()
    }

    /// Certificate and key, good to the beginning of this year.
    fn issue(&self, uri: Option<&str>, year: i32) -> [String; 2] {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.extend(uri.map(|it| SanType::URI(it.try_into().unwrap())));
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        [params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem()]
    }

    /// For any daemon of the organization.
    fn client(&self) -> [String; 2] {
        self.issue(Some(&format!("berth://organization/{IT}/provisioner/*")), 2099)
    }
}

/// A broker with or without TLS, over stores of its own.
struct Scene {
    db: TestDatabase,
    authority: Authority,
    dir: TempDir,
    addr: String,
    _stop: DropGuard,
}

/// A daemon that runs.
struct Daemon {
    health: Health,
    _stop: DropGuard,
}

impl Daemon {
    /// Why it is not registered, once it says something of this.
    async fn complains(&self, of: &str) {
        let mut last = String::new();
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let report = self.health.report();
                let broker = report.latches.into_iter().find(|it| it.name == "broker");
                last = broker.map(|it| it.reason).unwrap_or_default();
                if last.contains(of) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(found.await.is_ok(), "it does not say {of:?}, but {last:?}");
    }

    async fn registers(&self) {
        wait_until("the daemon is registered", PATIENCE, async || {
            let report = self.health.report();
            report.latches.iter().any(|it| it.name == "broker" && it.ready).then_some(())
        })
        .await;
    }
}

impl Scene {
    async fn new(has_tls: bool) -> Self {
        let (db, authority) = (TestDatabase::create().await, Authority::new("ours"));
        db.rows(&rows()).await;
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let mut config = berth_provisioner_broker::Config::default();
        config.database.url = db.url.as_str().into();
        config.nats.url = servers().await.nats_url.clone();
        config.nats.prefix = subject_space();
        config.encryption.off = true;
        config.limits.poll = Period::from_millis(100);
        let ca = file("ca.pem", &authority.pem());
        if has_tls {
            let [certificate, key] = authority.issue(None, 2099);
            config.grpc.tls.cert_file = Some(file("broker.pem", &certificate));
            config.grpc.tls.key_file = Some(file("broker.key", &key));
            config.grpc.tls.client_ca_file = Some(ca);
        }
        let (stop, announce) = (CancellationToken::new(), dir.path().join("announce.json"));
        let context =
            Context::embedded("provisioner-broker", config, stop.clone(), Some(announce.clone()));
        tokio::spawn(berth_provisioner_broker::run(context));
        let addr = wait_until("the broker listens", PATIENCE, async || {
            let facts = std::fs::read(&announce).ok()?;
            let facts: serde_json::Value = serde_json::from_slice(&facts).ok()?;
            Some(facts["grpc"].as_str()?.to_owned())
        })
        .await;
        Self { db, authority, dir, addr, _stop: stop.drop_guard() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn install(&self, [certificate, key]: &[String; 2]) {
        std::fs::write(self.file("daemon.key"), key).unwrap();
        std::fs::write(self.file("daemon.pem"), certificate).unwrap();
    }

    /// A daemon that shows the installed certificate.
    fn daemon(&self) -> Daemon {
        self.daemon_with(|config| {
            config.client_cert_file = Some(self.file("daemon.pem"));
            config.client_key_file = Some(self.file("daemon.key"));
        })
    }

    fn daemon_with(
        &self,
        change: impl FnOnce(&mut berth_provisioner::ProvisionerConfig),
    ) -> Daemon {
        let mut config = berth_provisioner::Config::default();
        let it = &mut config.provisioner;
        it.broker_url = format!("https://{}", self.addr);
        it.broker_ca_file = Some(self.file("ca.pem"));
        "one".clone_into(&mut it.name);
        it.work_dir = self.file("work");
        it.cache_dir = self.file("cache");
        change(it);
        let stop = CancellationToken::new();
        let context = Context::embedded("provisioner", config, stop.clone(), None);
        let health = context.health.clone();
        tokio::spawn(async move {
            if let Err(error) = berth_provisioner::run(context).await {
                println!("the daemon ended: {error:#}");
            }
        });
        Daemon { health, _stop: stop.drop_guard() }
    }
}

fn rows() -> String {
    let script = "#!/bin/sh\necho '{\"resources\": []}'\n";
    let archive = Archive::default()
        .file("template.toml", "version = 1\nplan = 'plan.sh'\napply = 'plan.sh'\n")
        .file("plan.sh", script)
        .bytes();
    let hex = hex::encode(archive);
    format!(
        "insert into organizations (id, name, created_at, updated_at)
             values ('{IT}', 'acme', now(), now());
         insert into users (id, username, email, created_at, updated_at)
             values ('{IT}', 'ada', 'ada@example.com', now(), now());
         insert into provisioner_keys (id, organization_id, name, secret_hash, created_at)
             values ('{IT}', '{IT}', 'k', sha256('hush'), now());
         insert into files (id, hash, created_by, created_at, data)
             values ('{IT}', encode(sha256('\\x{hex}'), 'hex'), '{IT}', now(), '\\x{hex}');
         insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                                       file_id, input, created_at, updated_at)
             values ('{IT}', '{IT}', '{IT}', 'template_version_dry_run', 'exec', 2, '{IT}',
                     jsonb_build_object('template_version_id', '{IT}'), now(), now());"
    )
}

/// No key anywhere: the certificate carries the job, its file and its result.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_runs_a_job_by_its_certificate_alone() {
    let scene = Scene::new(true).await;
    scene.install(&scene.authority.client());
    let daemon = scene.daemon();
    daemon.registers().await;
    wait_until("the job is done", PATIENCE, async || {
        let done = "select count(*) from provisioner_jobs where completed_at is not null";
        (scene.db.count(done).await == 1).then_some(())
    })
    .await;
    let job = "select status || ' ' || coalesce(error, '') from provisioner_jobs";
    assert_eq!(scene.db.value(job).await, "succeeded ");
}

/// Each refusal in the words that the operator of the daemon reads; the last file needs no restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_says_why_its_certificate_is_refused_and_uses_the_next_one() {
    let scene = Scene::new(true).await;
    let uri = format!("berth://organization/{IT}/provisioner/*");
    scene.install(&scene.authority.issue(Some(&uri), 2001));
    let daemon = scene.daemon();
    daemon.complains("has expired: put a newer one").await;
    for name in ["another", "ours"] {
        scene.install(&Authority::new(name).client());
        daemon.complains("authority it does not know").await;
        scene.install(&scene.authority.issue(Some(&uri), 2001));
        daemon.complains("has expired").await;
    }
    scene.install(&scene.authority.issue(None, 2099));
    daemon.complains("admits nobody: none of its subject alternative names").await;
    let other = uri.replace('*', "two");
    scene.install(&scene.authority.issue(Some(&other), 2099));
    daemon.complains("for the daemon \"two\", and this one is \"one\"").await;
    scene.install(&scene.authority.client());
    daemon.registers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_without_tls_and_a_broker_with_it_say_so() {
    let scene = Scene::new(true).await;
    let daemon = scene.daemon_with(|config| {
        config.broker_url = format!("http://{}", scene.addr);
        config.broker_ca_file = None;
        config.key = KEY.into();
    });
    daemon.complains("the broker speaks TLS: `provisioner.broker_url` must begin").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_with_tls_and_a_broker_without_it_say_so() {
    let scene = Scene::new(false).await;
    let daemon = scene.daemon_with(|config| config.key = KEY.into());
    daemon.complains("`provisioner.broker_url`").await;
    daemon.complains("http://").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_another_authority_is_not_believed() {
    let scene = Scene::new(true).await;
    std::fs::write(scene.file("other.pem"), Authority::new("another").pem()).unwrap();
    let daemon = scene.daemon_with(|config| {
        config.key = KEY.into();
        config.broker_ca_file = Some(scene.file("other.pem"));
    });
    daemon.complains("of no authority in `provisioner.broker_ca_file`").await;
    // Over TLS a key alone does, too.
    let daemon = scene.daemon_with(|config| {
        config.key = KEY.into();
        config.name = "two".to_owned();
    });
    daemon.registers().await;
}
