//! The questions, one module each.

mod idle;
mod idle_sweep;
mod membership;
mod promotion;
mod settled;
mod sweep_delta;
mod trigger;

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
}

impl Question {
    /// Every question, in the order of `all`.
    pub(crate) const ALL: [Self; 5] =
        [Self::IdleSweep, Self::Trigger, Self::SweepDelta, Self::Promotion, Self::Membership];

    /// As the command line says it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::IdleSweep => "idle-sweep",
            Self::Trigger => "trigger",
            Self::SweepDelta => "sweep-delta",
            Self::Promotion => "promotion",
            Self::Membership => "membership",
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
        }
    }

    /// Measures.
    pub(crate) async fn answer(self, stage: &mut Stage) -> anyhow::Result<Report> {
        let mut report = Report::new(self.name());
        match self {
            Self::IdleSweep => idle_sweep::answer(stage, &mut report).await,
            Self::Trigger => trigger::answer(stage, &mut report).await,
            Self::SweepDelta => sweep_delta::answer(stage, &mut report).await,
            Self::Promotion => promotion::answer(stage, &mut report).await,
            Self::Membership => membership::answer(stage, &mut report).await,
        }?;
        Ok(report)
    }
}
