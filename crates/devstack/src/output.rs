//! Where the lines go that a program writes.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::DevstackError;
use crate::error::file;

/// The longest line in bytes that is passed on in one piece; a longer one is cut into pieces.
const MAX_LINE: usize = 16 * 1024;
/// How many lines are kept to explain a failure.
const TAIL: usize = 20;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Takes a line without its end. Called from tasks of the runtime: it must not block for long.
pub type LineSink = Arc<dyn Fn(Source, &str) + Send + Sync>;

/// Where the lines go that a program writes.
#[derive(Clone, Default)]
pub enum Output {
    /// Nowhere.
    #[default]
    Null,
    /// To the end of a file.
    File(PathBuf),
    /// To a function.
    Lines(LineSink),
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Lines(_) => f.write_str("Lines"),
        }
    }
}

/// An opened [`Output`] that also remembers the last lines.
#[derive(Clone)]
pub(crate) struct Lines {
    target: Target,
    tail: Arc<Mutex<VecDeque<String>>>,
}

#[derive(Clone)]
enum Target {
    Null,
    File(Arc<Mutex<File>>),
    Lines(LineSink),
}

impl Lines {
    pub(crate) fn open(output: &Output) -> Result<Self, DevstackError> {
        let target = match output {
            Output::Null => Target::Null,
            Output::Lines(sink) => Target::Lines(sink.clone()),
            Output::File(path) => {
                let opened = OpenOptions::new().append(true).create(true).open(path);
                Target::File(Arc::new(Mutex::new(opened.map_err(file("open", path))?)))
            }
        };
        Ok(Self { target, tail: Arc::default() })
    }

    /// The last lines, oldest first.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Passes on everything that `stream` has, until its end.
    pub(crate) async fn pump(self, source: Source, mut stream: impl AsyncRead + Unpin) {
        let mut buffer = Vec::with_capacity(MAX_LINE);
        loop {
            let read = stream.read_buf(&mut buffer).await;
            let mut start = 0;
            while let Some(length) = buffer[start..].iter().position(|byte| *byte == b'\n') {
                self.pass(source, &buffer[start..start + length]);
                start += length + 1;
            }
            buffer.drain(..start);
            if buffer.len() >= MAX_LINE {
                self.pass(source, &buffer);
                buffer.clear();
            }
            if !matches!(read, Ok(1..)) {
                break;
            }
        }
        if !buffer.is_empty() {
            self.pass(source, &buffer);
        }
    }

    fn pass(&self, source: Source, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.strip_suffix('\r').unwrap_or(&line);
        match &self.target {
            Target::Null => {}
            Target::Lines(sink) => sink(source, line),
            Target::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                // A full disk must not stop the program whose log it is.
                let _ = file.write_all(format!("{line}\n").as_bytes());
            }
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
    }
}

#[cfg(test)]
mod tests;
