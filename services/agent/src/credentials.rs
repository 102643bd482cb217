//! The token that an agent's calls carry: given, or got for the identity of its cloud instance.

use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use reqwest::header::HeaderValue;
use tokio::time::{Instant, sleep_until};

use crate::api::{CallError, Verdict};
use crate::identity::Exchange;
use crate::options::{Auth, Timing, Token};
use crate::retry::Backoff;

/// The token, wherever it is from.
pub(crate) enum Credentials {
    Given(HeaderValue),
    Exchanged(Box<Exchanged>),
}

/// A token that is got when it is needed, and again when it is refused.
pub(crate) struct Exchanged {
    exchange: Exchange,
    timing: Timing,
    held: Mutex<Option<HeaderValue>>,
    /// Only one asks at a time, and whoever comes meanwhile has what that one got.
    turn: tokio::sync::Mutex<Turn>,
}

struct Turn {
    backoff: Backoff,
    /// Nobody asks before: not even for a token in place of one that was refused at once.
    not_before: Instant,
}

impl Credentials {
    /// Credentials for the deployment at `root`, without `/api/v2`.
    pub(crate) fn new(root: &str, auth: &Auth, timing: Timing) -> anyhow::Result<Self> {
        match auth {
            Auth::Token(token) => header(token)
                .map(Self::Given)
                .context("the agent's token is empty or not plain text; set BERTH_AGENT_TOKEN"),
            Auth::Instance(instance) => {
                let turn = Turn { backoff: Backoff::new(timing), not_before: Instant::now() };
                Ok(Self::Exchanged(Box::new(Exchanged {
                    exchange: Exchange::new(root, instance)?,
                    timing,
                    held: Mutex::default(),
                    turn: tokio::sync::Mutex::new(turn),
                })))
            }
        }
    }

    /// The token. Fetches one when there is none, after the pause that earlier failures ask for.
    pub(crate) async fn token(&self) -> Result<HeaderValue, CallError> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::Exchanged(it) => it.token().await,
        }
    }

    /// The token, if it is known.
    pub(crate) fn known(&self) -> Option<HeaderValue> {
        match self {
            Self::Given(token) => Some(token.clone()),
            Self::Exchanged(it) => it.known(),
        }
    }

    /// Takes note that the server refused `token`: one that was got is forgotten.
    pub(crate) fn refused(&self, token: &HeaderValue) {
        if let Self::Exchanged(it) = self {
            let mut held = it.held.lock().unwrap_or_else(PoisonError::into_inner);
            if held.take_if(|held| held == token).is_some() {
                tracing::info!("the token is refused; showing the instance's identity again");
            }
        }
    }
}

impl Exchanged {
    fn known(&self) -> Option<HeaderValue> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn token(&self) -> Result<HeaderValue, CallError> {
        if let Some(token) = self.known() {
            return Ok(token);
        }
        let mut turn = self.turn.lock().await;
        if let Some(token) = self.known() {
            return Ok(token);
        }
        sleep_until(turn.not_before).await;
        match self.exchange.ask().await {
            Ok(token) => {
                // A token that is refused again and again is asked for ever more slowly.
                if turn.not_before.elapsed() >= self.timing.retry_max {
                    turn.backoff.reset();
                }
                turn.not_before = Instant::now() + turn.backoff.next(Verdict::Later);
                let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                *held = Some(token.clone());
                Ok(token)
            }
            Err(error) => {
                turn.not_before = Instant::now() + turn.backoff.next(error.verdict());
                Err(error)
            }
        }
    }
}

/// A token as a header's value. `None`: it is empty or not plain text.
pub(crate) fn header(token: &Token) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(token.expose()).ok().filter(|it| !it.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}
