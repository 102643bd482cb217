//! What holds after every step, said without the engine's own rules.

use std::collections::BTreeMap;

use berth_domain::preset::{Prebuilds, PresetSchedule};
use berth_domain::schedule;
use berth_domain::state::{PoolState, PrebuildStatus};
use jiff::{SignedDuration, Timestamp};

use super::live::{Effects, Live, numbers, place};
use super::look::{Look, Member, Pool};
use super::script::{PRESETS, Step, is_running, spec};
use super::world::{template, version};

/// Failures in a row that open a breaker; the default.
const FAILURE_HARD_LIMIT: i64 = 3;

/// What the test knows of a template without asking the database.
#[derive(Debug, Clone, Copy)]
struct Versions {
    active: usize,
    previous: Option<usize>,
    /// A warm promotion made the switch.
    keeps_previous: bool,
}

/// The rules, said once more, with what they need to remember.
pub(super) struct Rules {
    versions: [Versions; PRESETS.len()],
    invalidated: BTreeMap<(usize, usize, usize), Timestamp>,
}

impl Rules {
    pub(super) fn new() -> Self {
        let first = Versions { active: 0, previous: None, keeps_previous: false };
        Self { versions: [first; PRESETS.len()], invalidated: BTreeMap::new() }
    }

    /// Looks at a step from both sides.
    pub(super) fn check(
        &mut self,
        live: &Live,
        (before, step, after): (&Look, &Step, &Look),
        effects: &Effects,
    ) {
        self.remember(before, step, after, effects);
        for member in &after.members {
            let expected = self.is_claimable(live, member, after);
            assert_eq!(member.claimable, expected, "claimable, by the rules: {member:?}");
        }
        self.check_claims(live, before, step, effects);
        assert!(after.doubled.is_empty(), "two builds at once: {:?}", after.doubled);
        for id in &live.claimed {
            assert!(after.claimed.contains(id), "claimed, and then taken away: {id}");
        }
        for pool in &after.pools {
            let old = before.pool(pool.preset);
            check_orders(old, pool, before, after);
            check_failures(old, pool, effects);
            let is_ordering = pool.creates > old.creates;
            if is_ordering {
                check_size(after, pool);
            }
        }
    }

    fn remember(&mut self, before: &Look, step: &Step, after: &Look, effects: &Effects) {
        if let Step::Invalidate { template, preset } = step {
            for pool in &after.pools {
                let at @ (t, _, p) = place(pool.preset).0;
                if t == *template && preset.is_none_or(|it| it == p) {
                    self.invalidated.insert(at, after.now);
                }
            }
        }
        for (t, known) in self.versions.iter_mut().enumerate() {
            let (old, new) = (before.template(template(t)), after.template(template(t)));
            let active = numbers(new.active).1;
            let plain = effects.promoted.filter(|it| it.0 == t).map(|it| it.1);
            if let Some(plain) = plain {
                assert_eq!(active, plain, "a plain promotion holds at once");
            }
            let is_warm = plain.is_none() && active != known.active;
            // Where enough are ready already, a warm promotion has nothing to wait for.
            let was_asked = matches!(step, Step::Warm { template, version, .. }
                if (*template, *version) == (t, active));
            let is_due = was_asked || old.candidate == Some(new.active);
            assert!(!is_warm || is_due, "{new:?} switched by itself");
            if plain.is_some() || is_warm {
                if known.active != active {
                    known.previous = Some(known.active);
                }
                (known.active, known.keeps_previous) = (active, is_warm);
            }
        }
    }

    /// Running, ready, valid, lives long enough, and of the active version or of the previous one
    /// where that may still be had and is not being warmed to become the active one again.
    fn is_claimable(&self, live: &Live, it: &Member, look: &Look) -> bool {
        let at @ (t, v, _) = place(it.preset).0;
        let known = self.versions[t];
        let policy = &live.policies[t];
        let least = SignedDuration::from_secs(policy.min_remaining_ttl_seconds);
        let is_open = known.active == v
            || (known.previous == Some(v)
                && look.template(template(t)).candidate != Some(version(t, v))
                && (policy.allow_previous_version || known.keeps_previous));
        let is_invalidated = self.invalidated.get(&at).is_some_and(|moment| it.created < *moment);
        let lives = it.expires.is_none_or(|end| end > look.now && end >= look.now + least);
        it.state == PoolState::Ready && is_open && !is_invalidated && lives
    }

    /// Every claim got what could be claimed, and as many got one as there were.
    fn check_claims(&self, live: &Live, before: &Look, step: &Step, effects: &Effects) {
        for (asked, workspace) in &effects.hits {
            let found = before.members.iter().find(|it| it.id == *workspace);
            let it = found.unwrap_or_else(|| panic!("{workspace} was nobody's prebuild"));
            assert!(self.is_claimable(live, it, before), "claimed: {it:?}");
            let serves = it.preset == *asked || before.pool(it.preset).successor == Some(*asked);
            assert!(serves, "asked for {:?}, got {it:?}", place(*asked).0);
        }
        let Step::Claim { pool, at_once } = step else { return };
        let asked = super::live::pool_id(*pool);
        let open = |it: &&Member| {
            let serves = it.preset == asked || before.pool(it.preset).successor == Some(asked);
            serves && self.is_claimable(live, it, before)
        };
        let there = before.members.iter().filter(open).count();
        assert_eq!(effects.hits.len(), there.min(*at_once), "of {there} for {at_once}");
    }
}

/// Orders are those that the decision log tells of, and none is given during a pause.
fn check_orders(old: &Pool, new: &Pool, before: &Look, after: &Look) {
    let at = place(new.preset).0;
    let created = new.creates - old.creates;
    let deleted = new.deletes - old.deletes;
    let planned = new.planned_creates - old.planned_creates;
    assert_eq!(created, planned, "{at:?}: creates ordered, and decided");
    // What was decided on may be claimed, or be another's, before it is carried out.
    let planned = new.planned_deletes - old.planned_deletes;
    assert!(deleted <= planned, "{at:?}: {deleted} deletes ordered, {planned} decided");
    if before.paused.contains(&new.preset) && after.paused.contains(&new.preset) {
        assert_eq!((created, deleted), (0, 0), "{at:?}: ordered during a pause");
    }
}

fn check_failures(old: &Pool, new: &Pool, effects: &Effects) {
    let at = place(new.preset).0;
    let own = effects.own_failures.iter().filter(|it| **it == new.preset).count();
    let grown = new.consecutive - old.consecutive;
    assert!(grown <= i64::try_from(own).unwrap(), "{at:?}: {grown} failures, {own} its own");
    let opened = new.status == PrebuildStatus::HardLimited && old.status != new.status;
    assert!(!opened || old.consecutive >= FAILURE_HARD_LIMIT, "{at:?}: opened its breaker");
}

/// What creates were ordered for is no more than is wanted, nor, with the version before that runs
/// beside it, than that and the surge.
fn check_size(look: &Look, pool: &Pool) {
    let at = place(pool.preset).0;
    let desired = desired(pool, look.now);
    let surge = (desired * pool.max_surge_percent / 100).max(1);
    // Invalidated ones count as well, until their delete is ordered.
    let own = look.of(pool.preset).filter(|it| {
        let is_valid = it.expires.is_none_or(|end| end > look.now);
        it.state == PoolState::Starting || (is_running(it.state) && is_valid)
    });
    let own = u32::try_from(own.count()).unwrap();
    let candidate = look.template(pool.template).candidate == Some(pool.version);
    let most = if candidate { surge.min(desired) } else { desired };
    assert!(own <= most, "{at:?}: {own} valid and starting, of at most {most}");
    let before = look.pools.iter().filter(|it| it.successor == Some(pool.preset));
    let beside = before.flat_map(|it| look.of(it.preset)).filter(|it| is_running(it.state));
    let beside = u32::try_from(beside.count()).unwrap();
    let most = desired + surge;
    assert!(own + beside <= most, "{at:?}: {own}, and {beside} before, of at most {most}");
}

/// How many a pool wants.
pub(super) fn desired(pool: &Pool, now: Timestamp) -> u32 {
    let (spec, _) = spec(place(pool.preset).0);
    let schedules = spec.schedule.iter();
    let prebuilds = Prebuilds {
        instances: spec.instances,
        ttl_seconds: spec.ttl_seconds,
        timezone: spec.schedule.map_or(String::new(), |_| "UTC".to_owned()),
        schedules: schedules
            .map(|(cron, instances)| PresetSchedule {
                cron: (*cron).to_owned(),
                instances: *instances,
            })
            .collect(),
    };
    schedule::desired(&prebuilds, now).instances
}

/// How long a script may need to come to rest.
const ROUNDS_MAX: usize = 120;

/// Daemons come, nothing fails any more, and time passes from look to look: every pool that is
/// active and not paused fills, what is of no version goes, and then nothing is to be done.
pub(super) async fn come_to_rest(live: &mut Live) {
    check_pending(live).await;
    live.daemon_is_there().await;
    for round in 0..ROUNDS_MAX {
        live.pass_time(SignedDuration::from_millis(1)).await;
        live.sweep(round % 2).await;
        live.acquire_all().await;
        let look = live.look().await;
        live.complete_all(&look).await;
        live.reap().await;
        let look = live.look().await;
        if look.marks > 0 || look.due > 0 || !look.jobs.is_empty() {
            continue;
        }
        if look.pools.iter().all(|pool| is_settled(&look, pool)) {
            return check_rest(live, &look).await;
        }
        // A back-off, a probe, the next attempt at a delete: time alone brings them.
        let Some(due) = look.next_due else { panic!("nothing is due, and not at rest: {look:#?}") };
        live.pass_time(due.duration_since(look.now)).await;
    }
    panic!("not at rest: {:#?}", live.look().await);
}

/// Sweeps alone, whoever died before them, cancel what no daemon has taken of versions that nobody
/// wants.
async fn check_pending(live: &mut Live) {
    for round in 0..4 {
        live.pass_time(SignedDuration::from_millis(1)).await;
        live.sweep(round % 2).await;
    }
    let look = live.look().await;
    for job in look.jobs.iter().filter(|it| !it.running && it.is_creation()) {
        let pool = look.pool(job.preset);
        let template = look.template(pool.template);
        let is_wanted = template.active == pool.version || template.candidate == Some(pool.version);
        let is_paused = look.paused.contains(&pool.preset);
        assert!(is_wanted || is_paused, "{:?}: nobody cancels {job:?}", place(pool.preset).0);
    }
}

/// Full where it is active, gone where it is not.
fn is_settled(look: &Look, pool: &Pool) -> bool {
    if look.paused.contains(&pool.preset) {
        return true;
    }
    let running = look.of(pool.preset).filter(|it| is_running(it.state)).count();
    let active = look.template(pool.template).active == pool.version;
    let wanted = if active { desired(pool, look.now) } else { 0 };
    let claimable = look.claimable().get(&pool.preset).copied().unwrap_or(0);
    let starting = look.of(pool.preset).any(|it| it.state == PoolState::Starting);
    // A least remaining life may hold back what runs.
    let has_ttl = look.of(pool.preset).any(|it| it.expires.is_some());
    let is_full = claimable == wanted as usize || (has_ttl && claimable <= wanted as usize);
    running == wanted as usize && is_full && !starting
}

/// At rest: a sweep finds nothing, and a look at every pool orders and decides nothing.
async fn check_rest(live: &mut Live, look: &Look) {
    for pool in &look.pools {
        live.pass_over(pool.preset).await;
    }
    // A pool may have another looked at that stands in for it; that one says no more.
    live.sweep(0).await;
    let after = live.look().await;
    assert_eq!((after.marks, after.due), (0, 0), "looks at rest have no end");
    assert!(after.jobs.is_empty(), "ordered at rest: {:#?}", after.jobs);
    for (old, new) in look.pools.iter().zip(&after.pools) {
        assert_eq!(old.decisions, new.decisions, "decided at rest: {:?}", place(new.preset).0);
    }
}
