//! The order in which jobs are taken, against a simple model.

use std::collections::{BTreeMap, BTreeSet};

use berth_db::job::{self, Filter, Held};
use berth_domain::build::{Tags, normalize_tags, tags_match};
use berth_domain::id::{DaemonId, LeaseToken, OrganizationId, PREBUILDS_USER};
use uuid::Uuid;

use super::{ADA, World, job, organization};

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

#[derive(Debug, Clone)]
struct Job {
    id: Uuid,
    organization: Uuid,
    provisioner: &'static str,
    class: i16,
    tags: Tags,
    /// Never near 15 minutes: time goes on while the test runs.
    age_seconds: i32,
}

impl Job {
    /// The class that it counts for, and how long it waits.
    fn urgency(&self) -> (i16, i32, Uuid) {
        (self.class - i16::from(self.age_seconds > 900), -self.age_seconds, self.id)
    }
}

/// What the queue should do, said as simply as can be.
#[derive(Default)]
struct Model {
    pending: Vec<Job>,
    running: BTreeMap<Uuid, Vec<Job>>,
}

impl Model {
    fn take(&mut self, filter: &Filter, count: usize) -> Vec<Uuid> {
        let fits = |it: &&Job| {
            filter.organizations.contains(&OrganizationId(it.organization))
                && filter.provisioners.iter().any(|name| name == it.provisioner)
                && tags_match(&it.tags, &filter.tags)
        };
        let mut fitting: Vec<&Job> = self.pending.iter().filter(fits).collect();
        fitting.sort_by_key(|it| it.urgency());
        let mut turns: BTreeMap<(i16, Uuid), usize> = BTreeMap::new();
        let mut queue: Vec<_> = fitting
            .into_iter()
            .map(|it| {
                let (class, age, id) = it.urgency();
                let running = self.running.get(&it.organization).map_or(0, Vec::len);
                // Daemons of one organization see no turns.
                let running = if filter.organizations.len() > 1 { running } else { 0 };
                let turn = turns.entry((class, it.organization)).or_insert(running);
                *turn += 1;
                (class, *turn, age, id)
            })
            .collect();
        queue.sort_unstable();
        let taken: Vec<Uuid> = queue.into_iter().take(count).map(|(_, _, _, id)| id).collect();
        for id in &taken {
            let place = self.pending.iter().position(|it| it.id == *id).unwrap();
            let job = self.pending.remove(place);
            self.running.entry(job.organization).or_default().push(job);
        }
        taken
    }
}

fn tags(pairs: &[(&str, &str)]) -> Tags {
    let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    normalize_tags(pairs.collect(), PREBUILDS_USER)
}

fn tag_sets() -> [Tags; 4] {
    [
        tags(&[]),
        tags(&[("zone", "a")]),
        tags(&[("zone", "b")]),
        tags(&[("zone", "a"), ("gpu", "1")]),
    ]
}

fn random_job(dice: &mut Dice, n: u128) -> Job {
    let minutes = if dice.below(3) == 0 { 17 } else { 0 } + dice.below(12);
    Job {
        id: job(n),
        organization: organization(1 + dice.below(2) as u128),
        provisioner: dice.one_of(&["exec", "terraform"]),
        class: i16::try_from(dice.below(5)).unwrap(),
        tags: dice.one_of(&tag_sets()),
        age_seconds: i32::try_from(minutes * 60 + dice.below(50)).unwrap(),
    }
}

async fn insert(world: &World, jobs: &[Job]) {
    // A command line holds so many.
    for jobs in jobs.chunks(200) {
        let row = |it: &Job| {
            format!(
                "('{}', '{}', '{ADA}', 'template_version_dry_run', '{}', {}, '{ADA}', '{{}}', '{}', \
                 now() - interval '{} s', now())",
                it.id,
                it.organization,
                it.provisioner,
                it.class,
                serde_json::to_string(&it.tags).unwrap(),
                it.age_seconds
            )
        };
        let rows: Vec<String> = jobs.iter().map(row).collect();
        world
            .sql(&format!(
                "insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                                               class, file_id, input, tags, created_at, updated_at)
                 values {}",
                rows.join(", ")
            ))
            .await;
    }
}

fn filter(organizations: &[u128], provisioners: &[&str], tags: &Tags) -> Filter {
    Filter {
        organizations: organizations.iter().map(|n| OrganizationId(organization(*n))).collect(),
        provisioners: provisioners.iter().map(|it| (*it).to_owned()).collect(),
        tags: tags.clone(),
    }
}

fn random_filter(dice: &mut Dice) -> Filter {
    let organizations: &[&[u128]] = &[&[1], &[2], &[1, 2]];
    let provisioners: &[&[&str]] = &[&["exec"], &["terraform"], &["exec", "terraform"]];
    filter(dice.one_of(organizations), dice.one_of(provisioners), &dice.one_of(&tag_sets()))
}

fn holders(count: usize) -> Vec<(DaemonId, LeaseToken)> {
    let holder = |n| (DaemonId(Uuid::from_u128(n)), LeaseToken(Uuid::from_u128(n)));
    (1..=count as u128).map(holder).collect()
}

async fn take(db: &berth_db::Pool, filter: &Filter, count: usize) -> (Vec<Held>, bool) {
    let taken = job::acquire(db, filter, &holders(count), 60.0).await.unwrap();
    (taken.jobs, taken.is_more)
}

/// Hundreds of random jobs, random daemons that take some, jobs that end: what is taken is what the
/// model takes, job by job.
#[tokio::test]
async fn jobs_are_taken_as_the_model_takes_them() {
    for seed in 1..=4 {
        let world = World::new().await;
        let db = berth_db::connect(&world.db.url, 2, "test").unwrap();
        let (mut dice, mut model) = (Dice(seed), Model::default());
        model.pending = (0..400).map(|n| random_job(&mut dice, n)).collect();
        insert(&world, &model.pending).await;
        for _ in 0..80 {
            let filter = random_filter(&mut dice);
            let count = 1 + dice.below(9);
            let (held, is_more) = take(&db, &filter, count).await;
            let ids: Vec<Uuid> = held.iter().map(|it| it.id.0).collect();
            assert_eq!(ids, model.take(&filter, count), "seed {seed}, {filter:?}");
            let next = model.take(&filter, 1).into_iter().next();
            assert_eq!(is_more, next.is_some(), "seed {seed}, {filter:?}");
            if let Some(id) = next {
                let running = model.running.values_mut().flatten().find(|it| it.id == id).unwrap();
                let job = running.clone();
                model.running.get_mut(&job.organization).unwrap().retain(|it| it.id != id);
                model.pending.push(job);
            }
            if dice.below(3) == 0
                && let Some(ended) = model.running.values_mut().find_map(Vec::pop)
            {
                let end = "update provisioner_jobs set completed_at = now()";
                world.sql(&format!("{end} where id = '{}'", ended.id)).await;
            }
        }
    }
}

/// Many take at once, in small and large batches: each job is given once, and none is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_job_is_given_twice_and_none_is_forgotten() {
    let world = World::new().await;
    let db = berth_db::connect(&world.db.url, 8, "test").unwrap();
    let mut dice = Dice(7);
    let jobs: Vec<Job> = (0..600).map(|n| random_job(&mut dice, n)).collect();
    insert(&world, &jobs).await;
    let takers = (0..8).map(|taker| {
        let db = db.clone();
        tokio::spawn(async move {
            let mut dice = Dice(100 + taker);
            let mut taken = Vec::new();
            // Every daemon that there can be, again and again, until nothing is left for any.
            loop {
                let mut is_dry = true;
                for tags in &tag_sets() {
                    let filter = filter(&[1, 2], &["exec", "terraform"], tags);
                    let (held, is_more) = take(&db, &filter, 1 + dice.below(20)).await;
                    is_dry &= held.is_empty() && !is_more;
                    taken.extend(held.into_iter().map(|it| it.id.0));
                }
                if is_dry {
                    return taken;
                }
            }
        })
    });
    let takers: Vec<_> = takers.collect();
    let mut taken = Vec::new();
    for taker in takers {
        taken.extend(taker.await.unwrap());
    }
    let once: BTreeSet<Uuid> = taken.iter().copied().collect();
    assert_eq!((taken.len(), once.len()), (jobs.len(), jobs.len()));
    let left = "select count(*) from provisioner_jobs where attempts <> 1 or status <> 'running'";
    assert_eq!(world.db.count(left).await, 0);
}

/// One organization queued a thousand jobs, then another ten: daemons of both serve them in turn.
#[tokio::test]
async fn who_queues_a_thousand_jobs_lets_others_have_their_turn() {
    let world = World::new().await;
    let db = berth_db::connect(&world.db.url, 2, "test").unwrap();
    let of = |n: u128, organization: Uuid, age_seconds| Job {
        id: job(n),
        organization,
        provisioner: "exec",
        class: 1,
        tags: tags(&[]),
        age_seconds,
    };
    let many = (0..1000).map(|n| of(n, organization(1), 600));
    let few = (1000..1010).map(|n| of(n, organization(2), 1));
    insert(&world, &many.chain(few).collect::<Vec<_>>()).await;
    let both = filter(&[1, 2], &["exec"], &tags(&[]));
    let mut order = Vec::new();
    for _ in 0..24 {
        order.extend(take(&db, &both, 1).await.0.into_iter().map(|it| it.organization_id.0));
    }
    let few = order.iter().filter(|it| **it == organization(2)).count();
    assert_eq!(few, 10, "the ten had every second turn: {order:?}");
    assert!(order[..20].chunks(2).all(|pair| pair[0] != pair[1]), "{order:?}");
    // As many at once as there would be one by one.
    let held = take(&db, &both, 100).await.0;
    assert!(held.iter().all(|it| it.organization_id.0 == organization(1)));
    assert_eq!(held.len(), 100);
}

/// A job of the lowest class is passed by jobs of the class above, for 15 minutes.
#[tokio::test]
async fn a_job_that_waits_long_enough_moves_up_one_class() {
    let world = World::new().await;
    let db = berth_db::connect(&world.db.url, 2, "test").unwrap();
    let of = |n: u128, class, age_seconds| Job {
        id: job(n),
        organization: organization(1),
        provisioner: "exec",
        class,
        tags: tags(&[]),
        age_seconds,
    };
    insert(&world, &[of(1, 4, 800), of(2, 3, 60), of(3, 2, 30), of(4, 0, 1)]).await;
    let filter = filter(&[1], &["exec"], &tags(&[]));
    let order = async || {
        let held = take(&db, &filter, 4).await.0;
        world.sql("update provisioner_jobs set started_at = null").await;
        held.iter().map(|it| it.id.0.as_u128() - 0x1_0000).collect::<Vec<_>>()
    };
    assert_eq!(order().await, [4, 3, 2, 1]);
    // Its age alone changes: two minutes on it passes the class that was above, and no other.
    world.sql("update provisioner_jobs set created_at = created_at - interval '2 min'").await;
    assert_eq!(order().await, [4, 3, 1, 2]);
    world.sql("update provisioner_jobs set created_at = created_at - interval '1 h'").await;
    assert_eq!(order().await, [4, 3, 2, 1], "all moved up alike");
}

/// What people are told of their place is the order in which jobs are taken.
#[tokio::test]
async fn the_place_in_the_queue_is_the_order_of_taking() {
    let world = World::new().await;
    let db = berth_db::connect(&world.db.url, 2, "test").unwrap();
    let mut dice = Dice(11);
    let jobs: Vec<Job> = (0..200).map(|n| random_job(&mut dice, n)).collect();
    insert(&world, &jobs).await;
    let ids = jobs.iter().map(|it| it.id).collect();
    let views = berth_db::job_view::list(&db, &berth_db::job_view::Filter::by_ids(ids)).await;
    let places: BTreeMap<Uuid, (i64, i64)> = views
        .unwrap()
        .into_iter()
        .map(|it| (it.id.0, (it.queue_position, it.queue_size)))
        .collect();
    // Zone b is a queue of its own: no other tags fit its daemons.
    let alone = filter(&[2], &["exec"], &tags(&[("zone", "b")]));
    let queue = take(&db, &alone, 200).await.0;
    assert!(queue.len() > 5, "the dice gave too few");
    for (n, held) in (1..).zip(&queue) {
        assert_eq!(places[&held.id.0], (n, i64::try_from(queue.len()).unwrap()), "{held:?}");
    }
}
