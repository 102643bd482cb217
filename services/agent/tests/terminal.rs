//! The agent's end of terminals, against an API that a test plays frame by frame.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use berth_agent::{Auth, Clock, Options, Timing, Token};
use berth_domain::id::{AttachmentId, UserId};
use berth_domain::terminal::{
    End, INPUT_WINDOW, MAX_DATA, OUTPUT_WINDOW, Open, Reply, Request, Size, cost,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);
const ALICE: UserId = UserId(Uuid::from_u128(1));
const SHELL: Uuid = Uuid::from_u128(2);
const FIRST: AttachmentId = AttachmentId(Uuid::from_u128(3));
const SECOND: AttachmentId = AttachmentId(Uuid::from_u128(4));

type Sockets = mpsc::UnboundedSender<WebSocket>;

/// An agent, and the connections that it makes for terminals.
struct Stand {
    home: TempDir,
    sockets: mpsc::UnboundedReceiver<WebSocket>,
    _stop: DropGuard,
}

/// What the agent says, with its bytes.
#[derive(Debug, PartialEq)]
enum Heard {
    Opened(u64),
    Output(u64, Vec<u8>),
    Credit(u64),
    Pong { sent: u64, limit: u64 },
    Ended(End),
}

/// One connection of the agent.
struct Line(WebSocket);

impl Stand {
    async fn new() -> Self {
        let (socket, sockets) = mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/api/v2/workspaceagents/me/manifest", get(manifest))
            .route("/api/v2/workspaceagents/me/reinit", get(async || StatusCode::CONFLICT))
            .route("/api/v2/workspaceagents/me/terminals", get(terminals))
            .fallback(async || StatusCode::NO_CONTENT)
            .with_state(socket);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let home = tempfile::tempdir().unwrap();
        let text = home.path().to_string_lossy().into_owned();
        let options = Options {
            url: format!("http://{address}"),
            auth: Auth::Token(Token::new("3d2a6f6e-6b0c-4a87-9d2e-6b1b5f1f2a33")),
            scope: text.clone(),
            env: BTreeMap::from([
                ("HOME".to_owned(), text),
                ("SHELL".to_owned(), "/bin/sh".to_owned()),
            ]),
            data_dir: home.path().join("data"),
            timing: Timing {
                retry_min: Duration::from_millis(5),
                retry_max: Duration::from_millis(50),
                // What is hung up on goes by itself, however busy the machine is.
                kill_grace: PATIENCE,
                ..Timing::FIELD
            },
            clock: Clock::system(),
        };
        // As `berth agent` does: shells inherit an ignored hang-up (nohup), and no handler. It stays.
        drop(signal(SignalKind::hangup()).unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(berth_agent::run(options, stop.clone()));
        Self { home, sockets, _stop: stop.drop_guard() }
    }

    async fn line(&mut self) -> Line {
        Line(timeout(PATIENCE, self.sockets.recv()).await.expect("a connection").unwrap())
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.path().join(name)).unwrap_or_default()
    }
}

async fn manifest() -> Json<Value> {
    Json(json!({
        "agent_id": SHELL, "owner_id": ALICE, "owner_name": "alice", "directory": "~",
        "motd_file": "~/motd",
    }))
}

async fn terminals(State(sockets): State<Sockets>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |socket| sockets.send(socket).unwrap())
}

fn wanted(command: &str) -> Open {
    Open {
        user_id: ALICE,
        reconnect: SHELL,
        size: Size { width: 80, height: 24 },
        command: command.to_owned(),
        terminal: false,
        after: None,
        keep_seconds: 60,
    }
}

impl Line {
    async fn say(&mut self, attachment: AttachmentId, request: Request<'_>) {
        self.0.send(Message::Binary(request.encode(attachment).into())).await.unwrap();
    }

    async fn type_in(&mut self, attachment: AttachmentId, offset: u64, text: &str) {
        self.say(attachment, Request::Input { offset, bytes: text.as_bytes() }).await;
    }

    async fn hears(&mut self) -> (AttachmentId, Heard) {
        loop {
            let message = timeout(PATIENCE, self.0.recv()).await.expect("a word").unwrap();
            let Message::Binary(frame) = message.unwrap() else { continue };
            let (id, reply) = Reply::decode(&frame).unwrap();
            let heard = match reply {
                Reply::Opened { offset } => Heard::Opened(offset),
                Reply::Output { offset, bytes } => Heard::Output(offset, bytes.to_vec()),
                Reply::Credit(limit) => Heard::Credit(limit),
                Reply::Pong { sent, limit } => Heard::Pong { sent, limit },
                Reply::Ended(end) => Heard::Ended(end),
            };
            return (id, heard);
        }
    }

    /// Output of one attachment until it contains `text`; of others nothing is kept.
    async fn shows(&mut self, attachment: AttachmentId, text: &str) -> Vec<u8> {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            match self.hears().await {
                (id, Heard::Output(_, bytes)) if id == attachment => seen.extend(bytes),
                (id, Heard::Ended(end)) if id == attachment => panic!("ended: {end:?}"),
                _ => {}
            }
        }
        seen
    }

    async fn ends(&mut self, attachment: AttachmentId) -> End {
        loop {
            if let (id, Heard::Ended(end)) = self.hears().await
                && id == attachment
            {
                return end;
            }
        }
    }

    /// Everything up to the answer to a question that is asked now.
    async fn until_pong(&mut self, attachment: AttachmentId, typed: u64, limit: u64) -> Vec<Heard> {
        self.say(attachment, Request::Ping { sent: typed, limit }).await;
        let mut all = Vec::new();
        loop {
            let (id, heard) = self.hears().await;
            if id == attachment {
                let is_last = matches!(heard, Heard::Pong { .. } | Heard::Ended(_));
                all.push(heard);
                if is_last {
                    return all;
                }
            }
        }
    }
}

/// The window is all that comes without credit, and credit brings as much as it says.
#[tokio::test]
async fn nothing_is_sent_past_the_window() {
    let mut stand = Stand::new().await;
    let mut line = stand.line().await;
    line.say(FIRST, Request::Open(wanted("yes"))).await;
    assert_eq!(line.hears().await, (FIRST, Heard::Opened(0)));
    let (mut spent, mut place) = (0, 0);
    let mut limit = OUTPUT_WINDOW;
    for _ in 0..3 {
        // Full when not even the largest frame fits.
        while spent + cost(MAX_DATA) <= limit {
            let (_, Heard::Output(offset, bytes)) = line.hears().await else { panic!() };
            assert_eq!(offset, place);
            place += bytes.len() as u64;
            spent += cost(bytes.len());
            assert!(spent <= limit);
        }
        limit += OUTPUT_WINDOW;
        line.say(FIRST, Request::Credit(limit)).await;
    }
}

/// Who reads nothing is told so when others wait for the same shell, and only then.
#[tokio::test]
async fn one_who_does_not_read_does_not_stop_the_others_for_good() {
    let mut stand = Stand::new().await;
    let mut line = stand.line().await;
    line.say(FIRST, Request::Open(wanted("yes"))).await;
    line.say(SECOND, Request::Open(wanted(""))).await;
    // The second one takes everything, the first one its window.
    let (mut taken, mut slow) = (0, false);
    while taken < 4 * OUTPUT_WINDOW {
        match line.hears().await {
            (SECOND, Heard::Output(_, bytes)) => {
                taken += cost(bytes.len());
                line.say(SECOND, Request::Credit(taken + OUTPUT_WINDOW)).await;
            }
            (FIRST, Heard::Ended(end)) => {
                assert_eq!(end, End::Slow);
                slow = true;
            }
            _ => {}
        }
    }
    assert!(slow);
}

/// A lost connection: the shell lives, who was attached is told, and the rest comes after the join.
#[tokio::test]
async fn a_shell_outlives_its_connections_and_goes_on_where_it_was() {
    let mut stand = Stand::new().await;
    let mut line = stand.line().await;
    line.say(FIRST, Request::Open(wanted(""))).await;
    assert_eq!(line.hears().await, (FIRST, Heard::Opened(0)));
    line.type_in(FIRST, 0, "echo one; read go; echo two\n").await;
    assert_eq!(line.hears().await, (FIRST, Heard::Output(0, b"one\n".to_vec())));
    drop(line);

    let mut line = stand.line().await;
    assert_eq!(line.hears().await, (FIRST, Heard::Ended(End::Away)));
    let again = Open { after: Some(4), ..wanted("") };
    line.say(SECOND, Request::Open(again)).await;
    assert_eq!(line.hears().await, (SECOND, Heard::Opened(4)));
    line.type_in(SECOND, 0, "go\nexit 9\n").await;
    assert_eq!(line.hears().await, (SECOND, Heard::Output(4, b"two\n".to_vec())));
    assert_eq!(line.ends(SECOND).await, End::Exited { code: 9 });

    // Whoever missed the end is told it, too; who wants a shell gets another one.
    let late = Open { after: Some(0), ..wanted("") };
    line.say(FIRST, Request::Open(late)).await;
    assert_eq!(line.shows(FIRST, "two\n").await, b"one\ntwo\n");
    assert_eq!(line.ends(FIRST).await, End::Exited { code: 9 });
    line.say(FIRST, Request::Open(wanted("echo new"))).await;
    assert_eq!(line.shows(FIRST, "new\n").await, b"new\n");
}

/// Nobody joins another user's shell, and a shell that is not there is not made up.
#[tokio::test]
async fn a_shell_is_its_users_alone() {
    let mut stand = Stand::new().await;
    let mut line = stand.line().await;
    line.say(FIRST, Request::Open(wanted("echo alice; cat"))).await;
    line.shows(FIRST, "alice").await;
    let eve = Open { user_id: UserId(Uuid::from_u128(9)), after: Some(0), ..wanted("") };
    line.say(SECOND, Request::Open(eve.clone())).await;
    assert!(matches!(line.ends(SECOND).await, End::Refused { .. }));
    let eves = Open { after: None, command: "echo eve; cat".to_owned(), ..eve };
    line.say(SECOND, Request::Open(eves)).await;
    assert_eq!(line.shows(SECOND, "eve\n").await, b"eve\n");
}

/// What was lost on the way ends the attachment, not the shell.
#[tokio::test]
async fn lost_and_surplus_input_is_noticed() {
    let mut stand = Stand::new().await;
    let mut line = stand.line().await;
    line.say(FIRST, Request::Open(wanted("cat"))).await;
    line.type_in(FIRST, 0, "abc").await;
    line.type_in(FIRST, 4, "lost one").await;
    assert_eq!(line.ends(FIRST).await, End::Lost);

    // The last frame is missed by the next question.
    line.say(SECOND, Request::Open(Open { after: Some(0), ..wanted("") })).await;
    line.shows(SECOND, "abc").await;
    let answer = line.until_pong(SECOND, 5, OUTPUT_WINDOW).await;
    assert_eq!(answer, [Heard::Ended(End::Lost)]);

    // More than the window at once.
    let asleep = Open { reconnect: Uuid::from_u128(7), ..wanted("sleep 100") };
    line.say(FIRST, Request::Open(asleep)).await;
    let bytes = vec![b'x'; MAX_DATA];
    for round in 0..=INPUT_WINDOW / MAX_DATA as u64 + 8 {
        let offset = round * MAX_DATA as u64;
        line.say(FIRST, Request::Input { offset, bytes: &bytes }).await;
    }
    assert_eq!(line.ends(FIRST).await, End::Lost);
}

/// A shell that nobody can come back to ends with its attachment, one that is hung up on at once,
/// and its children with it.
#[tokio::test]
async fn shells_end_with_their_processes() {
    // It complains of a sleep that was hung up on, and nobody reads that any more: a pipe's writer
    // would die of it before it has said that it goes.
    const SCRIPT: &str = "exec 2> complaints; trap 'echo gone >> ends; exit' HUP; echo up; \
                          while :; do sleep 0.05; done";
    let mut stand = Stand::new().await;
    let mut line = stand.line().await;
    let cases = [(true, Request::Close), (false, Request::Close), (true, Request::HangUp)];
    for (id, (terminal, way)) in (1..).zip(cases) {
        let before = stand.file("ends").len();
        let keep_seconds = if matches!(way, Request::Close) { 0 } else { 60 };
        // An id of its own: the former shell may not be gone when it has said so.
        let reconnect = Uuid::from_u128(id);
        let open = Open { reconnect, terminal, keep_seconds, ..wanted(SCRIPT) };
        line.say(FIRST, Request::Open(open)).await;
        line.shows(FIRST, "up").await;
        let case = format!("terminal {terminal}, keep {keep_seconds}");
        line.say(FIRST, way).await;
        let told = async {
            while stand.file("ends").len() == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, told).await.is_ok(), "the shell is hung up on: {case}");
    }
}

/// Who opens a shell reads it, and a program that runs a command does not.
#[tokio::test]
async fn a_shell_with_a_terminal_begins_with_the_message_of_the_day() {
    let mut stand = Stand::new().await;
    std::fs::write(stand.home.path().join("motd"), "Welcome\nhere\n").unwrap();
    let mut line = stand.line().await;
    line.say(FIRST, Request::Open(Open { terminal: true, ..wanted("") })).await;
    let shown = line.shows(FIRST, "here\r\n").await;
    assert!(shown.starts_with(b"Welcome\r\n"), "{shown:?}");

    let command = Open { terminal: true, reconnect: Uuid::from_u128(9), ..wanted("echo done") };
    line.say(SECOND, Request::Open(command)).await;
    let shown = line.shows(SECOND, "done").await;
    assert!(shown.starts_with(b"done"), "{shown:?}");
}
