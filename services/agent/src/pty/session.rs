//! One shell and those who are attached to it.
//!
//! The ring is the only buffer of output: the shell is read only while nothing goes from it that an
//! attachment has not been sent, so a slow reader slows the shell and costs no memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_domain::id::AttachmentId;
use berth_domain::terminal::{
    End, INPUT_WINDOW, MAX_DATA, OUTPUT_WINDOW, PING_SECONDS, Reply, Size, cost,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::pty::ring::Ring;
use crate::pty::shell::{Shell, code_of};
use crate::websocket::Message;

/// How often attachments that died or stand in others' way are looked for.
const TICK: Duration = Duration::from_secs(1);
/// An attachment that was not heard of for so long is gone.
const SILENCE: Duration = Duration::from_secs(4 * PING_SECONDS);
/// How long an attachment may keep others of its shell waiting.
const STALL: Duration = Duration::from_secs(10);
/// How long output may take after the shell's end; a background process may hold the terminal.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// Most that the end of a shell waits for somebody who lost the connection just then.
const LINGER: Duration = Duration::from_mins(1);
/// What ends a line of input, and all of it, at a terminal.
const END_OF_INPUT: &[u8] = b"\x04";

/// Frames on their way to the API.
pub(super) type Outlet = mpsc::Sender<Message>;

/// What an attachment says.
pub(super) enum Said {
    /// It begins.
    Attach(Joining),
    Input {
        offset: u64,
        bytes: Vec<u8>,
    },
    EndInput,
    Resize(Size),
    Credit(u64),
    Ping {
        sent: u64,
        limit: u64,
    },
    /// It is over, at its own wish or for want of a connection.
    Close,
    /// The shell is to end.
    HangUp,
}

/// Somebody who joins.
pub(super) struct Joining {
    pub(super) after: Option<u64>,
    pub(super) size: Size,
    /// How long the shell is kept without attachments.
    pub(super) keep: Duration,
    pub(super) out: Outlet,
}

/// One who is attached.
struct Attached {
    id: AttachmentId,
    out: Outlet,
    /// Place of the next byte to send.
    position: u64,
    /// Costs sent, and up to which it may go.
    spent: u64,
    limit: u64,
    /// When something was sent last, and heard.
    moved: Instant,
    heard: Instant,
    /// Bytes of input that came.
    typed: u64,
    /// Costs of input that came, that may come, and that it was told may come.
    taken: u64,
    granted: u64,
    told: u64,
}

impl Attached {
    async fn send(&self, reply: &Reply<'_>) -> bool {
        self.out.send(Message::Binary(reply.encode(self.id).into())).await.is_ok()
    }
}

/// What happens next.
enum Event {
    Said(AttachmentId, Said),
    Read(usize),
    Wrote(Option<usize>),
    Exited(i32),
    Quiet,
    Tick,
    Stop,
}

/// A shell's life.
pub(super) struct Session {
    shell: Shell,
    ring: Ring,
    buffer: Vec<u8>,
    attached: Vec<Attached>,
    input: VecDeque<(AttachmentId, Vec<u8>)>,
    input_over: bool,
    output_over: bool,
    exit: Option<i32>,
    /// Set when the shell has ended: whoever comes now wants another.
    over: Arc<AtomicBool>,
    /// Told who is no longer attached.
    left: mpsc::UnboundedSender<AttachmentId>,
    /// Somebody who is attached wants it to end.
    is_unwanted: bool,
    keep: Duration,
    alone_since: Instant,
    ticks: Interval,
}

impl Session {
    /// `keep`: how long to wait for the first attachment.
    pub(super) fn new(
        shell: Shell,
        keep: Duration,
        over: Arc<AtomicBool>,
        left: mpsc::UnboundedSender<AttachmentId>,
    ) -> Self {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            shell,
            ring: Ring::default(),
            buffer: vec![0; MAX_DATA],
            attached: Vec::new(),
            input: VecDeque::new(),
            input_over: false,
            output_over: false,
            exit: None,
            over,
            left,
            is_unwanted: false,
            keep,
            alone_since: Instant::now(),
            ticks,
        }
    }

    /// Runs until the shell is over and told, nobody came back for it, or `stop`.
    pub(super) async fn run(
        mut self,
        mut said: mpsc::Receiver<(AttachmentId, Said)>,
        stop: CancellationToken,
        grace: Duration,
    ) {
        loop {
            let event = self.next(&mut said, &stop).await;
            if matches!(event, Event::Stop) {
                break;
            }
            let turn = async {
                self.handle(event).await;
                self.deliver().await;
                self.tell_end().await;
            };
            if stop.run_until_cancelled(turn).await.is_none() || self.is_done() {
                break;
            }
        }
        self.over.store(true, Ordering::Release);
        for it in &self.attached {
            // Not waited for: where the way is full, the silence says it, too.
            let frame = Reply::Ended(End::Over).encode(it.id);
            let _ = it.out.try_send(Message::Binary(frame.into()));
        }
        drop(self.attached);
        drop(said);
        self.shell.end(grace).await;
    }

    async fn next(
        &mut self,
        said: &mut mpsc::Receiver<(AttachmentId, Said)>,
        stop: &CancellationToken,
    ) -> Event {
        let room = self.room().min(self.buffer.len());
        let may_read = !self.output_over && room > 0;
        let has_ended = self.exit.is_some();
        let Shell { child, output, input } = &mut self.shell;
        let may_write = input.is_some() && !self.input.is_empty();
        let write = async {
            let (Some(input), Some((_, bytes))) = (input.as_mut(), self.input.front()) else {
                return None;
            };
            input.write(bytes).await.ok()
        };
        tokio::select! {
            said = said.recv() => said.map_or(Event::Stop, |(id, said)| Event::Said(id, said)),
            // An error is the other way in which a terminal says that nobody holds its other end.
            read = output.read(&mut self.buffer[..room]), if may_read => {
                Event::Read(read.unwrap_or(0))
            }
            count = write, if may_write => Event::Wrote(count),
            status = child.wait(), if !has_ended => Event::Exited(code_of(&status)),
            () = sleep(LAST_WORDS), if has_ended && may_read => Event::Quiet,
            _ = self.ticks.tick() => Event::Tick,
            () = stop.cancelled() => Event::Stop,
        }
    }

    /// Bytes that may be read before an attachment would miss some.
    fn room(&self) -> usize {
        let rooms = self.attached.iter().map(|it| self.ring.room(it.position));
        rooms.min().unwrap_or(usize::MAX)
    }

    fn is_done(&self) -> bool {
        let ended = self.exit.is_some() && self.output_over;
        let keep = if ended { self.keep.min(LINGER) } else { self.keep };
        self.is_unwanted || self.attached.is_empty() && self.alone_since.elapsed() >= keep
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Said(id, said) => self.hear(id, said).await,
            Event::Read(0) | Event::Quiet => self.output_over = true,
            Event::Read(count) => self.ring.push(&self.buffer[..count]),
            Event::Wrote(count) => self.wrote(count).await,
            Event::Exited(code) => {
                self.exit = Some(code);
                self.over.store(true, Ordering::Release);
            }
            Event::Tick => self.look().await,
            Event::Stop => {}
        }
    }

    async fn hear(&mut self, id: AttachmentId, said: Said) {
        let said = match said {
            Said::Attach(joining) => return self.join(id, joining).await,
            Said::Close => return self.leave(id),
            said => said,
        };
        let Some(it) = self.attached.iter_mut().find(|it| it.id == id) else { return };
        it.heard = Instant::now();
        let mut lost = false;
        match said {
            Said::Input { offset, bytes } => {
                it.taken += cost(bytes.len());
                lost = offset != it.typed || it.taken > it.granted;
                it.typed += bytes.len() as u64;
                if !lost && !bytes.is_empty() {
                    self.input.push_back((id, bytes));
                }
            }
            Said::EndInput => match self.shell.input {
                Some(Either::Left(_)) => self.input.push_back((id, END_OF_INPUT.to_vec())),
                _ => self.input_over = true,
            },
            Said::Resize(size) => self.shell.resize(size),
            Said::Credit(limit) => it.limit = it.limit.max(limit),
            Said::Ping { sent, limit } => {
                it.limit = it.limit.max(limit);
                lost = sent != it.typed;
                if !lost {
                    it.told = it.granted;
                    let pong = Reply::Pong { sent: it.position, limit: it.granted };
                    // Without a connection it is lost, too.
                    lost = !it.send(&pong).await;
                }
            }
            Said::HangUp => self.is_unwanted = true,
            Said::Attach(_) | Said::Close => {}
        }
        if lost {
            self.dismiss(id, End::Lost).await;
        }
        self.close_input();
    }

    async fn join(&mut self, id: AttachmentId, joining: Joining) {
        let oldest = self.ring.start();
        let wanted = joining.after.filter(|it| (oldest..=self.ring.end()).contains(it));
        let now = Instant::now();
        let it = Attached {
            id,
            out: joining.out,
            position: wanted.unwrap_or(oldest),
            spent: 0,
            limit: OUTPUT_WINDOW,
            moved: now,
            heard: now,
            typed: 0,
            taken: 0,
            granted: INPUT_WINDOW,
            told: INPUT_WINDOW,
        };
        self.keep = joining.keep;
        self.shell.resize(joining.size);
        if it.send(&Reply::Opened { offset: it.position }).await {
            self.attached.push(it);
        }
    }

    fn leave(&mut self, id: AttachmentId) {
        self.attached.retain(|it| it.id != id);
        // Nobody keeps the list any more when all ends.
        let _ = self.left.send(id);
        self.alone_since = Instant::now();
    }

    async fn dismiss(&mut self, id: AttachmentId, why: End) {
        if let Some(it) = self.attached.iter().find(|it| it.id == id) {
            it.send(&Reply::Ended(why)).await;
        }
        self.leave(id);
    }

    /// Takes written bytes off the queue, and lets their sender send as many more.
    async fn wrote(&mut self, count: Option<usize>) {
        let Some(count) = count else {
            // Nobody reads any more; what is typed from now on is taken and dropped.
            self.shell.input = None;
            self.input_over = true;
            let dropped: Vec<_> = self.input.drain(..).collect();
            for (id, bytes) in dropped {
                self.grant(id, bytes.len()).await;
            }
            return;
        };
        let Some((id, bytes)) = self.input.front_mut() else { return };
        let id = *id;
        bytes.drain(..count);
        if bytes.is_empty() {
            self.input.pop_front();
        }
        self.grant(id, count).await;
        self.close_input();
    }

    async fn grant(&mut self, id: AttachmentId, count: usize) {
        let Some(it) = self.attached.iter_mut().find(|it| it.id == id) else { return };
        it.granted += cost(count);
        if it.granted - it.told >= INPUT_WINDOW / 2 {
            it.told = it.granted;
            let credit = Reply::Credit(it.granted);
            if !it.send(&credit).await {
                self.leave(id);
            }
        }
    }

    fn close_input(&mut self) {
        if self.shell.input.is_none() {
            // What is typed now has no reader.
            self.input.clear();
        } else if self.input_over && self.input.is_empty() {
            self.shell.input = None;
        }
    }

    /// Sends each attachment what it may be sent, in turns.
    async fn deliver(&mut self) {
        let mut gone = Vec::new();
        loop {
            let mut sent = false;
            for it in &mut self.attached {
                let bytes = self.ring.read(it.position, MAX_DATA);
                let price = cost(bytes.len());
                if bytes.is_empty() || it.spent + price > it.limit || gone.contains(&it.id) {
                    continue;
                }
                if !it.send(&Reply::Output { offset: it.position, bytes: &bytes }).await {
                    gone.push(it.id);
                    continue;
                }
                it.position += bytes.len() as u64;
                it.spent += price;
                it.moved = Instant::now();
                sent = true;
            }
            if !sent {
                break;
            }
        }
        for id in gone {
            self.leave(id);
        }
    }

    /// Tells those who have seen everything that it was everything.
    async fn tell_end(&mut self) {
        let Some(code) = self.exit.filter(|_| self.output_over) else { return };
        let end = self.ring.end();
        let seen: Vec<_> =
            self.attached.iter().filter(|it| it.position == end).map(|it| it.id).collect();
        for id in seen {
            self.dismiss(id, End::Exited { code }).await;
        }
    }

    /// Lets go of those who are gone, and of those who keep others waiting.
    async fn look(&mut self) {
        let silent = |it: &Attached| it.heard.elapsed() > SILENCE;
        let gone: Vec<_> = self.attached.iter().filter(|it| silent(it)).map(|it| it.id).collect();
        for id in gone {
            self.dismiss(id, End::Away).await;
        }
        let blocks = |it: &Attached| self.ring.room(it.position) == 0;
        if self.attached.iter().all(blocks) {
            return;
        }
        let slow = |it: &&Attached| blocks(it) && it.moved.elapsed() > STALL;
        let slow: Vec<_> = self.attached.iter().filter(slow).map(|it| it.id).collect();
        for id in slow {
            self.dismiss(id, End::Slow).await;
        }
    }
}
