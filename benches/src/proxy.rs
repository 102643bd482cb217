//! A TCP proxy in front of Postgres that counts statements, round trips, rows and bytes by reading
//! the protocol: exact, and independent of what a service says of itself.

mod frames;
mod tally;

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use frames::Frames;
use tally::Conversation;
pub(crate) use tally::{Tally, Task};

/// Read at once.
const CHUNK: usize = 64 * 1024;
/// Longest first message that is believed, in bytes.
const STARTUP_MAX: usize = 10_000;
/// Requests that come before the startup message, asking for encryption: TLS and GSSAPI.
const ENCRYPT: [u32; 2] = [80_877_103, 80_877_104];

/// A proxy in front of a Postgres on this machine. It ends with this value.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    tally: Arc<Mutex<Tally>>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to `postgres`.
    pub(crate) async fn start(postgres: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let tally = Arc::new(Mutex::new(Tally::default()));
        let shared = Arc::clone(&tally);
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let tally = Arc::clone(&shared);
                // A connection that breaks is the service's to notice.
                tokio::spawn(async move { connection(client, postgres, tally).await.ok() });
            }
        });
        Ok(Self { port, tally, listener })
    }

    /// The address of a database through this proxy, given its address without.
    pub(crate) fn url(&self, direct: &str) -> anyhow::Result<String> {
        let (before, after) = direct.rsplit_once(':').context("an address with a port")?;
        let (_, database) = after.split_once('/').context("an address with a database")?;
        Ok(format!("{before}:{}/{database}", self.port))
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Statements of a task since [`Self::take`] was called last.
    pub(crate) fn statements(&self, task: Task) -> u64 {
        locked(&self.tally).of(task).statements
    }

    /// What went through since this was called last.
    pub(crate) fn take(&self) -> Tally {
        locked(&self.tally).take()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connection(
    mut client: TcpStream,
    postgres: u16,
    tally: Arc<Mutex<Tally>>,
) -> anyhow::Result<()> {
    let startup = startup(&mut client).await?;
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, postgres)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    server.write_all(&startup).await?;
    let conversation = Arc::new(Mutex::new(Conversation::default()));
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        ended = questions(client_in, server_out, &conversation) => ended,
        ended = answers(server_in, client_out, &conversation, &tally) => ended,
    }
}

/// The client's first message. Encryption is refused, as Postgres without it would.
async fn startup(client: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    loop {
        let mut head = [0; 8];
        client.read_exact(&mut head).await?;
        let [length, code] = [&head[..4], &head[4..]]
            .map(|it| it.iter().fold(0, |all: u32, byte| all << 8 | u32::from(*byte)));
        let length = length as usize;
        anyhow::ensure!((8..STARTUP_MAX).contains(&length), "{length} bytes are no first message");
        if ENCRYPT.contains(&code) {
            client.write_all(b"N").await?;
            continue;
        }
        let mut message = head.to_vec();
        message.resize(length, 0);
        client.read_exact(&mut message[8..]).await?;
        return Ok(message);
    }
}

async fn questions(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    conversation: &Mutex<Conversation>,
) -> anyhow::Result<()> {
    let (mut frames, mut chunk) = (Frames::default(), vec![0; CHUNK]);
    loop {
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return Ok(());
        }
        // Counted before it is passed on: the answer may come at once.
        let now = Instant::now();
        for frame in frames.push(&chunk[..read]) {
            locked(conversation).asks(&frame, now);
        }
        to.write_all(&chunk[..read]).await?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    conversation: &Mutex<Conversation>,
    tally: &Mutex<Tally>,
) -> anyhow::Result<()> {
    let (mut frames, mut chunk) = (Frames::default(), vec![0; CHUNK]);
    loop {
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return Ok(());
        }
        let now = Instant::now();
        for frame in frames.push(&chunk[..read]) {
            locked(conversation).answers(&frame, now, &mut locked(tally));
        }
        to.write_all(&chunk[..read]).await?;
    }
}
