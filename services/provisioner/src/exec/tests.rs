//! The published schemas say exactly what is read and written.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::json;

use super::*;

fn schema(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../../docs/schemas/exec-{name}.schema.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn properties(schema: &Value) -> BTreeSet<String> {
    schema["properties"].as_object().unwrap().keys().cloned().collect()
}

/// The members that `T` knows: serde names them when it meets one that it does not know.
fn members<T: DeserializeOwned>() -> BTreeSet<String> {
    let Err(error) = serde_json::from_value::<T>(json!({ "no-such-member": 1 })) else {
        panic!("unknown members are accepted")
    };
    let error = error.to_string();
    let (_, expected) = error.split_once("expected ").unwrap();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[track_caller]
fn check<T: DeserializeOwned>(schema: &Value) {
    assert_eq!(properties(schema), members::<T>());
}

#[test]
fn the_schemas_of_results_are_what_is_read() {
    check::<PlanResult>(&schema("plan-result"));
    check::<wire::Replacement>(&schema("plan-result")["$defs"]["replacement"]);
    check::<ApplyResult>(&schema("apply-result"));
    let resource = schema("resource");
    check::<wire::Resource>(&resource);
    check::<wire::ResourceMetadata>(&resource["$defs"]["resource_metadata"]);
    check::<wire::Agent>(&resource["$defs"]["agent"]);
    check::<wire::Script>(&resource["$defs"]["script"]);
    check::<wire::App>(&resource["$defs"]["app"]);
    check::<wire::Healthcheck>(&resource["$defs"]["healthcheck"]);
    check::<wire::AgentMetadata>(&resource["$defs"]["agent_metadata"]);
}

#[test]
fn the_schema_of_the_manifest_is_what_is_read() {
    let schema = schema("template");
    check::<Manifest>(&schema);
    let definitions = &schema["$defs"];
    check::<manifest::Variable>(&definitions["variable"]);
    check::<manifest::Parameter>(&definitions["parameter"]);
    check::<manifest::ParameterOption>(&definitions["option"]);
    check::<manifest::Validation>(&definitions["validation"]);
    check::<manifest::Preset>(&definitions["preset"]);
    check::<manifest::Prebuilds>(&definitions["prebuilds"]);
    check::<manifest::Schedule>(&definitions["schedule"]);
}

#[test]
fn the_schema_of_requests_is_what_is_written() {
    let running_agents = vec![v1::RunningAgent::default()];
    let build = v1::WorkspaceBuild { running_agents, ..Default::default() };
    let input = Some(v1::job::Input::WorkspaceBuild(build));
    let exec = Exec::new(v1::Job { input, ..Default::default() });
    let request = exec.request("plan", v1::Transition::Start, Value::Null);
    let request: Value = serde_json::from_slice(&request).unwrap();
    let members = |value: &Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let schema = schema("request");
    assert_eq!(properties(&schema), members(&request));
    for name in ["workspace", "owner", "template"] {
        assert_eq!(properties(&schema["$defs"][name]), members(&request[name]), "{name}");
    }
    let agent = &request["running_agents"][0];
    assert_eq!(properties(&schema["$defs"]["running_agent"]), members(agent));
}

#[test]
fn a_manifest_that_is_wrong_says_where() {
    let head = "version = 1\nplan = 'p'\napply = 'a'\n";
    Manifest::parse(head).unwrap();
    for (text, expected) in [
        ("version = 2\nplan = 'p'\napply = 'a'".to_owned(), "knows version 1"),
        ("version = 1\nplan = '/bin/sh'\napply = 'a'".to_owned(), "`plan`: \"/bin/sh\" is not"),
        ("version = 1\nplan = 'p'\napply = '../a'".to_owned(), "`apply`: \"../a\" is not"),
        (format!("{head}[[parameters]]\nnam = 'x'"), "unknown field `nam`"),
    ] {
        let error = format!("{:#}", Manifest::parse(&text).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_local_template_and_the_documented_one_are_read() {
    let local = include_str!("../../../../templates/local-exec/template.toml");
    let document = include_str!("../../../../docs/exec-provisioner.md");
    let documented = document.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    for text in [local, documented] {
        let manifest = Manifest::parse(text).unwrap();
        assert!(manifest.presets()[0].prebuilds.is_some());
    }
    let mut examples =
        document.split("```json\n").skip(1).map(|it| it.split("```").next().unwrap());
    let plan: PlanResult = serde_json::from_str(examples.next().unwrap()).unwrap();
    let apply: ApplyResult = serde_json::from_str(examples.next().unwrap()).unwrap();
    assert_eq!((plan.resources.len(), apply.resources.len()), (1, 1));
    wire::check_tokens(&apply.resources).unwrap();
}

#[test]
fn what_has_no_id_gets_the_same_one_in_every_build() {
    let resources = || -> Vec<wire::Resource> {
        let agent = json!({ "name": "dev", "apps": [{ "slug": "web" }],
            "scripts": [{ "display_name": "s", "script": "x" }] });
        serde_json::from_value(json!([{ "name": "r", "type": "t", "agents": [agent] }])).unwrap()
    };
    let ids = |workspace| {
        let agent = wire::resources(resources(), workspace)[0].agents[0].clone();
        [agent.id, agent.apps[0].id.clone(), agent.scripts[0].id.clone()]
    };
    assert_eq!(ids("w1"), ids("w1"));
    let all: BTreeSet<_> = ids("w1").into_iter().chain(ids("w2")).collect();
    assert_eq!(all.len(), 6);
}
