//! Hints: whoever changes something has it set right within a second.

use std::time::Duration;

use berth_backbone::{Backbone, Clock};
use berth_bus::event::{Event, TemplateChanged, TemplateVerb, Wake};
use berth_bus::{Bus, BusConfig};
use berth_domain::id::{OrganizationId, TemplateId};
use berth_membership_reconciler::{Hint, Keeper, MembershipConfig, Metrics};
use berth_testkit::{SOON, TestDatabase, servers, subject_space, wait_until};
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::world::given_organizations;

/// What a hint may take.
const WITHIN: Duration = Duration::from_secs(1);

async fn backbone(database: &TestDatabase, stop: &CancellationToken) -> Backbone {
    let db = berth_db::connect(&database.url, 4, "test").expect("the address is one");
    let url = servers().await.nats_url.clone();
    let config = BusConfig { url, prefix: subject_space(), ..BusConfig::default() };
    let bus = Bus::connect(&config, "test").await.expect("the address is one");
    wait_until("NATS is there", SOON, async || bus.ensure_streams().await.ok()).await;
    let stores = (db.clone(), bus.clone());
    let (backbone, publisher) = Backbone::over("membership-reconciler", stores, Clock::default());
    tokio::spawn(publisher.run(db, bus, stop.clone()));
    backbone
}

async fn organization(database: &TestDatabase, name: &str) -> OrganizationId {
    let sql = format!("select id from organizations where name = '{name}'");
    database.value(&sql).await.parse().expect("an id")
}

async fn is_seated(database: &TestDatabase, id: OrganizationId, within: Duration) {
    let sql = format!(
        "select count(*) from group_members m join groups g on g.id = m.group_id
         where g.organization_id = '{id}'"
    );
    wait_until("the prebuilds user is in the group", within, async || {
        (database.count(&sql).await == 1).then_some(())
    })
    .await;
}

async fn say(backbone: &Backbone, event: Event) {
    let mut work = backbone.begin().await.expect("Postgres is there");
    work.emit(event);
    work.commit().await.expect("Postgres is there");
}

/// No sweep runs here: only hints do it.
#[tokio::test(flavor = "multi_thread")]
async fn hints_set_their_organization_right_within_a_second() {
    let database = given_organizations(4, 1).await;
    let stop = CancellationToken::new();
    let backbone = backbone(&database, &stop).await;
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let keeper = Keeper::new(backbone.clone(), &MembershipConfig::default(), metrics);
    tokio::spawn(keeper.clone().listen(Hint::Wake, stop.clone()));
    tokio::spawn(keeper.listen(Hint::Template, stop.clone()));
    let promoted = |organization_id| {
        Event::Template(TemplateChanged {
            organization_id,
            template_id: TemplateId(Uuid::from_u128(9)),
            what: TemplateVerb::Promoted,
        })
    };
    // The first ones also wait for the consumers to be made.
    let (first, second) =
        (organization(&database, "org-1").await, organization(&database, "org-2").await);
    say(&backbone, Wake::membership(first)).await;
    is_seated(&database, first, SOON).await;
    say(&backbone, promoted(second)).await;
    is_seated(&database, second, SOON).await;

    let (third, fourth) =
        (organization(&database, "org-3").await, organization(&database, "org-4").await);
    say(&backbone, Wake::membership(third)).await;
    is_seated(&database, third, WITHIN).await;
    say(&backbone, promoted(fourth)).await;
    is_seated(&database, fourth, WITHIN).await;
    database.rows("delete from groups").await;
    say(&backbone, Wake::membership(first)).await;
    is_seated(&database, first, WITHIN).await;
    stop.cancel();
}
