use serde_json::json;

use super::*;
use crate::wire::tfplugin6::diagnostic::Severity;
use crate::wire::tfplugin6::provider_server::Provider as _;

fn provider() -> Provider {
    Provider::new(Environment::default())
}

fn sent(json: serde_json::Value) -> DynamicValue {
    Value::from(json).to_wire()
}

fn read(value: Option<&DynamicValue>) -> Value {
    Value::from_wire(value).expect("a good value")
}

async fn plan(
    name: &str,
    prior: serde_json::Value,
    config: serde_json::Value,
) -> wire::PlanResourceChangeResponse {
    let request = wire::PlanResourceChangeRequest {
        type_name: name.to_owned(),
        prior_state: Some(sent(prior)),
        config: Some(sent(config)),
        ..Default::default()
    };
    provider().plan_resource_change(Request::new(request)).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_new_resource_is_planned_with_unknown_ids_and_made_with_known_ones() {
    let config = json!({"agent_id": "a", "name": "N", "value": null, "merge_strategy": null});
    let planned = plan("coder_env", json!(null), config.clone()).await;
    assert!(planned.legacy_type_system, "defaults need it");
    let state = read(planned.planned_state.as_ref());
    assert_eq!(state.as_object().unwrap()["id"], Value::Unknown);

    let request = wire::ApplyResourceChangeRequest {
        type_name: "coder_env".to_owned(),
        prior_state: Some(sent(json!(null))),
        planned_state: planned.planned_state,
        config: Some(sent(config.clone())),
        ..Default::default()
    };
    let made = provider().apply_resource_change(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(made.diagnostics, []);
    let state = read(made.new_state.as_ref());
    assert!(state.is_wholly_known());
    let state = state.as_object().unwrap();
    assert_eq!(state["merge_strategy"], Value::from("replace"));
    assert!(state["id"].as_text().is_some_and(|id| id.parse::<uuid::Uuid>().is_ok()));
}

#[tokio::test]
async fn a_changed_resource_says_which_argument_replaces_it() {
    let prior =
        json!({"id": "1", "agent_id": "a", "name": "N", "value": "1", "merge_strategy": "replace"});
    let config = json!({"agent_id": "a", "name": "N", "value": "2"});
    let planned = plan("coder_env", prior, config).await;
    assert_eq!(planned.requires_replace, [Path::of("value").to_wire()]);
}

#[tokio::test]
async fn destroying_leaves_nothing() {
    let planned = plan("coder_env", json!({"id": "1"}), json!(null)).await;
    assert_eq!(read(planned.planned_state.as_ref()), Value::Null);
    let request = wire::ApplyResourceChangeRequest {
        type_name: "coder_env".to_owned(),
        prior_state: Some(sent(json!({"id": "1"}))),
        planned_state: Some(sent(json!(null))),
        ..Default::default()
    };
    let gone = provider().apply_resource_change(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(read(gone.new_state.as_ref()), Value::Null);
}

#[tokio::test]
async fn a_state_of_the_public_provider_is_taken_over() {
    let request = wire::UpgradeResourceStateRequest {
        type_name: "coder_env".to_owned(),
        version: 1,
        raw_state: Some(wire::RawState {
            json: br#"{"id":"1","agent_id":"a","name":"N","value":"","later":true}"#.to_vec(),
            ..Default::default()
        }),
    };
    let upgraded = provider().upgrade_resource_state(Request::new(request)).await.unwrap();
    let state = Value::from(json!({
        "id": "1", "agent_id": "a", "name": "N", "value": "", "merge_strategy": "replace",
    }));
    assert_eq!(read(upgraded.get_ref().upgraded_state.as_ref()), state);
}

#[tokio::test]
async fn the_configured_url_comes_before_the_environments() {
    let provider = Provider::new(Environment::from_iter([("CODER_AGENT_URL", "https://env")]));
    assert_eq!(provider.context().access_url, "https://env");
    for (url, expected) in [(json!(null), "https://env"), (json!("http://conf:1"), "http://conf:1")]
    {
        let request = wire::ConfigureProviderRequest {
            config: Some(sent(json!({"url": url}))),
            ..Default::default()
        };
        let configured = provider.configure_provider(Request::new(request)).await.unwrap();
        assert_eq!(configured.get_ref().diagnostics, []);
        assert_eq!(provider.context().access_url, expected);
    }
    let request = wire::ConfigureProviderRequest {
        config: Some(sent(json!({"url": "nowhere"}))),
        ..Default::default()
    };
    let refused = provider.configure_provider(Request::new(request)).await.unwrap();
    assert!(refused.get_ref().diagnostics[0].detail.contains("\"nowhere\""));
    assert_eq!(provider.context().access_url, "http://conf:1");
}

#[tokio::test]
async fn what_it_does_not_know_or_cannot_read_is_an_error_and_no_crash() {
    let unknown = plan("coder_ship", json!(null), json!({})).await;
    assert!(unknown.diagnostics[0].detail.contains("coder_ship"));
    assert_eq!(unknown.diagnostics[0].severity(), Severity::Error);

    let request = wire::ReadDataSourceRequest {
        type_name: "coder_workspace".to_owned(),
        config: Some(DynamicValue { msgpack: vec![0xc4, 0x01, 0x00], json: Vec::new() }),
    };
    let malformed = provider().read_data_source(Request::new(request)).await.unwrap();
    assert_eq!(malformed.get_ref().diagnostics.len(), 1);
    assert_eq!(malformed.get_ref().state, None);
}

#[tokio::test]
async fn a_mistake_is_told_with_its_place() {
    let request = wire::ValidateResourceConfigRequest {
        type_name: "coder_agent".to_owned(),
        config: Some(sent(json!({
            "os": "linux", "arch": "amd64",
            "metadata": [{"key": "a", "script": "s", "interval": 1.5}],
        }))),
    };
    let found = provider().validate_resource_config(Request::new(request)).await.unwrap();
    let [diagnostic] = &found.get_ref().diagnostics[..] else { panic!("one diagnostic") };
    assert!(diagnostic.detail.contains("1.5 is not a whole number"));
    let place = Path::of("metadata").index(0).name("interval");
    assert_eq!(diagnostic.attribute, Some(place.to_wire()));
}

#[tokio::test]
async fn nothing_can_be_imported() {
    let request = wire::ImportResourceStateRequest {
        type_name: "coder_agent".to_owned(),
        id: "1".to_owned(),
    };
    let imported = provider().import_resource_state(Request::new(request)).await.unwrap();
    assert!(imported.get_ref().imported_resources.is_empty());
    assert_eq!(imported.get_ref().diagnostics.len(), 1);
}
