//! The session of a workspace's owner, from the job to its end.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

use super::*;

impl Stand {
    /// The token that the job's tool gets in its environment.
    async fn token_of_next_job(&self) -> (v1::Job, String) {
        let job = self.acquire().await;
        let token = build_of(&job).metadata.as_ref().unwrap().owner_session_token.clone();
        (job, token)
    }

    /// Whether the token is a credential of the owner now.
    async fn is_good(&self, token: &str) -> bool {
        let (id, secret) = token.split_once('-').unwrap();
        let sql = format!(
            "select count(*) from api_keys where id = '{id}' and secret_hash = sha256('{secret}')
             and user_id = '{USER}' and workspace_id = '{WORKSPACE}' and login_type = 'token'
             and expires_at = created_at + interval '7 days'"
        );
        self.database.count(&sql).await == 1
    }

    async fn keys(&self) -> i64 {
        self.database.count("select count(*) from api_keys").await
    }

    /// A build of the workspace's owner, queued behind the newest.
    pub(super) async fn queue(&self, transition: &str) {
        let id = self.broker.backbone.ids.next();
        let sql = format!(
            "begin;
             insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                     class, file_id, input, created_at, updated_at)
                 values ('{id}', '{ORG}', '{USER}', 'workspace_build', 'exec', 1, '{VERSION}',
                         '{{\"workspace_build_id\": \"{id}\"}}', now(), now());
             insert into workspace_builds (id, workspace_id, template_version_id, build_number,
                     transition, initiator_id, job_id, created_at, updated_at)
                 select '{id}', id, '{VERSION}', latest_build_number + 1, '{transition}', '{USER}',
                        '{id}', now(), now() from workspaces;
             update workspaces
                 set latest_build_id = '{id}', latest_build_number = latest_build_number + 1;
             commit;"
        );
        self.database.rows(&sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_a_claim_gets_a_session_that_ends_with_the_next_build() {
    let stand = Stand::new().await;
    let (job, first) = stand.token_of_next_job().await;
    assert!(stand.is_good(&first).await);
    assert_eq!(stand.keys().await, 1);
    stand.complete(&job).await;
    assert!(stand.is_good(&first).await, "the workspace runs with it");

    stand.queue("start").await;
    let (job, second) = stand.token_of_next_job().await;
    assert!(!stand.is_good(&first).await && stand.is_good(&second).await);
    assert_eq!(stand.keys().await, 1);
    stand.complete(&job).await;

    for transition in ["stop", "delete"] {
        stand.queue("start").await;
        let (job, started) = stand.token_of_next_job().await;
        stand.complete(&job).await;
        assert!(stand.is_good(&started).await);
        stand.queue(transition).await;
        let (job, none) = stand.token_of_next_job().await;
        assert_eq!((none.as_str(), stand.keys().await), ("", 0), "{transition}");
        stand.complete(&job).await;
    }
}

/// A daemon that was lost keeps no session: the one who builds in its place gets another.
#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_a_lost_daemon_ends_with_the_job_that_takes_its_place() {
    let stand = Stand::new().await;
    let (_, first) = stand.token_of_next_job().await;
    stand.lose_daemons().await;
    let (job, again) = stand.token_of_next_job().await;
    assert!(!stand.is_good(&first).await && stand.is_good(&again).await);
    stand.fail(&job, "infrastructure", None).await;
    let (_, second) = stand.token_of_next_job().await;
    assert!(!stand.is_good(&again).await && stand.is_good(&second).await);
    assert_eq!(stand.keys().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prebuild_gets_no_session() {
    let stand = Stand::new().await;
    let sql = format!(
        "update workspaces
         set owner_id = '{PREBUILDS}', pool_preset_id = '{PRESET}', pool_state = 'starting'"
    );
    stand.database.rows(&sql).await;
    let (_, token) = stand.token_of_next_job().await;
    assert_eq!((token.as_str(), stand.keys().await), ("", 0));
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Written {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Everything that is said at the finest level, spans and all their fields included.
#[tokio::test]
async fn neither_the_log_nor_the_traces_show_a_session() {
    let stand = Stand::new().await;
    let written = Written::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_writer(written.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let (job, token) = stand.token_of_next_job().await;
    stand.fail(&job, "infrastructure", None).await;
    drop(guard);
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains(&job.id), "the job is spoken of: {text}");
    let (id, secret) = token.split_once('-').unwrap();
    assert!(!text.contains(id) && !text.contains(secret), "{text}");

    let everything = "select string_agg(r::text, ' ') from (
                          select o::text from outbox o
                          union all select a::text from audit_logs a
                          union all select l::text from provisioner_job_logs l
                          union all select j::text from provisioner_jobs j
                          union all select k::text from api_keys k) r";
    assert!(!stand.database.value(everything).await.contains(secret));
}
