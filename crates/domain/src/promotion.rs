//! What an open warm promotion does next (10-prebuilds, "Promotion"): wait, switch, or be called
//! off. Pure; whoever asks holds the template's row and carries the answer out in one transaction.

use jiff::Timestamp;

use crate::state::PrebuildStatus;

#[cfg(test)]
mod tests;

/// One pool of the candidate version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Name of its preset.
    pub preset_name: String,
    /// How many it may have before the switch: [`crate::plan::Plan::desired`] of its plan, which the
    /// surge limits.
    pub desired: u32,
    /// How many of them could be handed out.
    pub eligible: u32,
    /// Its health as its newest plan left it.
    pub status: PrebuildStatus,
}

/// An open warm promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    /// The candidate version's pools.
    pub pools: Vec<Candidate>,
    /// Percent of each pool's desired count that must be ready, 1 to 100.
    pub ready_percent: u32,
    /// When it is called off.
    pub deadline: Timestamp,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Not enough are ready.
    Wait {
        /// How many are missing, over all pools.
        missing: u32,
        /// When time alone changes the answer: the deadline.
        until: Timestamp,
    },
    /// The candidate becomes the active version.
    Switch,
    /// The active version stays, and the candidate's prebuilds go.
    CallOff(CallOff),
}

/// Why a warm promotion is called off, as a sentence for template admins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallOff {
    /// A pool of the candidate failed too often in a row.
    #[error("creating prebuilds of preset {preset:?} failed too often in a row")]
    BreakerOpened {
        /// Name of the pool's preset.
        preset: String,
    },
    /// The builder refused the values of a candidate's preset for good.
    #[error("the values of preset {preset:?} were refused; push a version that fixes them")]
    ValidationFailed {
        /// Name of the preset.
        preset: String,
    },
    /// The deadline passed.
    #[error("the time was up when {ready} of {needed} prebuilds were ready")]
    TimedOut {
        /// How many were ready of those that were needed.
        ready: u32,
        /// How many had to be.
        needed: u32,
    },
}

/// Decides an open warm promotion. A sick pool calls it off even where enough are ready: the new
/// version could not be kept up. Enough ready ones switch even at the deadline: nobody waits for
/// anything any more.
#[must_use]
pub fn decide(promotion: &Promotion, now: Timestamp) -> Step {
    let preset = |it: &Candidate| it.preset_name.clone();
    let sick = |status| promotion.pools.iter().filter(move |it| it.status == status).map(preset);
    if let Some(preset) = sick(PrebuildStatus::ValidationFailed).min() {
        return Step::CallOff(CallOff::ValidationFailed { preset });
    }
    if let Some(preset) = sick(PrebuildStatus::HardLimited).min() {
        return Step::CallOff(CallOff::BreakerOpened { preset });
    }
    let sum = |count: &dyn Fn(&Candidate) -> u32| {
        promotion.pools.iter().map(count).fold(0, u32::saturating_add)
    };
    let needed = sum(&|it| needed(it, promotion.ready_percent));
    let ready = sum(&|it| it.eligible.min(self::needed(it, promotion.ready_percent)));
    if ready >= needed {
        return Step::Switch;
    }
    if promotion.deadline <= now {
        return Step::CallOff(CallOff::TimedOut { ready, needed });
    }
    Step::Wait { missing: needed - ready, until: promotion.deadline }
}

/// How many of a pool must be ready: `percent` of what it may have, rounded up.
#[must_use]
pub fn needed(pool: &Candidate, percent: u32) -> u32 {
    let share = (u64::from(percent.min(100)) * u64::from(pool.desired)).div_ceil(100);
    u32::try_from(share).unwrap_or(u32::MAX)
}
