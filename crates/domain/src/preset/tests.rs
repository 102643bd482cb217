use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::parameter::ParameterKind;

fn parameter(name: &str, kind: ParameterKind, default: &str) -> Parameter {
    Parameter { required: false, default_value: default.to_owned(), ..Parameter::new(name, kind) }
}

/// `size` (default s), `cpus` (a number, default 2), `key` (required).
fn parameters() -> Vec<Parameter> {
    vec![
        parameter("size", ParameterKind::String, "s"),
        parameter("cpus", ParameterKind::Number, "2"),
        Parameter::new("key", ParameterKind::String),
    ]
}

fn spec(name: &str, values: &[(&str, &str)]) -> PresetSpec {
    let parameters =
        values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    PresetSpec { name: name.to_owned(), parameters, ..PresetSpec::default() }
}

fn preset(id: u128, name: &str, values: &[(&str, &str)]) -> Preset {
    Preset { id: PresetId(Uuid::from_u128(id)), spec: spec(name, values) }
}

fn request(values: &[(&str, &str)]) -> Vec<Value> {
    values.iter().map(|(name, value)| Value::new(*name, *value)).collect()
}

#[track_caller]
fn check_match(presets: &[Preset], values: &[(&str, &str)], expected: Option<&str>) {
    let parameters = parameters();
    let mut reversed = presets.to_vec();
    reversed.reverse();
    for presets in [presets, &reversed] {
        let found = matching(presets, &request(values), &parameters);
        assert_eq!(found.preset().map(|it| it.spec.name.as_str()), expected, "{values:?}");
    }
}

#[test]
fn a_preset_matches_when_all_its_values_are_in_the_completed_request() {
    let presets = [preset(1, "small", &[("size", "s")]), preset(2, "large", &[("size", "l")])];
    check_match(&presets, &[], Some("small"));
    check_match(&presets, &[("size", "l")], Some("large"));
    check_match(&presets, &[("size", "l"), ("key", "x")], Some("large"));
    check_match(&presets, &[("size", "m")], None);
}

#[test]
fn most_parameters_win_then_the_default_then_the_name() {
    let mut presets = vec![
        preset(1, "b", &[("size", "s")]),
        preset(2, "a", &[("cpus", "2")]),
        preset(3, "z", &[("size", "s"), ("cpus", "2")]),
    ];
    check_match(&presets, &[], Some("z"));
    presets.pop();
    check_match(&presets, &[], Some("a"));
    presets[0].spec.is_default = true;
    check_match(&presets, &[], Some("b"));
}

#[test]
fn values_are_compared_as_values_of_their_type() {
    let presets = [preset(1, "it", &[("cpus", "4")])];
    check_match(&presets, &[("cpus", "4.0")], Some("it"));
    check_match(&presets, &[("cpus", "5")], None);
}

#[test]
fn a_preset_without_parameters_wants_every_parameter_at_its_default() {
    let parameters = [parameter("size", ParameterKind::String, "s")];
    let presets = [preset(1, "plain", &[])];
    let is_match = |values: &[(&str, &str)]| {
        matching(&presets, &request(values), &parameters).preset().is_some()
    };
    assert!(is_match(&[]));
    assert!(is_match(&[("size", "s")]));
    assert!(!is_match(&[("size", "l")]));
    // A required parameter has no default that it could be at.
    check_match(&presets, &[("key", "x")], None);
}

#[test]
fn values_for_undefined_parameters_count_for_nothing() {
    let presets = [preset(1, "it", &[("size", "l"), ("gone", "x")])];
    check_match(&presets, &[("size", "l")], Some("it"));
    // Nothing defined is left: it stands for the defaults.
    let parameters = [parameter("size", ParameterKind::String, "s")];
    let presets = [preset(1, "it", &[("gone", "x")])];
    assert!(matching(&presets, &[], &parameters).preset().is_some());
    assert!(matching(&presets, &request(&[("size", "l")]), &parameters).preset().is_none());
}

#[test]
fn a_miss_tells_the_nearest_preset_and_what_differs() {
    let presets = [
        preset(1, "far", &[("size", "l"), ("cpus", "8")]),
        preset(2, "near", &[("size", "l"), ("cpus", "2")]),
    ];
    let parameters = parameters();
    let Match::Miss(Some(nearest)) = matching(&presets, &[], &parameters) else {
        panic!("nothing near");
    };
    assert_eq!(nearest.name, "near");
    assert_eq!(
        nearest.differing,
        [Difference {
            name: "size".to_owned(),
            preset: Some("l".to_owned()),
            requested: Some("s".to_owned()),
        }]
    );
    assert_eq!(matching(&[], &[], &parameters), Match::Miss(None));
}

fn check_one(spec: PresetSpec) -> Vec<Violation> {
    check(&[spec], &parameters()).errors.into_iter().map(|it| it.violation).collect()
}

fn pool(prebuilds: Prebuilds) -> PresetSpec {
    PresetSpec { prebuilds: Some(prebuilds), ..spec("it", &[("size", "l")]) }
}

fn scheduled(timezone: &str, crons: &[&str]) -> PresetSpec {
    let schedules =
        crons.iter().map(|it| PresetSchedule { cron: (*it).to_owned(), instances: 1 }).collect();
    pool(Prebuilds { timezone: timezone.to_owned(), schedules, ..Prebuilds::default() })
}

#[test]
fn a_sound_preset_passes() {
    let it = scheduled("Europe/Berlin", &["* 9-18 * * 1-5", "* 9-18 * * 0,6"]);
    assert_eq!(check_one(it), []);
    for ttl_seconds in [0, 3_600, 31_536_000] {
        assert_eq!(check_one(pool(Prebuilds { ttl_seconds, ..Prebuilds::default() })), []);
    }
}

#[test]
fn numbers_out_of_bounds_are_refused() {
    for ttl in [-1, 1, 3_599, 31_536_001] {
        let it = pool(Prebuilds { ttl_seconds: ttl, ..Prebuilds::default() });
        assert_eq!(check_one(it), [Violation::Ttl { ttl }]);
    }
    let it = pool(Prebuilds { instances: -1, ..Prebuilds::default() });
    assert_eq!(check_one(it), [Violation::NegativeInstances { instances: -1 }]);
    let mut it = scheduled("UTC", &["* 9 * * *"]);
    it.prebuilds.as_mut().unwrap().schedules[0].instances = -2;
    let expected =
        Violation::NegativeScheduledInstances { cron: "* 9 * * *".to_owned(), instances: -2 };
    assert_eq!(check_one(it), [expected]);
    let long = PresetSpec {
        description: "d".repeat(129),
        icon: "i".repeat(257),
        ..spec("it", &[("size", "l")])
    };
    let expected = [Violation::LongDescription { len: 129 }, Violation::LongIcon { len: 257 }];
    assert_eq!(check_one(long), expected);
}

#[test]
fn bad_schedules_are_refused() {
    let zone = |it: &str| Violation::Timezone { timezone: it.to_owned() };
    assert_eq!(check_one(scheduled("Mars/X", &["* 9 * * *"])), [zone("Mars/X")]);
    assert_eq!(check_one(scheduled("", &["* 9 * * *"])), [zone("")]);
    let errors = check_one(scheduled("UTC", &["0 9 * * *", "* 9/2 * * *", "* 9 * * *"]));
    assert!(matches!(&errors[..], [Violation::Cron { .. }, Violation::Cron { .. }]), "{errors:?}");
    let errors = check_one(scheduled("UTC", &["* 9-12 * * *", "* 13 * * *", "* 12 * * 1"]));
    let expected =
        Violation::Overlap { first: "* 9-12 * * *".to_owned(), second: "* 12 * * 1".to_owned() };
    assert_eq!(errors, [expected]);
}

#[test]
fn presets_must_be_told_apart() {
    let mut specs = vec![
        spec("one", &[("size", "l")]),
        spec("two", &[("size", "m")]),
        spec("one", &[("cpus", "4")]),
        spec("four", &[("size", "l")]),
    ];
    specs[0].is_default = true;
    specs[1].is_default = true;
    let errors = check(&specs, &parameters()).errors;
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors.iter().map(|it| &it.violation).collect::<Vec<_>>(),
        [
            &Violation::SecondDefault { other: "one".to_owned() },
            &Violation::DuplicateName,
            &Violation::SameParameters { other: "one".to_owned() },
        ],
        "{texts:?}"
    );
    assert!(texts[0].starts_with("preset \"two\""), "{texts:?}");
}

#[test]
fn values_are_checked_against_their_parameters_and_unknown_ones_warned_of() {
    let checked = check(&[spec("it", &[("cpus", "many"), ("gone", "x")])], &parameters());
    let texts: Vec<String> = checked.errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 1);
    for part in ["\"it\"", "\"cpus\"", "\"many\""] {
        assert!(texts[0].contains(part), "{texts:?}");
    }
    let expected = PresetWarning { preset: "it".to_owned(), parameter: "gone".to_owned() };
    assert_eq!(checked.warnings, [expected]);
}

#[test]
fn a_preset_reads_from_json_and_without_prebuilds_it_is_no_pool() {
    let it: PresetSpec = serde_json::from_str(r#"{"name":"it","default":true}"#).unwrap();
    assert!(it.is_default && it.prebuilds.is_none());
    let stored = preset(1, "it", &[("size", "l")]);
    let json = serde_json::to_string(&stored).unwrap();
    assert_eq!(serde_json::from_str::<Preset>(&json).unwrap(), stored);
}

fn any_presets() -> impl Strategy<Value = Vec<Preset>> {
    let value = prop::sample::select(vec!["s", "l"]);
    let cpus = prop::sample::select(vec!["2", "4"]);
    let one = (prop::option::of(value), prop::option::of(cpus), any::<bool>());
    prop::collection::vec(one, 0..6).prop_map(|all| {
        let build = |(at, (size, cpus, is_default)): (u128, _)| {
            let values: Vec<(&str, &str)> = [("size", size), ("cpus", cpus)]
                .into_iter()
                .filter_map(|(name, value): (_, Option<&'static str>)| Some((name, value?)))
                .collect();
            let mut it = preset(at, &format!("p{at}"), &values);
            it.spec.is_default = is_default;
            it
        };
        (0..).zip(all).map(build).collect()
    })
}

proptest! {
    /// The order of the presets never decides, and a match is one: all its values are there.
    #[test]
    fn the_same_inputs_give_the_same_preset(
        (presets, shuffled) in any_presets()
            .prop_flat_map(|it| (Just(it.clone()), Just(it).prop_shuffle())),
        size in prop::option::of(prop::sample::select(vec!["s", "l"])),
    ) {
        let parameters = [
            parameter("size", ParameterKind::String, "s"),
            parameter("cpus", ParameterKind::Number, "2"),
        ];
        let request: Vec<Value> = size.iter().map(|it| Value::new("size", *it)).collect();
        let id = |it: &Match<'_>| match it {
            Match::Preset(it) => Ok(it.id),
            Match::Miss(near) => Err(near.clone()),
        };
        let found = matching(&presets, &request, &parameters);
        prop_assert_eq!(id(&found), id(&matching(&shuffled, &request, &parameters)));
        let full = complete(&parameters, &request);
        let fits = |it: &Preset| {
            it.spec.parameters.iter().all(|(name, value)| full[name.as_str()] == value)
                && (!it.spec.parameters.is_empty() || size != Some("l"))
        };
        match found.preset() {
            Some(it) => {
                prop_assert!(fits(it));
                let most = presets.iter().filter(|it| fits(it)).map(|it| it.spec.parameters.len());
                prop_assert_eq!(Some(it.spec.parameters.len()), most.max());
            }
            None => prop_assert!(!presets.iter().any(fits)),
        }
    }
}
