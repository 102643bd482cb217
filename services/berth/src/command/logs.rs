//! `berth logs`, and following a job for the commands that wait for one.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures_util::StreamExt;
use serde_json::Value;

use crate::cli::Global;
use crate::client::{Client, number, text};
use crate::command::workspace;
use crate::output::{Output, print_line};

/// How long to wait before a stream that ended too early is asked for again.
const RETRY: Duration = Duration::from_millis(300);

#[derive(Args)]
pub(crate) struct LogsArgs {
    /// Name of the workspace, or owner/name
    workspace: String,
    /// Go on as lines are written
    #[arg(long, short)]
    follow: bool,
    /// Only the agents' lines
    #[arg(long, conflicts_with = "build")]
    agent: bool,
    /// Only the build's lines
    #[arg(long)]
    build: bool,
}

pub(crate) async fn logs(global: &Global, output: Output, args: LogsArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let found = workspace::get(&client, &args.workspace).await?;
    if !args.agent {
        let build = format!("/workspacebuilds/{}", text(&found, "latest_build.id"));
        let print = |line: &Value| print_log_line(output, line);
        if args.follow {
            follow(&client, &build, job_has_ended, print).await?;
        } else {
            stored(&client, &build, print).await?;
        }
    }
    if args.build {
        return Ok(());
    }
    // The build may have ended just now: its agents are known from then on.
    let found = workspace::get(&client, &args.workspace).await?;
    let agents: Vec<String> = workspace::agents(&found)
        .map(|agent| format!("/workspaceagents/{}", text(agent, "id")))
        .collect();
    let all = agents.iter().map(|agent| async {
        let print = |line: &Value| print_log_line(output, line);
        if args.follow {
            follow(&client, agent, agent_has_ended, print).await.map(drop)
        } else {
            stored(&client, agent, print).await
        }
    });
    futures_util::future::try_join_all(all).await.map(drop)
}

fn job_has_ended(build: &Value) -> bool {
    is_end(text(build, "job.status"))
}

fn is_end(status: &str) -> bool {
    matches!(status, "succeeded" | "failed" | "canceled")
}

fn agent_has_ended(agent: &Value) -> bool {
    text(agent, "lifecycle_state") == "off"
}

async fn stored(client: &Client, of: &str, print: impl Fn(&Value)) -> anyhow::Result<()> {
    let lines = client.get(&format!("{of}/logs")).await?;
    lines.as_array().into_iter().flatten().for_each(print);
    Ok(())
}

/// Tells every log line of the thing at `of`, those that are stored and those that follow, without
/// a gap, until `has_ended` says so of it. Answers with the thing as it is then.
async fn follow(
    client: &Client,
    of: &str,
    has_ended: impl Fn(&Value) -> bool,
    mut tell: impl FnMut(&Value),
) -> anyhow::Result<Value> {
    let mut after = 0;
    loop {
        let path = format!("{of}/logs?follow=true&after={after}");
        let mut lines = client.events(&path, None).await?;
        // A broken stream is taken up again after the last line that was told.
        while let Some(Ok(event)) = lines.next().await {
            if event.name != "data" {
                continue;
            }
            let data: Value =
                serde_json::from_str(&event.data).context("a log line is not JSON")?;
            for line in data.as_array().unwrap_or(&vec![data.clone()]) {
                after = after.max(number(line, "id"));
                tell(line);
            }
        }
        let thing = client.get(of).await?;
        if has_ended(&thing) {
            return Ok(thing);
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn print_log_line(output: Output, line: &Value) {
    if output.is_json() {
        return print_line(&line.to_string());
    }
    match text(line, "stage") {
        "" => print_line(text(line, "output")),
        stage => print_line(&format!("{stage}: {}", text(line, "output"))),
    }
}

/// Waits for the job of the build or version at `path`, telling stage by stage how it goes. Answers
/// with the build or version as it is when the job has ended.
pub(crate) async fn follow_job(
    client: &Client,
    output: Output,
    path: &str,
) -> anyhow::Result<Value> {
    follow_stages(client, output, path, job_has_ended).await
}

/// The same for a job that is there by itself: it answers with the job.
pub(crate) async fn follow_bare_job(
    client: &Client,
    output: Output,
    path: &str,
) -> anyhow::Result<Value> {
    follow_stages(client, output, path, |job| is_end(text(job, "status"))).await
}

async fn follow_stages(
    client: &Client,
    output: Output,
    path: &str,
    has_ended: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let mut stage = String::new();
    follow(client, path, has_ended, |line| {
        if text(line, "stage") != stage && !text(line, "stage").is_empty() {
            text(line, "stage").clone_into(&mut stage);
            output.progress(&format!("  {stage}"));
        }
        if text(line, "log_level") == "error" {
            output.progress(&format!("    {}", text(line, "output")));
        }
    })
    .await
}
