use serde_json::json;

use super::*;
use crate::env::Environment;

fn object(json: serde_json::Value) -> Object {
    Value::from(json).as_object().expect("an object").clone()
}

fn resource(name: &str) -> &'static Resource {
    RESOURCES.iter().find(|resource| resource.name == name).expect("a resource")
}

fn context<const N: usize>(env: [(&str, &str); N]) -> Context {
    Context {
        env: Environment::from_iter(env),
        access_url: "https://berth.example/path".to_owned(),
    }
}

/// The state of a new resource.
fn created(name: &str, config: &Object, context: &Context) -> Object {
    let resource = resource(name);
    let planned = resource.plan(config, None);
    resource.create(context, config, planned.state).expect("a good configuration")
}

#[track_caller]
fn check(name: &str, config: serde_json::Value, expected: Option<&str>) {
    let found = resource(name).validate(&object(config));
    let errors: Vec<_> = found.iter().filter(|it| it.is_error()).map(|it| &it.detail).collect();
    match expected {
        None => assert!(errors.is_empty(), "{errors:?}"),
        Some(reason) => {
            assert!(errors.iter().any(|it| it.contains(reason)), "{reason} not in {errors:?}");
        }
    }
}

fn agent() -> Object {
    object(json!({"os": "linux", "arch": "amd64"}))
}

#[test]
fn each_agent_gets_its_own_id_and_token() {
    let (one, other) = (
        created("coder_agent", &agent(), &context([])),
        created("coder_agent", &agent(), &context([])),
    );
    for name in ["id", "token"] {
        assert_ne!(one[name], other[name], "{name}");
        assert!(text(&one, name).is_some_and(|it| it.parse::<uuid::Uuid>().is_ok()));
    }
    assert_eq!(one["init_script"], Value::from(""));
}

#[test]
fn the_only_agent_of_a_claim_keeps_its_token_even_when_it_is_replaced() {
    let of_any = "CODER_RUNNING_WORKSPACE_AGENT_TOKEN_e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let replaced = created("coder_agent", &agent(), &context([(of_any, "running")]));
    assert_eq!(replaced["token"], Value::from("running"));
}

#[test]
fn an_agent_is_what_it_was_until_the_environment_says_otherwise() {
    let made = created(
        "coder_agent",
        &agent(),
        &context([("CODER_AGENT_SCRIPT_linux_amd64", "${ACCESS_URL} ${AUTH_TYPE}")]),
    );
    assert_eq!(made["init_script"], Value::from("https://berth.example/ token"));
    let agent = resource("coder_agent");
    assert_eq!(agent.refresh(&context([]), made.clone()), made);

    let token = format!(
        "CODER_RUNNING_WORKSPACE_AGENT_TOKEN_{}",
        identity::digest(text(&made, "id").unwrap())
    );
    let context =
        context([(&token, "running"), ("CODER_AGENT_SCRIPT_linux_amd64", "by ${AUTH_TYPE}")]);
    let refreshed = agent.refresh(&context, made.clone());
    assert_eq!(refreshed["token"], Value::from("running"));
    assert_eq!(refreshed["init_script"], Value::from("by token"));
    assert_eq!(refreshed["id"], made["id"]);
}

#[test]
fn an_agents_keys_and_volumes_are_unique() {
    let item = |key| json!({"key": key, "script": "true", "interval": 1});
    let agent = |metadata, volumes: serde_json::Value| {
        json!({
            "os": "linux", "arch": "amd64", "metadata": metadata,
            "resources_monitoring": [{"memory": [], "volume": volumes}],
        })
    };
    let volume = |path, threshold| json!({"path": path, "enabled": true, "threshold": threshold});
    let good = agent(json!([item("a"), item("b")]), json!([volume("/a", 0), volume("/b", 100)]));
    check("coder_agent", good, None);
    check("coder_agent", agent(json!([item("a"), item("a")]), json!([])), Some("key \"a\""));
    let twice = agent(json!([]), json!([volume("/a", 1), volume("/a", 2)]));
    check("coder_agent", twice, Some("path \"/a\""));
    check("coder_agent", agent(json!([]), json!([volume("a", 1)])), Some("not an absolute path"));
    check("coder_agent", agent(json!([]), json!([volume("/a", 101)])), Some("101 is not within"));
}

#[test]
fn an_app_is_reached_in_one_way() {
    let app = |more: serde_json::Value| {
        let mut app = json!({"agent_id": "a", "slug": "s"});
        app.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        app
    };
    check("coder_app", app(json!({"command": "top"})), None);
    check("coder_app", app(json!({"url": "http://localhost:1"})), None);
    check("coder_app", app(json!({"command": "top", "url": "x"})), Some("excludes \"url\""));
    check("coder_app", app(json!({"command": "top", "subdomain": true})), Some("\"subdomain\""));
    check("coder_app", app(json!({"command": "top", "subdomain": false})), None);
    check("coder_app", app(json!({"external": true, "url": "https://x"})), None);
    check("coder_app", app(json!({"external": true, "url": "/x"})), Some("no scheme"));
    check("coder_app", app(json!({"external": true, "share": "public"})), Some("\"share\""));
    check("coder_app", app(json!({"slug": "A b"})), Some("\"A b\""));
    check("coder_app", app(json!({"share": "all"})), Some("\"all\" is none of"));
    let hidden = resource("coder_app").validate(&object(app(json!({"hidden": true, "order": 1}))));
    assert!(hidden.len() == 1 && !hidden[0].is_error(), "{hidden:?}");
}

#[test]
fn a_script_runs_at_some_time() {
    let script = |more: serde_json::Value| {
        let mut script = json!({"agent_id": "a", "display_name": "d", "script": "true"});
        script.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        script
    };
    for when in [
        json!({"run_on_start": true}),
        json!({"run_on_stop": true}),
        json!({"cron": "0 * * * * *"}),
        json!({"run_on_start": true, "start_blocks_login": true, "timeout": 60}),
    ] {
        check("coder_script", script(when), None);
    }
    for never in [json!({}), json!({"run_on_start": false}), json!({"cron": ""})] {
        check("coder_script", script(never), Some("at least one of"));
    }
    let blocking = json!({"run_on_stop": true, "start_blocks_login": true});
    check("coder_script", script(blocking), Some("needs \"run_on_start\""));
    check("coder_script", script(json!({"cron": "daily"})), Some("\"daily\""));

    let mut unknown = object(script(json!({})));
    unknown.insert("cron".to_owned(), Value::Unknown);
    assert_eq!(resource("coder_script").validate(&unknown), []);
}

/// An unknown value passes when the plan is made, so creating has to look again.
#[test]
fn what_turns_out_bad_when_it_is_known_is_not_created() {
    let script = resource("coder_script");
    let mut config = object(json!({"agent_id": "a", "display_name": "d", "script": "true"}));
    config.insert("cron".to_owned(), Value::from("daily"));
    let planned = script.plan(&config, None).state;
    assert!(script.create(&context([]), &config, planned).is_err());
}

#[test]
fn metadata_tells_what_has_no_value() {
    let mut config = object(json!({
        "resource_id": "r", "item": [{"key": "a", "value": "1"}, {"key": "b"}],
    }));
    let is_null = |state: &Object| -> Vec<Value> {
        state["item"].items().iter().map(|it| it.as_object().unwrap()["is_null"].clone()).collect()
    };
    let made = created("coder_metadata", &config, &context([]));
    assert_eq!(is_null(&made), [Value::Bool(false), Value::Bool(true)]);

    let mut item = object(json!({"key": "a"}));
    item.insert("value".to_owned(), Value::Unknown);
    config.insert("item".to_owned(), Value::List(vec![Value::Object(item)]));
    let planned = resource("coder_metadata").plan(&config, None).state;
    assert_eq!(is_null(&planned), [Value::Unknown]);
}

#[test]
fn metadatas_keys_are_unique() {
    let twice = json!({"resource_id": "r", "item": [{"key": "a"}, {"key": "a"}]});
    check("coder_metadata", twice, Some("key \"a\""));
    check("coder_metadata", json!({"resource_id": "r", "daily_cost": -1}), Some("-1 is negative"));
}

#[test]
fn a_task_knows_its_id_and_its_app() {
    let app = "0b0f8d2c-6f3c-4b53-9d0e-51c1e1f4a001";
    let task = "0b0f8d2c-6f3c-4b53-9d0e-51c1e1f4a002";
    let config = object(json!({"app_id": null, "sidebar_app": [{"id": app}]}));
    let made = created("coder_ai_task", &config, &context([]));
    assert_eq!((&made["enabled"], &made["app_id"]), (&Value::Bool(false), &Value::from(app)));

    let config = object(json!({"app_id": app}));
    let env = context([("CODER_TASK_ID", task), ("CODER_TASK_PROMPT", "fix it")]);
    let made = created("coder_ai_task", &config, &env);
    assert_eq!((&made["enabled"], &made["id"]), (&Value::Bool(true), &Value::from(task)));
    assert_eq!(made["prompt"], Value::from("fix it"));

    check("coder_ai_task", json!({}), Some("\"app_id\""));
    let both = json!({"app_id": app, "sidebar_app": [{"id": app}]});
    check("coder_ai_task", both, Some("not both"));
}

#[test]
fn every_resource_is_complete_once_created() {
    for (name, config) in [
        ("coder_agent_instance", json!({"agent_id": "a", "instance_id": "i"})),
        ("coder_devcontainer", json!({"agent_id": "a", "workspace_folder": "/w"})),
        ("coder_env", json!({"agent_id": "a", "name": "N"})),
        ("coder_external_agent", json!({"agent_id": "a"})),
    ] {
        let config = object(config);
        assert_eq!(resource(name).validate(&config), [], "{name}");
        let made = created(name, &config, &context([]));
        let planned = resource(name).plan(&config, Some(&made));
        assert_eq!(planned.state, made, "{name}");
        assert_eq!(planned.replaced_by, [], "{name}");
    }
}
