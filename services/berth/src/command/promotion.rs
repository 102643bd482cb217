//! `berth templates promote` and `berth templates promotion`.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::client::{Client, list, number, text};
use crate::command::template;
use crate::output::Output;

/// How often a promotion that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Looks that may fail in a row: the server may be restarting.
const FAILED_LOOKS_MAX: u32 = 20;
/// Bounds of the time to wait for prebuilds, in seconds.
const TIMEOUTS: std::ops::RangeInclusive<i64> = 60..=86_400;

#[derive(Args)]
pub(crate) struct PromoteArgs {
    /// Name of the template
    template: String,
    /// Name of the version
    #[arg(id = "template_version", value_name = "VERSION")]
    version: String,
    #[command(flatten)]
    warm: WarmArgs,
}

/// How a version becomes the active one.
#[derive(Args)]
pub(crate) struct WarmArgs {
    /// Build the version's prebuilds first; it becomes the active one when they are ready, so that
    /// nobody meets an empty pool
    #[arg(long)]
    pub(crate) warm: bool,
    /// With --warm: how many of each pool's prebuilds must be ready, 1% to 100%
    #[arg(long, value_name = "PERCENT", default_value = "100%", value_parser = percent)]
    ready: i64,
    /// With --warm: after this time it is called off, 1m to 24h; units are s, m and h
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = timeout)]
    timeout: SignedDuration,
    /// With --warm: wait until the version is the active one or the promotion is called off (the
    /// default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// With --warm: do not wait; `berth templates promotion` shows how it goes
    #[arg(long)]
    no_wait: bool,
}

#[derive(Args)]
pub(crate) struct PromotionArgs {
    /// Name of the template
    template: String,
    /// Call it off: the active version stays, and the new one's prebuilds are deleted
    #[arg(long)]
    cancel: bool,
}

fn percent(given: &str) -> Result<i64, String> {
    let number = given.strip_suffix('%').unwrap_or(given).parse::<i64>();
    number
        .ok()
        .filter(|it| (1..=100).contains(it))
        .ok_or_else(|| "give a percentage from 1% to 100%".to_owned())
}

fn timeout(given: &str) -> Result<SignedDuration, String> {
    given
        .parse::<SignedDuration>()
        .ok()
        .filter(|it| TIMEOUTS.contains(&it.as_secs()))
        .ok_or_else(|| "give a time from 1m to 24h, such as 90s, 30m or 2h".to_owned())
}

impl WarmArgs {
    /// At once.
    pub(crate) fn plain() -> Self {
        let timeout = SignedDuration::from_hours(1);
        Self { warm: false, ready: 100, timeout, wait: false, no_wait: false }
    }
}

/// `berth templates promote`.
pub(crate) async fn promote(
    client: &Client,
    output: Output,
    args: &PromoteArgs,
) -> anyhow::Result<()> {
    let found = template::get(client, &args.template).await?;
    let path = format!(
        "/organizations/{}/templates/{}/versions/{}",
        text(&found, "organization_id"),
        args.template,
        args.version
    );
    let version = client.get(&path).await?;
    activate(client, output, &found, &version, &args.warm).await?;
    let name = format!("{} {}", args.template, text(&version, "name"));
    let field = if args.warm.warm && args.warm.no_wait { "Warming" } else { "Active" };
    output.fields(&version, &[(field, name)]);
    Ok(())
}

/// Makes a version the active one as `warm` says. Comes back when it is, or at once where nobody
/// wants to wait.
pub(crate) async fn activate(
    client: &Client,
    output: Output,
    template: &Value,
    version: &Value,
    warm: &WarmArgs,
) -> anyhow::Result<()> {
    let path = format!("/templates/{}/versions", text(template, "id"));
    if !warm.warm {
        client.patch(&path, &json!({ "id": version["id"] })).await?;
        return Ok(());
    }
    let body = json!({
        "id": version["id"], "prewarm": true, "ready_percent": warm.ready,
        "timeout_seconds": warm.timeout.as_secs(),
    });
    let promotion = client.patch(&path, &body).await?;
    if warm.no_wait {
        return Ok(());
    }
    follow(client, output, template, promotion).await
}

/// Waits for the end of a promotion and tells how it goes. An end without a switch is an error.
async fn follow(
    client: &Client,
    output: Output,
    template: &Value,
    mut promotion: Value,
) -> anyhow::Result<()> {
    let path = format!("/templates/{}/promotion", text(template, "id"));
    let id = text(&promotion, "id").to_owned();
    let (mut told, mut failed) = (String::new(), 0);
    while promotion["ended_at"].is_null() {
        let now = progress(&promotion);
        if now != told {
            output.progress(&now);
            told = now;
        }
        tokio::time::sleep(LOOK).await;
        match client.get(&path).await {
            Ok(seen) if text(&seen, "id") != id => bail!("another promotion has begun since"),
            Ok(seen) => (promotion, failed) = (seen, 0),
            Err(error) if failed == FAILED_LOOKS_MAX => return Err(error),
            Err(_) => failed += 1,
        }
    }
    let version = text(&promotion, "candidate_version_name");
    match (text(&promotion, "outcome"), text(&promotion, "reason")) {
        ("promoted", _) => Ok(()),
        ("called_off", why) => bail!("the promotion of version {version} was called off: {why}"),
        ("superseded", _) => bail!("a version was promoted without waiting for {version}"),
        _ => bail!("the promotion of version {version} was cancelled"),
    }
}

/// `small 1/2, large 0/3 ready`.
fn progress(promotion: &Value) -> String {
    let pools = list(promotion, "presets").iter().map(|it| {
        let (ready, wanted) = (number(it, "ready"), number(it, "wanted"));
        format!("{} {ready}/{wanted}", text(it, "preset_name"))
    });
    let pools: Vec<String> = pools.collect();
    format!("{} ready", pools.join(", "))
}

/// `berth templates promotion`.
pub(crate) async fn promotion(
    client: &Client,
    output: Output,
    args: &PromotionArgs,
) -> anyhow::Result<()> {
    let found = template::get(client, &args.template).await?;
    let path = format!("/templates/{}/promotion", text(&found, "id"));
    let promotion =
        if args.cancel { client.delete(&path).await? } else { client.get(&path).await? };
    let mut fields = vec![
        ("Version", text(&promotion, "candidate_version_name").to_owned()),
        ("State", state(&promotion).to_owned()),
        ("Prebuilds", progress(&promotion)),
        ("Deadline", text(&promotion, "deadline_at").to_owned()),
    ];
    if !text(&promotion, "reason").is_empty() {
        fields.push(("Why", text(&promotion, "reason").to_owned()));
    }
    output.fields(&promotion, &fields);
    Ok(())
}

fn state(promotion: &Value) -> &str {
    match text(promotion, "outcome") {
        "" => "warming",
        "called_off" => "called off",
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_and_times_are_read_within_their_bounds() {
        assert_eq!((percent("50%"), percent("1"), percent("100%")), (Ok(50), Ok(1), Ok(100)));
        for bad in ["0%", "101", "half", "", "-1"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
        assert_eq!(timeout("90s"), Ok(SignedDuration::from_secs(90)));
        assert_eq!(timeout("24h"), Ok(SignedDuration::from_hours(24)));
        for bad in ["59s", "24h1s", "1", "soon", ""] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn progress_names_each_pool() {
        let promotion = json!({ "presets": [
            { "preset_name": "small", "ready": 1, "wanted": 2 },
            { "preset_name": "large", "ready": 0, "wanted": 3 },
        ]});
        assert_eq!(progress(&promotion), "small 1/2, large 0/3 ready");
    }
}
