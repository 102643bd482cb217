//! Streams of a person: all kinds count together.

use uuid::Uuid;

use super::stand::{AGENT, HEARS, IT, LOOKS, OLGAS_TOKEN, Stand};
use crate::replica::{Answer, Events, Replica};

impl Stand {
    async fn open(&self, path: &str) -> Result<Events, Answer> {
        self.api.open(Some(OLGAS_TOKEN), Replica::request(path)).await
    }
}

#[tokio::test]
async fn a_person_has_so_many_streams_of_all_kinds_and_each_that_is_left_makes_room() {
    let stand = Stand::deaf(LOOKS).await;
    stand.claim().await;
    let build = Uuid::from_u128(0x102);
    let streams = [
        format!("/workspaces/{IT}/watch"),
        format!("/workspaces/{IT}/watch-ws"),
        "/watch-all-workspaces".to_owned(),
        format!("/workspacebuilds/{build}/logs?follow"),
        format!("/templateversions/{IT}/logs?follow=true"),
        format!("/workspaceagents/{AGENT}/logs?follow"),
    ];
    let mut open = Vec::new();
    for path in streams.iter().cycle().take(HEARS.per_user) {
        open.push(stand.open(path).await.unwrap_or_else(|it| panic!("{path}: {it:?}")));
    }
    let terminal = format!("/workspaceagents/{AGENT}/pty");
    for path in streams.iter().chain([&terminal]) {
        let refused = stand.open(path).await.map(drop).expect_err(path).expect(429);
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains("4 streams") && message.contains("streams.per_user"), "{message}");
    }
    // What is no stream is answered, and so is the agent.
    let list = format!("/workspacebuilds/{build}/logs");
    let answer = stand.api.send(Some(OLGAS_TOKEN), Replica::request(&list), "".into()).await;
    assert_eq!(answer.status, 200);
    stand.waits().await;
    for path in &streams {
        open.pop();
        open.push(stand.open(path).await.unwrap_or_else(|it| panic!("{path}: {it:?}")));
    }
    drop(open);
    // Past the bound: it is no WebSocket.
    assert_eq!(stand.open(&terminal).await.map(drop).unwrap_err().status, 400);
}
