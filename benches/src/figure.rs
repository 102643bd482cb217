//! Latencies, and how figures are written.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// The longest latency that is told from longer ones: ten minutes, in microseconds.
const LONGEST: u64 = 600_000_000;

/// An empty histogram of microseconds, exact to 0.1 %.
pub(crate) fn histogram() -> Histogram<u64> {
    let made = Histogram::new_with_bounds(1, LONGEST, 3);
    made.expect("the bounds are in order and three digits are allowed")
}

/// Whole microseconds, at least 1.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(LONGEST).max(1)
}

/// A cell of a table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    /// Words.
    Text(String),
    /// A count.
    Count(u64),
    /// A measured value and how many digits after the point are worth showing.
    Number(f64, usize),
    /// Not measured.
    None,
}

impl Cell {
    /// For people.
    pub(crate) fn show(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(count) => grouped(*count),
            Self::Number(number, digits) => format!("{number:.digits$}"),
            Self::None => "-".to_owned(),
        }
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Count(count) => json!(count),
            Self::Number(number, _) => json!((number * 1e6).round() / 1e6),
            Self::None => Value::Null,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Cell {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

/// Milliseconds with three digits after the point.
impl From<Duration> for Cell {
    fn from(time: Duration) -> Self {
        Self::Number(time.as_secs_f64() * 1e3, 3)
    }
}

/// A quantile in milliseconds; nothing recorded has none.
pub(crate) fn quantile(latency: &Histogram<u64>, quantile: f64) -> Cell {
    if latency.is_empty() {
        return Cell::None;
    }
    Cell::from(Duration::from_micros(latency.value_at_quantile(quantile)))
}

/// One of several: `sum / count`, with digits that fit its size.
pub(crate) fn mean(sum: f64, count: u64) -> Cell {
    if count == 0 {
        return Cell::None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a mean for people")]
    let mean = sum / count as f64;
    Cell::Number(mean, if mean < 10.0 { 2 } else { 1 })
}

/// The same of a count.
#[expect(clippy::cast_precision_loss, reason = "a mean for people")]
pub(crate) fn mean_count(sum: u64, count: u64) -> Cell {
    mean(sum as f64, count)
}

/// Bytes as MiB.
pub(crate) fn mebibytes(bytes: u64) -> Cell {
    let tenths = u32::try_from(bytes * 10 / (1 << 20)).unwrap_or(u32::MAX);
    Cell::Number(f64::from(tenths) / 10.0, 1)
}

/// `12345678` as `12 345 678`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_in_groups_of_three() {
        assert_eq!(
            [0, 12, 123, 1234, 123_456, 1_234_567].map(grouped),
            ["0", "12", "123", "1 234", "123 456", "1 234 567"]
        );
    }

    #[test]
    fn a_quantile_of_nothing_is_none() {
        let mut latency = histogram();
        assert_eq!(quantile(&latency, 0.5), Cell::None);
        latency.record(1500).unwrap();
        assert_eq!(quantile(&latency, 0.5).show(), "1.500");
    }
}
