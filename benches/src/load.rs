//! Requests: as fast as some clients get answers, or at random moments whatever has become of the
//! earlier ones.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::figure::{histogram, micros};
use crate::wire::{Answer, Wire};

/// Connections that are there before the first request of an open loop.
const WARM: usize = 64;

/// What came of some requests.
#[derive(Debug)]
pub(crate) struct Played {
    /// Microseconds of each, from the moment it was sent; in an open loop, was to be sent.
    pub(crate) latency: Histogram<u64>,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
    /// Every answer, in no order.
    pub(crate) answers: Vec<Answer>,
}

impl Played {
    fn new() -> Self {
        Self { latency: histogram(), took: Duration::ZERO, answers: Vec::new() }
    }

    fn add(&mut self, (latency, answer): (Duration, Answer)) {
        self.latency.saturating_record(micros(latency));
        self.answers.push(answer);
    }
}

/// Each of `clients` sends the next request when it has an answer to its last.
pub(crate) async fn closed(
    address: &str,
    clients: usize,
    requests: Vec<Vec<u8>>,
) -> anyhow::Result<Played> {
    let mut wires = Vec::new();
    for _ in 0..clients {
        wires.push(Wire::connect(address).await?);
    }
    let (requests, next) = (Arc::new(requests), Arc::new(AtomicUsize::new(0)));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut wire in wires {
        let (requests, next) = (Arc::clone(&requests), Arc::clone(&next));
        tasks.spawn(async move {
            let mut mine = Vec::new();
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let sent = Instant::now();
                let answer = wire.ask(request).await?;
                mine.push((sent.elapsed(), answer));
            }
            anyhow::Ok(mine)
        });
    }
    let mut played = Played::new();
    while let Some(mine) = tasks.join_next().await {
        mine.context("a client's task")??.into_iter().for_each(|it| played.add(it));
    }
    played.took = started.elapsed();
    Ok(played)
}

/// Sends requests at the moments of a Poisson process.
pub(crate) async fn open(
    address: &str,
    per_second: f64,
    seed: u64,
    requests: Vec<Vec<u8>>,
) -> anyhow::Result<Played> {
    let mut wires = Vec::new();
    for _ in 0..WARM.min(requests.len()) {
        wires.push(Wire::connect(address).await?);
    }
    let idle = Arc::new(Mutex::new(wires));
    let (due, mut dues) = mpsc::unbounded_channel();
    let (started, count) = (Instant::now(), requests.len());
    // A thread of its own: the runtime's timers are whole milliseconds.
    let clock = tokio::task::spawn_blocking(move || {
        let (mut arrivals, mut at) = (Arrivals(seed), started);
        for _ in 0..count {
            at += arrivals.next(per_second);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            // Nobody listens any more where a request has failed.
            let _ = due.send(at);
        }
    });
    let mut tasks = JoinSet::new();
    for request in requests {
        let at = dues.recv().await.context("a moment for each request")?;
        let (address, idle) = (address.to_owned(), Arc::clone(&idle));
        tasks.spawn(async move {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut wire = match kept {
                Some(wire) => wire,
                None => Wire::connect(&address).await?,
            };
            let answer = wire.ask(&request).await?;
            let took = at.elapsed();
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(wire);
            anyhow::Ok((took, answer))
        });
    }
    clock.await.context("the clock's thread")?;
    let mut played = Played::new();
    while let Some(one) = tasks.join_next().await {
        played.add(one.context("a request's task")??);
    }
    played.took = started.elapsed();
    Ok(played)
}

/// Moments between arrivals of a Poisson process (splitmix64, so that every run has the same).
#[derive(Debug)]
pub(crate) struct Arrivals(pub(crate) u64);

impl Arrivals {
    /// The time from one arrival to the next, at that many a second.
    pub(crate) fn next(&mut self, per_second: f64) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // 32 bits are plenty, and fit a float exactly; never zero.
        let upper = u32::try_from(bits >> 32).unwrap_or(u32::MAX);
        let uniform = (f64::from(upper) + 1.0) / (f64::from(u32::MAX) + 1.0);
        Duration::from_secs_f64(-uniform.ln() / per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_their_rate() {
        let mut arrivals = Arrivals(2025);
        let all: Duration = (0..10_000).map(|_| arrivals.next(50.0)).sum();
        assert!((190.0..210.0).contains(&all.as_secs_f64()), "{all:?}");
    }
}
