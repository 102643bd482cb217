//! Everybody who counts claimable prebuilds counts the same: the metric, the list of pools, the plan,
//! and the claims that succeed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use berth_db::{pool, prebuild};
use berth_domain::id::{PresetId, WorkspaceId};
use berth_domain::plan::{Plan, PrebuildSettings, plan};
use berth_domain::state::PoolState;
use proptest::prelude::*;
use uuid::Uuid;

use super::service;
use super::world::{PresetSpec, World, preset, template, version};
use super::{Seed, run};

/// The versions' parts in the template: each has two presets, of which the first expires.
const PREVIOUS: usize = 0;
const ACTIVE: usize = 1;
const CANDIDATE: usize = 2;
const PRESETS: usize = 2;
const TTL_SECONDS: i64 = 7_200;

const CASES: u32 = 14;
const SEED: Seed = Seed(1);

/// Microseconds before now at which prebuilds were made and pools invalidated: around now, around
/// what two least remaining lives leave over, and around the end of the time to live.
const AGES: [i64; 13] = [
    0,
    1,
    60_000_000,
    3_599_999_999,
    3_600_000_000,
    3_600_000_001,
    6_599_999_999,
    6_600_000_000,
    6_600_000_001,
    7_199_999_999,
    7_200_000_000,
    7_200_000_001,
    9_000_000_000,
];

#[derive(Debug, Clone)]
struct Pool {
    allows_previous: bool,
    min_remaining_ttl_seconds: i64,
    invalidated: Option<i64>,
    has_successor: bool,
}

#[derive(Debug, Clone)]
struct Member {
    version: usize,
    preset: usize,
    state: PoolState,
    age: i64,
    deleted: bool,
}

#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "columns, each with a meaning of its own")]
pub(super) struct State {
    deleted: bool,
    deprecated: bool,
    has_candidate: bool,
    has_previous: bool,
    keeps_previous: bool,
    pools: Vec<Pool>,
    members: Vec<Member>,
}

fn any_age() -> impl Strategy<Value = i64> {
    prop::sample::select(&AGES[..])
}

fn any_pool() -> impl Strategy<Value = Pool> {
    (
        any::<bool>(),
        prop::sample::select(&[0_i64, 600, 3_600][..]),
        prop::option::of(any_age()),
        prop::bool::weighted(0.8),
    )
        .prop_map(
            |(allows_previous, min_remaining_ttl_seconds, invalidated, has_successor)| Pool {
                allows_previous,
                min_remaining_ttl_seconds,
                invalidated,
                has_successor,
            },
        )
}

fn any_member() -> impl Strategy<Value = Member> {
    let state = prop_oneof![
        3 => Just(PoolState::Ready),
        1 => prop::sample::select(PoolState::ALL),
    ];
    (0..3_usize, 0..PRESETS, state, any_age(), prop::bool::weighted(0.1)).prop_map(
        |(version, preset, state, age, deleted)| Member { version, preset, state, age, deleted },
    )
}

pub(super) fn any_state() -> impl Strategy<Value = State> {
    (
        [0.1, 0.1].map(prop::bool::weighted),
        [0.5, 0.8, 0.5].map(prop::bool::weighted),
        prop::collection::vec(any_pool(), 3 * PRESETS),
        prop::collection::vec(any_member(), 0..60),
    )
        .prop_map(|(off, on, pools, members)| {
            let [deleted, deprecated] = off;
            let [has_candidate, has_previous, keeps_previous] = on;
            State {
                deleted,
                deprecated,
                has_candidate,
                has_previous,
                keeps_previous,
                pools,
                members,
            }
        })
}

fn ago(micros: i64) -> String {
    format!("now() - {micros} * interval '1 microsecond'")
}

async fn write(world: &mut World, state: &State) {
    let quoted = |id: Option<Uuid>| id.map_or("null".to_owned(), |id| format!("'{id}'"));
    let version_or_null = |is: bool, v| quoted(is.then(|| version(0, v).0));
    let mut sql = format!(
        "begin;
         update templates
         set deleted = {}, deprecation_message = '{}', active_version_id = '{}',
             candidate_version_id = {}, previous_version_id = {}, keeps_previous = {};",
        state.deleted,
        if state.deprecated { "gone" } else { "" },
        version(0, ACTIVE),
        version_or_null(state.has_candidate, CANDIDATE),
        version_or_null(state.has_previous, PREVIOUS),
        state.keeps_previous
    );
    for (n, pool) in state.pools.iter().enumerate() {
        let (v, p) = (n / PRESETS, n % PRESETS);
        let successor = preset(0, ACTIVE, p);
        write!(
            sql,
            "update prebuild_pools
             set policy = '{}', last_invalidated_at = {}, successor_preset_id = {}
             where preset_id = '{}';",
            serde_json::json!({
                "allow_previous_version": pool.allows_previous,
                "min_remaining_ttl_seconds": pool.min_remaining_ttl_seconds,
            }),
            pool.invalidated.map_or("null".to_owned(), ago),
            quoted((v == PREVIOUS && pool.has_successor).then_some(successor.0)),
            preset(0, v, p)
        )
        .unwrap();
    }
    for (n, member) in state.members.iter().enumerate() {
        sql += &insert(n, member);
    }
    world.psql.run(&(sql + "commit")).await;
}

fn insert(n: usize, it: &Member) -> String {
    let id = Uuid::from_u128(0xF000_0000 + n as u128);
    let created = ago(it.age);
    let expires = match it.preset {
        0 => format!("{created} + {TTL_SECONDS} * interval '1 second'"),
        _ => "null".to_owned(),
    };
    let is_open = [PoolState::Starting, PoolState::Stopping, PoolState::Deleting];
    super::world::insert_prebuild(&super::world::Member {
        id,
        at: (0, it.version, it.preset),
        state: it.state,
        created,
        expires,
        is_open: is_open.contains(&it.state),
        deleted: it.deleted,
    })
}

/// Claims everything that can be had of the active presets with four callers at once, then tries the
/// others' too.
async fn claim_all(world: &World) -> Vec<WorkspaceId> {
    let mut taken = Vec::new();
    for v in [ACTIVE, PREVIOUS, CANDIDATE] {
        let callers = (0..4).map(|_| {
            let backbone = world.services.clone();
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for p in 0..PRESETS {
                    let wanted = (template(0), version(0, v), preset(0, v, p));
                    while let Some(workspace) = service::claim(&backbone, wanted).await {
                        taken.push(workspace);
                    }
                }
                taken
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            taken.extend(caller.await.unwrap());
        }
        if v == ACTIVE {
            // Whatever is claimable is to be had by asking for the active version.
            let left = world.eligible().await.values().sum::<i64>();
            assert_eq!(left, 0, "left over once every claim of the active version missed");
        }
    }
    taken
}

/// A template of three versions, in this state.
pub(super) async fn given(world: &mut World, state: &State) {
    let presets = vec![
        PresetSpec { instances: 2, ttl_seconds: TTL_SECONDS, schedule: None },
        PresetSpec { instances: 4, ..PresetSpec::default() },
    ];
    world.add_template(0, &[presets.clone(), presets.clone(), presets]).await;
    write(world, state).await;
}

async fn check(mut world: World, state: State) -> World {
    given(&mut world, &state).await;

    let db = world.services.db.clone();
    let rows = pool::list_rows(&db, u32::MAX, world.now()).await.unwrap();
    let eligible: i64 = rows.iter().map(|it| it.eligible).sum();
    let by_pool = world.eligible().await;
    assert_eq!(eligible, by_pool.values().sum::<i64>(), "metric and explain");
    for row in &rows {
        let p: usize = row.preset_name.trim_start_matches('p').parse().unwrap();
        let claimable: i64 =
            (0..3).map(|v| by_pool.get(&preset(0, v, p)).copied().unwrap_or(0)).sum();
        assert_eq!(row.eligible, claimable, "metric and explain of {}", row.preset_name);
    }

    for v in 0..3 {
        for p in 0..PRESETS {
            let id = preset(0, v, p);
            let planned = i64::from(planned(&world, id).await.counts.eligible);
            let listed = by_pool.get(&id).copied().unwrap_or(0);
            assert_eq!(planned, listed, "plan and explain of version {v}, preset {p}");
        }
    }

    let taken = claim_all(&world).await;
    let distinct: BTreeSet<_> = taken.iter().collect();
    assert_eq!(distinct.len(), taken.len(), "each is claimed once");
    let mut claimed: BTreeMap<PresetId, i64> = BTreeMap::new();
    for id in &taken {
        let n = usize::try_from(id.0.as_u128() - 0xF000_0000).unwrap();
        let member = &state.members[n];
        *claimed.entry(preset(0, member.version, member.preset)).or_default() += 1;
    }
    let by_pool: BTreeMap<_, _> = by_pool.into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(claimed, by_pool, "claims and explain");
    world
}

/// The plan of a pool, as the dry run makes it.
pub(super) async fn planned(world: &World, preset: PresetId) -> Plan {
    let settings = PrebuildSettings::default();
    let db = world.services.db.clone();
    let seen = pool::observe(&db, preset, &settings, world.now()).await.unwrap().unwrap();
    plan(&seen.pool.config, &seen.policy, &seen.snapshot, world.now())
}

impl World {
    /// What `explain` and the list of pools call claimable, by pool.
    async fn eligible(&self) -> BTreeMap<PresetId, i64> {
        let db = self.services.db.clone();
        let all = prebuild::Filter::default();
        let pools = prebuild::list_pools(&db, all, self.now()).await.unwrap();
        pools.into_iter().map(|it| (it.preset_id, it.claimable)).collect()
    }
}

/// For random states: as many claims succeed at once as the metric and the list of pools promise.
#[test]
fn eligible_is_claimable_is_what_claims_get() {
    run(SEED, CASES, &any_state(), check);
}
