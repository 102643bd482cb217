use berth_bus::event::{Event, TemplateChanged, TemplateVerb, Wake};
use berth_bus::subjects::Stream;
use berth_bus::{Bus, BusConfig};
use berth_db::outbox;
use berth_domain::id::{OrganizationId, PresetId, TemplateId};
use berth_service_kit::Health;
use berth_testkit::{SOON, TestDatabase, servers, subject_space, wait_until};
use futures_util::StreamExt;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::relay::{OutboxMetrics, Sweep};
use crate::{Backbone, Clock};

const PRESET: PresetId = PresetId(Uuid::from_u128(7));

struct World {
    database: TestDatabase,
    backbone: Backbone,
    stop: CancellationToken,
}

/// A backbone; with `publishing`, one that publishes what it commits.
async fn given_backbone(publishing: bool) -> World {
    let database = TestDatabase::create().await;
    let db = berth_db::connect(&database.url, 4, "test").unwrap();
    let url = servers().await.nats_url.clone();
    let config = BusConfig { url, prefix: subject_space(), ..BusConfig::default() };
    let bus = Bus::connect(&config, "test").await.unwrap();
    wait_until("NATS is there", SOON, async || bus.ensure_streams().await.ok()).await;
    let (backbone, publisher) = Backbone::over("test", (db.clone(), bus.clone()), Clock::default());
    let stop = CancellationToken::new();
    if publishing {
        tokio::spawn(publisher.run(db, bus, stop.clone()));
    }
    World { database, backbone, stop }
}

impl World {
    async fn waiting(&self) -> i64 {
        outbox::depth(&self.backbone.db).await.unwrap().rows
    }

    async fn stored(&self, stream: Stream) -> u64 {
        let (first, last) = self.backbone.bus.bounds(stream).await.unwrap();
        (last + 1).saturating_sub(first.max(1))
    }
}

/// Undone work says nothing; committed work is said once and leaves the outbox.
#[tokio::test(flavor = "multi_thread")]
async fn events_are_said_if_and_only_if_their_work_commits() {
    let world = given_backbone(true).await;

    let mut undone = world.backbone.begin().await.unwrap();
    undone.emit(Wake::pool(PRESET));
    drop(undone);
    let mut done = world.backbone.begin().await.unwrap();
    done.emit(Event::Template(TemplateChanged {
        organization_id: OrganizationId(Uuid::from_u128(1)),
        template_id: TemplateId(Uuid::from_u128(2)),
        what: TemplateVerb::Promoted,
    }));
    done.commit().await.unwrap();

    let all = world.backbone.bus.subjects().all(Stream::Templates);
    let mut said =
        world.backbone.bus.follow(Stream::Templates, all, Some(0)).await.unwrap().boxed();
    let first = said.next().await.unwrap().unwrap();
    assert!(first.subject.ends_with("templates.00000000-0000-0000-0000-000000000001.00000000-0000-0000-0000-000000000002.promoted"));
    assert_eq!(first.headers["ce-type"], "berth.template.changed");
    assert_eq!(first.headers["ce-id"], first.headers["Nats-Msg-Id"]);
    wait_until("the outbox is empty", SOON, async || (world.waiting().await == 0).then_some(()))
        .await;
    assert_eq!(world.stored(Stream::Wake).await, 0);
    world.stop.cancel();
}

/// What the process that committed could not publish is swept by any relay, and a repeat is one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_behind_is_swept_and_a_repeat_is_stored_once() {
    let world = given_backbone(false).await;
    for preset in 1..=3 {
        let mut work = world.backbone.begin().await.unwrap();
        work.emit(Wake::pool(PresetId(Uuid::from_u128(preset))));
        work.commit().await.unwrap();
    }
    assert_eq!(world.waiting().await, 3);
    // As if their process had been killed a minute ago, right after it had published the first.
    world.database.rows("update outbox set created_at = created_at - interval '1 minute'").await;
    let rows = outbox::lease(&world.backbone.db, 3_000.0, 1).await.unwrap();
    let again = rows.iter().map(crate::relay::message).collect::<Vec<_>>();
    assert_eq!(world.backbone.bus.publish_stored(&again).await, [true]);

    let sweep = Sweep {
        db: world.backbone.db.clone(),
        bus: world.backbone.bus.clone(),
        latch: Health::default().latch("outbox"),
        metrics: OutboxMetrics::register(&Registry::new()).unwrap(),
    };
    tokio::spawn(sweep.run(world.stop.clone()));

    wait_until("the outbox is empty", SOON, async || (world.waiting().await == 0).then_some(()))
        .await;
    assert_eq!(world.stored(Stream::Wake).await, 3);
    world.stop.cancel();
}

/// Ten hints to look at one key become one.
#[tokio::test(flavor = "multi_thread")]
async fn hints_for_one_key_become_one() {
    let world = given_backbone(true).await;
    for _ in 0..10 {
        let mut work = world.backbone.begin().await.unwrap();
        work.emit(Wake::pool(PRESET));
        work.commit().await.unwrap();
    }

    wait_until("the outbox is empty", SOON, async || (world.waiting().await == 0).then_some(()))
        .await;

    // Its number is the tenth, and it is the only one left.
    assert_eq!(world.backbone.bus.bounds(Stream::Wake).await.unwrap(), (10, 10));
    world.stop.cancel();
}

/// With NATS away, work commits all the same and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn work_commits_while_nats_is_away() {
    let database = TestDatabase::create().await;
    let db = berth_db::connect(&database.url, 2, "test").unwrap();
    let url = format!("nats://127.0.0.1:{}", berth_devstack::free_port().unwrap());
    let bus = Bus::connect(&BusConfig { url, ..BusConfig::default() }, "test").await.unwrap();
    let (backbone, publisher) = Backbone::over("test", (db.clone(), bus.clone()), Clock::default());
    let stop = CancellationToken::new();
    let publisher = tokio::spawn(publisher.run(db.clone(), bus, stop.clone()));

    let mut work = backbone.begin().await.unwrap();
    work.emit(Wake::pool(PRESET));
    work.commit().await.unwrap();

    stop.cancel();
    publisher.await.unwrap();
    assert_eq!(outbox::depth(&db).await.unwrap().rows, 1);
}
