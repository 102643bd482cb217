//! The rules of 10-prebuilds as tables. A row says the rule, the pool, what its plan does, for which
//! reasons, and when it looks again; [`check`] compares all of it. [`Pool`] is the vocabulary.

use uuid::Uuid;

use super::*;
use crate::id::{BuildId, PresetId, WorkspaceId};
use crate::preset::{Prebuilds, PresetSchedule};
use crate::quota::{Quota, QuotaExceeded};
use crate::state::MissReason;

mod breaker;
mod delete;
mod file;
mod hold;
mod looks;
mod policy;
mod promotion;
mod replace;
mod settling;
mod size;
mod time;
mod warm;

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn ago(minutes: i64) -> Timestamp {
    now() - SignedDuration::from_mins(minutes)
}

fn ahead(minutes: i64) -> Timestamp {
    now() + SignedDuration::from_mins(minutes)
}

/// The rule; the pool; its actions; the names of its reasons; minutes to the next look.
type Row = (&'static str, Pool, &'static str, &'static str, Option<i64>);

/// Only an event changes the plan.
const NEVER: Option<i64> = None;

/// Compares plans with rows, each with its inputs in both orders.
#[track_caller]
fn check<const N: usize>(rows: [Row; N]) {
    for (rule, pool, actions, reasons, look) in rows {
        let plan = pool.plan();
        assert_eq!(said(&plan.actions), actions, "{rule}: {:#?}", plan.reasons);
        let names: Vec<&str> = plan.reasons.iter().map(Reason::name).collect();
        assert_eq!(names.join(" "), reasons, "{rule}");
        assert_eq!(plan.next_look, look.map(ahead), "{rule}");
        assert_eq!(pool.reversed().plan(), plan, "{rule}: the order of its inputs decides");
    }
}

/// Actions in words: `cancel 3, delete 1 expired, create 2`.
fn said(actions: &[Action]) -> String {
    let words = actions.iter().map(|it| match it {
        Action::OpenBreaker { consecutive } => format!("open after {consecutive}"),
        Action::CloseBreaker => "close".to_owned(),
        Action::CancelPending { workspace_id, .. } => format!("cancel {}", number(*workspace_id)),
        Action::Delete { workspace_id, why, .. } => {
            format!("delete {} {why}", number(*workspace_id))
        }
        Action::Create { is_probe: true, count } => format!("probe {count}"),
        Action::Create { count, .. } => format!("create {count}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn number(workspace: WorkspaceId) -> u128 {
    workspace.0.as_u128()
}

fn workspace(id: u128) -> WorkspaceId {
    WorkspaceId(Uuid::from_u128(id))
}

fn pause(scope: PauseScope, until: Option<Timestamp>) -> Pause {
    Pause { scope, reason: "maintenance".to_owned(), until }
}

#[derive(Debug, Clone, PartialEq)]
struct Pool {
    config: PoolConfig,
    policy: Policy,
    snapshot: PoolSnapshot,
}

/// A healthy pool of the active version that wants so many, with a daemon and nothing in it.
fn pool(instances: i32) -> Pool {
    Pool {
        config: PoolConfig {
            preset_id: PresetId(Uuid::from_u128(1)),
            standing: Standing::Active,
            prebuilds: Some(Prebuilds { instances, ..Prebuilds::default() }),
            status: PrebuildStatus::Healthy,
            last_invalidated_at: None,
        },
        policy: Policy::default(),
        snapshot: PoolSnapshot::default(),
    }
}

impl Pool {
    /// Adds prebuilds, numbered from 1: state, age in minutes, and what else is so.
    /// `ready@30 starting@1,acquired failed@90,ended=20,canceled failed_delete@90,ended=5,deletes=2
    /// starting@1,build=2`
    fn of(mut self, members: &str) -> Self {
        for member in members.split_whitespace() {
            let (state, rest) = member.split_once('@').unwrap();
            let mut rest = rest.split(',');
            let age = rest.next().unwrap().parse().unwrap();
            let mut prebuild = self.new_member(state.parse().unwrap(), ago(age));
            for more in rest {
                match more.split_once('=') {
                    None if more == "acquired" => prebuild.is_acquired = true,
                    None if more == "canceled" => prebuild.is_canceled_by_person = true,
                    Some(("ended", it)) => prebuild.finished_at = Some(ago(it.parse().unwrap())),
                    Some(("deletes", it)) => prebuild.failed_deletes = it.parse().unwrap(),
                    Some(("build", it)) => prebuild.build_number = it.parse().unwrap(),
                    _ => panic!("{more:?} means nothing"),
                }
            }
            self.snapshot.prebuilds.push(prebuild);
        }
        self
    }

    /// So many in this state, made now.
    fn with(mut self, count: usize, state: PoolState) -> Self {
        for _ in 0..count {
            let prebuild = self.new_member(state, now());
            self.snapshot.prebuilds.push(prebuild);
        }
        self
    }

    fn new_member(&self, state: PoolState, created_at: Timestamp) -> Prebuild {
        let last = self.snapshot.prebuilds.last().map_or(0, |it| number(it.workspace_id));
        Prebuild {
            workspace_id: workspace(last + 1),
            build_id: BuildId(Uuid::from_u128(last + 1)),
            build_number: 1,
            state,
            created_at,
            is_acquired: false,
            is_canceled_by_person: false,
            finished_at: None,
            failed_deletes: 0,
        }
    }

    fn set(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn ttl_minutes(self, minutes: i64) -> Self {
        self.set(|it| it.config.prebuilds.as_mut().unwrap().ttl_seconds = minutes * 60)
    }

    fn standing(self, standing: Standing) -> Self {
        self.set(|it| it.config.standing = standing)
    }

    fn status(self, status: PrebuildStatus) -> Self {
        self.set(|it| it.config.status = status)
    }

    fn schedule(self, timezone: &str, schedules: &[(&str, i32)]) -> Self {
        self.set(|it| {
            let prebuilds = it.config.prebuilds.as_mut().unwrap();
            timezone.clone_into(&mut prebuilds.timezone);
            prebuilds.schedules = schedules
                .iter()
                .map(|(cron, instances)| PresetSchedule {
                    cron: (*cron).to_owned(),
                    instances: *instances,
                })
                .collect();
        })
    }

    fn invalidated(self, minutes_ago: i64) -> Self {
        self.set(|it| it.config.last_invalidated_at = Some(ago(minutes_ago)))
    }

    /// Creations of its own that failed so many minutes ago, none having succeeded since.
    fn failed(self, minutes_ago: &[i64]) -> Self {
        self.set(|it| {
            it.snapshot.failures.recent = minutes_ago.iter().map(|it| ago(*it)).collect();
            it.snapshot.failures.consecutive = minutes_ago.len().try_into().unwrap();
        })
    }

    /// The breaker is open, with so many probes made, the last one so many minutes ago.
    fn broken(self, probes: u32, minutes: i64) -> Self {
        let is_probed = probes > 0;
        self.status(PrebuildStatus::HardLimited).set(|it| {
            it.snapshot.failures.consecutive = 3 + probes;
            it.snapshot.failures.breaker = Some(Breaker {
                opened_at: ago(if is_probed { 9_999 } else { minutes }),
                probes,
                last_probe_at: is_probed.then(|| ago(minutes)),
            });
        })
    }

    fn paused(self, scope: PauseScope, until: Option<Timestamp>) -> Self {
        self.set(|it| it.snapshot.pauses.push(pause(scope, until)))
    }

    fn without_daemon(self) -> Self {
        self.set(|it| it.snapshot.has_daemon = false)
    }

    fn in_flight(self, in_flight: u32, max: u32) -> Self {
        self.set(|it| {
            it.snapshot.in_flight = in_flight;
            it.policy.settings.max_in_flight = max;
        })
    }

    /// One prebuild costs `cost`, and of `budget` so much is consumed.
    fn quota(self, cost: i64, consumed: i64, budget: i64) -> Self {
        self.set(|it| {
            it.snapshot.cost = cost;
            it.snapshot.quota = Some(Quota { budget, consumed });
        })
    }

    fn successor(self, desired: u32, eligible: u32) -> Self {
        self.set(|it| it.snapshot.successor = Some(Successor { desired, eligible }))
    }

    fn predecessor(self, running: u32) -> Self {
        self.set(|it| it.snapshot.predecessor = running)
    }

    fn surge(self, percent: u32) -> Self {
        self.set(|it| it.policy.pool.max_surge_percent = percent)
    }

    fn gradual(self, percent: u32) -> Self {
        self.set(|it| {
            it.policy.pool.replace = Replace::Gradual;
            it.policy.pool.max_unavailable_percent = percent;
        })
    }

    fn least_life_minutes(self, minutes: i64) -> Self {
        self.set(|it| it.policy.pool.min_remaining_ttl_seconds = minutes * 60)
    }

    fn reversed(&self) -> Self {
        self.clone().set(|it| {
            it.snapshot.prebuilds.reverse();
            it.snapshot.failures.recent.reverse();
            it.snapshot.pauses.reverse();
        })
    }

    fn plan(&self) -> Plan {
        self.plan_at(now())
    }

    fn plan_at(&self, at: Timestamp) -> Plan {
        plan(&self.config, &self.policy, &self.snapshot, at)
    }
}
