//! The dry run says what the reconciler does.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use berth_db::pool::Patience;
use berth_domain::id::{PresetId, WorkspaceId};
use berth_domain::plan::{Action, Plan};
use berth_domain::state::{PrebuildStatus, Transition};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::agree::{State, any_state, given, planned};
use super::world::{ADA, ORGANIZATION, World, preset};
use super::{Seed, run};

const CASES: u32 = 10;
const SEED: Seed = Seed(2);

/// What surrounds the pools of a [`State`].
#[derive(Debug, Clone)]
struct Around {
    has_daemon: bool,
    is_paused: bool,
    /// Per pool: health, and minutes since each failure.
    health: Vec<(PrebuildStatus, Vec<i64>)>,
}

fn any_around() -> impl Strategy<Value = Around> {
    let health = (
        prop_oneof![3 => Just(PrebuildStatus::Healthy), 1 => prop::sample::select(PrebuildStatus::ALL)],
        prop::collection::vec(0..90_i64, 0..4),
    );
    ([0.8, 0.1].map(prop::bool::weighted), prop::collection::vec(health, 6))
        .prop_map(|([has_daemon, is_paused], health)| Around { has_daemon, is_paused, health })
}

async fn surround(world: &mut World, around: &Around) {
    let mut sql = "begin;".to_owned();
    if around.has_daemon {
        let tags = serde_json::json!(super::world::tags());
        write!(sql, "insert into provisioner_daemons (id, organization_id, name, version, api_version,
                                              provisioners, tags, created_at, last_seen_at)
             values ('{ADA}', '{ORGANIZATION}', 'd', '0', '1.0', '{{exec}}', '{tags}', now(), now());").unwrap();
    }
    if around.is_paused {
        write!(
            sql,
            "insert into prebuild_pauses (id, scope, scope_id, actor_id, created_at)
             values ('{ADA}', 'preset', '{}', '{ADA}', now());",
            preset(0, 1, 1)
        )
        .unwrap();
    }
    for (n, (status, failures)) in around.health.iter().enumerate() {
        let id = preset(0, n / 2, n % 2);
        write!(
            sql,
            "update prebuild_pools
             set prebuild_status = '{status}', consecutive_failures = {},
                 breaker_opened_at = case when '{status}' = 'hard_limited'
                                     then now() - interval '15 min' end
             where preset_id = '{id}';",
            failures.len()
        )
        .unwrap();
        for minutes in failures {
            write!(
                sql,
                "insert into prebuild_failures (build_id, preset_id, failed_at, kind)
                 values (gen_random_uuid(), '{id}', now() - interval '{minutes} min', 'build');"
            )
            .unwrap();
        }
    }
    world.psql.run(&(sql + "commit")).await;
}

/// What a pass left of itself.
#[derive(Debug, Deserialize)]
struct Left {
    /// The newest decision that was made now.
    decision: Option<Decision>,
    /// Reasons of the newest plan.
    reasons: Value,
    /// Builds ordered now: workspace, transition, whether the job waits for a daemon.
    builds: Vec<(WorkspaceId, Transition, bool)>,
}

#[derive(Debug, Deserialize)]
struct Decision {
    desired: u32,
    actions: Value,
    reasons: Value,
}

async fn left(world: &mut World, preset: PresetId) -> Left {
    let sql = format!(
        "select json_build_object(
            'decision', (select json_build_object('desired', desired, 'actions', actions,
                                                  'reasons', reasons)
                         from prebuild_decisions
                         where preset_id = '{preset}' and created_at = now()),
            'reasons', (select last_reasons from prebuild_pools where preset_id = '{preset}'),
            'builds', (select coalesce(json_agg(json_build_array(
                           b.workspace_id, b.transition, j.completed_at is null)), '[]')
                       from workspace_builds b join provisioner_jobs j on j.id = b.job_id
                       where b.preset_id = '{preset}' and b.created_at = now()
                         and j.id <> b.workspace_id))"
    );
    serde_json::from_value(world.psql.json(&sql).await).unwrap()
}

/// The workspaces that a plan deletes: with a provisioner, and without one.
fn deleted(plan: &Plan) -> (BTreeSet<WorkspaceId>, BTreeSet<WorkspaceId>) {
    let mut found = (BTreeSet::new(), BTreeSet::new());
    for action in &plan.actions {
        match action {
            Action::Delete { workspace_id, .. } => drop(found.0.insert(*workspace_id)),
            Action::CancelPending { workspace_id, .. } => drop(found.1.insert(*workspace_id)),
            _ => {}
        }
    }
    found
}

async fn check(mut world: World, (state, around): (State, Around)) -> World {
    given(&mut world, &state).await;
    surround(&mut world, &around).await;
    let replica = world.replica("replica");
    for n in 0..6 {
        let id = preset(0, n / 2, n % 2);
        let plan = planned(&world, id).await;
        replica.reconcile(id, Patience::Wait).await.unwrap();

        let left = left(&mut world, id).await;
        let reasons = serde_json::to_value(&plan.reasons).unwrap();
        assert_eq!(left.reasons, reasons, "reasons kept with the pool");
        assert_eq!(
            left.decision.is_some(),
            !plan.actions.is_empty() || reasons != serde_json::json!([])
        );
        if let Some(decision) = &left.decision {
            let actions = serde_json::to_value(&plan.actions).unwrap();
            assert_eq!(
                (decision.desired, &decision.actions, &decision.reasons),
                (plan.desired, &actions, &reasons)
            );
        }
        let ordered = |transition, waits| -> BTreeSet<WorkspaceId> {
            let builds = left.builds.iter().filter(|it| (it.1, it.2) == (transition, waits));
            builds.map(|it| it.0).collect()
        };
        assert_eq!(ordered(Transition::Start, true).len(), plan.creates() as usize);
        let deletes = (ordered(Transition::Delete, true), ordered(Transition::Delete, false));
        assert_eq!(deletes, deleted(&plan));
        let all = deletes.0.len() + deletes.1.len() + plan.creates() as usize;
        assert_eq!(left.builds.len(), all, "nothing else is ordered: {:?}", left.builds);
    }
    world
}

/// For random states: what `observe` and `plan` say without the lock is what the pass then decides,
/// and the jobs it orders are those of the plan's actions.
#[test]
fn the_dry_runs_plan_is_what_the_reconciler_then_does() {
    run(SEED, CASES, &(any_state(), any_around()), check);
}
