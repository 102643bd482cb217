//! Logs followed through the router, while they are written.

use berth_testkit::TestDatabase;
use serde_json::Value;
use uuid::Uuid;

use crate::config::Config;
use crate::replica::{Events, NOW, Replica};

const ORG: Uuid = Uuid::from_u128(1);
const OWNER: Uuid = Uuid::from_u128(2);
/// A version and its import, which runs.
const VERSION: Uuid = Uuid::from_u128(3);
const TOKEN: &str = "aaaaaaaaaa-abcdefghijklmnopqrstuv";

/// The API over a database with an import that runs.
struct Stand {
    database: TestDatabase,
    api: Replica,
}

impl Stand {
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        let sql = format!(
            "
            insert into organizations (id, name, created_at, updated_at)
                values ('{ORG}', 'acme', now(), now());
            insert into users (id, username, email, roles, created_at, updated_at)
                values ('{OWNER}', 'olga', 'olga@example.com', '{{owner}}', now(), now());
            insert into organization_members (organization_id, user_id, created_at, updated_at)
                values ('{ORG}', '{OWNER}', now(), now());
            insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds,
                    last_used_at, expires_at, created_at, updated_at)
                values ('aaaaaaaaaa', sha256('abcdefghijklmnopqrstuv'), '{OWNER}', 'password', 86400,
                        '{NOW}', timestamptz '{NOW}' + interval '9 years', '{NOW}', '{NOW}');
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner, class,
                    file_id, input, created_at, updated_at, started_at)
                values ('{VERSION}', '{ORG}', '{OWNER}', 'template_version_import', 'exec', 2,
                        '{VERSION}', '{{}}', now(), now(), now());
            insert into template_versions (id, organization_id, name, job_id, provisioner, created_by,
                    created_at, updated_at)
                values ('{VERSION}', '{ORG}', 'v1', '{VERSION}', 'exec', '{OWNER}', now(), now());"
        );
        database.rows(&sql).await;
        let api = Replica::over(&database.url, 6, Config::default()).await;
        Self { database, api }
    }

    /// Lines as a daemon's reports leave them.
    async fn written(&self, numbers: std::ops::RangeInclusive<i64>) {
        let (first, last) = numbers.into_inner();
        let sql = format!(
            "insert into provisioner_job_logs (job_id, number, created_at, source, level, stage, output)
             select '{VERSION}', n, now(), 'provisioner', 'info', 'Planning', 'line ' || n
             from generate_series({first}, {last}) n order by n"
        );
        self.database.rows(&sql).await;
    }

    async fn ended(&self) {
        let sql =
            format!("update provisioner_jobs set completed_at = now() where id = '{VERSION}'");
        self.database.rows(&sql).await;
    }

    async fn follow(&self, after: i64) -> Events {
        let path = format!("/templateversions/{VERSION}/logs?follow&after={after}");
        self.api.open(Some(TOKEN), Replica::request(&path)).await.expect("a stream")
    }

    async fn stored(&self, after: i64) -> Vec<String> {
        let path = format!("/templateversions/{VERSION}/logs?after={after}");
        let all = self.api.send(Some(TOKEN), Replica::request(&path), axum::body::Body::empty());
        let all = all.await.expect(200);
        all.as_array().into_iter().flatten().map(output).collect()
    }
}

fn output(line: &Value) -> String {
    line["output"].as_str().expect("a line").to_owned()
}

/// The next `count` lines: their texts, and the id of the last.
async fn lines(events: &mut Events, count: i64) -> (Vec<String>, i64) {
    let (mut texts, mut last) = (Vec::new(), 0);
    for _ in 0..count {
        let (_, line) = events.told().await.expect("more lines");
        last = line["id"].as_i64().expect("an id");
        texts.push(output(&line));
    }
    (texts, last)
}

fn expected(numbers: std::ops::RangeInclusive<i64>) -> Vec<String> {
    numbers.map(|n| format!("line {n}")).collect()
}

/// Stored before, written while it is read, and after the client has come again: each line once.
#[tokio::test]
async fn a_log_is_followed_without_a_gap_and_nothing_comes_twice() {
    let stand = Stand::new().await;
    // More than are read at once.
    stand.written(1..=1500).await;
    let mut events = stand.follow(0).await;
    let (first, _) = lines(&mut events, 700).await;
    stand.written(1501..=1503).await;
    let (second, last) = lines(&mut events, 803).await;
    assert_eq!([first, second].concat(), expected(1..=1503));

    drop(events);
    stand.written(1504..=1510).await;
    let mut events = stand.follow(last).await;
    let (third, last) = lines(&mut events, 7).await;
    assert_eq!(third, expected(1504..=1510));
    stand.written(1511..=1512).await;
    stand.ended().await;
    let (rest, _) = lines(&mut events, 2).await;
    assert_eq!(rest, expected(1511..=1512));
    assert_eq!(events.told().await, None, "the log ends with its job");
    assert_eq!(stand.stored(last).await, expected(1511..=1512));
}

/// Readers that come at any moment of the writing see the same.
#[tokio::test]
async fn readers_that_come_and_go_while_a_log_is_written_see_all_of_it() {
    let stand = Stand::new().await;
    let write = async {
        for n in 1..=40 {
            stand.written(n..=n).await;
        }
        stand.ended().await;
    };
    let read = async |stride: i64| {
        let (mut seen, mut after) = (Vec::new(), 0);
        loop {
            let mut events = stand.follow(after).await;
            for _ in 0..stride {
                let Some((_, line)) = events.told().await else { return seen };
                after = line["id"].as_i64().expect("an id");
                seen.push(output(&line));
            }
        }
    };
    let ((), one, three, all) = tokio::join!(write, read(1), read(3), read(1000));
    for seen in [one, three, all] {
        assert_eq!(seen, expected(1..=40));
    }
}

#[tokio::test]
async fn the_log_of_a_job_that_has_ended_is_given_and_ends() {
    let stand = Stand::new().await;
    stand.written(1..=3).await;
    stand.ended().await;
    let mut events = stand.follow(0).await;
    assert_eq!(lines(&mut events, 3).await.0, expected(1..=3));
    assert_eq!(events.told().await, None);
    let none = stand.follow(i64::MAX).await.told().await;
    assert_eq!(none, None, "behind the end there is nothing");
}
