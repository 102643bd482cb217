//! Many watchers who break off and come back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::reader::{Ask, Reader, Said};
use super::world::{ACME, ELSEWHERE, Step, Who, World};

const UPDATES: usize = 5000;
/// Watchers by what they see: most see only their own.
const CROWD: [(Who, usize); 4] = [(Who::Owner, 20), (Who::Ada, 30), (Who::Bob, 75), (Who::Eve, 75)];
/// The last update that everybody waits for.
const LAST: i32 = i32::MAX;
/// Long enough on a busy machine.
const TIME: Duration = Duration::from_secs(150);

/// Numbers that look random and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % bound
    }
}

fn organization(who: Who) -> uuid::Uuid {
    if who == Who::Eve { ELSEWHERE } else { ACME }
}

/// Updates of 40 workspaces: bob and eve have a tenth each, the rest is the owner's, in both
/// organizations. The last two are for those who see only a part.
fn updates() -> Vec<Step> {
    let mut chance = Chance(7);
    let mut numbers = [0; 40];
    let mut steps: Vec<Step> = (0..UPDATES - 2)
        .map(|_| {
            let workspace = usize::try_from(chance.below(40)).unwrap();
            numbers[workspace] += 1;
            let who = match workspace {
                0..4 => Who::Bob,
                4..8 => Who::Eve,
                _ => Who::Owner,
            };
            let organization = match who {
                Who::Owner if workspace % 2 == 0 => ELSEWHERE,
                who => organization(who),
            };
            let name = format!("w{workspace}");
            let (workspace, number) = (workspace as u128, numbers[workspace]);
            Step { organization, owner: who.id(), workspace, number, name }
        })
        .collect();
    for (who, workspace) in [(Who::Bob, 50), (Who::Eve, 51)] {
        let name = "last".to_owned();
        let (organization, owner) = (organization(who), who.id());
        steps.push(Step { organization, owner, workspace, number: LAST, name });
    }
    steps
}

fn text(said: &Said, name: &str) -> String {
    let value = said.data.split_once(&format!("\"{name}\":")).map_or("", |it| it.1);
    value.trim_start_matches('"').split(['"', ',', '}']).next().unwrap_or_default().to_owned()
}

type Seen = BTreeMap<String, Vec<String>>;

fn expected(who: Who, steps: &[Step]) -> Seen {
    let mut seen = Seen::new();
    for step in steps.iter().filter(|it| who.may_read(it.organization, it.owner)) {
        let workspace = step.workspace_id().to_string();
        seen.entry(workspace).or_default().push(step.number.to_string());
    }
    seen
}

/// Watches until the last update, and breaks off again and again: sometimes in the middle of what
/// has arrived already. Comes back at the other replica, over either kind of stream.
async fn watch(world: &World, who: Who, n: usize, mut reader: Reader) -> (Seen, u32) {
    let last = if matches!(who, Who::Bob | Who::Ada) { 50 } else { 51 };
    let last = uuid::Uuid::from_u128(0x1000 + last).to_string();
    let mut chance = Chance(n as u64 * 31 + who as u64);
    let (mut seen, mut breaks) = (Seen::new(), 0);
    let mut left = chance.below(400) + 1;
    loop {
        let Some(said) = reader.next().await else { panic!("{who:?} {n}: the stream ended") };
        match said.kind.as_str() {
            "ping" => {}
            "data" => {
                let workspace = text(&said, "workspace_id");
                let number = text(&said, "build_number");
                seen.entry(workspace.clone()).or_default().push(number);
                if workspace == last {
                    return (seen, breaks);
                }
            }
            other => panic!("{who:?} {n}: {other} {said:?}"),
        }
        left -= 1;
        if left == 0 {
            breaks += 1;
            left = chance.below(900) + 1;
            let ask = Ask::all(&who.key(n)).after(reader.last_id.clone());
            let replica = &world.replicas[usize::try_from(chance.below(2)).unwrap()];
            reader = replica.open(&ask.socket(chance.below(2) == 0)).await;
        }
    }
}

/// Each sees every update that he may read: in order per workspace, none twice, none that he may
/// not read, however often he breaks off and wherever he comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_watchers_who_come_and_go_miss_nothing_and_get_nothing_twice() {
    let world = World::new().await;
    let steps = updates();
    let crowd = CROWD.iter().flat_map(|(who, many)| (0..*many).map(move |n| (*who, n)));
    let mut readers = Vec::new();
    for (who, n) in crowd {
        let ask = Ask::all(&who.key(n)).socket(n.is_multiple_of(2));
        let mut reader = world.replicas[n / 2 % 2].open(&ask).await;
        let first = reader.next().await.unwrap();
        assert!(first.kind == "ping" && first.id.is_some(), "a place to resume from: {first:?}");
        readers.push((who, n, reader));
    }
    let slow = Slow::open(&world).await;
    let watching = readers
        .into_iter()
        .map(|(who, n, reader)| watch(&world, who, n, reader))
        .collect::<Vec<_>>();

    let started = Instant::now();
    let all = async { tokio::join!(world.publish(1, &steps), join_all(watching)).1 };
    let all = tokio::time::timeout(TIME, all).await.expect("everybody gets the last update");
    let took = started.elapsed();

    let crowd = CROWD.iter().flat_map(|(who, many)| (0..*many).map(move |n| (*who, n)));
    let (mut delivered, mut breaks) = (0, 0);
    for ((who, n), (seen, broke)) in crowd.zip(all) {
        let expected = expected(who, &steps);
        for (workspace, numbers) in &expected {
            assert_eq!(seen.get(workspace), Some(numbers), "{who:?} {n}: {workspace}");
        }
        assert_eq!(seen.len(), expected.len(), "{who:?} {n} sees what he may not");
        delivered += seen.values().map(Vec::len).sum::<usize>();
        breaks += broke;
    }
    assert!(breaks > 300, "they did come and go: {breaks}");
    println!("{delivered} deliveries, {breaks} breaks, {:.1} s", took.as_secs_f32());
    slow.check(&world).await;
}

/// Readers who read nothing until the hub has forgotten what they lack, and one who reads.
struct Slow {
    readers: Vec<Reader>,
    fast: Reader,
}

impl Slow {
    async fn open(world: &World) -> Self {
        let mut readers = Vec::new();
        for is_socket in [false, true] {
            let mut ask = Ask::all(&Who::Owner.key(99)).socket(is_socket);
            ask.is_narrow = true;
            readers.push(world.replicas[0].open(&ask).await);
        }
        let fast = world.replicas[0].open(&Ask::all(&Who::Owner.key(98))).await;
        Self { readers, fast }
    }

    /// The slow ones are told what they miss, and go on from there; the other one misses nothing.
    async fn check(mut self, world: &World) {
        let name = "long".repeat(250);
        let more: Vec<Step> = (1..=3000)
            .map(|number| Step { name: name.clone(), ..Step::of(Who::Ada, ACME, number) })
            .collect();
        let reading = async {
            let mut numbers = 0;
            while numbers < UPDATES + more.len() {
                let said = self.fast.told().await.expect("the stream goes on");
                assert_eq!(said.kind, "data", "a slow reader costs others nothing: {said:?}");
                numbers += 1;
            }
        };
        let both = async { tokio::join!(world.publish(2, &more), reading) };
        tokio::time::timeout(TIME, both).await.expect("who reads gets everything");
        for reader in &mut self.readers {
            caught_up(reader, more.last().unwrap()).await;
        }
    }
}

/// Reads to the end; everything that is missing was told.
async fn caught_up(reader: &mut Reader, last: &Step) {
    let place = |id: &str| id.rsplit('-').next().unwrap().parse::<u64>().unwrap();
    let (mut before, mut gaps) = (None, 0);
    loop {
        let said = reader.told().await.expect("the stream goes on");
        let at = place(said.id.as_deref().unwrap());
        if said.kind == "gap" {
            gaps += 1;
            let missing = said.json()["first_missing_id"].as_str().map(place).unwrap();
            assert_eq!(before.map_or(missing, |it: u64| it + 1), missing, "{said:?}");
            assert!(at >= missing);
        } else {
            assert_eq!(before.map_or(at, |it| it + 1), at, "nothing is left out in silence");
        }
        before = Some(at);
        let is_last = text(&said, "workspace_id") == last.workspace_id().to_string()
            && text(&said, "build_number") == last.number.to_string();
        if is_last {
            assert!(gaps > 0, "8000 updates are more than are kept");
            return;
        }
    }
}
