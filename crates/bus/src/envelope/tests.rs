//! Every payload matches the schema that is published for its type.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use berth_domain::id::{
    BuildId, JobId, NotificationTemplateId, OrganizationId, TemplateId, UserId, WorkspaceId,
};
use berth_domain::state::{BuildStage, JobStatus, ProvisionerType, Transition};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Message, wrap};
use crate::event::{
    BuildChanged, ClaimFinished, DaemonsDrained, Event, JobCanceled, JobPosted, LogsAdded, Notify,
    Sleeper, TemplateChanged, TemplateVerb, Wake, WorkspaceChanged, WorkspaceVerb,
};
use crate::subjects::Subjects;

const ID: Uuid = Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001);

/// One of each kind, and each spelling that a kind can have.
fn examples() -> Vec<Event> {
    let mut events = vec![
        notify(Some(UserId(ID))),
        notify(None),
        Event::JobCanceled(JobCanceled { job_id: JobId(ID) }),
        Event::DaemonsDrained(DaemonsDrained { organization_id: OrganizationId(ID) }),
        Event::Logs(LogsAdded { job_id: JobId(ID), last_id: 7, end: true }),
        Event::Wake(Wake { service: Sleeper::Reconciler, key: ID.to_string() }),
    ];
    events.extend(ProvisionerType::ALL.iter().map(|&provisioner| {
        Event::JobPosted(JobPosted { organization_id: OrganizationId(ID), provisioner, count: 3 })
    }));
    for &transition in Transition::ALL {
        for &stage in BuildStage::ALL {
            events.extend(JobStatus::ALL.iter().map(|&status| build(transition, stage, status)));
        }
    }
    let ends = JobStatus::ALL.iter().filter(|status| status.is_terminal());
    events.extend(ends.map(|&status| claim(status)));
    events.extend(
        [
            WorkspaceVerb::Created,
            WorkspaceVerb::Claimed,
            WorkspaceVerb::Deleted,
            WorkspaceVerb::AgentConnected,
            WorkspaceVerb::AgentReady,
            WorkspaceVerb::AgentLost,
            WorkspaceVerb::Updated,
        ]
        .map(|what| {
            Event::Workspace(WorkspaceChanged {
                organization_id: OrganizationId(ID),
                workspace_id: WorkspaceId(ID),
                owner_id: UserId(ID),
                what,
                revision: 1,
            })
        }),
    );
    let verbs = [
        TemplateVerb::Promoted,
        TemplateVerb::Invalidated,
        TemplateVerb::PolicyChanged,
        TemplateVerb::Deleted,
    ];
    events.extend(verbs.map(|what| {
        let (organization_id, template_id) = (OrganizationId(ID), TemplateId(ID));
        Event::Template(TemplateChanged { organization_id, template_id, what })
    }));
    events
}

fn build(transition: Transition, stage: BuildStage, job_status: JobStatus) -> Event {
    Event::Build(BuildChanged {
        organization_id: OrganizationId(ID),
        workspace_id: WorkspaceId(ID),
        workspace_name: "dev".to_owned(),
        owner_id: UserId(ID),
        template_id: TemplateId(ID),
        build_id: BuildId(ID),
        build_number: 1,
        transition,
        stage,
        job_status,
        revision: 4,
    })
}

fn claim(job_status: JobStatus) -> Event {
    Event::Claim(ClaimFinished {
        workspace_id: WorkspaceId(ID),
        owner_id: UserId(ID),
        build_id: BuildId(ID),
        job_status,
        reason: "prebuild_claimed".to_owned(),
        error: String::new(),
    })
}

fn notify(user_id: Option<UserId>) -> Event {
    Event::Notify(Notify {
        template: NotificationTemplateId(ID),
        organization_id: OrganizationId(ID),
        user_id,
        labels: BTreeMap::from([("workspace".to_owned(), "dev".to_owned())]),
        data: json!({ "resources": ["disk"] }),
        targets: vec![ID],
    })
}

fn message(event: &Event) -> Message {
    wrap(&Subjects::new("berth"), "test", ID.into(), Timestamp::UNIX_EPOCH, event)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/events")
}

fn schema(kind: &str) -> Value {
    let path = folder().join(format!("{kind}.schema.json"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// What is wrong with `value`; nothing when it is as `schema` says. Knows what our schemas use and
/// is stricter than JSON Schema in one thing: a field that the schema does not name is a fault.
fn faults(schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let rules: &Map<String, Value> = schema.as_object().expect("a schema is an object");
    for (rule, wanted) in rules {
        let kept = match rule.as_str() {
            "$schema" | "$id" | "title" | "description" => true,
            "type" => is_of_type(wanted, value),
            "const" => value == wanted,
            "enum" => wanted.as_array().unwrap().contains(value),
            "minimum" => value.as_i64() >= wanted.as_i64(),
            "format" => {
                value.is_null() || value.as_str().is_some_and(|it| it.parse::<Uuid>().is_ok())
            }
            "required" => wanted
                .as_array()
                .unwrap()
                .iter()
                .all(|name| value.get(name.as_str().unwrap()).is_some()),
            "properties" => {
                for (name, value) in value.as_object().unwrap() {
                    let place = format!("{place}.{name}");
                    match wanted.get(name) {
                        Some(schema) => faults.extend(self::faults(schema, value, &place)),
                        None => faults.push(format!("{place} is not described")),
                    }
                }
                true
            }
            "items" => {
                let items = value.as_array().unwrap();
                faults.extend(items.iter().flat_map(|it| self::faults(wanted, it, place)));
                true
            }
            "additionalProperties" => {
                let fields = value.as_object().unwrap().values();
                faults.extend(fields.flat_map(|it| self::faults(wanted, it, place)));
                true
            }
            other => panic!("this check does not know `{other}`: teach it"),
        };
        if !kept {
            faults.push(format!("{place}: {value} breaks `{rule}`: {wanted}"));
        }
    }
    faults
}

fn is_of_type(wanted: &Value, value: &Value) -> bool {
    match wanted.as_str() {
        None => wanted.as_array().unwrap().iter().any(|it| is_of_type(it, value)),
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some(other) => panic!("this check does not know the type `{other}`: teach it"),
    }
}

#[test]
fn every_payload_matches_the_schema_of_its_type() {
    for event in examples() {
        let message = message(&event);
        let kind = &message.headers["ce-type"];
        if matches!(event, Event::Wake(_)) {
            assert!(message.payload.is_empty(), "a wake-up carries no payload");
            continue;
        }
        let payload: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(faults(&schema(kind), &payload, kind), Vec::<String>::new());
    }
}

#[test]
fn every_published_schema_belongs_to_a_type_that_is_sent() {
    let kinds: Vec<String> =
        examples().iter().map(|event| message(event).headers["ce-type"].clone()).collect();
    for entry in folder().read_dir().unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(kind) = name.strip_suffix(".schema.json") {
            assert!(kinds.iter().any(|it| it == kind), "{name} is for no event");
        }
    }
}

#[test]
fn a_missing_a_wrong_and_an_unknown_field_are_faults() {
    let schema = schema("berth.job.logs");
    let good = json!({ "job_id": ID, "last_id": 7, "end": false });
    assert_eq!(faults(&schema, &good, "logs"), Vec::<String>::new());
    let bad = [
        json!({ "job_id": ID, "last_id": 7 }),
        json!({ "job_id": "x", "last_id": 7, "end": false }),
        json!({ "job_id": ID, "last_id": -1, "end": false }),
        json!({ "job_id": ID, "last_id": 7, "end": false, "more": 1 }),
    ];
    for payload in bad {
        assert_eq!(faults(&schema, &payload, "logs").len(), 1, "{payload}");
    }
}
