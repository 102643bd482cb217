//! What changes of workspaces share: checks of schedules and TTLs, and the audit log.

use berth_backbone::Work;
use berth_db::audit;
use berth_domain::id::OrganizationId;
use berth_domain::schedule;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;

/// Least TTL, in milliseconds.
const TTL_MIN_MS: i64 = 60_000;
/// Largest TTL, in milliseconds.
const TTL_MAX_MS: i64 = 30 * 24 * 3_600_000;

/// Checks an autostart schedule: `[CRON_TZ=zone] MINUTE HOUR * * DOW`.
pub(crate) fn check_schedule(text: &str) -> Result<(), ApiError> {
    let refuse = |why: String| ApiError::field("autostart_schedule", why);
    let (zone, rest) = match text.trim().strip_prefix("CRON_TZ=") {
        Some(tail) => tail.split_once(' ').unwrap_or((tail, "")),
        None => ("UTC", text.trim()),
    };
    schedule::timezone(zone).map_err(|error| refuse(error.to_string()))?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let [minute, hour, "*", "*", dow] = fields.as_slice() else {
        return Err(refuse(format!(
            "{text:?} is not a schedule; use CRON_TZ=<zone> MINUTE HOUR * * DAYS, such as \
             CRON_TZ=Europe/Berlin 30 9 * * 1-5"
        )));
    };
    let within = |text: &str, max: u8| text.parse::<u8>().is_ok_and(|it| it <= max);
    let day = |text: &str| {
        within(text, 7)
            || ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
                .contains(&text.to_lowercase().as_str())
    };
    let days = |part: &str| match part.split_once('-') {
        Some((from, to)) => day(from) && day(to),
        None => part == "*" || day(part),
    };
    if !within(minute, 59) || !within(hour, 23) || !dow.split(',').all(days) {
        return Err(refuse(format!(
            "{text:?} needs one minute 0-59, one hour 0-23 and days 0-7 or sun-sat"
        )));
    }
    Ok(())
}

/// Checks a TTL; 0 is none.
pub(crate) fn check_ttl(ttl_ms: i64) -> Result<Option<i64>, ApiError> {
    match ttl_ms {
        0 => Ok(None),
        TTL_MIN_MS..=TTL_MAX_MS => Ok(Some(ttl_ms)),
        _ => Err(ApiError::field(
            "ttl_ms",
            format!("is {ttl_ms}; use 0 for none, or {TTL_MIN_MS} to {TTL_MAX_MS}"),
        )),
    }
}

/// Checks how a workspace is updated.
pub(crate) fn check_updates(text: Option<&str>) -> Result<String, ApiError> {
    match text {
        None | Some("" | "never") => Ok("never".to_owned()),
        Some("always") => Ok("always".to_owned()),
        Some(other) => {
            Err(ApiError::field("automatic_updates", format!("is {other:?}; use always or never")))
        }
    }
}

/// A line of the audit log.
pub(crate) struct Line<'a> {
    /// Where.
    pub(crate) organization: OrganizationId,
    /// What was done.
    pub(crate) action: &'static str,
    /// To what kind of thing.
    pub(crate) resource_type: &'static str,
    /// To which one.
    pub(crate) id: Uuid,
    /// Its name.
    pub(crate) target: &'a str,
    /// By field.
    pub(crate) diff: Value,
}

/// Writes a line, in the transaction of the change.
pub(crate) async fn audit(
    work: &mut Work,
    caller: &Caller,
    origin: &Origin,
    line: Line<'_>,
) -> Result<(), ApiError> {
    let entry = entry((work.id(), work.now()), caller, origin, line);
    Ok(audit::insert(work.conn(), &entry).await?)
}

/// A line as it is stored, by its id and time.
pub(crate) fn entry(
    (id, now): (Uuid, Timestamp),
    caller: &Caller,
    origin: &Origin,
    line: Line<'_>,
) -> audit::Entry {
    audit::Entry {
        id,
        now,
        actor: Some(caller.id()),
        // The nil id stands for the whole deployment.
        organization: Some(line.organization).filter(|it| !it.0.is_nil()),
        action: line.action,
        resource_type: line.resource_type,
        resource_id: line.id,
        target: line.target.to_owned(),
        diff: line.diff,
        request_id: Some(origin.request_id),
        ip: origin.ip.to_string(),
        user_agent: origin.user_agent.clone(),
        status_code: 200,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_one_time_of_day_on_some_days() {
        for good in ["CRON_TZ=Europe/Berlin 30 9 * * 1-5", "0 0 * * *", "0 8 * * mon,wed-fri"] {
            assert!(check_schedule(good).is_ok(), "{good}");
        }
        for bad in ["", "9 * * *", "* 9 * * *", "0 24 * * *", "CRON_TZ=Mars/X 0 9 * * *"] {
            assert!(check_schedule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ttl_is_none_or_within_bounds() {
        assert_eq!(check_ttl(0).unwrap(), None);
        assert_eq!(check_ttl(60_000).unwrap(), Some(60_000));
        assert!(check_ttl(59_999).is_err() && check_ttl(-1).is_err());
    }
}
