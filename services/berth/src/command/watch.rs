//! `berth watch`.

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use serde_json::Value;

use crate::cli::Global;
use crate::client::{Client, number, text};
use crate::output::Output;

/// How long to wait before a lost stream is asked for again.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct WatchArgs {
    /// Only updates of this workspace
    workspace: Option<String>,
}

/// Prints updates until interrupted. A lost connection is taken up again after the last update.
pub(crate) async fn watch(global: &Global, output: Output, args: WatchArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let mut last_id: Option<String> = None;
    let mut first = true;
    loop {
        let stream = client.events("/watch-all-workspaces", last_id.as_deref()).await;
        let mut stream = match stream {
            Ok(stream) => Box::pin(stream),
            // The first failure is the caller's to see; later ones pass.
            Err(error) if first => return Err(error),
            Err(error) => {
                output.progress(&format!("connection lost, trying again: {error:#}"));
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        first = false;
        while let Some(Ok(event)) = stream.next().await {
            let Ok(update) = serde_json::from_str::<Value>(&event.data) else { continue };
            if let Some(id) = update.get("id") {
                last_id = Some(id.as_str().map_or_else(|| id.to_string(), ToOwned::to_owned));
            }
            match event.name.as_str() {
                "ping" => {}
                "gap" => output.update(&update, &format!("updates were missed: {update}")),
                _ => print(output, &args, &update),
            }
        }
        tokio::time::sleep(RETRY).await;
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
