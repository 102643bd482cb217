use super::*;

fn var(address: &str, value: &str, strategy: MergeStrategy) -> EnvVar {
    EnvVar {
        address: address.to_owned(),
        name: "PATH".to_owned(),
        value: value.to_owned(),
        strategy,
    }
}

#[track_caller]
fn check(vars: &[EnvVar], expected: &str) {
    let merged = merge(&BTreeMap::new(), vars).unwrap();
    assert_eq!(merged["PATH"], expected);
}

#[test]
fn the_last_address_wins_by_default() {
    let (a, b) = (
        var("coder_env.a", "1", MergeStrategy::Replace),
        var("coder_env.b", "2", MergeStrategy::Replace),
    );
    check(&[a.clone(), b.clone()], "2");
    check(&[b, a], "2");
}

#[test]
fn append_and_prepend_join_what_is_not_empty() {
    let first = |value| var("coder_env.a", value, MergeStrategy::Replace);
    check(&[first("1"), var("coder_env.b", "2", MergeStrategy::Append)], "1:2");
    check(&[first("1"), var("coder_env.b", "2", MergeStrategy::Prepend)], "2:1");
    check(&[first(""), var("coder_env.b", "2", MergeStrategy::Append)], "2");
    check(&[first("1"), var("coder_env.b", "", MergeStrategy::Prepend)], "1");
    check(&[var("coder_env.b", "2", MergeStrategy::Append)], "2");
}

#[test]
fn error_refuses_an_earlier_definition_and_names_both() {
    let lone = var("coder_env.a", "1", MergeStrategy::Error);
    check(std::slice::from_ref(&lone), "1");
    let error = merge(&BTreeMap::new(), &[var("coder_env.b", "2", MergeStrategy::Error), lone])
        .unwrap_err();
    assert_eq!((error.first.as_str(), error.second.as_str()), ("coder_env.a", "coder_env.b"));
    let text = error.to_string();
    assert!(text.contains("coder_env.a") && text.contains("coder_env.b") && text.contains("PATH"));
}

#[test]
fn the_agents_own_env_is_applied_last() {
    let own = BTreeMap::from([("PATH".to_owned(), "own".to_owned())]);
    let merged = merge(&own, &[var("coder_env.z", "2", MergeStrategy::Append)]).unwrap();
    assert_eq!(merged["PATH"], "own");
}

/// Every order in which the resources can be listed: only their addresses count.
fn orders(vars: &[EnvVar]) -> Vec<Vec<EnvVar>> {
    let Some((first, rest)) = vars.split_first() else { return vec![Vec::new()] };
    let mut all = Vec::new();
    for order in orders(rest) {
        for at in 0..=order.len() {
            let mut order = order.clone();
            order.insert(at, first.clone());
            all.push(order);
        }
    }
    all
}

/// What comes of resources at `coder_env.a`, `.b` and so on, in whatever order they are listed;
/// `Err` names the one that came before and the one that refuses.
fn outcome(vars: &[(MergeStrategy, &str)]) -> Result<String, (String, String)> {
    let letters = ["coder_env.a", "coder_env.b", "coder_env.c"];
    let vars: Vec<_> = letters.iter().zip(vars).map(|(at, (how, it))| var(at, it, *how)).collect();
    let mut outcomes: Vec<_> = orders(&vars)
        .iter()
        .map(|order| match merge(&BTreeMap::new(), order) {
            Ok(merged) => Ok(merged["PATH"].clone()),
            Err(error) => Err((error.first, error.second)),
        })
        .collect();
    outcomes.dedup();
    assert_eq!(outcomes.len(), 1, "the listing's order counts: {vars:?}");
    outcomes.remove(0)
}

#[test]
fn each_strategy_does_the_same_whatever_came_before_and_whichever_side_is_empty() {
    use MergeStrategy::{Append, Error, Prepend, Replace};
    // The later one's strategy; then: both filled, the earlier empty, the later empty, both empty.
    let table = [
        (Replace, ["2", "2", "", ""]),
        (Append, ["1:2", "2", "1", ""]),
        (Prepend, ["2:1", "2", "1", ""]),
    ];
    let sides = [("1", "2"), ("", "2"), ("1", ""), ("", "")];
    for earlier in [Replace, Append, Prepend, Error] {
        for (strategy, expected) in table {
            for ((first, second), expected) in sides.into_iter().zip(expected) {
                let found = outcome(&[(earlier, first), (strategy, second)]);
                let what = format!("{earlier:?} {first:?} then {strategy:?} {second:?}");
                assert_eq!(found.as_deref(), Ok(expected), "{what}");
            }
        }
        for (first, second) in sides {
            let refused = ("coder_env.a".to_owned(), "coder_env.b".to_owned());
            assert_eq!(outcome(&[(earlier, first), (Error, second)]), Err(refused), "{earlier:?}");
        }
    }
}

#[test]
fn three_of_one_name_are_taken_one_after_the_other() {
    use MergeStrategy::{Append, Error, Prepend, Replace};
    let table = [
        ([Replace, Replace, Replace], Ok("3")),
        ([Replace, Append, Append], Ok("1:2:3")),
        ([Replace, Append, Prepend], Ok("3:1:2")),
        ([Replace, Prepend, Append], Ok("2:1:3")),
        ([Replace, Prepend, Prepend], Ok("3:2:1")),
        ([Append, Append, Append], Ok("1:2:3")),
        ([Prepend, Replace, Append], Ok("2:3")),
        ([Append, Prepend, Replace], Ok("3")),
        ([Error, Append, Prepend], Ok("3:1:2")),
        ([Append, Error, Replace], Err(("coder_env.a", "coder_env.b"))),
        ([Append, Prepend, Error], Err(("coder_env.b", "coder_env.c"))),
    ];
    for (strategies, expected) in table {
        let vars: Vec<_> = strategies.into_iter().zip(["1", "2", "3"]).collect();
        let expected = expected.map(str::to_owned).map_err(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(outcome(&vars), expected, "{strategies:?}");
    }
}

#[test]
fn addresses_are_compared_as_texts_with_their_modules_and_indices() {
    let addresses = [
        r#"coder_env.a["x"]"#,
        "coder_env.a[0]",
        "coder_env.a[10]",
        "coder_env.a[2]",
        "coder_env.b",
        "module.m.coder_env.a",
        "module.m[10].coder_env.a",
        "module.m[2].coder_env.a",
    ];
    let mut vars: Vec<_> = addresses.iter().map(|it| var(it, it, MergeStrategy::Append)).collect();
    vars.reverse();
    check(&vars, &addresses.join(":"));
}

#[test]
fn names_do_not_touch_each_other_and_the_agents_own_env_replaces_even_with_nothing() {
    let other =
        EnvVar { name: "OTHER".to_owned(), ..var("coder_env.b", "2", MergeStrategy::Error) };
    let path = var("coder_env.a", "1", MergeStrategy::Error);
    let own = BTreeMap::from([("PATH".to_owned(), String::new())]);
    let merged = merge(&own, &[path, other]).unwrap();
    let expected = [("OTHER", "2"), ("PATH", "")];
    assert_eq!(merged, expected.map(|(name, it)| (name.to_owned(), it.to_owned())).into());
}
