//! Cron expressions: the schedules of prebuilds, and when scripts run.

/// The values of one field; bit *n* for value *n*, all of them below 64.
type Set = u64;

/// When a prebuild schedule holds: whole hours of days.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    hours: Set,
    days: Days,
}

/// Days of the year by month, day of month and day of week.
#[derive(Debug, PartialEq, Eq)]
struct Days {
    months: Set,
    of_month: Option<Set>,
    of_week: Option<Set>,
}

/// The longest each month can be; February in a leap year.
const DAYS_OF_MONTH: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

impl Schedule {
    /// Reads `* HOUR DOM MONTH DOW`: values, lists and ranges, no steps; Sunday is 0.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<_> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!(
                "{text:?} has {} fields; `* HOUR DOM MONTH DOW` has 5.",
                fields.len()
            ));
        };
        if minute != "*" {
            return Err(format!(
                "The minute of {text:?} is {minute:?}; it must be \"*\", since schedules hold for \
                 whole hours."
            ));
        }
        let field = |name, field, bounds| {
            parse_field(field, bounds).map_err(|why| format!("The {name} of {text:?}: {why}"))
        };
        let hours = field("hour", hour, (0, 23))?;
        let of_month = field("day of month", day, (1, 31))?;
        let months = field("month", month, (1, 12))?;
        let of_week = field("day of week", weekday, (0, 6))?;
        let days = Days {
            months,
            of_month: (day != "*").then_some(of_month),
            of_week: (weekday != "*").then_some(of_week),
        };
        Ok(Self { hours, days })
    }

    /// Whether some hour of some day belongs to both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.hours & other.hours != 0 && self.days.overlap(&other.days)
    }
}

impl Days {
    /// Every day of month falls on every day of week in some year, so each pair is looked at.
    fn overlap(&self, other: &Self) -> bool {
        (1..).zip(DAYS_OF_MONTH).any(|(month, length)| {
            (1..=length).any(|day| {
                (0..7).any(|weekday| {
                    self.hold(month, day, weekday) && other.hold(month, day, weekday)
                })
            })
        })
    }

    fn hold(&self, month: u32, day: u32, weekday: u32) -> bool {
        let has = |set: Set, value: u32| set & (1 << value) != 0;
        let day_holds = match (self.of_month, self.of_week) {
            (None, None) => true,
            (Some(days), None) => has(days, day),
            (None, Some(weekdays)) => has(weekdays, weekday),
            // Cron's rule: when both are restricted, either is enough.
            (Some(days), Some(weekdays)) => has(days, day) || has(weekdays, weekday),
        };
        has(self.months, month) && day_holds
    }
}

fn parse_field(field: &str, (min, max): (u32, u32)) -> Result<Set, String> {
    if field == "*" {
        return Ok((min..=max).fold(0, |set, value| set | 1 << value));
    }
    if field.contains('/') {
        return Err(format!("{field:?} has a step; steps are not allowed."));
    }
    field.split(',').try_fold(0, |set, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| match text.parse::<u32>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!("{text:?} is not a number from {min} to {max}.")),
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("the range {part:?} ends before it begins."));
        }
        Ok((first..=last).fold(set, |set, value| set | 1 << value))
    })
}

const MONTHS: &[&str] =
    &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const DESCRIPTORS: &[&str] =
    &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// Checks when a script runs: `SECOND MINUTE HOUR DOM MONTH [DOW]` with lists, ranges, steps and
/// names, or a word such as `@daily`, or `@every 1h30m`.
pub(crate) fn check_script(text: &str) -> Result<(), String> {
    let text = text.trim();
    if let Some(every) = text.strip_prefix("@every ") {
        return if is_duration(every.trim()) {
            Ok(())
        } else {
            Err(format!("{every:?} is not a duration such as 90s or 1h30m."))
        };
    }
    if text.starts_with('@') {
        return if DESCRIPTORS.contains(&text) {
            Ok(())
        } else {
            Err(format!("{text:?} is none of {}, @every.", DESCRIPTORS.join(", ")))
        };
    }
    let fields: Vec<_> = text.split_whitespace().collect();
    if !(5..=6).contains(&fields.len()) {
        return Err(format!(
            "{text:?} has {} fields; `SECOND MINUTE HOUR DOM MONTH DOW` has 6, of which the last \
             may be left out.",
            fields.len()
        ));
    }
    let bounds: [(u32, u32, &[&str]); 6] =
        [(0, 59, &[]), (0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, WEEKDAYS)];
    for (field, (min, max, names)) in fields.into_iter().zip(bounds) {
        for part in field.split(',') {
            check_part(part, (min, max), names).map_err(|why| format!("In {text:?}: {why}"))?;
        }
    }
    Ok(())
}

fn check_part(part: &str, (min, max): (u32, u32), names: &[&str]) -> Result<(), String> {
    let (range, step) = part.split_once('/').unwrap_or((part, "1"));
    if !step.parse::<u32>().is_ok_and(|step| step > 0) {
        return Err(format!("the step {step:?} is not a positive number."));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| {
        let position = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let number = match position.map(u32::try_from) {
            // Months are counted from 1, weekdays from 0, each from its own lower bound.
            Some(Ok(position)) => Some(position + min),
            _ => text.parse().ok(),
        };
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| format!("{text:?} is not a number from {min} to {max}."))
    };
    if number(first)? > number(last)? {
        return Err(format!("the range {range:?} ends before it begins."));
    }
    Ok(())
}

/// Numbers with units, as Go writes durations: `1h30m`, `1.5s`.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = &rest[..rest.len() - digits.len()];
        let unit = ["ns", "us", "ms", "s", "m", "h"]
            .into_iter()
            .filter(|unit| digits.starts_with(unit))
            .max_by_key(|unit| unit.len());
        match unit {
            Some(unit) if number.parse::<f64>().is_ok() => rest = &digits[unit.len()..],
            _ => return false,
        }
    }
    !text.is_empty()
}

#[cfg(test)]
mod tests;
