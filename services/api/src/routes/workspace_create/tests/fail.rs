//! A claim whose build fails, as its owner, the agent and those see it who look after the pool.

use super::list::given_admin;
use super::*;

/// The agent of the claimed prebuild: its id is its token.
const AGENT: Uuid = Uuid::from_u128(0xa9);

/// A claimed prebuild with an agent, a state and a daily cost of 4; its build waits for a daemon.
struct Claimed {
    stand: Stand,
    workspace: String,
    build: String,
    pools: Value,
}

impl Claimed {
    async fn new() -> Self {
        let stand = Stand::new().await;
        given_admin(&stand).await;
        stand.given_prebuilds(SMALL, "ready", 1, 4).await;
        let sql = format!(
            "insert into workspace_resources (id, job_id, transition, type, name, created_at)
                 select '{AGENT}', latest_build_id, 'start', 'local', 'dev', now() from workspaces;
             insert into workspace_agents (id, resource_id, workspace_id, build_id, name, auth_token,
                     lifecycle_state, created_at, updated_at)
                 select '{AGENT}', '{AGENT}', id, latest_build_id, 'main', '{AGENT}', 'ready', now(),
                        now() from workspaces;
             insert into workspace_build_states (build_id, state)
                 select latest_build_id, 'what exists' from workspaces;
             update prebuild_pools set created_total = 1"
        );
        stand.database.rows(&sql).await;
        let told = stand.api.create(1, &small("mine")).await.expect(200);
        assert_eq!(told["prebuild_claim"]["outcome"], "hit");
        let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
        let (workspace, build) = (id(&told), id(&told["latest_build"]));
        let pools = pools(&stand).await;
        Self { stand, workspace, build, pools }
    }

    async fn get(&self, path: &str) -> Value {
        self.stand.api.get(1, path).await.expect(200)
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        let request = Replica::request(path).method(method);
        self.stand.api.send(Some(&token(1)), request, Body::from(body.to_string())).await
    }

    /// The job's row and log as the broker leaves them.
    async fn given_failure(&self, code: &str, error: &str) {
        let sql = format!(
            "update provisioner_jobs j set started_at = now(), completed_at = now(), error = '{error}',
                    error_code = '{code}'
                 from workspace_builds b where b.id = '{}' and j.id = b.job_id;
             insert into provisioner_job_logs (job_id, number, created_at, source, level, stage, output)
                 select job_id, 1, now(), 'provisioner', 'error', 'apply', '{error}'
                 from workspace_builds where id = '{}';
             update claim_attempts set build_status = 'failed'",
            self.build, self.build
        );
        self.stand.database.rows(&sql).await;
    }

    /// What the owner sees: status, error, whose fault, and the last line of the log.
    async fn seen(&self) -> [String; 4] {
        let workspace = self.get(&format!("/workspaces/{}", self.workspace)).await;
        assert_eq!(
            (&workspace["owner_name"], &workspace["name"]),
            (&json!("person1"), &json!("mine"))
        );
        let build = &workspace["latest_build"];
        assert_eq!(build["id"], self.build);
        assert_eq!(build["stage"], "claim");
        assert_eq!(build["daily_cost"], 4, "what runs still costs");
        let by_itself = self.get(&format!("/workspacebuilds/{}", self.build)).await;
        assert_eq!(&by_itself, build);
        let log = self.get(&format!("/workspacebuilds/{}/logs", self.build)).await;
        let line = log.as_array().unwrap().last().cloned().unwrap_or_default();
        [&build["status"], &build["job"]["error"], &build["error_class"], &line["output"]]
            .map(|it| it.as_str().unwrap_or_default().to_owned())
    }

    /// The agent's question is answered for good, with the build's error.
    async fn agent_stops(&self, why: &str) {
        let request = Replica::request("/workspaceagents/me/reinit?wait=true");
        let answer = self.stand.api.send(Some(&AGENT.to_string()), request, Body::empty()).await;
        let message = answer.expect(409)["message"].as_str().unwrap().to_owned();
        assert!(message.contains(why), "{message}");
    }

    /// The pool neither counts the failure nor has the workspace.
    async fn pool_is_as_before(&self) {
        assert_eq!(pools(&self.stand).await, self.pools);
        let path = format!("/templates/{TEMPLATE}/prebuilds/plan");
        let plan = self.stand.api.get(0, &path).await.expect(200);
        let text = plan.to_string();
        assert!(!text.contains(&self.workspace) && !text.contains("backoff"), "{plan:#}");
    }

    /// How the attempt is listed.
    async fn listed(&self) -> Value {
        let claims = self.stand.api.get(0, "/organizations/acme/claims").await.expect(200);
        claims["claims"][0].clone()
    }

    async fn build_again(&self, transition: &str) -> Value {
        let path = format!("/workspaces/{}/builds", self.workspace);
        self.send(Method::POST, &path, &json!({ "transition": transition })).await.expect(200)
    }

    /// The state from which the newest build starts.
    async fn state(&self) -> String {
        let sql = "select convert_from(s.state, 'UTF8') from workspaces w
                   join workspace_builds b on b.workspace_id = w.id
                       and b.build_number = w.latest_build_number - 1
                   join workspace_build_states s on s.build_id = b.id where w.name = 'mine'";
        self.stand.database.value(sql).await
    }
}

/// The template's pools as those see them who look after templates, but for what time changes.
async fn pools(stand: &Stand) -> Value {
    stand.api.get(0, "/prebuilds/pools").await.expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_claim_is_kept_with_its_log_and_its_owner_tries_again_or_deletes_it() {
    for transition in ["start", "delete"] {
        let claimed = Claimed::new().await;
        claimed.given_failure("template", "disk full").await;
        assert_eq!(claimed.seen().await, ["failed", "disk full", "template", "disk full"]);
        claimed.agent_stops("disk full").await;
        claimed.pool_is_as_before().await;
        let listed = claimed.listed().await;
        assert_eq!(
            (&listed["outcome"], &listed["build_status"]),
            (&json!("hit"), &json!("failed"))
        );

        let next = claimed.build_again(transition).await;
        assert_eq!((&next["stage"], &next["build_number"]), (&json!("none"), &json!(3)));
        assert_eq!(next["template_version_preset_id"], SMALL.to_string());
        claimed.agent_stops("already handled").await;
        claimed.pool_is_as_before().await;
    }
}

/// What exists is in the state of the build before: a delete that knew nothing of it would leave it
/// behind for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_cancelled_before_it_began_loses_neither_state_nor_cost() {
    let claimed = Claimed::new().await;
    let path = format!("/workspacebuilds/{}/cancel", claimed.build);
    claimed.send(Method::PATCH, &path, &Value::Null).await.expect(200);
    let line = "The build was canceled before a provisioner daemon took it.";
    let seen = ["canceled", "canceled before it began", "canceled", line];
    assert_eq!(claimed.seen().await, seen);
    claimed.agent_stops("canceled before it began").await;
    claimed.pool_is_as_before().await;
    assert_eq!(claimed.listed().await["build_status"], "canceled");
    claimed.send(Method::PATCH, &path, &Value::Null).await.expect(409);

    claimed.build_again("delete").await;
    assert_eq!(claimed.state().await, "what exists");
    let told = "select convert_from(payload, 'UTF8') from outbox
                where headers->>'ce-type' = 'berth.claim.finished'";
    let finished: Value = serde_json::from_str(&claimed.stand.database.value(told).await).unwrap();
    assert_eq!(finished["job_status"], "canceled");
    assert_eq!(finished["error"], "canceled before it began");
}
