//! One agent process from its first manifest to `off`.

use std::sync::Arc;
use std::time::Duration;

use berth_domain::state::AgentLifecycle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::Client;
use crate::logs::Logs;
use crate::manifest::Manifest;
use crate::options::{Options, Timing};
use crate::reinit::{Claimed, Listener};
use crate::reports::Reports;
use crate::retry::{Backoff, Trouble, fetch_manifest};
use crate::session::{Session, Shared};

/// Runs an agent until `shutdown`, then stops its scripts, reports `off` and returns within
/// `timing.shutdown`. While the server is away or refuses the token it tries again for ever.
///
/// # Errors
/// Only before anything was started: an address that is no URL, or an empty token.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let timing = options.timing;
    let client = Client::new(&options.url, &options.auth, timing)?;
    let shared = Arc::new(Shared {
        client,
        logs: Arc::new(Logs::new(options.clock.clone())),
        reports: Reports::new(options.clock.clone()),
        options,
    });
    let Some(manifest) = fetch_manifest(&shared.client, timing, &shutdown).await else {
        return Ok(());
    };
    tracing::info!(agent.id = %manifest.agent_id, owner.id = %manifest.owner_id, "connected");
    shared.reports.lifecycle(AgentLifecycle::Created);

    let deliveries = spawn_deliveries(&shared);
    let background = TaskTracker::new();
    background.spawn(beat(shared.client.clone(), timing, shutdown.clone()));
    let (claims_in, claims) = mpsc::channel(1);
    let listener = Listener { client: shared.client.clone(), timing, stop: shutdown.clone() };
    background.spawn(listener.listen(claims_in));

    let session = serve(&shared, manifest, claims, &shutdown).await;

    let deadline = Instant::now() + timing.shutdown;
    shared.reports.lifecycle(AgentLifecycle::ShuttingDown);
    // A third of the time is the scripts'; the rest is for processes that end slowly, and for news.
    let last = match session {
        Some(session) => session.shut_down(timing.shutdown / 3).await,
        None => AgentLifecycle::Off,
    };
    shared.reports.lifecycle(last);
    shared.reports.close();
    shared.logs.close();
    deliveries.close();
    if timeout_at(last_call(deadline, timing), deliveries.wait()).await.is_err() {
        tracing::warn!("the server is away; its last logs and reports were not delivered");
    }
    Ok(())
}

/// When to stop trying to deliver: a server that is away gets two seconds, not all that is left.
fn last_call(deadline: Instant, timing: Timing) -> Instant {
    deadline.min(Instant::now() + Duration::from_secs(2).min(timing.shutdown))
}

/// Sessions one after the other, one per owner. Gives the one that runs at `shutdown`.
async fn serve(
    shared: &Arc<Shared>,
    manifest: Manifest,
    mut claims: mpsc::Receiver<Claimed>,
    shutdown: &CancellationToken,
) -> Option<Session> {
    let mut session = Session::start(shared, manifest);
    loop {
        let claimed = tokio::select! {
            () = shutdown.cancelled() => return Some(session),
            claimed = claims.recv() => claimed,
        };
        let Some(claimed) = claimed else {
            // The server said that no claim will come.
            shutdown.cancelled().await;
            return Some(session);
        };
        tracing::info!(owner.id = %claimed.owner, "claimed: reinitialising for the new owner");
        session.abandon().await;
        let manifest = fetch_manifest(&shared.client, shared.options.timing, shutdown).await?;
        if manifest.owner_id != claimed.owner {
            tracing::warn!(
                owner.id = %manifest.owner_id,
                claimed.owner.id = %claimed.owner,
                "the manifest names another owner than the claim"
            );
        }
        // The claim build made a new agent; what waits to be told is about the old one.
        shared.reports.forget();
        shared.logs.new_identity();
        session = Session::start(shared, manifest);
    }
}

fn spawn_deliveries(shared: &Arc<Shared>) -> TaskTracker {
    let deliveries = TaskTracker::new();
    let timing = shared.options.timing;
    let it = Arc::clone(shared);
    deliveries.spawn(async move { it.reports.deliver(&it.client, timing).await });
    let it = Arc::clone(shared);
    deliveries.spawn(async move { it.logs.deliver(&it.client, timing).await });
    deliveries
}

/// Tells the server that this agent lives. A beat that fails is not repeated: the next one comes,
/// and later than it would when the server does not know the agent any more.
async fn beat(client: Client, timing: Timing, stop: CancellationToken) {
    let mut backoff = Backoff::new(timing);
    let mut trouble = Trouble::new("heartbeat");
    while let Some(beat) = stop.run_until_cancelled(client.heartbeat()).await {
        let wait = match beat {
            Ok(()) => {
                trouble.worked();
                backoff.reset();
                timing.heartbeat
            }
            Err(error) => {
                let wait = backoff.next(error.verdict().but_ask_again()).max(timing.heartbeat);
                trouble.failed(&error, wait);
                wait
            }
        };
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            return;
        }
    }
}
