//! This side's terminal, or what stands in for it.

use std::io::{IsTerminal as _, Read as _};
use std::thread;

use anyhow::Context as _;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// What happens at this end.
pub(super) enum Happening {
    Typed(Vec<u8>),
    /// Nothing more will be typed.
    InputOver,
    /// The window has another size.
    Resized,
    /// A signal that ends programs; its number.
    Signal(i32),
}

/// Standard input and output. A terminal is set back when this goes.
pub(super) struct Local {
    keys: mpsc::Receiver<Vec<u8>>,
    resized: Signal,
    ended: [(Signal, i32); 3],
    raw: Option<Raw>,
}

impl Local {
    pub(super) fn open() -> anyhow::Result<Self> {
        let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let listen = |kind: SignalKind| signal(kind).context("cannot listen for signals");
        let ended = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hang_up] = ended;
        let number = |kind: SignalKind| kind.as_raw_value();
        Ok(Self {
            keys: read_keys(),
            resized: listen(SignalKind::window_change())?,
            ended: [
                (listen(interrupt)?, number(interrupt)),
                (listen(terminate)?, number(terminate)),
                (listen(hang_up)?, number(hang_up)),
            ],
            raw: if is_terminal { Some(Raw::set()?) } else { None },
        })
    }

    /// Whether a person sits here.
    pub(super) fn is_terminal(&self) -> bool {
        self.raw.is_some()
    }

    /// Waits for what happens here next; for keys only with `takes_keys`.
    pub(super) async fn next(&mut self, takes_keys: bool) -> Happening {
        let [(one, first), (two, second), (three, third)] = &mut self.ended;
        tokio::select! {
            keys = self.keys.recv(), if takes_keys => {
                keys.map_or(Happening::InputOver, Happening::Typed)
            }
            Some(()) = self.resized.recv() => Happening::Resized,
            _ = one.recv() => Happening::Signal(*first),
            _ = two.recv() => Happening::Signal(*second),
            _ = three.recv() => Happening::Signal(*third),
        }
    }

    /// Tells the person something that is not the shell's.
    pub(super) fn say(&self, text: &str) {
        let end = if self.is_terminal() { "\r\n" } else { "\n" };
        eprint!("berth: {text}{end}");
    }
}

/// Columns and rows; those of the field where there is no terminal, or one that does not know.
pub(super) fn size() -> (u16, u16) {
    let known = tcgetwinsize(std::io::stdout()).ok();
    known.filter(|it| it.ws_col > 0 && it.ws_row > 0).map_or((80, 24), |it| (it.ws_col, it.ws_row))
}

/// Reads standard input in a thread, which nothing but the process' end stops.
fn read_keys() -> mpsc::Receiver<Vec<u8>> {
    let (keys, read) = mpsc::channel(4);
    thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
            if keys.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    read
}

/// The terminal passes every key on, Ctrl-C included, until this goes.
struct Raw {
    before: Termios,
}

impl Raw {
    fn set() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("cannot set the terminal's mode")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before);
    }
}
