//! A script: what happens to some workspaces, in an order that a seed decides, and what must be so
//! after it.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::daemon::Daemon;
use crate::process::RETRY_MAX;
use crate::slot::{Rule, Slot};
use crate::world::{PATIENCE, SLOTS, World, preset};

/// Steps of one script.
const STEPS: usize = 50;
/// Steps that are chosen until one can happen.
const TRIES: usize = 20;
const POLL: Duration = Duration::from_millis(10);

/// Something that happens.
#[derive(Debug, Clone, Copy)]
enum Step {
    Claim,
    Acquire,
    Succeed,
    FailTemplate,
    FailInfrastructure,
    Cancel,
    /// The owner's later builds.
    Stop,
    Start,
    StartAgent,
    KillAgent,
    DropStreams,
    Cut,
    Heal,
    KillApi,
    StartApi,
    StopNats,
    StartNats,
    /// Everything has the time to do what it has to.
    Settle,
    /// A moment passes.
    Pause,
}

/// How often each is chosen; what cannot happen at the moment does not.
const STEPS_BY_WEIGHT: &[(Step, u32)] = &[
    (Step::Claim, 20),
    (Step::Acquire, 20),
    (Step::Succeed, 14),
    (Step::FailTemplate, 3),
    (Step::FailInfrastructure, 4),
    (Step::Cancel, 3),
    (Step::Stop, 4),
    (Step::Start, 4),
    (Step::StartAgent, 16),
    (Step::KillAgent, 5),
    (Step::DropStreams, 8),
    (Step::Cut, 5),
    (Step::Heal, 8),
    (Step::KillApi, 3),
    (Step::StartApi, 8),
    (Step::StopNats, 3),
    (Step::StartNats, 8),
    (Step::Settle, 2),
    (Step::Pause, 12),
];

/// What scripts came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) steps: usize,
    pub(crate) processes: usize,
    pub(crate) reinitialised: usize,
    pub(crate) stopped_asking: usize,
}

struct Script<'a> {
    world: &'a mut World,
    daemon: &'a mut Daemon,
    slots: Vec<Slot>,
    chance: StdRng,
    /// What was done, for whoever reads of a failure.
    done: Vec<String>,
}

/// Plays the script of a seed. Panics where an agent does what it must not, or not what it must.
pub(crate) async fn play(world: &mut World, daemon: &mut Daemon, seed: u64) -> Tally {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut slots = Vec::new();
    for number in 0..SLOTS {
        let ids = [id(&mut chance), id(&mut chance)];
        slots.push(Slot::new(world, number, ids).await);
    }
    let mut script = Script { world, daemon, slots, chance, done: Vec::new() };
    let told = Told(seed);
    for slot in 0..SLOTS {
        script.slots[slot].start(script.world).await;
    }
    if script.chance.random_bool(0.7) {
        script.ready().await;
    }
    for _ in 0..STEPS {
        script.step().await;
    }
    script.end().await;
    std::mem::forget(told);
    let lives = script.slots.iter().flat_map(|it| &it.lives);
    let mut tally = Tally { steps: script.done.len(), ..Tally::default() };
    for life in lives {
        tally.processes += 1;
        tally.reinitialised += life.process.seen.reinitialised();
        tally.stopped_asking += usize::from(life.process.seen.stopped_asking());
    }
    tally
}

fn id(chance: &mut StdRng) -> String {
    Uuid::from_u128(chance.random()).to_string()
}

/// Says which seed failed.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("the script of seed {0} failed; BERTH_REINIT_SEEDS={0} plays it alone", self.0);
    }
}

impl Drop for Script<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.done.join("\n"));
        }
    }
}

impl Script<'_> {
    async fn step(&mut self) {
        for _ in 0..TRIES {
            let step = self.choose();
            let slot = self.chance.random_range(0..SLOTS);
            let some = self.chance.random_range(0..1000_u64);
            if self.happen(step, slot, some).await {
                self.done.push(format!("{}: {step:?} {slot}", self.done.len()));
                break;
            }
        }
        for slot in &mut self.slots {
            slot.look(self.world).await;
        }
    }

    fn choose(&mut self) -> Step {
        let total = STEPS_BY_WEIGHT.iter().map(|it| it.1).sum();
        let mut left = self.chance.random_range(0..total);
        for (step, weight) in STEPS_BY_WEIGHT {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return *step,
            }
        }
        Step::Pause
    }

    /// `false`: that cannot happen now.
    async fn happen(&mut self, step: Step, slot: usize, some: u64) -> bool {
        match step {
            Step::Claim => return self.claim(slot).await,
            Step::Acquire => return self.acquire().await,
            Step::Succeed | Step::FailTemplate | Step::FailInfrastructure => {
                return self.report(slot, step).await;
            }
            Step::Cancel => return self.cancel(slot).await,
            Step::Stop => return self.build(slot, "stop").await,
            Step::Start => return self.build(slot, "start").await,
            Step::Settle => self.settle().await,
            Step::Pause => tokio::time::sleep(Duration::from_millis(some / 10)).await,
            Step::StartApi => return self.world.start_replica(slot % 2).await,
            Step::KillApi => return self.world.kill_replica(slot % 2),
            Step::StopNats => return self.world.stop_nats().await,
            Step::StartNats => return self.world.start_nats().await,
            Step::StartAgent => return self.slots[slot].start(self.world).await,
            Step::KillAgent | Step::DropStreams | Step::Cut | Step::Heal => {
                let it = &mut self.slots[slot];
                match step {
                    Step::Cut | Step::Heal if it.is_cut == matches!(step, Step::Cut) => {
                        return false;
                    }
                    Step::Cut | Step::Heal => it.is_cut = !it.is_cut,
                    _ => {}
                }
                let Some(life) = it.alive() else { return false };
                match step {
                    Step::KillAgent => life.process.kill(),
                    Step::Cut => life.process.cut(),
                    Step::Heal => life.process.heal(),
                    _ => life.process.drop_connections(),
                }
            }
        }
        true
    }

    /// Waits until all of them can be claimed.
    async fn ready(&mut self) {
        let begun = Instant::now();
        for slot in &self.slots {
            while !slot.is_ready(self.world).await {
                assert!(begun.elapsed() < PATIENCE, "workspace {} is not ready", slot.number);
                tokio::time::sleep(POLL).await;
            }
        }
    }

    async fn claim(&mut self, slot: usize) -> bool {
        let it = &self.slots[slot];
        if it.is_claimed || !it.is_ready(self.world).await {
            return false;
        }
        let app = self.world.app().await;
        let body = json!({
            "name": format!("w{}-{}", self.done.len(), &it.workspace[..23]),
            "template_id": crate::world::IT,
            "template_version_preset_id": preset(slot),
        });
        let path = "/organizations/acme/members/me/workspaces";
        let made = app.post(&self.world.owner, path, body).await.ok();
        if made["prebuild_claim"]["outcome"] == "miss" {
            self.forget(&made).await;
            return false;
        }
        assert_eq!(made["id"], it.workspace.as_str(), "{made:#}");
        self.slots[slot].is_claimed = true;
        true
    }

    /// Its agent was just reporting, and a claim waits for nobody: there is an ordinary workspace,
    /// which is none of the script's.
    async fn forget(&self, made: &Value) {
        assert_eq!(made["prebuild_claim"]["reason"], "all_locked", "{made:#}");
        let (id, job) = (&made["id"], &made["latest_build"]["job"]["id"]);
        let sql = format!(
            "update workspaces set deleted = true where id = '{}';
             update provisioner_jobs set canceled_at = now(), completed_at = now()
             where id = '{}'",
            id.as_str().unwrap(),
            job.as_str().unwrap()
        );
        self.world.rows(&sql).await;
    }

    async fn acquire(&mut self) -> bool {
        let mut queued = false;
        for slot in &self.slots {
            queued |= slot.queued(self.world).await;
        }
        if !queued {
            return false;
        }
        let job = self.daemon.acquire().await;
        let sql = format!("select workspace_id from workspace_builds where job_id = '{}'", job.id);
        let workspace = self.world.value(&sql).await;
        let slot = self.slots.iter_mut().find(|it| it.workspace == workspace);
        slot.expect("earlier scripts left nothing").job = Some(job);
        true
    }

    async fn report(&mut self, slot: usize, step: Step) -> bool {
        let it = &mut self.slots[slot];
        let Some(job) = it.job.take() else { return false };
        match step {
            Step::FailTemplate => self.daemon.fail(&job, "template").await,
            Step::FailInfrastructure => self.daemon.fail(&job, "infrastructure").await,
            _ => {
                let sql = format!(
                    "select transition, stage from workspace_builds where job_id = '{}'",
                    job.id
                );
                let row = self.world.rows(&sql).await.remove(0);
                let made = match row[0].as_str() {
                    "stop" => None,
                    // Stopped, it starts as another one.
                    _ => Some(it.token.clone().unwrap_or_else(|| id(&mut self.chance))),
                };
                self.daemon.complete(&job, made.as_deref()).await;
                let kept = format!(
                    "select count(*) from workspace_agents
                     where workspace_id = '{}' and not retired",
                    it.workspace
                );
                // A result that came after the end of its job counts for nothing.
                it.token = (self.world.count(&kept).await > 0).then_some(made).flatten();
            }
        }
        true
    }

    async fn cancel(&mut self, slot: usize) -> bool {
        let sql = format!(
            "select b.id from workspace_builds b join provisioner_jobs j on j.id = b.job_id
             where b.workspace_id = '{}' and j.status in ('pending', 'running')",
            self.slots[slot].workspace
        );
        let Some(build) = self.world.rows(&sql).await.pop() else { return false };
        let app = self.world.app().await;
        let path = format!("/workspacebuilds/{}/cancel", build[0]);
        app.patch(&self.world.owner, &path, json!({})).await.ok();
        true
    }

    async fn build(&mut self, slot: usize, transition: &str) -> bool {
        let it = &self.slots[slot];
        let sql = format!(
            "select count(*) from workspace_builds b join provisioner_jobs j on j.id = b.job_id
             where b.workspace_id = '{}' and j.completed_at is null",
            it.workspace
        );
        if !it.is_claimed || self.world.count(&sql).await > 0 {
            return false;
        }
        let app = self.world.app().await;
        let path = format!("/workspaces/{}/builds", it.workspace);
        app.post(&self.world.owner, &path, json!({ "transition": transition })).await.ok();
        true
    }

    /// All that was broken is whole again, and everybody does what the rules say.
    async fn settle(&mut self) {
        for replica in 0..2 {
            self.world.start_replica(replica).await;
        }
        self.world.start_nats().await;
        for slot in 0..SLOTS {
            let it = &mut self.slots[slot];
            it.is_cut = false;
            it.start(self.world).await;
            if let Some(life) = it.alive() {
                life.process.heal();
            }
            let rule = it.look(self.world).await;
            self.wait(slot, rule).await;
            self.slots[slot].settled(rule);
        }
    }

    /// Waits for what the rule asks of the living process.
    async fn wait(&mut self, slot: usize, rule: Rule) {
        let it = &mut self.slots[slot];
        let token = it.token.clone();
        let number = it.number;
        let Some(life) = it.alive().filter(|it| token.as_deref() == Some(&it.process.token)) else {
            return;
        };
        let begun = Instant::now();
        loop {
            let seen = &life.process.seen;
            let is_done = match rule {
                Rule::Wait => seen.asked() > 0,
                Rule::Reinitialise => {
                    let starts = life.process.starts();
                    seen.reinitialised() > 0 && starts.last().is_some_and(|it| it == "olga")
                }
                Rule::Stop => seen.stopped_asking(),
            };
            if is_done {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "workspace {number} does not {rule:?}: {seen:?}, started for {:?}",
                life.process.starts()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    async fn end(&mut self) {
        self.settle().await;
        // Time enough for one more request, and for one more event.
        tokio::time::sleep(RETRY_MAX * 6).await;
        for slot in &mut self.slots {
            let rule = slot.look(self.world).await;
            slot.settled(rule);
            for life in &slot.lives {
                let stopped = life.process.seen.stopped_asking();
                assert!(!stopped || rule == Rule::Stop, "told to stop while the rule is {rule:?}");
            }
        }
        // What is under way is not left to the next script.
        while self.acquire().await {}
        for slot in 0..SLOTS {
            self.report(slot, Step::FailTemplate).await;
        }
    }
}
