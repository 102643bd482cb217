//! `berth logs`, and following a job for the commands that wait for one.

use anyhow::Context as _;
use clap::Args;
use futures_util::StreamExt;
use serde_json::Value;

use crate::cli::Global;
use crate::client::{Client, number, text};
use crate::command::workspace;
use crate::output::{Output, print_line};

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
        let path = format!("/workspacebuilds/{}/logs", text(&found, "latest_build.id"));
        print_lines(&client, output, &path, args.follow).await?;
    }
    if args.build {
        return Ok(());
    }
    // The build may have ended just now: its agents are known from then on.
    let found = workspace::get(&client, &args.workspace).await?;
    let agents: Vec<Value> = workspace::agents(&found).cloned().collect();
    let all = agents.iter().map(|agent| async {
        let path = format!("/workspaceagents/{}/logs", text(agent, "id"));
        print_lines(&client, output, &path, args.follow).await
    });
    futures_util::future::try_join_all(all).await.map(drop)
}

/// Prints stored lines and, when asked, goes on with those that follow, without a gap.
async fn print_lines(
    client: &Client,
    output: Output,
    path: &str,
    follow: bool,
) -> anyhow::Result<()> {
    let mut after = 0;
    let stored = client.get(path).await?;
    for line in stored.as_array().into_iter().flatten() {
        after = number(line, "id");
        print_log_line(output, line);
    }
    if !follow {
        return Ok(());
    }
    loop {
        let followed = format!("{path}?follow=true&after={after}");
        let mut lines = client.events(&followed, None).await?;
        while let Some(event) = lines.next().await {
            // A broken stream is taken up again after the last line that was printed.
            let Ok(event) = event else { break };
            match event.name.as_str() {
                "end" => return Ok(()),
                "ping" => {}
                _ => after = print_event(output, &event.data, after)?,
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
}

fn print_event(output: Output, data: &str, after: i64) -> anyhow::Result<i64> {
    let data: Value = serde_json::from_str(data).context("a log line is not JSON")?;
    let lines = data.as_array().cloned().unwrap_or_else(|| vec![data]);
    for line in &lines {
        print_log_line(output, line);
    }
    Ok(lines.last().map_or(after, |it| number(it, "id").max(after)))
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

/// Waits for the job at `job` inside the document at `path`, telling stage by stage how it goes.
/// Answers with the document as it is when the job has ended.
pub(crate) async fn follow_job(
    client: &Client,
    output: Output,
    path: &str,
    job: &str,
) -> anyhow::Result<Value> {
    let mut after = 0;
    let mut stage = String::new();
    loop {
        let document = client.get(path).await?;
        let lines = client.get(&format!("{path}/logs?after={after}")).await?;
        for line in lines.as_array().into_iter().flatten() {
            after = number(line, "id");
            if text(line, "stage") != stage && !text(line, "stage").is_empty() {
                text(line, "stage").clone_into(&mut stage);
                output.progress(&format!("  {stage}"));
            }
            if text(line, "log_level") == "error" {
                output.progress(&format!("    {}", text(line, "output")));
            }
        }
        if matches!(text(&document, &format!("{job}.status")), "succeeded" | "failed" | "canceled")
        {
            return Ok(document);
        }
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    }
}
