//! Quota arithmetic (60-membership-quota). Amounts are credits a day, as `coder_metadata` gives
//! them; none is negative.

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// What a user may spend in an organization and what is spent already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Sum of the allowances of the user's groups, Everyone included.
    pub budget: i64,
    /// Sum of the daily costs of the latest builds of the user's *other* live workspaces.
    pub consumed: i64,
}

/// A refused cost, with the numbers that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "quota exceeded: {consumed} of {budget} credits are in use and this build costs {cost}; \
     stop or delete other workspaces, or ask for a larger allowance"
)]
pub struct QuotaExceeded {
    /// Credits a day the user may spend.
    pub budget: i64,
    /// Credits a day in use, this workspace left out.
    pub consumed: i64,
    /// Credits a day of this build.
    pub cost: i64,
}

impl Quota {
    /// Whether a build of `cost` fits, when the same workspace's previous build cost `previous` (0
    /// for the first). A build that costs less than the previous one always fits.
    pub fn check(self, cost: i64, previous: i64) -> Result<(), QuotaExceeded> {
        let Self { budget, consumed } = self;
        if consumed.saturating_add(cost) > budget && cost >= previous {
            return Err(QuotaExceeded { budget, consumed, cost });
        }
        Ok(())
    }

    /// How many new builds of `cost` fit beside what is consumed, at most `wanted`.
    #[must_use]
    pub fn room_for(self, cost: i64, wanted: u32) -> u32 {
        if cost <= 0 {
            return wanted;
        }
        let left = self.budget.saturating_sub(self.consumed).max(0) / cost;
        u32::try_from(left).map_or(wanted, |left| left.min(wanted))
    }
}
