//! When scripts run. The schedules of prebuilds are another form, and the domain's.

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
