//! The connection: it is made in the background and made again for ever, so that services start
//! and go on while NATS is away.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::{Client, ConnectOptions, HeaderMap, ServerAddr, Subscriber};
use futures_util::{Stream as Flow, StreamExt};
use serde::{Deserialize, Serialize};

use crate::consume::Delivery;
use crate::envelope::Message;
use crate::subjects::{Stream, Subjects};

/// How long JetStream may take to store one message.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages that a follower asks for at once: fewer than a subscription holds, so none is dropped.
const FOLLOW_BATCH: usize = 512;
/// How often the server tells a follower that nothing has happened; twice without is a failure.
const FOLLOW_HEARTBEAT: Duration = Duration::from_secs(5);
/// How long the server keeps a follower that asks for nothing.
const FOLLOW_IDLE: Duration = Duration::from_secs(30);

/// Where NATS is and how to enter. Secrets come from the environment, never from the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BusConfig {
    /// Server addresses, separated by commas; user and password may be part of each.
    pub url: String,
    /// First token of every subject: one per deployment that shares a server.
    pub prefix: String,
    /// Copies of each stream; 3 where the cluster has as many servers.
    pub replicas: usize,
    /// CA certificate for TLS; none: the system's.
    pub ca_file: Option<PathBuf>,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            prefix: "berth".to_owned(),
            replicas: 1,
            ca_file: None,
        }
    }
}

/// What talking to NATS can fail with. async-nats' errors print their own sources, so they are
/// kept as text: one line, once.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The address or the TLS files are unusable.
    #[error("cannot use the NATS configuration: {0}")]
    Config(String),
    /// NATS is away or slow; whatever was to be said stays in the outbox.
    #[error("NATS did not answer: {0}")]
    Unavailable(String),
}

/// Which stream it is and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// When it was made, in microseconds since 1970. A stream that was lost and made anew numbers
    /// its messages from the beginning, and has another epoch.
    pub epoch: u64,
    /// The first sequence that it still holds; one more than `last` when it holds none.
    pub first: u64,
    /// The sequence of the newest message that it was ever given; 0: none.
    pub last: u64,
}

/// A connection to NATS and the names in use there. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    client: Client,
    jetstream: jetstream::Context,
    subjects: Subjects,
    replicas: usize,
}

impl Bus {
    /// Starts to connect and returns at once.
    pub async fn connect(config: &BusConfig, name: &str) -> Result<Self, BusError> {
        let mut options = ConnectOptions::new()
            .name(format!("berth-{name}"))
            .retry_on_initial_connect()
            .subscription_capacity(64 * 1024)
            .ping_interval(Duration::from_secs(10))
            .reconnect_delay_callback(|attempt| Duration::from_millis(50 << attempt.min(6)));
        if let Some(ca) = &config.ca_file {
            options = options.add_root_certificates(ca.clone()).require_tls(true);
        }
        let servers = config
            .url
            .split(',')
            .map(|it| it.trim().parse::<ServerAddr>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| BusError::Config(error.to_string()))?;
        // The client does not take them from the address by itself.
        if let Some((user, password)) =
            servers.first().and_then(|it| Some((it.username()?, it.password()?)))
        {
            options = options.user_and_password(user.to_owned(), password.to_owned());
        }
        let client =
            options.connect(servers).await.map_err(|error| BusError::Config(error.to_string()))?;
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(STORE_TIMEOUT);
        let subjects = Subjects::new(&config.prefix);
        Ok(Self { client, jetstream, subjects, replicas: config.replicas })
    }

    /// The names in use.
    #[must_use]
    pub fn subjects(&self) -> &Subjects {
        &self.subjects
    }

    /// Whether the connection stands at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Creates the streams that are missing and brings the others to their configuration.
    pub async fn ensure_streams(&self) -> Result<(), BusError> {
        for stream in Stream::ALL {
            let config = jetstream::stream::Config {
                num_replicas: self.replicas,
                ..self.subjects.config(stream)
            };
            self.jetstream
                .create_or_update_stream(config)
                .await
                .map_err(|error| BusError::Unavailable(error.to_string()))?;
        }
        Ok(())
    }

    /// Publishes messages into streams and waits until each is stored. Answers, in order, which
    /// were. The `Nats-Msg-Id` header makes a repeat harmless.
    pub async fn publish_stored(&self, messages: &[Message]) -> Vec<bool> {
        let mut acks = Vec::with_capacity(messages.len());
        for message in messages {
            let publish = jetstream::message::PublishMessage::build()
                .headers(header_map(message))
                .payload(message.payload.clone().into());
            // Two awaits on purpose: this one sends, the one below waits until it is stored.
            acks.push(self.jetstream.send_publish(message.subject.clone(), publish).await);
        }
        let mut stored = Vec::with_capacity(messages.len());
        for ack in acks {
            let outcome = match ack {
                Ok(ack) => ack.await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = &outcome {
                tracing::debug!(error = %error, "event not stored; it stays in the outbox");
            }
            stored.push(outcome.is_ok());
        }
        stored
    }

    /// Publishes a notice that nobody keeps. Fails only when the connection is closed for good.
    pub async fn publish(&self, message: &Message) -> Result<(), BusError> {
        self.client
            .publish_with_headers(
                message.subject.clone(),
                header_map(message),
                message.payload.clone().into(),
            )
            .await
            .map_err(|error| BusError::Unavailable(error.to_string()))
    }

    /// Subscribes without a stream behind it: what is published while the connection is down is
    /// missed. The subscription outlives reconnects.
    pub async fn subscribe(
        &self,
        subject: String,
    ) -> Result<impl Flow<Item = Delivery> + use<>, BusError> {
        let subscriber: Subscriber = self
            .client
            .subscribe(subject)
            .await
            .map_err(|error| BusError::Unavailable(error.to_string()))?;
        // The server must know of it before the caller looks at what is stored.
        self.client.flush().await.map_err(|error| BusError::Unavailable(error.to_string()))?;
        Ok(subscriber.map(|message| Delivery::core(&message)))
    }

    /// Follows a stream from after sequence `after`, or from now on. Every reader gets everything.
    /// Ends with an error when the stream or the connection is lost, and when a message was lost on
    /// its way: look at [`Self::state`], for the stream may be another one, and follow again from
    /// the last sequence seen.
    pub async fn follow(
        &self,
        stream: Stream,
        filter: String,
        after: Option<u64>,
    ) -> Result<impl Flow<Item = Result<Delivery, BusError>> + use<>, BusError> {
        let unavailable = |error: String| BusError::Unavailable(error);
        let deliver_policy = match after {
            Some(sequence) => DeliverPolicy::ByStartSequence { start_sequence: sequence + 1 },
            None => DeliverPolicy::New,
        };
        // Not the client's ordered consumer: that one makes itself anew in silence, also on a
        // stream that was made anew and numbers from the beginning.
        let config = PullConfig {
            filter_subject: filter,
            deliver_policy,
            ack_policy: AckPolicy::None,
            inactive_threshold: FOLLOW_IDLE,
            memory_storage: true,
            num_replicas: 1,
            ..PullConfig::default()
        };
        let messages = self
            .jetstream
            .get_stream(self.subjects.stream(stream))
            .await
            .map_err(|error| unavailable(error.to_string()))?
            .create_consumer(config)
            .await
            .map_err(|error| unavailable(error.to_string()))?
            .stream()
            .max_messages_per_batch(FOLLOW_BATCH)
            .heartbeat(FOLLOW_HEARTBEAT)
            .messages()
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        let mut delivered = 0;
        Ok(messages.map(move |message| {
            let message = message.map_err(|error| unavailable(error.to_string()))?;
            let info = message.info().map_err(|error| unavailable(error.to_string()))?;
            delivered += 1;
            if info.consumer_sequence != delivered {
                return Err(unavailable("messages were lost on their way".to_owned()));
            }
            Ok(Delivery::stored(&message))
        }))
    }

    /// First and last sequence that a stream still holds.
    pub async fn bounds(&self, stream: Stream) -> Result<(u64, u64), BusError> {
        let state = self.state(stream).await?;
        Ok((state.first, state.last))
    }

    /// Which stream of that name it is, and what it still holds.
    pub async fn state(&self, stream: Stream) -> Result<StreamState, BusError> {
        let mut stream = self
            .jetstream
            .get_stream(self.subjects.stream(stream))
            .await
            .map_err(|error| BusError::Unavailable(error.to_string()))?;
        let info = stream.info().await.map_err(|error| BusError::Unavailable(error.to_string()))?;
        let created = info.created.unix_timestamp_nanos() / 1000;
        Ok(StreamState {
            epoch: u64::try_from(created).unwrap_or_default(),
            first: info.state.first_sequence,
            last: info.state.last_sequence,
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }
}

fn header_map(message: &Message) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &message.headers {
        headers.insert(name.as_str(), value.as_str());
    }
    headers
}
