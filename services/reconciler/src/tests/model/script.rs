//! Random scripts: what happens to pools, step by step.

use berth_domain::state::PoolState;
use proptest::prelude::*;

use super::world::PresetSpec;

/// Versions of each template.
pub(super) const VERSIONS: usize = 2;
/// Presets of each template.
pub(super) const PRESETS: [usize; 2] = [2, 1];

/// A preset of a version, and how many agents a prebuild of it has. The versions want different
/// numbers.
pub(super) const fn spec((t, v, p): (usize, usize, usize)) -> (PresetSpec, usize) {
    match (t, p) {
        (0, 0) => {
            let instances = if v == 0 { 3 } else { 1 };
            (PresetSpec { instances, ttl_seconds: 4 * 3_600, schedule: None }, 1)
        }
        // The tests begin at noon.
        (0, _) if v == 0 => {
            (PresetSpec { instances: 2, ttl_seconds: 0, schedule: Some(("* 13-15 * * *", 4)) }, 0)
        }
        (0, _) => (PresetSpec { instances: 2, ttl_seconds: 0, schedule: None }, 0),
        (_, _) => {
            let instances = if v == 0 { 1 } else { 2 };
            (PresetSpec { instances, ttl_seconds: 0, schedule: None }, 2)
        }
    }
}

/// Every pool: template, version, preset.
pub(super) const POOLS: [(usize, usize, usize); 6] =
    [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0)];

/// How a reconciler dies in the middle of a pass.
#[derive(Debug, Clone, Copy)]
pub(super) enum Death {
    /// Its future is dropped.
    Dropped,
    /// Postgres ends its session.
    Terminated,
}

/// What a pause is for: an index into the levels that hold a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Deployment,
    Organization,
    Template(usize),
    Pool(usize),
}

/// One thing that happens. `pick` chooses among what there is; where there is nothing, nothing
/// happens.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// One replica looks at one pool.
    Pass {
        replica: usize,
        pool: usize,
    },
    /// One replica sweeps.
    Sweep {
        replica: usize,
    },
    /// Both replicas look at one pool and sweep while people claim from it and a daemon takes jobs.
    Together {
        pool: usize,
        claims: usize,
    },
    /// A replica dies in a pass.
    Killed {
        pool: usize,
        after_micros: u64,
        death: Death,
    },
    /// People ask for workspaces of one preset, all at once.
    Claim {
        pool: usize,
        at_once: usize,
    },
    /// The daemon takes jobs.
    Acquire {
        count: usize,
    },
    /// A build ends well.
    Complete {
        pick: usize,
    },
    /// Every build that runs ends well, and every agent becomes ready.
    CompleteAll,
    /// A build fails by the template's fault.
    FailOwn {
        pick: usize,
    },
    /// A build fails by the daemon's.
    FailOther {
        pick: usize,
    },
    /// Somebody cancels a build.
    Cancel {
        pick: usize,
    },
    AgentReady {
        pick: usize,
    },
    AgentFails {
        pick: usize,
    },
    /// A version becomes the active one.
    Promote {
        template: usize,
        version: usize,
    },
    /// A version becomes the active one when its prebuilds are ready.
    Warm {
        template: usize,
        version: usize,
        ready_percent: u32,
        minutes: i64,
    },
    /// An operator closes the breakers of a template.
    Reset {
        template: usize,
    },
    Invalidate {
        template: usize,
        preset: Option<usize>,
    },
    Pause {
        scope: Scope,
        minutes: Option<i64>,
    },
    Resume {
        scope: Scope,
    },
    Policy {
        template: usize,
        gradual: bool,
        allow_previous: bool,
        surge: u32,
        least_minutes: i64,
    },
    /// Time passes.
    Minutes {
        minutes: i64,
    },
    /// The broker looks for what nobody runs.
    Reap,
    DaemonLeaves,
    DaemonComes,
}

fn any_pool() -> impl Strategy<Value = usize> {
    0..POOLS.len()
}

fn any_scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        Just(Scope::Deployment),
        Just(Scope::Organization),
        (0..PRESETS.len()).prop_map(Scope::Template),
        any_pool().prop_map(Scope::Pool),
    ]
}

fn any_surge() -> impl Strategy<Value = u32> {
    prop::sample::select(&[25_u32, 100][..])
}

fn any_least_minutes() -> impl Strategy<Value = i64> {
    prop::sample::select(&[0_i64, 60][..])
}

fn any_death() -> impl Strategy<Value = Death> {
    prop_oneof![Just(Death::Dropped), Just(Death::Terminated)]
}

fn passes() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2_usize, any_pool()).prop_map(|(replica, pool)| Step::Pass { replica, pool }),
        6 => (0..2_usize).prop_map(|replica| Step::Sweep { replica }),
        4 => (any_pool(), 0..4_usize).prop_map(|(pool, claims)| Step::Together { pool, claims }),
        2 => (any_pool(), 0..30_000_u64, any_death())
            .prop_map(|(pool, after_micros, death)| Step::Killed { pool, after_micros, death }),
    ]
}

fn builds() -> impl Strategy<Value = Step> {
    let pick = || 0..16_usize;
    prop_oneof![
        5 => (1..6_usize).prop_map(|count| Step::Acquire { count }),
        4 => pick().prop_map(|pick| Step::Complete { pick }),
        3 => Just(Step::CompleteAll),
        3 => pick().prop_map(|pick| Step::FailOwn { pick }),
        1 => pick().prop_map(|pick| Step::FailOther { pick }),
        1 => pick().prop_map(|pick| Step::Cancel { pick }),
        3 => pick().prop_map(|pick| Step::AgentReady { pick }),
        1 => pick().prop_map(|pick| Step::AgentFails { pick }),
        1 => Just(Step::Reap),
        1 => Just(Step::DaemonLeaves),
        2 => Just(Step::DaemonComes),
    ]
}

fn people() -> impl Strategy<Value = Step> {
    let template = || 0..PRESETS.len();
    prop_oneof![
        4 => (any_pool(), 1..4_usize).prop_map(|(pool, at_once)| Step::Claim { pool, at_once }),
        2 => (template(), 0..VERSIONS)
            .prop_map(|(template, version)| Step::Promote { template, version }),
        2 => (template(), 0..VERSIONS, prop::sample::select(&[50_u32, 100][..]), 5..90_i64).prop_map(
            |(template, version, ready_percent, minutes)| Step::Warm {
                template, version, ready_percent, minutes,
            }),
        1 => template().prop_map(|template| Step::Reset { template }),
        1 => (template(), prop::option::of(0..2_usize))
            .prop_map(|(template, preset)| Step::Invalidate { template, preset }),
        1 => (any_scope(), prop::option::of(1..90_i64))
            .prop_map(|(scope, minutes)| Step::Pause { scope, minutes }),
        2 => any_scope().prop_map(|scope| Step::Resume { scope }),
        2 => (template(), any::<bool>(), any::<bool>(), any_surge(), any_least_minutes()).prop_map(
            |(template, gradual, allow_previous, surge, least_minutes)| Step::Policy {
                template, gradual, allow_previous, surge, least_minutes,
            }),
        4 => prop::sample::select(&[1_i64, 5, 31, 60, 240, 1_500][..])
            .prop_map(|minutes| Step::Minutes { minutes }),
    ]
}

/// A script of about 40 steps, in which pools are looked at and builds come on often enough for
/// something to happen.
pub(super) fn any_script() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![5 => passes(), 5 => builds(), 4 => people()];
    prop::collection::vec(step, 30..50)
}

/// Whether a prebuild in this state runs.
pub(super) const fn is_running(state: PoolState) -> bool {
    matches!(state, PoolState::Ready | PoolState::Unready)
}
