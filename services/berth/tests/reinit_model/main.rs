//! Reinitialisation as a model: claims, builds, agents, replicas and NATS come and go in random
//! order, and each agent process reinitialises exactly once for a claim, and never without one.
//!
//! `BERTH_REINIT_SEEDS=7` plays the script of seed 7, `BERTH_REINIT_SEEDS=1000..1300` plays many.

#![expect(clippy::unwrap_used, reason = "an unwrap that fails is a failed test, helpers included")]

mod daemon;
mod process;
mod script;
mod slot;
mod world;

use std::ops::Range;
use std::time::Instant;

use daemon::Daemon;
use script::Tally;
use world::World;

/// Played each time.
const SEEDS: Range<u64> = 1..8;

#[expect(clippy::disallowed_methods, reason = "a wish of whoever runs the tests")]
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("BERTH_REINIT_SEEDS") else { return SEEDS };
    let number =
        |text: &str| text.trim().parse().unwrap_or_else(|_| panic!("not a seed: {text:?}"));
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_agent_process_reinitialises_once_per_claim_and_never_without_whatever_happens() {
    let started = Instant::now();
    let mut world = World::new().await;
    let mut all = Tally::default();
    for seed in seeds() {
        let begun = Instant::now();
        // One that says nothing for a minute is taken for lost.
        let mut daemon = Daemon::register(&world.broker).await;
        let tally = script::play(&mut world, &mut daemon, seed).await;
        println!("seed {seed}: {tally:?}, {:.1} s", begun.elapsed().as_secs_f32());
        all.steps += tally.steps;
        all.processes += tally.processes;
        all.reinitialised += tally.reinitialised;
        all.stopped_asking += tally.stopped_asking;
    }
    println!("{all:?}, {:.1} s", started.elapsed().as_secs_f32());
    assert!(all.reinitialised > 0 || seeds() != SEEDS, "scripts do claim");
    assert!(all.stopped_asking > 0 || seeds() != SEEDS, "and claims fail");
}
