//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);

/// Long enough for anything on a busy machine with two cores, debug build, real processes.
pub const SOON: Duration = Duration::from_mins(1);

/// Looks every 25 ms whether `probe` gives something. `what` names the condition: after `within` the
/// test fails with it.
pub async fn wait_until<T>(
    what: &str,
    within: Duration,
    probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    wait_patiently(what, POLL, within, probe).await
}

/// The same, for what is expensive to look at: with a pause of `every` between two looks.
pub async fn wait_patiently<T>(
    what: &str,
    every: Duration,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < within, "not within {} s: {what}", within.as_secs_f32());
        tokio::time::sleep(every).await;
    }
}
