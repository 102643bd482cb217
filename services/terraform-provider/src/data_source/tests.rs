use serde_json::json;

use super::*;

fn object(json: serde_json::Value) -> Object {
    Value::from(json).as_object().expect("an object").clone()
}

fn source(name: &str) -> &'static DataSource {
    DATA_SOURCES.iter().find(|source| source.name == name).expect("a data source")
}

type Env<'a> = &'a [(&'a str, &'a str)];

fn context(env: Env) -> Context {
    Context { env: env.iter().copied().collect(), access_url: "https://berth.example".to_owned() }
}

#[track_caller]
fn read(name: &str, config: serde_json::Value, env: Env) -> Object {
    source(name).read(&context(env), &object(config)).expect("a good configuration")
}

#[track_caller]
fn refused(name: &str, config: serde_json::Value, env: Env, reason: &str) {
    let found = source(name).read(&context(env), &object(config)).expect_err("a bad one");
    assert!(found.iter().any(|it| it.detail.contains(reason)), "{reason} not in {found:?}");
}

#[track_caller]
fn holds(state: &Object, expected: serde_json::Value) {
    for (name, expected) in object(expected) {
        assert!(state[&name] == expected, "{name} is {:?}, not {expected:?}", state[&name]);
    }
}

const BUILD: [(&str, &str); 4] = [
    ("CODER_WORKSPACE_BUILD_ID", "b"),
    ("CODER_WORKSPACE_TEMPLATE_ID", "t"),
    ("CODER_WORKSPACE_TEMPLATE_NAME", "tn"),
    ("CODER_WORKSPACE_TEMPLATE_VERSION", "tv"),
];

#[test]
fn outside_berth_a_workspace_is_a_stand_in_that_stays_the_same() {
    let workspace = read("coder_workspace", json!({}), &[]);
    holds(
        &workspace,
        json!({
            "name": "default", "transition": "start", "start_count": 1, "prebuild_count": 0,
            "is_prebuild": false, "is_prebuild_claim": false, "template_id": "",
            "access_url": "https://berth.example", "access_port": 443,
        }),
    );
    assert_eq!(workspace, read("coder_workspace", json!({}), &[]));
    holds(
        &read("coder_workspace_owner", json!({}), &[]),
        json!({
            "name": "default", "full_name": "default", "email": "default@example.com",
            "groups": [], "rbac_roles": [], "session_token": "",
        }),
    );
}

#[test]
fn a_workspace_is_what_its_build_says() {
    let env = [
        &BUILD[..],
        &[
            ("CODER_WORKSPACE_ID", "w"),
            ("CODER_WORKSPACE_NAME", "dev"),
            ("CODER_WORKSPACE_TRANSITION", "stop"),
            ("CODER_WORKSPACE_IS_PREBUILD", "true"),
            ("CODER_WORKSPACE_IS_PREBUILD_CLAIM", "false"),
        ],
    ]
    .concat();
    holds(
        &read("coder_workspace", json!({}), &env),
        json!({
            "id": "w", "name": "dev", "transition": "stop", "start_count": 0,
            "prebuild_count": 1, "is_prebuild": true, "is_prebuild_claim": false,
            "template_id": "t", "template_name": "tn", "template_version": "tv",
        }),
    );
}

#[test]
fn a_build_names_its_template() {
    for missing in &BUILD[1..] {
        let env: Vec<_> = BUILD.iter().copied().filter(|it| it != missing).collect();
        refused("coder_workspace", json!({}), &env, missing.0);
    }
}

#[test]
fn the_access_urls_port_is_its_own_or_its_schemes() {
    for (url, port, root) in [
        ("http://localhost:3000/x?y", 3000, "http://localhost:3000/"),
        ("http://localhost", 80, "http://localhost/"),
        ("https://[::1]:8443", 8443, "https://[::1]:8443/"),
        ("https://example.com/", 443, "https://example.com/"),
    ] {
        let context = Context { env: Environment::default(), access_url: url.to_owned() };
        assert_eq!((context.access_port(), context.access_root().as_str()), (port, root));
    }
}

#[test]
fn an_owner_has_groups_and_roles() {
    let env = [
        ("CODER_WORKSPACE_OWNER", "alice"),
        ("CODER_WORKSPACE_OWNER_GROUPS", r#"["Everyone","devs"]"#),
        ("CODER_WORKSPACE_OWNER_RBAC_ROLES", r#"[{"name":"member","org_id":""},{"name":"x"}]"#),
    ];
    holds(
        &read("coder_workspace_owner", json!({}), &env),
        json!({
            "name": "alice", "groups": ["Everyone", "devs"],
            "rbac_roles": [{"name": "member", "org_id": ""}, {"name": "x", "org_id": ""}],
        }),
    );
    let none = [("CODER_WORKSPACE_OWNER_GROUPS", "null")];
    holds(&read("coder_workspace_owner", json!({}), &none), json!({"groups": []}));
    let bad = [("CODER_WORKSPACE_OWNER_GROUPS", "Everyone")];
    refused("coder_workspace_owner", json!({}), &bad, "CODER_WORKSPACE_OWNER_GROUPS");
}

#[test]
fn a_secret_comes_by_variable_or_by_file() {
    let by_env = json!({"env": "TOKEN", "help_message": "h"});
    let by_file = json!({"file": "~/.key", "help_message": "h"});
    let env = [("CODER_SECRET_ENV_TOKEN", "s1"), ("CODER_SECRET_FILE_7e2f2e6b6579", "s2")];
    holds(&read("coder_secret", by_env, &env), json!({"id": "env:TOKEN", "value": "s1"}));
    holds(&read("coder_secret", by_file, &env), json!({"id": "file:~/.key", "value": "s2"}));
    refused("coder_secret", json!({"help_message": "h"}), &env, "exactly one");
    let both = json!({"env": "A", "file": "/a", "help_message": "h"});
    refused("coder_secret", both, &env, "exactly one");
    refused("coder_secret", json!({"file": "a", "help_message": "h"}), &env, "\"a\"");
}

#[test]
fn a_missing_secret_stops_a_start_and_nothing_else() {
    let secret = || json!({"env": "TOKEN", "help_message": "Store your token."});
    let build = |transition| {
        [("CODER_WORKSPACE_BUILD_ID", "b"), ("CODER_WORKSPACE_TRANSITION", transition)]
    };
    refused("coder_secret", secret(), &build("start"), "Store your token.");
    refused("coder_secret", secret(), &build("start"), "variable \"TOKEN\" (env_name)");
    let file = json!({"file": "~/.key", "help_message": "h"});
    refused("coder_secret", file, &build("start"), "file \"~/.key\" (file_path)");
    for env in [&build("stop")[..], &build("delete"), &[]] {
        holds(&read("coder_secret", secret(), env), json!({"value": ""}));
    }
}

#[test]
fn a_parameter_is_read_by_the_digest_of_its_name() {
    let parameter = || json!({"name": "region", "default": "eu"});
    let given = "CODER_PARAMETER_c697d2981bf416569a16cfbcdec1542b5398f3cc77d2b905819aa99c46ecf6f6";
    let read_with = |env| read("coder_parameter", parameter(), env);
    let default = read_with(&[]);
    holds(
        &default,
        json!({
            "value": "eu", "optional": true, "type": "string", "form_type": "input",
            "mutable": false, "ephemeral": false, "styling": "{}", "icon": null,
        }),
    );
    let chosen = read_with(&[(given, "us")]);
    holds(&chosen, json!({"value": "us", "default": "eu"}));
    assert_eq!(chosen["id"], default["id"], "the id stays");
    let other = read("coder_parameter", json!({"name": "zone"}), &[]);
    assert_ne!(other["id"], default["id"]);
    holds(&other, json!({"value": "", "optional": false}));
}

#[test]
fn a_parameters_bounds_say_whether_they_are_set() {
    let parameter = json!({"name": "n", "type": "number", "validation": [{"min": 0}]});
    let state = read("coder_parameter", parameter, &[]);
    let rules = state["validation"].items()[0].as_object().unwrap();
    holds(rules, json!({"min": 0, "min_disabled": false, "max": null, "max_disabled": true}));
}

#[test]
fn a_parameters_definition_is_checked_before_it_has_a_value() {
    for (config, reason) in [
        (json!({"name": ""}), "needs a name"),
        (json!({"name": " a"}), "\" a\""),
        (json!({"name": "a", "type": "int"}), "\"int\" is none of"),
        (json!({"name": "a", "styling": "{"}), "not JSON"),
        (json!({"name": "a", "ephemeral": true, "default": ""}), "mutable"),
        (json!({"name": "a", "validation": [{"regex": "("}]}), "error"),
    ] {
        let found = source("coder_parameter").validate(&object(config));
        assert!(found.iter().any(|it| it.detail.contains(reason)), "{reason} not in {found:?}");
    }
    let mut unknown = object(json!({"name": "a", "ephemeral": true}));
    unknown.insert("default".to_owned(), Value::Unknown);
    assert_eq!(source("coder_parameter").validate(&unknown), []);
}

#[test]
fn a_presets_mistakes_are_told_with_its_name_and_the_value() {
    let scheduled = |schedules: serde_json::Value| {
        json!({
            "name": "big",
            "prebuilds": [{
                "instances": 1,
                "scheduling": [{"timezone": "UTC", "schedule": schedules}],
            }],
        })
    };
    let pool = |instances: i64, ttl: i64| {
        let prebuilds = json!([{"instances": instances, "expiration_policy": [{"ttl": ttl}]}]);
        json!({"name": "big", "prebuilds": prebuilds})
    };
    let at = |cron| json!({"cron": cron, "instances": 2});
    for good in [
        json!({"name": "big"}),
        json!({"name": "big", "parameters": {"note": ""}}),
        pool(0, 0),
        pool(3, 3600),
        pool(3, 31_536_000),
        scheduled(json!([at("* 9-12 * * 1-5"), at("* 13-18 * * 1-5")])),
    ] {
        holds(&read("coder_workspace_preset", good, &[]), json!({"id": "big", "default": false}));
    }
    for (bad, reason) in [
        (pool(-1, 0), "preset \"big\" asks for -1 prebuilt instances"),
        (pool(1, 3599), "preset \"big\" has an expiration ttl of 3599 s"),
        (pool(1, 31_536_001), "31536001"),
        (
            scheduled(json!([at("0 9 * * *")])),
            "preset \"big\" has the schedule \"0 9 * * *\": the minute",
        ),
        (
            scheduled(json!([at("* 9-12 * * 1-5"), at("* 12 * * 5")])),
            r#"preset "big" has schedules that overlap: "* 9-12 * * 1-5" and "* 12 * * 5""#,
        ),
        (json!({"name": "big", "parameters": {"size": null}}), "\"size\""),
        (json!({"name": "big", "description": "x".repeat(129)}), "129 characters"),
    ] {
        refused("coder_workspace_preset", bad, &[], reason);
    }
    refused("coder_workspace_preset", json!({"name": ""}), &[], "has no name");
}

#[test]
fn tags_have_an_id_that_follows_from_them() {
    let id = |tags: serde_json::Value| {
        read("coder_workspace_tags", json!({"tags": tags}), &[])["id"].clone()
    };
    assert_eq!(id(json!({"a": "1"})), id(json!({"a": "1"})));
    assert_ne!(id(json!({"a": "1"})), id(json!({"a": "2"})));
}

#[test]
fn a_task_is_one_only_with_an_id() {
    holds(&read("coder_task", json!({}), &[]), json!({"enabled": false, "prompt": ""}));
    let id = "0b0f8d2c-6f3c-4b53-9d0e-51c1e1f4a002";
    let task = read("coder_task", json!({}), &[("CODER_TASK_ID", id), ("CODER_TASK_PROMPT", "p")]);
    holds(&task, json!({"enabled": true, "id": id, "prompt": "p"}));
    refused("coder_task", json!({}), &[("CODER_TASK_ID", "7")], "\"7\"");
}

#[test]
fn another_services_token_comes_by_its_id() {
    let env = [("CODER_EXTERNAL_AUTH_ACCESS_TOKEN_github", "t")];
    let auth = read("coder_external_auth", json!({"id": "github"}), &env);
    holds(&auth, json!({"id": "github", "access_token": "t", "optional": false}));
    holds(&read("coder_external_auth", json!({"id": "x"}), &env), json!({"access_token": ""}));
}
