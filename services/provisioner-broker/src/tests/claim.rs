//! Claim builds that fail: what is left, who is told, and what is tried again.

use serde_json::{Value, json};

use super::*;

/// How a claim stands that failed for good.
struct Failed<'a> {
    /// The claim's builds, after the prebuild's.
    builds: &'a [&'a str],
    /// How the attempt ended, and what it tells of an earlier build.
    status: &'a str,
    retried: Value,
    /// What the agent is told.
    error: &'a str,
    /// What the next build finds.
    state: &'a [u8],
}

impl Stand {
    /// What the pool is made of, and what counts against it.
    async fn pool(&self) -> String {
        let sql = "select (select md5(p::text) from prebuild_pools p)
                       || (select count(*) from prebuild_failures)
                       || (select count(*) from prebuild_pool_marks)
                       || (select count(*) from workspaces where pool_preset_id is not null)";
        self.database.value(sql).await
    }

    /// The attempt: number of the build that speaks for it, its status, what was tried before.
    async fn attempt(&self) -> (String, String, Value) {
        let sql = "select b.build_number, coalesce(a.build_status, ''), a.detail
                   from claim_attempts a join workspace_builds b on b.id = a.build_id";
        let rows = self.database.rows(sql).await;
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        let detail: Value = serde_json::from_str(&row[2]).unwrap();
        (row[0].clone(), row[1].clone(), detail["retried"].clone())
    }

    /// Ends of the claim that agents are told: status and error.
    async fn told(&self) -> Vec<(String, String)> {
        let sql = "select convert_from(payload, 'UTF8') from outbox
                   where headers->>'ce-type' = 'berth.claim.finished' order by id";
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let parse = |row: Vec<String>| {
            let payload: Value = serde_json::from_str(&row[0]).unwrap();
            assert_eq!(payload["workspace_id"], WORKSPACE.to_string());
            (text(&payload["job_status"]), text(&payload["error"]))
        };
        self.database.rows(sql).await.into_iter().map(parse).collect()
    }

    /// The workspace is still its owner's, with all that it had, and it is the owner's turn.
    async fn failed(&self, expected: Failed<'_>) {
        let mut builds = vec!["1 prebuild succeeded"];
        builds.extend(expected.builds);
        assert_eq!(self.builds().await, builds);
        let workspace = format!(
            "select owner_id = '{USER}' and not deleted and pool_state is null
                    and latest_build_number = {} from workspaces",
            builds.len()
        );
        assert_eq!(self.database.value(&workspace).await, "t");
        let costs = "select string_agg(daily_cost::text, ' ') from workspace_builds";
        assert_eq!(self.database.value(costs).await, vec!["4"; builds.len()].join(" "));
        let (number, status, retried) = self.attempt().await;
        assert_eq!((number, status.as_str()), (builds.len().to_string(), expected.status));
        assert_eq!(without_id(retried), expected.retried);
        let told = self.told().await;
        let [(status, error)] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!(status, expected.status);
        assert!(error.contains(expected.error), "{error}");
        assert_eq!(self.state().await, expected.state);
    }

    /// The state that a later build starts from.
    async fn state(&self) -> Vec<u8> {
        let latest = self.database.value("select latest_build_id from workspaces").await;
        let db = &self.broker.backbone.db;
        let stored = build_state::find(db, latest.parse().unwrap()).await.unwrap().unwrap();
        self.broker.vault.open_state(WorkspaceId(WORKSPACE), stored).unwrap()
    }
}

fn without_id(mut retried: Value) -> Value {
    if let Some(retried) = retried.as_object_mut() {
        let id = retried.remove("build_id").unwrap();
        assert_eq!(id, CLAIM.to_string());
    }
    retried
}

/// What an attempt tells of a first build that failed so.
fn retried(class: &str) -> Value {
    json!({ "build_number": 2, "error_class": class })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_fails_in_plan_keeps_the_workspace_and_what_it_had() {
    let stand = Stand::new().await;
    let pool = stand.pool().await;
    let job = stand.acquire().await;
    stand.fail(&job, "template", None).await;
    let expected = Failed {
        builds: &["2 claim failed template"],
        status: "failed",
        retried: Value::Null,
        error: "template it was",
        state: STATE,
    };
    stand.failed(expected).await;
    assert_eq!(stand.pool().await, pool, "a claim's failure is not the pool's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_fails_in_apply_keeps_what_apply_wrote() {
    let stand = Stand::new().await;
    let pool = stand.pool().await;
    let job = stand.acquire().await;
    stand.apply(&job).await;
    stand.fail(&job, "template", Some(b"half of it")).await;
    let expected = Failed {
        builds: &["2 claim failed template"],
        status: "failed",
        retried: Value::Null,
        error: "template it was",
        state: b"half of it",
    };
    stand.failed(expected).await;
    assert_eq!(stand.pool().await, pool);
}

/// Refused input and a refused cost are not the machinery's doing either: the same again would come
/// to the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_would_fail_again_is_not_tried_again() {
    for code in ["invalid", "quota"] {
        let stand = Stand::new().await;
        let job = stand.acquire().await;
        stand.fail(&job, code, None).await;
        let expected = Failed {
            builds: &[&format!("2 claim failed {code}")],
            status: "failed",
            retried: Value::Null,
            error: code,
            state: STATE,
        };
        stand.failed(expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_lost_before_apply_costs_the_job_one_more_turn_and_the_claim_one_more_build() {
    let stand = Stand::new().await;
    let pool = stand.pool().await;
    let first = stand.acquire().await;
    stand.lose_daemons().await;
    assert_eq!(stand.builds().await[1..], ["2 claim pending"]);
    assert!(stand.notes().await.contains("queued once more"), "{}", stand.notes().await);

    let again = stand.acquire().await;
    assert_eq!(again.id, first.id);
    assert_ne!(again.lease_token, first.lease_token);
    stand.lose_daemons().await;
    assert_eq!(stand.builds().await[1..], ["2 claim failed infrastructure", "3 claim pending"]);
    assert!(stand.notes().await.contains("build 3"), "{}", stand.notes().await);
    let (number, status, before) = stand.attempt().await;
    assert_eq!((number.as_str(), status.as_str()), ("3", ""));
    assert_eq!(without_id(before), retried("infrastructure"));
    assert_eq!(stand.told().await, [], "nothing has come of the claim yet");

    let second = stand.acquire().await;
    assert_eq!(build_of(&second).state, STATE);
    stand.complete(&second).await;
    assert_eq!(stand.told().await, [("succeeded".to_owned(), String::new())]);
    assert_eq!(stand.attempt().await.1, "succeeded");
    assert_eq!(stand.pool().await, pool);
}

/// The second build is the first one again: values that hold for one build, priority and initiator
/// included.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_lost_in_apply_leaves_the_state_and_the_claim_is_built_once_more() {
    let stand = Stand::new().await;
    let pool = stand.pool().await;
    let job = stand.acquire().await;
    stand.apply(&job).await;
    stand.lose_daemons().await;
    assert!(stand.notes().await.contains("Resources may exist"), "{}", stand.notes().await);
    let sql = "select b.initiator_id, b.preset_id, b.template_version_id, b.transition, b.reason,
                      b.stage, j.class, (select string_agg(name || '=' || value, ',' order by name)
                                         from workspace_build_parameters where build_id = b.id)
               from workspace_builds b join provisioner_jobs j on j.id = b.job_id
               where b.build_number > 1 order by b.build_number";
    let rows = stand.database.rows(sql).await;
    let [first, second] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(first, second);

    let job = stand.acquire().await;
    assert_eq!(build_of(&job).state, STATE);
    assert_eq!(build_of(&job).metadata.as_ref().unwrap().owner_name, "alice");
    stand.apply(&job).await;
    stand.lose_daemons().await;
    let expected = Failed {
        builds: &["2 claim failed infrastructure", "3 claim failed infrastructure"],
        status: "failed",
        retried: retried("infrastructure"),
        error: "daemon was lost",
        state: STATE,
    };
    stand.failed(expected).await;
    assert_eq!(stand.pool().await, pool);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_no_daemon_takes_in_half_an_hour_is_cancelled_and_queued_once_more() {
    let stand = Stand::new().await;
    let pool = stand.pool().await;
    let wait = "update provisioner_jobs set updated_at = now() - interval '31 minutes',
                    created_at = now() - interval '31 minutes' where completed_at is null";
    stand.database.rows(wait).await;
    stand.reap().await;
    assert_eq!(stand.builds().await[1..], ["2 claim canceled no_provisioner", "3 claim pending"]);
    assert!(stand.notes().await.contains("No provisioner daemon took the job within 30m"));
    assert_eq!(stand.told().await, []);

    stand.database.rows(wait).await;
    stand.reap().await;
    let expected = Failed {
        builds: &["2 claim canceled no_provisioner", "3 claim canceled no_provisioner"],
        status: "canceled",
        retried: retried("no_provisioner"),
        error: "no provisioner daemon",
        state: STATE,
    };
    stand.failed(expected).await;
    assert_eq!(stand.pool().await, pool);
}

/// Whatever the daemon says of it, and also when the daemon is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_a_person_cancels_is_not_built_again() {
    for code in ["canceled", "infrastructure", "lost"] {
        let stand = Stand::new().await;
        let pool = stand.pool().await;
        let job = stand.acquire().await;
        let cancel = format!(
            "update provisioner_jobs set canceled_at = now(), canceled_by = '{USER}'
             where id = '{CLAIM}'"
        );
        stand.database.rows(&cancel).await;
        if code == "lost" {
            stand.lose_daemons().await;
        } else {
            assert!(stand.apply(&job).await.canceled);
            stand.fail(&job, code, None).await;
        }
        let class = if code == "lost" { "canceled" } else { code };
        let expected = Failed {
            builds: &[&format!("2 claim canceled {class}")],
            status: "canceled",
            retried: Value::Null,
            error: "it",
            state: STATE,
        };
        stand.failed(expected).await;
        assert_eq!(stand.pool().await, pool);
    }
}

/// A daemon that stops gives its job up; nobody asked for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_its_daemon_gives_up_is_the_systems_cancel() {
    for code in ["infrastructure", "canceled"] {
        let stand = Stand::new().await;
        let job = stand.acquire().await;
        stand.fail(&job, code, None).await;
        let expected = [&format!("2 claim failed {code}"), "3 claim pending"];
        assert_eq!(stand.builds().await[1..], expected);
    }
}

/// The daemon repeats its report at both brokers, both reapers look: one build more, and no third.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_claim_is_built_once_more_however_often_its_end_is_reported() {
    let stand = Stand::new().await;
    for builds in [3, 3] {
        let job = stand.acquire().await;
        let report = failure(&job, "infrastructure", None);
        let org = OrganizationId(ORG);
        let reports = (0..6).map(|n| {
            let broker = if n % 2 == 0 { &stand.broker } else { &stand.other };
            complete::fail(broker, org, &report)
        });
        for answer in futures_util::future::join_all(reports).await {
            answer.unwrap();
        }
        stand.lose_daemons().await;
        assert_eq!(stand.builds().await.len(), builds);
    }
    assert_eq!(stand.told().await.len(), 1);
    let posted = "select count(*) from outbox where headers->>'ce-type' = 'berth.claim.finished'";
    assert_eq!(stand.database.count(posted).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_deleted_meanwhile_is_not_built_again() {
    let stand = Stand::new().await;
    let job = stand.acquire().await;
    stand.database.rows("update workspaces set deleted = true").await;
    stand.fail(&job, "infrastructure", None).await;
    assert_eq!(stand.builds().await[1..], ["2 claim failed infrastructure"]);
    assert_eq!(stand.told().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_that_a_claimed_workspace_has_begins_when_it_runs() {
    for (ttl, expected) in [("null", "none"), ("3600000", "01:00:00")] {
        let stand = Stand::new().await;
        stand.database.rows(&format!("update workspaces set ttl_ms = {ttl}")).await;
        let left = "select coalesce(date_trunc('hour', b.deadline - j.completed_at
                                               + interval '1 minute')::text, 'none')
                    from workspaces w join workspace_builds b on b.id = w.latest_build_id
                    join provisioner_jobs j on j.id = b.job_id";
        assert_eq!(stand.database.value(left).await, "none");
        let job = stand.acquire().await;
        stand.complete(&job).await;
        assert_eq!(stand.database.value(left).await, expected);
    }
}

/// The allowance shrank to nothing after the prebuild changed hands.
#[tokio::test(flavor = "multi_thread")]
async fn no_claim_fails_for_the_credits_that_its_owner_was_granted() {
    let stand = Stand::new().await;
    stand.database.rows("update groups set quota_allowance = 0").await;
    let asked = async |job: &v1::Job, daily_cost: i32| {
        let request = v1::CommitQuotaRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            daily_cost,
        };
        quota::commit(&stand.broker, OrganizationId(ORG), &request).await.unwrap().ok
    };
    let job = stand.acquire().await;
    assert!(!asked(&job, 5).await, "more than was granted");
    assert!(asked(&job, 4).await);
    stand.fail(&job, "infrastructure", None).await;
    let again = stand.acquire().await;
    assert_ne!(again.id, job.id);
    assert!(asked(&again, 4).await, "the build in its place is charged as much");
}

/// Only claims are handed over again: an ordinary start is its owner's to repeat.
#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_build_that_is_lost_is_left_to_its_owner() {
    let stand = Stand::new().await;
    let sql = format!("update workspace_builds set stage = 'none' where id = '{CLAIM}'");
    stand.database.rows(&sql).await;
    let job = stand.acquire().await;
    stand.fail(&job, "infrastructure", None).await;
    assert_eq!(stand.builds().await[1..], ["2 none failed infrastructure"]);
}
