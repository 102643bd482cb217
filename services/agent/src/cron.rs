//! Cron expressions of scripts: five fields, or six with seconds first, in the machine's time zone.

use std::str::FromStr;

use jiff::civil::{Date, Time};
use jiff::{ToSpan as _, Zoned};

/// The rarest date, 29 February, may be eight years away (around 2100).
const MAX_DAYS: i32 = 8 * 366 + 1;

/// When a script runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cron {
    seconds: u64,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// With both restricted, cron runs when either matches.
    either_day: bool,
}

/// The text is no cron expression.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no cron expression: {reason}")]
pub(crate) struct CronError {
    text: String,
    reason: String,
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        let error = |reason| CronError { text: text.to_owned(), reason };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let (second, rest) = match fields.as_slice() {
            [second, rest @ ..] if rest.len() == 5 => (*second, rest),
            rest if rest.len() == 5 => ("0", rest),
            other => return Err(error(format!("5 or 6 fields are needed, {} given", other.len()))),
        };
        let cron = Self {
            seconds: field(second, 0, 59, &[]).map_err(error)?,
            minutes: field(rest[0], 0, 59, &[]).map_err(error)?,
            hours: field(rest[1], 0, 23, &[]).map_err(error)?,
            days: field(rest[2], 1, 31, &[]).map_err(error)?,
            months: field(rest[3], 1, 12, &MONTHS).map_err(error)?,
            weekdays: fold_sunday(field(rest[4], 0, 7, &WEEKDAYS).map_err(error)?),
            either_day: !is_star(rest[2]) && !is_star(rest[4]),
        };
        Ok(cron)
    }
}

const MONTHS: [&str; 13] =
    ["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

fn is_star(text: &str) -> bool {
    text.starts_with('*') || text == "?"
}

/// Sunday is 0 and 7.
fn fold_sunday(weekdays: u64) -> u64 {
    (weekdays | (weekdays >> 7)) & 0x7f
}

/// The set that one field names, as bits.
fn field(text: &str, min: u32, max: u32, names: &[&str]) -> Result<u64, String> {
    let value = |text: &str| -> Result<u32, String> {
        let lower = text.to_lowercase();
        if let Some(at) = names.iter().position(|name| !name.is_empty() && *name == lower) {
            return Ok(u32::try_from(at).unwrap_or(max));
        }
        match text.parse::<u32>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!("{text:?} is not between {min} and {max}")),
        }
    };
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => match step.parse::<usize>() {
                Ok(step) if step > 0 => (range, Some(step)),
                _ => return Err(format!("{step:?} is no step")),
            },
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (min, max),
            Some((first, last)) => (value(first)?, value(last)?),
            // `5/10` counts from 5 to the end.
            None if step.is_some() => (value(range)?, max),
            None => (value(range)?, value(range)?),
        };
        if first > last {
            return Err(format!("{range:?} ends before it begins"));
        }
        for number in (first..=last).step_by(step.unwrap_or(1)) {
            set |= 1 << number;
        }
    }
    Ok(set)
}

fn has(set: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|number| set >> number & 1 == 1)
}

impl Cron {
    /// The first moment after `now`, `None` for a date that does not exist. A time that the clocks
    /// skip happens when they have skipped it.
    pub(crate) fn next_after(&self, now: &Zoned) -> Option<Zoned> {
        let mut date = now.date();
        for _ in 0..MAX_DAYS {
            if self.runs_on(date)
                && let Some(at) = self.first_on(date, now)
            {
                return Some(at);
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    fn runs_on(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month())
            && if self.either_day { day || weekday } else { day && weekday }
    }

    fn first_on(&self, date: Date, now: &Zoned) -> Option<Zoned> {
        for hour in (0..24).filter(|hour| has(self.hours, *hour)) {
            // Most of a day lies before `now`; skip it by the hour. Clocks jump by one at most.
            if date == now.date() && hour + 1 < now.hour() {
                continue;
            }
            for minute in (0..60).filter(|minute| has(self.minutes, *minute)) {
                for second in (0..60).filter(|second| has(self.seconds, *second)) {
                    let time = Time::new(hour, minute, second, 0).ok()?;
                    let at = date.to_datetime(time).to_zoned(now.time_zone().clone()).ok()?;
                    if at > *now {
                        return Some(at);
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cron: &str, now: &str, expected: &str) {
        let now: Zoned = now.parse().unwrap();
        let next = cron.parse::<Cron>().unwrap().next_after(&now).unwrap();
        assert_eq!(next.datetime().to_string(), expected, "{cron} after {now}");
    }

    #[test]
    fn the_next_moment_is_the_first_that_matches() {
        let now = "2026-11-21T12:34:56.5[UTC]";
        check("* * * * *", now, "2026-11-21T12:35:00");
        check("*/5 * * * * *", now, "2026-11-21T12:35:00");
        check("58 * * * * *", now, "2026-11-21T12:34:58");
        check("30 12 * * *", now, "2026-11-22T12:30:00");
        check("0 22 * * 1-5", now, "2026-11-23T22:00:00");
        check("0 0 1 jan *", now, "2027-01-01T00:00:00");
        check("15/20 9-17/4 * * *", now, "2026-11-21T13:15:00");
        check("0 0 29 2 *", now, "2028-02-29T00:00:00");
        check("0 0 * * 7", now, "2026-11-22T00:00:00");
    }

    #[test]
    fn a_day_of_month_and_a_weekday_are_alternatives() {
        check("0 0 1 * mon", "2026-11-21T00:00:00[UTC]", "2026-11-23T00:00:00");
        check("0 0 1 * mon", "2026-11-30T00:00:00[UTC]", "2026-12-01T00:00:00");
    }

    #[test]
    fn clocks_that_jump_neither_lose_a_run_nor_stop_time() {
        let spring = "2026-03-29T01:59:00[Europe/Berlin]";
        check("30 2 * * *", spring, "2026-03-29T03:30:00");
        check("0 3 * * *", spring, "2026-03-29T03:00:00");
        check("30 2 * * *", "2026-10-25T02:30:00+02:00[Europe/Berlin]", "2026-10-26T02:30:00");
    }

    #[test]
    fn what_is_no_cron_expression_is_refused_with_the_reason() {
        for (text, reason) in [
            ("* * * *", "5 or 6 fields are needed, 4 given"),
            ("60 * * * *", "\"60\" is not between 0 and 59"),
            ("5-1 * * * *", "\"5-1\" ends before it begins"),
            ("*/0 * * * *", "\"0\" is no step"),
            ("* * 0 * *", "\"0\" is not between 1 and 31"),
            ("@daily", "5 or 6 fields are needed, 1 given"),
        ] {
            assert_eq!(text.parse::<Cron>().unwrap_err().reason, reason);
        }
        let never: Cron = "0 0 31 2 *".parse().unwrap();
        assert_eq!(never.next_after(&"2026-01-01T00:00:00[UTC]".parse().unwrap()), None);
    }
}
