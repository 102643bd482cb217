//! Schedules of pools: `* HOUR DOM MONTH DOW` in a timezone (10-prebuilds, "Desired count at time
//! t"). A schedule denotes whole hours of local time: an hour that does not exist is skipped, a
//! repeated one holds both times.

use std::fmt;
use std::sync::LazyLock;

use jiff::civil::{Date, DateTime};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Span, Timestamp};

use crate::preset::Prebuilds;

mod cron;
#[cfg(test)]
mod tests;

pub use cron::{Cron, CronError, CronField};

/// How far ahead an edge is looked for. Whatever a cron can say recurs within eight years (29
/// February across a century that has none).
const HORIZON_DAYS: u32 = 9 * 366;

/// Most boundaries looked at in one search: hours of the days near an edge and clock changes.
const STEPS_MAX: usize = 4_096;

/// The timezone rules of the build, so that every replica decides alike and nothing is read.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// A schedule that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The cron is not of our form.
    #[error("schedule {cron:?}: {reason}")]
    Cron {
        /// The cron.
        cron: String,
        /// What is wrong with it.
        reason: CronError,
    },
    /// The timezone is not known.
    #[error("unknown timezone {timezone:?}; use an IANA name such as \"Europe/Berlin\"")]
    Timezone {
        /// The timezone.
        timezone: String,
    },
}

/// Looks up a timezone by its IANA name, ignoring case.
pub fn timezone(name: &str) -> Result<TimeZone, ScheduleError> {
    ZONES.get(name).map_err(|_| ScheduleError::Timezone { timezone: name.to_owned() })
}

/// A schedule that can be asked.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Its hours.
    pub cron: Cron,
    /// Whose local time counts.
    pub timezone: TimeZone,
    /// Instances while it holds.
    pub instances: u32,
}

impl Schedule {
    /// Reads a schedule.
    pub fn new(cron: &str, zone: &str, instances: u32) -> Result<Self, ScheduleError> {
        let timezone = timezone(zone)?;
        let cron =
            cron.parse().map_err(|reason| ScheduleError::Cron { cron: cron.to_owned(), reason })?;
        Ok(Self { cron, timezone, instances })
    }

    /// Whether it holds at `t`.
    #[must_use]
    pub fn contains(&self, t: Timestamp) -> bool {
        self.cron.contains(self.local(t))
    }

    fn local(&self, t: Timestamp) -> DateTime {
        self.timezone.to_datetime(t)
    }

    /// The first moment after `t` at which it begins or ceases to hold; `None` when it never does
    /// within nine years.
    #[must_use]
    pub fn next_edge(&self, t: Timestamp) -> Option<Timestamp> {
        let now = self.contains(t);
        let mut at = t;
        for _ in 0..STEPS_MAX {
            at = self.next_boundary(at, now)?;
            if self.contains(at) != now {
                return Some(at);
            }
        }
        None
    }

    /// A moment after `t` up to which nothing can change: the next full local hour or, on a day that
    /// is wholly like `holds`, the start of the next one that is not; a change of the clock if that
    /// comes first.
    fn next_boundary(&self, t: Timestamp, holds: bool) -> Option<Timestamp> {
        let local = self.local(t);
        let into_hour = Span::new()
            .minutes(i64::from(local.minute()))
            .seconds(i64::from(local.second()))
            .nanoseconds(i64::from(local.subsec_nanosecond()));
        let hour = t.checked_sub(into_hour).ok()?.checked_add(Span::new().hours(1)).ok()?;
        let boundary = if self.cron.is_uniform(local.date(), holds) {
            let next = self.next_mixed_day(local.date(), holds)?;
            // A midnight that does not exist means the end of the gap. One that the clock passes
            // twice means the first, which may be behind us already.
            let midnight =
                self.timezone.to_ambiguous_zoned(next.at(0, 0, 0, 0)).compatible().ok()?;
            if midnight.timestamp() > t { midnight.timestamp() } else { hour }
        } else {
            hour
        };
        let change = self.timezone.following(t).next().map(|it| it.timestamp());
        Some(change.map_or(boundary, |it| it.min(boundary)))
    }

    fn next_mixed_day(&self, from: Date, holds: bool) -> Option<Date> {
        let mut day = from;
        for _ in 0..HORIZON_DAYS {
            day = day.tomorrow().ok()?;
            if !self.cron.is_uniform(day, holds) {
                return Some(day);
            }
        }
        None
    }
}

/// The number of instances wanted at a moment, and what kept a schedule from deciding it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Instances wanted.
    pub instances: u32,
    /// Set where stored schedules no longer validate: `instances` is the base count then.
    pub warning: Option<ScheduleError>,
}

/// The number of instances wanted at `t`: that of the first schedule that holds, else the base
/// count. One schedule that cannot be read makes all of them give way to the base count, with a
/// warning.
#[must_use]
pub fn desired(prebuilds: &Prebuilds, t: Timestamp) -> Desired {
    let base = u32::try_from(prebuilds.instances).unwrap_or(0);
    match read(prebuilds) {
        Ok(schedules) => {
            let held = schedules.iter().find(|it| it.contains(t));
            Desired { instances: held.map_or(base, |it| it.instances), warning: None }
        }
        Err(error) => Desired { instances: base, warning: Some(error) },
    }
}

/// The first moment after `t` at which a schedule begins or ceases to hold.
#[must_use]
pub fn next_edge(prebuilds: &Prebuilds, t: Timestamp) -> Option<Timestamp> {
    read(prebuilds).ok()?.iter().filter_map(|it| it.next_edge(t)).min()
}

fn read(prebuilds: &Prebuilds) -> Result<Vec<Schedule>, ScheduleError> {
    prebuilds
        .schedules
        .iter()
        .map(|it| {
            let instances = u32::try_from(it.instances).unwrap_or(0);
            Schedule::new(&it.cron, &prebuilds.timezone, instances)
        })
        .collect()
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.timezone.iana_name().unwrap_or("UTC");
        write!(f, "{} {zone}: {}", self.cron, self.instances)
    }
}
