//! Plans and explanations for people.

use serde_json::Value;

use crate::client::{list, number, text};
use crate::command::template::version::rehearsal;
use crate::output::{Output, print_line};

/// Prints a document with `pools`: as it is for programs, pool by pool for people.
pub(super) fn print(output: Output, document: &Value, show: fn(&Value)) {
    if output.is_json() {
        return output.fields(document, &[]);
    }
    let pools = list(document, "pools");
    if pools.is_empty() {
        print_line("no pools: no preset of the active version has prebuilds");
    }
    for (place, pool) in pools.iter().enumerate() {
        if place > 0 {
            print_line("");
        }
        show(pool);
    }
    let left_out = number(document, "left_out");
    if left_out > 0 {
        print_line(&format!("\n{left_out} more pools: choose with --preset"));
    }
}

/// The pool's name, its version and what that is, its health.
fn headline(pool: &Value) {
    let facts = ["preset_name", "template_version_name", "standing", "status"];
    let facts: Vec<&str> =
        facts.iter().map(|it| text(pool, it)).filter(|it| !it.is_empty()).collect();
    print_line(&facts.join("  "));
}

fn line(name: &str, value: &str) {
    print_line(&format!("  {name:<10}  {value}"));
}

/// The first line has the name, the others stand below it.
fn lines(name: &str, values: &[String]) {
    for (place, value) in values.iter().enumerate() {
        line(if place == 0 { name } else { "" }, value);
    }
}

/// A plan.
pub(super) fn planned(pool: &Value) {
    headline(pool);
    line("wanted", &number(pool, "desired").to_string());
    line("there", &counts(&pool["counts"]));
    line("would do", &actions(pool));
    let why: Vec<String> = sentences(pool);
    lines("why", &why);
    if !text(pool, "next_look").is_empty() {
        line("next look", text(pool, "next_look"));
    }
}

/// What `explain` answers.
pub(super) fn explained(pool: &Value) {
    headline(pool);
    let why = list(pool, "why").iter().filter_map(Value::as_str).map(ToOwned::to_owned);
    lines("why", &why.collect::<Vec<_>>());
    if let Some(since) = pool.pointer("/breaker/since").and_then(Value::as_str) {
        let failures = number(pool, "breaker.consecutive_failures");
        let probes = number(pool, "breaker.probes");
        let breaker = format!("open since {since}: {failures} failures in a row, {probes} trials");
        line("breaker", &breaker);
    }
    if let Some(policy) = pool["policy"].as_object() {
        let fields: Vec<String> =
            policy.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
        line("policy", &fields.join(", "));
    }
    if !pool["rehearsal"].is_null() {
        line("a claim", &rehearsal(&pool["rehearsal"]));
    }
    for (name, field) in
        [("looked at", "last_reconciled_at"), ("invalidated", "last_invalidated_at")]
    {
        if !text(pool, field).is_empty() {
            line(name, text(pool, field));
        }
    }
    let decisions: Vec<String> = list(pool, "decisions")
        .iter()
        .map(|it| {
            let (at, wanted) = (text(it, "created_at"), number(it, "desired"));
            let why = sentences(it).join("; ");
            format!("{at}  {wanted} wanted: {}  ({why})", actions(it))
        })
        .collect();
    lines("decisions", &decisions);
}

/// A value without the quotation marks of a text.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

fn sentences(of: &Value) -> Vec<String> {
    let sentence = |it: &Value| match it["sentence"].as_str() {
        Some(sentence) => sentence.to_owned(),
        None => text(it, "reason").to_owned(),
    };
    list(of, "reasons").iter().map(sentence).collect()
}

fn counts(counts: &Value) -> String {
    let all = [
        ("eligible", "claimable"),
        ("running", "running"),
        ("expired", "expired"),
        ("starting", "starting"),
        ("pending", "of them pending"),
        ("stopping", "stopping"),
        ("stopped", "stopped"),
        ("deleting", "deleting"),
        ("failed", "failed"),
        ("failed_delete", "whose delete failed"),
    ];
    let some: Vec<String> = all
        .iter()
        .filter(|(field, _)| number(counts, field) > 0)
        .map(|(field, name)| format!("{} {name}", number(counts, field)))
        .collect();
    if some.is_empty() { "nothing".to_owned() } else { some.join(", ") }
}

/// Actions, added up by kind, in the order of the plan.
fn actions(of: &Value) -> String {
    let mut done: Vec<(String, i64)> = Vec::new();
    for action in list(of, "actions") {
        let (what, count) = match text(action, "action") {
            "create" if action["is_probe"] == true => ("create one as a trial".to_owned(), 0),
            "create" => ("create".to_owned(), number(action, "count")),
            "delete" => (format!("delete ({})", text(action, "why").replace('_', " ")), 1),
            "cancel_pending" => ("cancel pending".to_owned(), 1),
            "open_breaker" => ("stop creation after failures".to_owned(), 0),
            "close_breaker" => ("end the stop after failures".to_owned(), 0),
            other => (other.replace('_', " "), 1),
        };
        match done.iter_mut().find(|(it, _)| *it == what) {
            Some((_, sum)) => *sum += count,
            None => done.push((what, count)),
        }
    }
    let words = done.iter().map(|(what, count)| match (count, what.split_once(' ')) {
        (0, _) => what.clone(),
        (count, Some((verb, rest))) => format!("{verb} {count} {rest}"),
        (count, None) => format!("{what} {count}"),
    });
    let words: Vec<String> = words.collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn actions_of_one_kind_are_added_up() {
        let delete = |why: &str| json!({ "action": "delete", "why": why });
        let plan = json!({ "actions": [
            delete("expired"), delete("expired"), delete("failed_surplus"),
            { "action": "cancel_pending" }, { "action": "create", "count": 3, "is_probe": false },
        ]});
        let expected = "delete 2 (expired), delete 1 (failed surplus), cancel 1 pending, create 3";
        assert_eq!(actions(&plan), expected);
        assert_eq!(actions(&json!({ "actions": [] })), "nothing");
        let probe = json!({ "actions": [{ "action": "create", "count": 1, "is_probe": true }] });
        assert_eq!(actions(&probe), "create one as a trial");
    }
}
