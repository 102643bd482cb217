//! The cron form of pools: `* HOUR DOM MONTH DOW`, each a `*` or a list of values and ranges. No
//! steps, no names; Sunday is 0.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use jiff::civil::{Date, DateTime};

/// A field of a cron.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CronField {
    /// Always `*`: schedules denote whole hours.
    Minute,
    /// 0 to 23.
    Hour,
    /// 1 to 31.
    DayOfMonth,
    /// 1 to 12.
    Month,
    /// 0 to 6, Sunday is 0.
    DayOfWeek,
}

impl CronField {
    const fn range(self) -> RangeInclusive<u32> {
        match self {
            Self::Minute => 0..=59,
            Self::Hour => 0..=23,
            Self::DayOfMonth => 1..=31,
            Self::Month => 1..=12,
            Self::DayOfWeek => 0..=6,
        }
    }
}

impl fmt::Display for CronField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day of month",
            Self::Month => "month",
            Self::DayOfWeek => "day of week",
        })
    }
}

/// Why a text is no cron of our form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// Not five fields.
    #[error("it has {0} fields; write five: * HOUR DOM MONTH DOW")]
    Fields(usize),
    /// A minute is named.
    #[error("the minute is {0:?}; it must be *, because schedules denote whole hours")]
    Minute(String),
    /// Neither a value nor a range, or out of bounds.
    #[error(
        "the {field} has {item:?}; use *, values, lists and ranges from {} to {}, no steps, no names",
        field.range().start(),
        field.range().end()
    )]
    Item {
        /// The field.
        field: CronField,
        /// The part of it that cannot be read.
        item: String,
    },
    /// A range that runs backwards.
    #[error("the {field} has the range {item:?}, which runs backwards; write two ranges")]
    Backwards {
        /// The field.
        field: CronField,
        /// The range.
        item: String,
    },
}

/// One field: the set of its values, and whether it is restricted at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Set {
    bits: u32,
    is_star: bool,
}

impl Set {
    fn read(field: CronField, text: &str) -> Result<Self, CronError> {
        let range = field.range();
        if text == "*" {
            return Ok(Self { bits: range.fold(0, |bits, it| bits | 1 << it), is_star: true });
        }
        let mut bits = 0;
        for item in text.split(',') {
            let refuse = || CronError::Item { field, item: item.to_owned() };
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let first = value(first).filter(|it| range.contains(it)).ok_or_else(refuse)?;
            let last = value(last).filter(|it| range.contains(it)).ok_or_else(refuse)?;
            if first > last {
                return Err(CronError::Backwards { field, item: item.to_owned() });
            }
            bits = (first..=last).fold(bits, |bits, it| bits | 1 << it);
        }
        Ok(Self { bits, is_star: false })
    }

    const fn has(self, value: u32) -> bool {
        self.bits & (1 << value) != 0
    }
}

/// One or two digits; `parse` alone would take a sign.
fn value(text: &str) -> Option<u32> {
    let is_plain = matches!(text.len(), 1 | 2) && text.bytes().all(|it| it.is_ascii_digit());
    is_plain.then(|| text.parse().ok())?
}

/// The hours of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    hour: Set,
    day_of_month: Set,
    month: Set,
    day_of_week: Set,
    text: String,
}

const ALL_HOURS: u32 = (1 << 24) - 1;

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minute, hour, day_of_month, month, day_of_week] = fields[..] else {
            return Err(CronError::Fields(fields.len()));
        };
        if minute != "*" {
            return Err(CronError::Minute(minute.to_owned()));
        }
        Ok(Self {
            hour: Set::read(CronField::Hour, hour)?,
            day_of_month: Set::read(CronField::DayOfMonth, day_of_month)?,
            month: Set::read(CronField::Month, month)?,
            day_of_week: Set::read(CronField::DayOfWeek, day_of_week)?,
            text: fields.join(" "),
        })
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Cron {
    /// Whether this hour of local time is one of its hours.
    #[must_use]
    pub fn contains(&self, local: DateTime) -> bool {
        self.has_day(local.date()) && self.hour.has(local.hour().unsigned_abs().into())
    }

    /// Whether two crons of one timezone share an hour.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.hour.bits & other.hour.bits == 0 {
            return false;
        }
        // Within 400 years every day of the year, 29 February included, falls on every weekday.
        (1..=12).any(|month| {
            (1..=longest(month)).any(|day| {
                (0..=6)
                    .any(|weekday| self.has(month, day, weekday) && other.has(month, day, weekday))
            })
        })
    }

    /// Whether every hour of `day` is one of its hours (`holds`), or none is.
    pub(super) fn is_uniform(&self, day: Date, holds: bool) -> bool {
        if holds { self.hour.bits == ALL_HOURS && self.has_day(day) } else { !self.has_day(day) }
    }

    fn has_day(&self, day: Date) -> bool {
        self.has(
            day.month().unsigned_abs().into(),
            day.day().unsigned_abs().into(),
            day.weekday().to_sunday_zero_offset().unsigned_abs().into(),
        )
    }

    /// Cron's rule for days: where both fields are restricted, either may match.
    fn has(&self, month: u32, day: u32, weekday: u32) -> bool {
        let by_day = self.day_of_month.has(day);
        let by_weekday = self.day_of_week.has(weekday);
        let is_day = if self.day_of_month.is_star || self.day_of_week.is_star {
            by_day && by_weekday
        } else {
            by_day || by_weekday
        };
        self.month.has(month) && is_day
    }
}

const fn longest(month: u32) -> u32 {
    match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}
