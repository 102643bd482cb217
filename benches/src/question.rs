//! The questions, one module each.

mod broker_idle;
mod burst;
mod claim;
mod claim_growth;
mod idle;
mod idle_memory;
mod idle_sweep;
mod membership;
mod promotion;
mod queue_latency;
mod queue_rate;
mod reinit;
mod settled;
mod shop;
mod sweep_delta;
mod terraform_overhead;
mod transfer;
mod trigger;
mod watch_all;

use crate::report::Report;
use crate::stage::Stage;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// What a sweep costs when there is nothing to do.
    IdleSweep,
    /// How long it takes from a committed change to the committed plan.
    Trigger,
    /// How fast pools are filled when some of many need it.
    SweepDelta,
    /// How long it takes from a promotion to everything that follows from it being ordered.
    Promotion,
    /// What a pass of the membership reconciler costs when everything is in order.
    Membership,
    /// What a claim costs and how long it takes.
    Claim,
    /// How that grows with workspaces.
    ClaimGrowth,
    /// Many claims at once.
    Burst,
    /// How long an agent takes to change its owner.
    Reinit,
    /// How fast watchers are told, and what they cost.
    WatchAll,
    /// What processes cost that have nothing to do.
    IdleMemory,
    /// How soon an idle daemon holds what is queued.
    QueueLatency,
    /// How fast a full queue is worked off.
    QueueRate,
    /// What a broker costs whose daemons wait.
    BrokerIdle,
    /// How long the largest file takes from a daemon and back, and what memory.
    Transfer,
    /// What a build adds to what Terraform takes.
    TerraformOverhead,
}

impl Question {
    /// Every question, in the order of `all`.
    pub(crate) const ALL: [Self; 16] = [
        Self::IdleSweep,
        Self::Trigger,
        Self::SweepDelta,
        Self::Promotion,
        Self::Membership,
        Self::Claim,
        Self::ClaimGrowth,
        Self::Burst,
        Self::Reinit,
        Self::WatchAll,
        Self::IdleMemory,
        Self::QueueLatency,
        Self::QueueRate,
        Self::BrokerIdle,
        Self::Transfer,
        Self::TerraformOverhead,
    ];

    /// As the command line says it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::IdleSweep => "idle-sweep",
            Self::Trigger => "trigger",
            Self::SweepDelta => "sweep-delta",
            Self::Promotion => "promotion",
            Self::Membership => "membership",
            Self::Claim => "claim",
            Self::ClaimGrowth => "claim-growth",
            Self::Burst => "burst",
            Self::Reinit => "reinit",
            Self::WatchAll => "watch-all",
            Self::IdleMemory => "idle-memory",
            Self::QueueLatency => "queue-latency",
            Self::QueueRate => "queue-rate",
            Self::BrokerIdle => "broker-idle",
            Self::Transfer => "transfer",
            Self::TerraformOverhead => "terraform-overhead",
        }
    }

    /// What it asks, in a line.
    pub(crate) const fn about(self) -> &'static str {
        match self {
            Self::IdleSweep => "a sweep with nothing to do, at 100 to 100 000 presets",
            Self::Trigger => "committed claim to committed plan, with the bus and without",
            Self::SweepDelta => "a sweep in which 1 % of 10 000 presets need one prebuild each",
            Self::Promotion => "promotion of a template with a pool of 100",
            Self::Membership => "a membership pass over 10 000 organizations in order",
            Self::Claim => "a claim from request to answer, at 1 to 64 clients and at 200/s",
            Self::ClaimGrowth => "a claim at 1 000 to 200 000 workspaces",
            Self::Burst => "300 claims at once, and 1 000 requests for 1 prebuild",
            Self::Reinit => "committed claim to the agent at work for its new owner",
            Self::WatchAll => "build updates to 1, 100 and 1 000 watchers; what an idle one costs",
            Self::IdleMemory => "resident memory of every process with nothing to do",
            Self::QueueLatency => {
                "committed build to the daemon that holds it, with the bus and without"
            }
            Self::QueueRate => {
                "jobs taken and completed a second by 1 to 64 daemons, 10 000 waiting"
            }
            Self::BrokerIdle => "a broker with 1 000 daemons and no jobs",
            Self::Transfer => "100 MiB from a daemon to the broker and back: time, peak memory",
            Self::TerraformOverhead => "a no-op Terraform build beside bare terraform apply",
        }
    }

    /// Measures. One question that cannot be answered does not keep the others from it.
    pub(crate) async fn answer(self, stage: &mut Stage) -> Report {
        let mut report = Report::new(self.name());
        let answered = match self {
            Self::IdleSweep => idle_sweep::answer(stage, &mut report).await,
            Self::Trigger => trigger::answer(stage, &mut report).await,
            Self::SweepDelta => sweep_delta::answer(stage, &mut report).await,
            Self::Promotion => promotion::answer(stage, &mut report).await,
            Self::Membership => membership::answer(stage, &mut report).await,
            Self::Claim => claim::answer(stage, &mut report).await,
            Self::ClaimGrowth => claim_growth::answer(stage, &mut report).await,
            Self::Burst => burst::answer(stage, &mut report).await,
            Self::Reinit => reinit::answer(stage, &mut report).await,
            Self::WatchAll => watch_all::answer(stage, &mut report).await,
            Self::IdleMemory => idle_memory::answer(stage, &mut report).await,
            Self::QueueLatency => queue_latency::answer(stage, &mut report).await,
            Self::QueueRate => queue_rate::answer(stage, &mut report).await,
            Self::BrokerIdle => broker_idle::answer(stage, &mut report).await,
            Self::Transfer => transfer::answer(stage, &mut report).await,
            Self::TerraformOverhead => terraform_overhead::answer(stage, &mut report).await,
        };
        if let Err(error) = answered {
            report.check(false, || format!("not measured to the end: {error:#}"));
        }
        report
    }
}
