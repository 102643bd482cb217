//! Pools in words: reasons as sentences, and what a pool's size comes from.

use berth_domain::plan::{Action, Counts, DeleteReason, Plan, Reason, Standing};
use berth_domain::preset::Prebuilds;
use berth_domain::schedule::Schedule;
use jiff::Timestamp;
use serde_json::{Value, json};

/// A reason for programs and, under `sentence`, for people.
pub(super) fn reason(it: &Reason) -> Value {
    let mut value = json!(it);
    value["sentence"] = it.to_string().into();
    value
}

/// Stored reasons. What another release wrote and this one cannot read is left as it is.
pub(super) fn stored_reasons(stored: &Value) -> Vec<Value> {
    let read = |it: &Value| match serde_json::from_value::<Reason>(it.clone()) {
        Ok(known) => reason(&known),
        Err(_) => it.clone(),
    };
    stored.as_array().into_iter().flatten().map(read).collect()
}

/// A plan for programs, with its reasons' sentences.
pub(super) fn plan(plan: &Plan) -> Value {
    json!({
        "desired": plan.desired,
        "counts": plan.counts,
        "creates": plan.creates(),
        "deletes": deletes(plan),
        "actions": plan.actions,
        "reasons": plan.reasons.iter().map(reason).collect::<Vec<_>>(),
        "holds": plan.holds(),
        "next_look": plan.next_look,
    })
}

/// How many prebuilds it takes away.
fn deletes(plan: &Plan) -> usize {
    let gone = |it: &&Action| matches!(it, Action::Delete { .. } | Action::CancelPending { .. });
    plan.actions.iter().filter(gone).count()
}

/// What the wanted number comes from.
fn wanted(prebuilds: Option<&Prebuilds>, standing: Standing, plan: &Plan, at: Timestamp) -> String {
    let desired = plan.desired;
    let Some(prebuilds) = prebuilds else {
        return "none wanted: the preset has no prebuild configuration".to_owned();
    };
    if !matches!(standing, Standing::Active | Standing::Candidate) {
        return match standing {
            Standing::Previous => {
                format!("{desired} wanted of the previous version, until new ones are ready")
            }
            _ => "none wanted: its version is not the active one, or the template is deprecated"
                .to_owned(),
        };
    }
    let holds = prebuilds.schedules.iter().find(|it| {
        let instances = u32::try_from(it.instances).unwrap_or(0);
        Schedule::new(&it.cron, &prebuilds.timezone, instances).is_ok_and(|it| it.contains(at))
    });
    let broken = plan.reasons.iter().any(|it| matches!(it, Reason::InvalidSchedule { .. }));
    match holds.filter(|_| !broken) {
        Some(it) => {
            format!("{desired} wanted: schedule {:?} ({}) holds", it.cron, prebuilds.timezone)
        }
        None if prebuilds.schedules.is_empty() => {
            format!("{desired} wanted: the template's number of instances")
        }
        None => {
            format!("{desired} wanted: the template's number of instances, as no schedule holds")
        }
    }
}

fn there(counts: &Counts, claimable: i64) -> String {
    let mut parts = vec![format!("{claimable} can be claimed now")];
    let unready = i64::from(counts.running) - claimable;
    let others = [
        (unready, "running but not to be claimed (agents not ready, expired, or not active)"),
        (counts.starting.into(), "starting"),
        (counts.failed.into(), "failed and kept for a look"),
        (counts.stopped.into(), "stopped by an operator"),
        (counts.deleting.into(), "being deleted"),
        (counts.failed_delete.into(), "whose delete failed"),
    ];
    let some = others.iter().filter(|(count, _)| *count > 0);
    parts.extend(some.map(|(count, what)| format!("{count} {what}")));
    parts.join(", ")
}

/// What the plan does, in words.
fn doing(plan: &Plan) -> String {
    let mut parts = Vec::new();
    let creates = plan.creates();
    if creates > 0 {
        parts.push(format!("{creates} are to be created"));
    }
    for why in DeleteReason::ALL {
        let is_ours = |it: &&Action| matches!(it, Action::Delete { why: it, .. } if it == why);
        let count = plan.actions.iter().filter(is_ours).count();
        if count > 0 {
            parts.push(format!("{count} are to be deleted ({})", why.as_str().replace('_', " ")));
        }
    }
    let pending = |it: &&Action| matches!(it, Action::CancelPending { .. });
    let pending = plan.actions.iter().filter(pending).count();
    if pending > 0 {
        parts.push(format!("{pending} that no daemon has taken yet are to be cancelled"));
    }
    if parts.is_empty() {
        let is_free = plan.holds().is_empty();
        let words = if is_free { "nothing is to be done" } else { "nothing is created for now" };
        return words.to_owned();
    }
    parts.join(", ")
}

/// Why a pool has this size and why nothing else is done, sentence by sentence.
pub(super) fn why(
    prebuilds: Option<&Prebuilds>,
    standing: Standing,
    claimable: i64,
    plan: &Plan,
    at: Timestamp,
) -> Vec<String> {
    let mut sentences =
        vec![wanted(prebuilds, standing, plan, at), there(&plan.counts, claimable), doing(plan)];
    sentences.extend(plan.reasons.iter().map(ToString::to_string));
    if let Some(next) = plan.next_look {
        sentences.push(format!("time alone changes this at {next}"));
    }
    sentences
}
