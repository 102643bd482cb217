//! The rows of the table, through the router.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use berth_bus::BusConfig;
use berth_domain::id::WorkspaceId;
use berth_domain::state::JobStatus;
use berth_testkit::{SOON, wait_until};
use serde_json::{Value, json};

use super::stand::{
    CANCELED, FAILED, HEARS, IT, LOOKS, OLGA, OLGAS_TOKEN, RUNNING, SUCCEEDED, Stand,
};
use crate::config::StreamConfig;
use crate::replica::Events;

/// The stream tells of the claim once, and is over.
async fn claimed_and_over(events: &mut Events) {
    let (name, data) = events.told().await.expect("the claim is told");
    assert_eq!(name, "data", "{data:#}");
    assert_eq!(
        data,
        json!({
            "workspace_id": IT,
            "workspaceID": IT,
            "reason": "prebuild_claimed",
            "owner_id": OLGA,
        })
    );
    assert_eq!(events.told().await, None);
}

/// The stream ends with this error.
async fn last_word(events: &mut Events) -> String {
    let (name, data) = events.told().await.expect("the end is told");
    assert_eq!(name, "error", "{data:#}");
    assert_eq!(events.told().await, None);
    data["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_prebuilds_agent_waits_through_claim_and_build_and_is_told_by_the_notice() {
    let stand = Stand::hearing().await;
    let mut events = stand.waits().await;
    stand.claim().await;
    let mut second = stand.waits().await;
    stand.job(2, RUNNING).await;
    let mut third = stand.waits().await;
    stand.job(2, SUCCEEDED).await;
    stand.tell(JobStatus::Succeeded).await;
    for events in [&mut events, &mut second, &mut third] {
        claimed_and_over(events).await;
    }
}

#[tokio::test]
async fn a_notice_before_the_end_tells_nothing_and_a_notice_twice_tells_once() {
    let stand = Stand::hearing().await;
    let mut events = stand.waits().await;
    stand.claim().await;
    stand.tell(JobStatus::Succeeded).await;
    assert_eq!(events.next().await.unwrap().0, "ping", "the stored state decides");
    stand.job(2, SUCCEEDED).await;
    stand.tell(JobStatus::Succeeded).await;
    stand.tell(JobStatus::Succeeded).await;
    claimed_and_over(&mut events).await;
}

#[tokio::test]
async fn a_workspace_that_never_was_a_prebuild_is_refused_for_good() {
    let stand = Stand::hearing().await;
    let sql = format!(
        "update workspaces set owner_id = '{OLGA}', pool_preset_id = null, pool_state = null;
         update workspace_builds set initiator_id = '{OLGA}', stage = 'none'"
    );
    stand.sql(&sql).await;
    assert!(stand.refused().await.contains("never was a prebuild"));
}

#[tokio::test]
async fn a_claim_that_succeeded_meanwhile_is_told_at_once_to_each_who_asks() {
    let stand = Stand::hearing().await;
    stand.claim().await;
    stand.job(2, SUCCEEDED).await;
    for _ in 0..3 {
        claimed_and_over(&mut stand.ask().await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_claim_that_failed_or_was_cancelled_is_refused_with_its_error() {
    for (end, words) in [(FAILED, ["failed", "no capacity in zone b"]), (CANCELED, ["canceled"; 2])]
    {
        let stand = Stand::hearing().await;
        stand.claim().await;
        stand.job(2, end).await;
        let why = stand.refused().await;
        assert!(words.iter().all(|word| why.contains(word)), "{why}");
    }
}

#[tokio::test]
async fn a_failure_that_comes_later_is_the_last_word_of_the_stream() {
    for (end, status, word) in
        [(FAILED, JobStatus::Failed, "zone b"), (CANCELED, JobStatus::Canceled, "canceled")]
    {
        let stand = Stand::hearing().await;
        stand.claim().await;
        stand.job(2, RUNNING).await;
        let mut events = stand.waits().await;
        if status == JobStatus::Canceled {
            // Whoever asks in between waits too.
            stand.job(2, "canceled_at = now()").await;
            stand.waits().await;
        }
        stand.job(2, end).await;
        stand.tell(status).await;
        assert!(last_word(&mut events).await.contains(word));
        assert!(stand.refused().await.contains(word), "and so it is for who asks again");
    }
}

#[tokio::test]
async fn a_second_claim_build_counts_and_not_the_first_that_was_lost() {
    let stand = Stand::hearing().await;
    let mut events = stand.waits().await;
    stand.claim().await;
    stand.job(2, &FAILED.replace("template", "infrastructure")).await;
    stand.queue(3, "claim").await;
    stand.tell(JobStatus::Failed).await;
    let mut second = stand.waits().await;
    stand.job(3, SUCCEEDED).await;
    stand.tell(JobStatus::Succeeded).await;
    claimed_and_over(&mut events).await;
    claimed_and_over(&mut second).await;
}

#[tokio::test]
async fn a_later_build_means_that_the_claim_was_handled_whatever_became_of_it() {
    let stand = Stand::hearing().await;
    stand.claim().await;
    stand.job(2, SUCCEEDED).await;
    stand.queue(3, "none").await;
    for state in [RUNNING, SUCCEEDED, FAILED] {
        let why = stand.refused().await;
        assert!(why.contains("already handled by an earlier build"), "before {state}: {why}");
        stand.job(3, state).await;
    }
}

#[tokio::test]
async fn an_open_stream_ends_when_a_later_build_or_the_workspaces_end_overtakes_it() {
    let stand = Stand::deaf(LOOKS).await;
    let mut events = stand.waits().await;
    stand.sql(&format!("begin; {}; commit", overtaken())).await;
    assert!(last_word(&mut events).await.contains("already handled"));

    let stand = Stand::deaf(LOOKS).await;
    let mut events = stand.waits().await;
    stand.sql("update workspaces set deleted = true").await;
    assert!(last_word(&mut events).await.contains("gone"));
}

/// Claimed, and started anew by the owner, before anybody looks.
fn overtaken() -> String {
    format!(
        "update workspaces set owner_id = '{OLGA}', pool_preset_id = null, pool_state = null,
                               latest_build_number = 3;
         insert into workspace_builds (id, workspace_id, template_version_id, build_number,
                transition, initiator_id, stage, job_id, created_at, updated_at)
            values (gen_random_uuid(), '{IT}', '{IT}', 2, 'start', '{OLGA}', 'claim', '{IT}', now(),
                    now())"
    )
}

#[tokio::test]
async fn a_silent_stream_says_that_it_lives_as_often_as_is_set_and_every_15_seconds_by_default() {
    assert_eq!(Duration::from(StreamConfig::default().ping), Duration::from_secs(15));
    let ping = Duration::from_millis(300);
    let stand = Stand::deaf(StreamConfig { ping: ping.into(), ..LOOKS }).await;
    let started = Instant::now();
    let mut events = stand.ask().await.unwrap();
    for n in 1..=3 {
        // Looks put no ping off.
        assert_eq!(events.next().await, Some(("ping".to_owned(), Value::Null)));
        assert!(started.elapsed() >= ping * n, "ping {n} after {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_notice_that_is_no_json_is_a_reason_and_its_subject_says_whose() {
    let stand = Stand::hearing().await;
    let mut events = stand.waits().await;
    stand.claim().await;
    stand.job(2, SUCCEEDED).await;
    let subject = stand.api.app.backbone.bus.subjects().claim(WorkspaceId(IT));
    stand.say(&subject, b"prebuild_claimed").await;
    claimed_and_over(&mut events).await;
}

/// A claim that ends after the state was read and before the answer begins is in the subscription:
/// the read sees the database as it was when it began, and is held until the notice has come.
#[tokio::test]
async fn a_claim_that_ends_while_the_state_is_read_is_not_missed() {
    let stand = Stand::hearing().await;
    stand.claim().await;
    stand
        .sql(
            "create function held() returns boolean language plpgsql volatile as $$
             begin perform pg_advisory_xact_lock_shared(42); return true; end $$;
             alter table provisioner_jobs rename to real_jobs;
             create view provisioner_jobs as select * from real_jobs where held()",
        )
        .await;
    let held = stand.database.hold("select pg_advisory_lock(42)").await;

    let mut heard = stand.api.app.live.claims();
    let meanwhile = async {
        let waiting = "select count(*) from pg_stat_activity
                       where datname = current_database() and wait_event = 'advisory'";
        wait_until("the read is held", SOON, async || {
            (stand.database.count(waiting).await == 1).then_some(())
        })
        .await;
        stand.sql("update real_jobs set started_at = now(), completed_at = now()").await;
        stand.tell(JobStatus::Succeeded).await;
        while heard.recv().await.unwrap() != WorkspaceId(IT) {}
        held.release().await;
    };
    let (events, ()) = tokio::join!(stand.ask(), meanwhile);
    claimed_and_over(&mut events.unwrap()).await;
}

#[tokio::test]
async fn a_notice_that_is_lost_costs_a_look_and_nothing_else() {
    let stand = Stand::deaf(LOOKS).await;
    let mut events = stand.waits().await;
    stand.claim().await;
    stand.job(2, SUCCEEDED).await;
    claimed_and_over(&mut events).await;
    assert_eq!(Duration::from(StreamConfig::default().look), Duration::from_secs(5));
}

#[tokio::test]
async fn with_nats_away_the_stream_opens_and_the_claim_is_told() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bus = BusConfig { url: format!("nats://{nobody}"), ..BusConfig::default() };
    let stand = Stand::over(&bus, LOOKS).await;
    stand.api.hear_claims();
    let mut events = stand.waits().await;
    stand.claim().await;
    stand.job(2, SUCCEEDED).await;
    claimed_and_over(&mut events).await;
    claimed_and_over(&mut stand.ask().await.unwrap()).await;
}

#[tokio::test]
async fn only_an_agents_own_token_that_is_good_now_is_heard() {
    let stand = Stand::deaf(LOOKS).await;
    let unknown = OLGA.to_string();
    for token in [None, Some(""), Some(OLGAS_TOKEN), Some(&unknown)] {
        let answer = stand.ask_as(token).await.map(drop).expect_err("it is refused");
        assert_eq!(answer.status, 401, "{token:?}");
    }
    stand.waits().await;
    stand.sql("update workspace_agents set retired = true").await;
    assert_eq!(stand.ask().await.map(drop).unwrap_err().status, 401);
    stand
        .sql("update workspace_agents set retired = false; update workspaces set deleted = true")
        .await;
    assert_eq!(stand.ask().await.map(drop).unwrap_err().status, 401);
}

#[tokio::test]
async fn an_agent_has_so_many_streams_and_no_more_and_each_that_ends_makes_room() {
    let stand = Stand::hearing().await;
    let mut open = Vec::new();
    for _ in 0..HEARS.per_agent {
        open.push(stand.waits().await);
    }
    let body = stand.ask().await.map(drop).unwrap_err().expect(429);
    let message = body["message"].as_str().unwrap();
    assert!(message.contains("4 streams") && message.contains("streams.per_agent"), "{message}");
    open.pop();
    open.push(stand.waits().await);
    stand.claim().await;
    stand.job(2, SUCCEEDED).await;
    stand.tell(JobStatus::Succeeded).await;
    for events in &mut open {
        claimed_and_over(events).await;
    }
    drop(open);
    let mut open = Vec::new();
    for _ in 0..HEARS.per_agent {
        open.push(stand.ask().await.unwrap());
    }
    // What stops an agent is told to it however many streams it has.
    stand.queue(3, "none").await;
    assert!(stand.refused().await.contains("already handled"));
}
