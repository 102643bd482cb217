//! Daemons and what admits them, asked for as clients do.

use axum::body::Body;
use berth_testkit::TestDatabase;
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::config::Config;
use crate::replica::{Answer, NOW, Replica};

const ACME: Uuid = Uuid::from_u128(1);
const ELSEWHERE: Uuid = Uuid::from_u128(2);
const DAEMONS: &str = "/organizations/acme/provisionerdaemons";
const KEYS: &str = "/organizations/acme/provisionerkeys";
const REVOCATIONS: &str = "/organizations/acme/provisionercertificates/revocations";

/// Somebody who asks: an owner of the deployment, a member of acme, a member of another organization.
const OWNER: u128 = 0x101;
const MEMBER: u128 = 0x102;
const STRANGER: u128 = 0x103;

struct Stand {
    db: TestDatabase,
    api: Replica,
}

impl Stand {
    async fn new() -> Self {
        let db = TestDatabase::create().await;
        let organizations = format!(
            "insert into organizations (id, name, created_at, updated_at)
                 values ('{ACME}', 'acme', now(), now()), ('{ELSEWHERE}', 'elsewhere', now(), now())"
        );
        db.rows(&organizations).await;
        for (who, organization, roles) in
            [(OWNER, ACME, "{owner}"), (MEMBER, ACME, "{}"), (STRANGER, ELSEWHERE, "{}")]
        {
            let id = Uuid::from_u128(who);
            db.rows(&format!(
                "insert into users (id, username, email, roles, created_at, updated_at)
                     values ('{id}', 'u{who}', 'u{who}@x', '{roles}', now(), now());
                 insert into organization_members (organization_id, user_id, created_at, updated_at)
                     values ('{organization}', '{id}', now(), now());
                 insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds,
                         last_used_at, expires_at, created_at, updated_at)
                     values ('{who:010}', sha256('abcdefghijklmnopqrstuv'), '{id}', 'password',
                             86400, '{NOW}', timestamptz '{NOW}' + interval '9 years', '{NOW}', '{NOW}')"
            ))
            .await;
        }
        let api = Replica::over(&db.url, 6, Config::default()).await;
        Self { db, api }
    }

    async fn ask(&self, who: u128, method: Method, path: &str, body: Value) -> Answer {
        let token = format!("{who:010}-abcdefghijklmnopqrstuv");
        let request = Replica::request(path).method(method);
        self.api.send(Some(&token), request, Body::from(body.to_string())).await
    }

    async fn get(&self, path: &str) -> Value {
        self.ask(OWNER, Method::GET, path, Value::Null).await.expect(200)
    }

    /// A daemon of acme that was heard of when the replica started.
    async fn given_daemon(&self, name: &str) -> Uuid {
        let id = self.api.app.backbone.ids.next();
        self.db
            .rows(&format!(
                "insert into provisioner_daemons (id, organization_id, name, version, api_version,
                         provisioners, tags, created_at, last_seen_at)
                     values ('{id}', '{ACME}', '{name}', '1', '1.0', '{{exec}}',
                             '{{\"scope\": \"organization\", \"owner\": \"\"}}', '{NOW}', '{NOW}')"
            ))
            .await;
        id
    }

    async fn status(&self, name: &str) -> String {
        let daemons = self.get(DAEMONS).await;
        let found = daemons.as_array().unwrap().iter().find(|it| it["name"] == name).cloned();
        found.unwrap()["status"].as_str().unwrap().to_owned()
    }

    async fn audited(&self) -> Vec<Vec<String>> {
        let sql = "select action, resource_type, resource_target from audit_logs order by 3, 1";
        self.db.rows(sql).await
    }
}

#[tokio::test]
async fn a_daemon_is_idle_or_busy_while_it_is_heard_of_and_offline_after_90_s() {
    let stand = Stand::new().await;
    let id = stand.given_daemon("one").await;
    assert_eq!(stand.status("one").await, "idle");
    stand
        .db
        .rows(&format!(
            "insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                     file_id, input, created_at, updated_at, started_at, worker_id)
                 values ('{id}', '{ACME}', '{id}', 'template_version_import', 'exec', 2, '{id}', '{{}}',
                         now(), now(), now(), '{id}')"
        ))
        .await;
    assert_eq!(stand.status("one").await, "busy");
    stand.db.rows("delete from provisioner_jobs").await;
    // Its broker died with it: nobody wrote anything down.
    stand.api.advance(89);
    assert_eq!(stand.status("one").await, "idle");
    stand.api.advance(1);
    assert_eq!(stand.status("one").await, "offline");
}

/// It was last written down at the start, last heard of 45 s later, and missed 15 s after that.
#[tokio::test]
async fn a_silent_daemon_is_offline_90_s_after_it_was_last_heard_of() {
    let stand = Stand::new().await;
    stand.given_daemon("one").await;
    let sql =
        format!("update provisioner_daemons set silent_at = timestamptz '{NOW}' + interval '60 s'");
    stand.db.rows(&sql).await;
    stand.api.advance(45 + 89);
    assert_eq!(stand.status("one").await, "idle");
    assert_eq!(stand.get(DAEMONS).await[0]["silent_since"], "2026-11-21T12:01:00Z");
    stand.api.advance(1);
    assert_eq!(stand.status("one").await, "offline");
}

#[tokio::test]
async fn a_daemon_that_left_is_offline_at_once() {
    let stand = Stand::new().await;
    stand.given_daemon("one").await;
    stand.db.rows(&format!("update provisioner_daemons set disconnected_at = '{NOW}'")).await;
    assert_eq!(stand.status("one").await, "offline");
}

#[tokio::test]
async fn draining_is_shown_audited_once_and_taken_back() {
    let stand = Stand::new().await;
    let one = stand.given_daemon("one").await;
    stand.given_daemon("two").await;
    let path = format!("{DAEMONS}/one/drain");
    for expected in [json!(["one"]), json!([])] {
        let answer = stand.ask(OWNER, Method::PUT, &path, Value::Null).await.expect(200);
        assert_eq!(answer["daemons"], expected);
    }
    let daemons = stand.get(DAEMONS).await;
    assert_eq!(daemons[0]["draining_since"], NOW);
    assert!(daemons[1].get("draining_since").is_none());
    let all = format!("{DAEMONS}/drain");
    let answer = stand.ask(OWNER, Method::PUT, &all, Value::Null).await.expect(200);
    assert_eq!(answer["daemons"], json!(["two"]));
    let by_id = format!("{DAEMONS}/{one}/drain");
    let answer = stand.ask(OWNER, Method::DELETE, &by_id, Value::Null).await.expect(200);
    assert_eq!(answer["daemons"], json!(["one"]));
    let answer = stand.ask(OWNER, Method::DELETE, &all, Value::Null).await.expect(200);
    assert_eq!(answer["daemons"], json!(["two"]));
    let line = |name: &str| ["write", "provisioner_daemon", name].map(str::to_owned).to_vec();
    assert_eq!(stand.audited().await, [line("one"), line("one"), line("two"), line("two")]);
}

#[tokio::test]
async fn a_daemon_that_drains_is_none_that_a_waiting_job_could_go_to() {
    let stand = Stand::new().await;
    let (one, two) = (stand.given_daemon("one").await, stand.given_daemon("two").await);
    stand
        .db
        .rows(&format!(
            "insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                     file_id, input, created_at, updated_at)
                 values ('{one}', '{ACME}', '{one}', 'template_version_import', 'exec', 2, '{one}',
                         '{{}}', now(), now())"
        ))
        .await;
    let jobs = "/organizations/acme/provisionerjobs";
    assert_eq!(stand.get(jobs).await[0]["available_workers"], json!([one, two]));
    stand.ask(OWNER, Method::PUT, &format!("{DAEMONS}/one/drain"), Value::Null).await.expect(200);
    assert_eq!(stand.get(jobs).await[0]["available_workers"], json!([two]));
}

/// The pool holds for want of a daemon.
#[tokio::test]
async fn a_daemon_that_drains_no_more_has_the_pools_looked_at_that_it_could_serve() {
    let stand = Stand::new().await;
    let id = stand.given_daemon("one").await;
    stand
        .db
        .rows(&format!(
            "begin;
             insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                     file_id, input, created_at, updated_at, started_at, completed_at)
                 values ('{id}', '{ACME}', '{id}', 'template_version_import', 'exec', 2, '{id}', '{{}}',
                         now(), now(), now(), now());
             insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                     created_at, updated_at)
                 values ('{id}', '{ACME}', 'v1', '{id}', 'exec', (select min(id::text)::uuid from users),
                         now(), now());
             insert into templates (id, organization_id, name, provisioner, active_version_id,
                     created_by, created_at, updated_at)
                 values ('{id}', '{ACME}', 'dev', 'exec', '{id}', (select min(id::text)::uuid from users),
                         now(), now());
             insert into template_version_presets (id, template_version_id, name, desired_instances,
                     created_at) values ('{id}', '{id}', 'small', 1, now());
             insert into prebuild_pools (preset_id, template_version_id, template_id, organization_id,
                     holds) values ('{id}', '{id}', '{id}', '{ACME}', '{{capacity}}');
             commit;
             delete from prebuild_pool_marks;"
        ))
        .await;
    let path = format!("{DAEMONS}/one/drain");
    stand.ask(OWNER, Method::PUT, &path, Value::Null).await.expect(200);
    assert_eq!(stand.db.count("select count(*) from prebuild_pool_marks").await, 0);
    stand.ask(OWNER, Method::DELETE, &path, Value::Null).await.expect(200);
    assert_eq!(stand.db.value("select preset_id from prebuild_pool_marks").await, id.to_string());
}

#[tokio::test]
async fn only_a_daemon_that_is_there_drains() {
    let stand = Stand::new().await;
    stand.given_daemon("one").await;
    stand.db.rows(&format!("update provisioner_daemons set disconnected_at = '{NOW}'")).await;
    let put = |path: String| stand.ask(OWNER, Method::PUT, path.leak(), Value::Null);
    let refused = put(format!("{DAEMONS}/one/drain")).await.expect(400);
    assert!(refused["message"].as_str().unwrap().contains("\"one\" is offline"), "{refused}");
    let refused = put(format!("{DAEMONS}/three/drain")).await.expect(404);
    assert!(refused["message"].as_str().unwrap().contains("\"three\""), "{refused}");
    assert_eq!(put(format!("{DAEMONS}/drain")).await.expect(200)["daemons"], json!([]));
}

#[tokio::test]
async fn who_may_not_change_daemons_neither_drains_nor_revokes_nor_makes_keys() {
    let stand = Stand::new().await;
    stand.given_daemon("one").await;
    let fingerprint = json!({ "fingerprint": "ab".repeat(32) });
    let key = json!({ "name": "k" });
    for (who, status) in [(MEMBER, 403), (STRANGER, 404)] {
        for (method, path, body) in [
            (Method::PUT, format!("{DAEMONS}/one/drain"), Value::Null),
            (Method::DELETE, format!("{DAEMONS}/one/drain"), Value::Null),
            (Method::PUT, format!("{DAEMONS}/drain"), Value::Null),
            (Method::DELETE, format!("{DAEMONS}/drain"), Value::Null),
            (Method::POST, REVOCATIONS.to_owned(), fingerprint.clone()),
            (Method::POST, KEYS.to_owned(), key.clone()),
            (Method::DELETE, format!("{KEYS}/k"), Value::Null),
        ] {
            let answer = stand.ask(who, method.clone(), &path, body).await;
            assert_eq!(answer.status, status, "{who:#x} {method} {path}");
        }
    }
    let stranger = stand.ask(STRANGER, Method::GET, REVOCATIONS, Value::Null).await;
    assert_eq!(stranger.status, 404);
    let untouched =
        "select (select count(*) from provisioner_daemons where draining_since is not null)
                     + (select count(*) from provisioner_certificate_revocations)
                     + (select count(*) from provisioner_keys)";
    assert_eq!(stand.db.count(untouched).await, 0);
}

#[tokio::test]
async fn a_revocation_is_taken_in_openssls_spelling_listed_and_audited_once() {
    let stand = Stand::new().await;
    let printed = ["AB"; 32].join(":");
    for _ in 0..2 {
        let body = json!({ "fingerprint": printed, "reason": "laptop lost" });
        stand.ask(OWNER, Method::POST, REVOCATIONS, body).await.expect(204);
    }
    let listed = stand.get(REVOCATIONS).await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["fingerprint"], "ab".repeat(32));
    assert_eq!(listed[0]["reason"], "laptop lost");
    assert_eq!(listed[0]["created_by"], Uuid::from_u128(OWNER).to_string());
    assert_eq!(stand.audited().await.len(), 1);
    for (field, body) in [
        ("fingerprint", json!({ "fingerprint": "ab" })),
        ("fingerprint", json!({ "fingerprint": "zz".repeat(32) })),
        ("reason", json!({ "fingerprint": "ab".repeat(32), "reason": "x".repeat(257) })),
    ] {
        assert_eq!(stand.ask(OWNER, Method::POST, REVOCATIONS, body).await.refused(), [field]);
    }
}

#[tokio::test]
async fn a_key_is_shown_once_stored_as_a_hash_listed_with_its_tags_and_revoked() {
    let stand = Stand::new().await;
    let body = json!({ "name": "edge", "tags": { "zone": "eu" } });
    let made = stand.ask(OWNER, Method::POST, KEYS, body.clone()).await.expect(201);
    let (id, secret) = made["key"].as_str().unwrap().split_at(36);
    let secret = &secret[1..];
    let listed = stand.get(KEYS).await;
    assert_eq!(
        (&listed[0]["name"], &listed[0]["tags"]),
        (&json!("edge"), &json!({ "zone": "eu" }))
    );
    assert!(!listed.to_string().contains(secret));
    let stored = "select string_agg(r::text, ' ') from (select k::text from provisioner_keys k
                  union all select a::text from audit_logs a) r";
    assert!(!stand.db.value(stored).await.contains(secret), "the secret is kept somewhere");
    let hash = format!(
        "select count(*) from provisioner_keys where id = '{id}' and secret_hash = sha256('{secret}')"
    );
    assert_eq!(stand.db.count(&hash).await, 1);
    assert_eq!(stand.ask(OWNER, Method::POST, KEYS, body.clone()).await.status, 409);

    let path = format!("{KEYS}/edge");
    stand.ask(OWNER, Method::DELETE, &path, Value::Null).await.expect(204);
    assert_eq!(stand.ask(OWNER, Method::DELETE, &path, Value::Null).await.status, 404);
    assert_eq!(stand.get(KEYS).await, json!([]));
    // The name is free again.
    stand.ask(OWNER, Method::POST, KEYS, body).await.expect(201);
}

#[tokio::test]
async fn a_key_has_no_more_and_no_longer_tags_than_fit() {
    let stand = Stand::new().await;
    let many: serde_json::Map<_, _> = (0..33).map(|n| (format!("t{n}"), json!("x"))).collect();
    for tags in [
        Value::Object(many),
        json!({ "zone": "x".repeat(129) }),
        json!({ "": "x" }),
        json!({ "zone": "a\u{0}b" }),
    ] {
        let body = json!({ "name": "edge", "tags": tags });
        assert_eq!(stand.ask(OWNER, Method::POST, KEYS, body).await.refused(), ["tags"]);
    }
}
