//! An agent process: the library's own loop in a runtime that can be killed, behind a way to the API
//! that can be cut and that counts what is asked over it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use berth_agent::{Auth, Clock, Options, Timing, Token};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

use crate::world::Killable;

/// As in the field, but in a hurry.
const QUICK: Timing = Timing {
    heartbeat: Duration::from_millis(500),
    log_flush: Duration::from_millis(10),
    retry_min: Duration::from_millis(5),
    retry_max: RETRY_MAX,
    refused: Duration::from_millis(200),
    stream_silence: Duration::from_secs(20),
    kill_grace: Duration::from_millis(200),
    shutdown: Duration::from_secs(3),
};
pub(crate) const RETRY_MAX: Duration = Duration::from_millis(50);

/// What a process was seen to do.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    reinitialised: AtomicUsize,
    stopped_asking: AtomicBool,
    asked: AtomicUsize,
}

impl Seen {
    /// How often it reinitialised.
    pub(crate) fn reinitialised(&self) -> usize {
        self.reinitialised.load(Ordering::SeqCst)
    }

    /// It took an answer for the last one.
    pub(crate) fn stopped_asking(&self) -> bool {
        self.stopped_asking.load(Ordering::SeqCst)
    }

    /// `reinit` requests that it sent.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Hears what the agent says of itself in its log.
struct Ear(Arc<Seen>);

impl<S: tracing::Subscriber> Layer<S> for Ear {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        if said.0.starts_with("claimed: reinitialising") {
            self.0.reinitialised.fetch_add(1, Ordering::SeqCst);
        } else if said.0.starts_with("no reinitialisation to wait for") {
            self.0.stopped_asking.store(true, Ordering::SeqCst);
        }
    }
}

#[derive(Default)]
struct Said(String);

impl tracing::field::Visit for Said {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// One agent process.
pub(crate) struct Process {
    pub(crate) token: String,
    pub(crate) seen: Arc<Seen>,
    home: PathBuf,
    way: Way,
    /// `None`: it was killed.
    running: Option<Killable>,
}

impl Process {
    pub(crate) async fn start(token: &str, home: PathBuf, replicas: [u16; 2]) -> Self {
        let seen = Arc::<Seen>::default();
        let way = Way::open(replicas, Arc::clone(&seen)).await;
        let text = home.display().to_string();
        let options = Options {
            url: format!("http://127.0.0.1:{}", way.port),
            auth: Auth::Token(Token::new(token)),
            scope: text.clone(),
            env: BTreeMap::from([
                ("HOME".to_owned(), text),
                ("SHELL".to_owned(), "/bin/sh".to_owned()),
                ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
            ]),
            data_dir: home.join("data"),
            timing: QUICK,
            clock: Clock::system(),
        };
        let ear = Ear(Arc::clone(&seen));
        let running = Killable::spawn(move || async move {
            let subscriber = tracing_subscriber::registry().with(ear);
            let _guard = tracing::subscriber::set_default(subscriber);
            berth_agent::run(options, CancellationToken::new()).await.unwrap();
        });
        Self { token: token.to_owned(), seen, home, way, running: Some(running) }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.running.is_some()
    }

    /// As SIGKILL does.
    pub(crate) fn kill(&mut self) {
        self.running = None;
        self.way.cut();
    }

    /// Breaks its connections; new ones are made.
    pub(crate) fn drop_connections(&self) {
        self.way.cut();
        self.way.heal();
    }

    pub(crate) fn cut(&self) {
        self.way.cut();
    }

    pub(crate) fn heal(&self) {
        self.way.heal();
    }

    /// The owners for whom its startup script began, in order.
    pub(crate) fn starts(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.home.join("starts")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }
}

/// The way from one agent to the replicas, which take turns.
struct Way {
    port: u16,
    /// Connections of another generation are broken; odd generations let nobody through.
    generation: watch::Sender<u64>,
    _stop: tokio_util::sync::DropGuard,
}

impl Way {
    async fn open(replicas: [u16; 2], seen: Arc<Seen>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let generation = watch::Sender::new(0);
        let (told, stop) = (generation.subscribe(), CancellationToken::new());
        let serving = async move {
            for turn in 0.. {
                let Ok((client, _)) = listener.accept().await else { return };
                let (mut told, seen) = (told.clone(), Arc::clone(&seen));
                let mine = *told.borrow_and_update();
                if mine % 2 == 1 {
                    continue;
                }
                // The other replica where this one is away.
                let ports = [replicas[turn % 2], replicas[(turn + 1) % 2]];
                tokio::spawn(async move {
                    let broken = told.wait_for(|it| *it != mine);
                    tokio::select! { () = pass(client, ports, seen) => {}, _ = broken => {} }
                });
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        Self { port, generation, _stop: stop.drop_guard() }
    }

    fn cut(&self) {
        self.generation.send_modify(|it| *it += 1 - *it % 2);
    }

    fn heal(&self) {
        self.generation.send_modify(|it| *it += *it % 2);
    }
}

async fn pass(client: TcpStream, ports: [u16; 2], seen: Arc<Seen>) {
    let mut server = None;
    for port in ports {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
            server = Some(stream);
            break;
        }
    }
    let Some(server) = server else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(many @ 1..) = from_client.read(&mut buffer).await {
            // A small request is one write of the client's, and so is one read here.
            let asked = count(&buffer[..many], b"GET /api/v2/workspaceagents/me/reinit");
            seen.asked.fetch_add(asked, Ordering::SeqCst);
            if to_server.write_all(&buffer[..many]).await.is_err() {
                return;
            }
        }
    };
    let down = tokio::io::copy(&mut from_server, &mut to_client);
    tokio::select! { () = up => {}, _ = down => {} }
}

fn count(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).filter(|it| *it == what).count()
}
