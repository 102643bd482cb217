//! Frames of terminals: bytes between two replicas of the API, that nobody keeps and no schema
//! describes. A lost frame is noticed by its reader.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream as Flow, StreamExt};

use crate::connection::{Bus, BusError};

/// Bytes that arrived.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The frame.
    pub frame: Bytes,
    /// Where its sender waits for an answer.
    pub reply: Option<String>,
}

/// What became of a question.
#[derive(Debug, Clone)]
pub enum Asked {
    /// The answer.
    Answer(Bytes),
    /// Nobody listens on that subject.
    NobodyThere,
    /// Somebody listens, but did not answer in time.
    Silence,
}

impl Bus {
    /// Sends a frame. Waits while the connection has too much to send; fails only when it is closed
    /// for good.
    pub async fn send_frame(&self, subject: String, frame: Bytes) -> Result<(), BusError> {
        self.client()
            .publish(subject, frame)
            .await
            .map_err(|error| BusError::Unavailable(error.to_string()))
    }

    /// Sends a frame and waits for an answer, at most for `time`.
    pub async fn ask_frame(
        &self,
        subject: String,
        frame: Bytes,
        time: Duration,
    ) -> Result<Asked, BusError> {
        let request = async_nats::Request::new().payload(frame).timeout(Some(time));
        match self.client().send_request(subject, request).await {
            Ok(message) => Ok(Asked::Answer(message.payload)),
            Err(error) => match error.kind() {
                async_nats::RequestErrorKind::NoResponders => Ok(Asked::NobodyThere),
                async_nats::RequestErrorKind::TimedOut => Ok(Asked::Silence),
                _ => Err(BusError::Unavailable(error.to_string())),
            },
        }
    }

    /// Frames that arrive from now on. What is sent while the connection is down is missed.
    pub async fn frames(
        &self,
        subject: String,
    ) -> Result<impl Flow<Item = Arrival> + Send + Unpin + use<>, BusError> {
        let unavailable = |error: &dyn std::fmt::Display| BusError::Unavailable(error.to_string());
        let frames = self.client().subscribe(subject).await.map_err(|error| unavailable(&error))?;
        // The server must know of it before the first question is sent.
        self.client().flush().await.map_err(|error| unavailable(&error))?;
        Ok(frames.map(|it| Arrival {
            frame: it.payload,
            reply: it.reply.map(|reply| reply.to_string()),
        }))
    }
}
