//! `berth watch`.

use std::time::Duration;

use berth_agent::sse::SseEvent;
use clap::Args;
use futures_util::StreamExt;
use serde_json::Value;

use crate::cli::Global;
use crate::client::{Client, number, text};
use crate::output::Output;

/// How long to wait before a lost stream is asked for again; doubled each time in a row.
const RETRY: Duration = Duration::from_millis(250);
/// The longest such wait.
const RETRY_AT_MOST: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct WatchArgs {
    /// Only updates of this workspace
    workspace: Option<String>,
    /// Begin after the update with this id, as `--output json` shows it
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

/// Prints updates until interrupted. A lost connection is taken up again after the last update, at
/// whichever replica answers; what cannot be had any more is said.
pub(crate) async fn watch(global: &Global, output: Output, args: WatchArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let mut last_id = args.after.clone();
    let (mut has_begun, mut pause) = (false, RETRY);
    loop {
        match client.events("/watch-all-workspaces", last_id.as_deref()).await {
            Ok(stream) => {
                let mut stream = Box::pin(stream);
                has_begun = true;
                while let Some(event) = stream.next().await {
                    let Ok(event) = event else { break };
                    last_id = event.id.clone().or(last_id);
                    pause = RETRY;
                    say(output, &args, &event);
                }
                output.progress("the stream ended; resuming after the last update");
            }
            // The first failure is the caller's to see, and so is what the server refuses.
            Err(error) if !has_begun || !may_pass(&error) => return Err(error),
            Err(error) => output.progress(&format!("connection lost, trying again: {error:#}")),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_AT_MOST);
    }
}

/// Whether there was no answer at all.
fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().any(<dyn std::error::Error>::is::<reqwest::Error>)
}

fn say(output: Output, args: &WatchArgs, event: &SseEvent) {
    let Ok(mut update) = serde_json::from_str::<Value>(&event.data) else { return };
    if let (Some(id), Some(fields)) = (&event.id, update.as_object_mut()) {
        fields.insert("id".to_owned(), id.clone().into());
    }
    match event.name.as_str() {
        "gap" => {
            let first = text(&update, "first_missing_id");
            output.update(&update, &format!("updates were missed, from {first} on"));
        }
        "error" => output.progress(text(&update, "message")),
        "data" => print(output, args, &update),
        _ => {}
    }
}

fn print(output: Output, args: &WatchArgs, update: &Value) {
    let name = text(update, "workspace_name");
    if name.is_empty() || args.workspace.as_ref().is_some_and(|it| it != name) {
        return;
    }
    let line = format!(
        "{name:<28} build {:<3} {:<7} {}",
        number(update, "build_number"),
        text(update, "transition"),
        text(update, "job_status")
    );
    output.update(update, &line);
}
