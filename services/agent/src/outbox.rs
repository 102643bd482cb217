//! News of which only the newest counts: health of applications, values of metadata.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::api::{CallError, Client, MetadataValue, Verdict};
use crate::manifest::AppHealth;
use crate::options::Timing;
use crate::retry::{Backoff, Trouble};

/// Something that is sent by key, many at once.
pub(crate) trait News: Sized {
    type Key: Ord;
    const WHAT: &'static str;

    fn post(
        client: &Client,
        news: &BTreeMap<Self::Key, Self>,
    ) -> impl Future<Output = Result<(), CallError>> + Send;
}

impl News for AppHealth {
    type Key = Uuid;
    const WHAT: &'static str = "application health";

    async fn post(client: &Client, news: &BTreeMap<Uuid, Self>) -> Result<(), CallError> {
        client.app_health(news).await
    }
}

impl News for MetadataValue {
    type Key = String;
    const WHAT: &'static str = "metadata";

    async fn post(client: &Client, news: &BTreeMap<String, Self>) -> Result<(), CallError> {
        let age = |value: &Self| i64::try_from(value.collected.elapsed().as_secs());
        let aged = news
            .values()
            .map(|value| Self { age: age(value).unwrap_or(i64::MAX), ..value.clone() });
        let aged: Vec<_> = aged.collect();
        client.metadata(&aged).await
    }
}

/// The newest value of each key that the server has not been told yet. Bounded by the keys.
pub(crate) struct Outbox<N: News> {
    waiting: Mutex<BTreeMap<N::Key, N>>,
    wake: Notify,
}

impl<N: News> Default for Outbox<N> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), wake: Notify::new() }
    }
}

impl<N: News> Outbox<N> {
    pub(crate) fn put(&self, key: N::Key, news: N) {
        self.lock().insert(key, news);
        self.wake.notify_one();
    }

    /// Sends what comes, until dropped.
    pub(crate) async fn deliver(&self, client: &Client, timing: Timing) {
        let mut backoff = Backoff::new(timing);
        let mut trouble = Trouble::new(N::WHAT);
        loop {
            let news = self.take();
            if news.is_empty() {
                self.wake.notified().await;
                continue;
            }
            match N::post(client, &news).await {
                Ok(()) => {
                    trouble.worked();
                    backoff.reset();
                }
                Err(error) if error.verdict() == Verdict::Never => {
                    tracing::error!(what = N::WHAT, error = %error.explain(), "refused for good");
                }
                Err(error) => {
                    self.put_back(news);
                    let wait = backoff.next(error.verdict());
                    trouble.failed(&error, wait);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    fn take(&self) -> BTreeMap<N::Key, N> {
        std::mem::take(&mut *self.lock())
    }

    /// Puts values back that were not sent, unless there are newer ones.
    fn put_back(&self, news: BTreeMap<N::Key, N>) {
        let mut waiting = self.lock();
        for (key, value) in news {
            waiting.entry(key).or_insert(value);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<N::Key, N>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_was_not_sent_never_replaces_a_newer_one() {
        let outbox = Outbox::default();
        outbox.put(Uuid::nil(), AppHealth::Healthy);
        let unsent = outbox.take();
        outbox.put(Uuid::nil(), AppHealth::Unhealthy);
        outbox.put_back(unsent);
        assert_eq!(outbox.take(), BTreeMap::from([(Uuid::nil(), AppHealth::Unhealthy)]));
    }
}
