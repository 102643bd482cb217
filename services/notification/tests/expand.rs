//! Messages against a real Postgres: who gets them, and that nobody gets one twice.

use std::collections::BTreeMap;

use berth_backbone::Clock;
use berth_bus::{Delivery, HandlerError};
use berth_domain::notification::NotificationTemplate;
use berth_notification::Expander;
use berth_testkit::TestDatabase;
use prometheus::Registry;
use serde_json::{Value, json};

const ORGANIZATION: &str = "00000000-0000-0000-0000-0000000000a0";

/// An organization, and one user of each kind that matters, named after it.
async fn given_people(database: &TestDatabase) {
    database
        .rows(&format!(
            "
            insert into organizations (id, name, created_at, updated_at) values
                ('{ORGANIZATION}', 'acme', now(), now()),
                (gen_random_uuid(), 'other', now(), now());
            insert into users (id, username, email, roles, status, deleted, created_at, updated_at)
                select gen_random_uuid(), name, name || '@example.com', roles::text[], status,
                       deleted, now(), now()
                from (values ('owner', '{{owner}}', 'active', false),
                             ('site-admin', '{{template-admin}}', 'dormant', false),
                             ('org-admin', '{{}}', 'active', false),
                             ('template-admin', '{{}}', 'active', false),
                             ('elsewhere', '{{}}', 'active', false),
                             ('member', '{{}}', 'active', false),
                             ('suspended', '{{owner}}', 'suspended', false),
                             ('gone', '{{owner}}', 'active', true),
                             ('silent', '{{owner}}', 'active', false)) u (name, roles, status, deleted);
            insert into organization_members (organization_id, user_id, roles, created_at, updated_at)
                select o.id, u.id, m.roles::text[], now(), now()
                from (values ('acme', 'org-admin', '{{organization-admin}}'),
                             ('acme', 'template-admin', '{{organization-template-admin}}'),
                             ('other', 'elsewhere', '{{organization-admin}}'),
                             ('acme', 'member', '{{}}')) m (organization, name, roles)
                join organizations o on o.name = m.organization
                join users u on u.username = m.name;
            insert into notification_preferences
                select id, '{}', true, now() from users where username = 'silent';",
            NotificationTemplate::PrebuildFailureLimit.id()
        ))
        .await;
}

fn expander(database: &TestDatabase) -> Expander {
    let db = berth_db::connect(&database.url, 4, "test").expect("the address is one");
    Expander::new(db, Clock::default(), &Registry::new()).expect("the metrics are new")
}

fn delivery(payload: &[u8], time: &str) -> Delivery {
    Delivery {
        subject: "berth.notify.x".to_owned(),
        headers: BTreeMap::from([("ce-time".to_owned(), time.to_owned())]),
        payload: payload.to_vec(),
        sequence: 1,
        attempt: 1,
    }
}

fn failure_limit(user_id: Option<&str>) -> Value {
    json!({
        "template": NotificationTemplate::PrebuildFailureLimit.id(),
        "organization_id": ORGANIZATION,
        "user_id": user_id,
        "labels": { "organization": "acme", "template": "go", "version": "v3", "preset": "large",
                    "failures": "3" },
        "targets": ["00000000-0000-0000-0000-0000000000b2", "00000000-0000-0000-0000-0000000000b1"],
    })
}

fn at(value: &Value, time: &str) -> Delivery {
    delivery(value.to_string().as_bytes(), time)
}

#[tokio::test(flavor = "multi_thread")]
async fn template_admins_of_the_organization_get_it_and_nobody_else() {
    let database = TestDatabase::create().await;
    given_people(&database).await;

    let stored =
        expander(&database).expand(&at(&failure_limit(None), "2026-11-21T10:00:00Z")).await;

    assert_eq!(stored.unwrap(), 4);
    let names = database
        .rows(
            "select u.username from inbox_notifications i join users u on u.id = i.user_id
             where i.title like 'Prebuilds of go / large%' and i.content like '%failed 3 times%'
             order by 1",
        )
        .await;
    assert_eq!(names.concat(), ["org-admin", "owner", "site-admin", "template-admin"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_delivered_twice_is_stored_once_and_again_on_the_next_day() {
    let database = TestDatabase::create().await;
    given_people(&database).await;
    let (one, two) = (expander(&database), expander(&database));
    let message = at(&failure_limit(None), "2026-11-21T10:00:00Z");

    let (a, b) = tokio::join!(one.expand(&message), two.expand(&message));

    assert_eq!(a.unwrap() + b.unwrap(), 4);
    let mut turned = failure_limit(None);
    turned["targets"].as_array_mut().unwrap().reverse();
    assert_eq!(one.expand(&at(&turned, "2026-11-21T23:59:59Z")).await.unwrap(), 0);
    assert_eq!(database.count("select count(*) from inbox_notifications").await, 4);
    assert_eq!(database.count("select count(*) from notification_messages").await, 4);

    assert_eq!(one.expand(&at(&turned, "2026-11-22T00:00:00Z")).await.unwrap(), 4);
    assert_eq!(database.count("select count(*) from inbox_notifications").await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_one_user_goes_to_that_user_alone() {
    let database = TestDatabase::create().await;
    given_people(&database).await;
    let member = database.value("select id from users where username = 'member'").await;

    let message = at(&failure_limit(Some(&member)), "2026-11-21T10:00:00Z");
    assert_eq!(expander(&database).expand(&message).await.unwrap(), 1);

    assert_eq!(database.value("select user_id from inbox_notifications").await, member);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_poison() {
    let database = TestDatabase::create().await;
    let expander = expander(&database);
    let mut unknown = failure_limit(None);
    unknown["template"] = json!("00000000-0000-0000-0000-000000000001");
    for payload in [b"not json".to_vec(), unknown.to_string().into_bytes()] {
        let outcome = expander.expand(&delivery(&payload, "2026-11-21T10:00:00Z")).await;
        assert!(matches!(outcome, Err(HandlerError::Poison(_))), "{outcome:?}");
    }
}
