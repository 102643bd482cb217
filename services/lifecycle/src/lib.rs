//! Autostart, autostop, dormancy and purges of ordinary workspaces. So far: purges, and agents that
//! went silent.

mod agents;
mod config;
mod purge;

use std::time::Duration;

use berth_backbone::Backbone;
use berth_service_kit::{Context, Period};
use prometheus::{IntCounter, IntCounterVec, Opts};

pub use config::{AgentConfig, Config, PurgeConfig};

/// Runs the service until it is told to stop.
pub async fn run(ctx: Context<Config>) -> anyhow::Result<()> {
    let backbone = Backbone::open(&ctx).await?;
    let deleted = IntCounterVec::new(
        Opts::new("berth_purged_rows_total", "Rows deleted because of their age, by table."),
        &["table"],
    )?;
    ctx.metrics.register(Box::new(deleted.clone()))?;
    let lost = IntCounter::new("berth_agents_lost_total", "Agents that went silent.")?;
    ctx.metrics.register(Box::new(lost.clone()))?;

    let purge = purge::Purge {
        db: backbone.db.clone(),
        clock: backbone.clock.clone(),
        config: ctx.config.purge.clone(),
        deleted,
    };
    ctx.spawn("purge", purge.run(ctx.shutdown.clone()));
    let watch = agents::Watch { backbone, config: ctx.config.agents.clone(), lost };
    ctx.spawn("agents", watch.run(ctx.shutdown.clone()));
    ctx.drain().await
}

/// An interval as a timer takes it: never zero.
fn at_least(interval: Period) -> Duration {
    interval.as_duration().max(Duration::from_millis(100))
}

#[cfg(test)]
mod tests;
