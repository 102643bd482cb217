//! Passwords: argon2id, off the threads that serve requests.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::{mpsc, oneshot};

/// Fewest characters of a password.
pub(crate) const SHORTEST: usize = 8;
/// Most characters of a password: hashing takes time with each.
pub(crate) const LONGEST: usize = 128;
/// Hashes handed over that no thread has begun. More callers than these wait for their turn.
const QUEUE: usize = 16;

/// One hash to compute.
type Job = Box<dyn FnOnce() + Send>;

/// Hashes passwords on threads of its own. The runtime's blocking threads would do it as well, but
/// the allocator keeps what a thread has used: each of dozens would come to hold the 19 MiB of one
/// hash for good.
#[derive(Clone)]
pub(crate) struct Passwords {
    jobs: mpsc::Sender<Job>,
    /// What the password of a user who does not exist is compared with, so that both take as long.
    nobody: Arc<str>,
}

impl Passwords {
    /// Starts as many threads as hashes may be computed at once. They end with the last clone.
    pub(crate) fn new(threads: usize) -> anyhow::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name("password".to_owned())
                .spawn(move || serve(&queue))
                .context("start a thread for passwords")?;
        }
        let nobody = hash(b"no user has this password").context("hash a password")?;
        Ok(Self { jobs, nobody: nobody.into() })
    }

    /// Hashes a new password to a PHC string.
    pub(crate) async fn hash(&self, password: String) -> anyhow::Result<String> {
        self.run(move || hash(password.as_bytes())).await?
    }

    /// Whether the password is the one. Takes the same time without a `hash`, and is never right then.
    pub(crate) async fn verify(
        &self,
        password: String,
        hash: Option<String>,
    ) -> anyhow::Result<bool> {
        let exists = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.to_string());
        let same = self
            .run(move || {
                let hash = PasswordHash::new(&hash).ok()?;
                Some(Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
            })
            .await?
            .context("the stored password hash is no PHC string")?;
        Ok(exists && same)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let (answer, result) = oneshot::channel();
        // Whoever asked may have gone: then nobody takes the answer.
        let job = Box::new(move || drop(answer.send(work())));
        self.jobs.send(job).await.ok().context("the threads for passwords are gone")?;
        result.await.context("the thread that computed the hash is gone")
    }
}

/// Computes one hash after the other until nobody can ask any more.
fn serve(queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // One thread at a time waits; it lets go of the lock before it computes.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        match job {
            Some(job) => job(),
            None => return,
        }
    }
}

fn hash(password: &[u8]) -> anyhow::Result<String> {
    Argon2::default()
        .hash_password(password)
        .map(|hash| hash.to_string())
        .map_err(|error| anyhow::anyhow!("argon2: {error}"))
}

/// Why a new password is refused, in words for its user.
pub(crate) fn check(password: &str) -> Result<(), String> {
    let length = password.chars().count();
    if length < SHORTEST {
        return Err(format!("has {length} characters; use at least {SHORTEST}"));
    }
    if length > LONGEST {
        return Err(format!("has {length} characters; use at most {LONGEST}"));
    }
    let mut different: Vec<char> = password.to_lowercase().chars().collect();
    different.sort_unstable();
    different.dedup();
    let steps = password.as_bytes().windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == 1);
    let lower = password.to_lowercase();
    let common = ["password", "qwertyui", "letmein", "iloveyou", "welcome1", "admin123"];
    let bare = lower.trim_end_matches(|it: char| it.is_ascii_digit() || it == '!');
    if different.len() < 4 || steps || common.iter().any(|it| lower == *it || bare == *it) {
        return Err("is too easy to guess; use several unrelated words".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_passwords_are_refused_and_others_are_not() {
        for weak in ["", "short", "aaaaaaaa", "12345678", "Password", "password123!"] {
            assert!(check(weak).is_err(), "{weak} was accepted");
        }
        for fine in ["SomeSecurePassword!", "correct horse battery", "x7#kQ2pL"] {
            assert_eq!(check(fine), Ok(()), "{fine} was refused");
        }
    }

    #[tokio::test]
    async fn only_the_right_password_of_an_existing_user_is_right() {
        let passwords = Passwords::new(1).unwrap();
        let hash = passwords.hash("correct horse battery".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        let verify = |password: &str, hash: Option<String>| passwords.verify(password.into(), hash);
        assert!(verify("correct horse battery", Some(hash.clone())).await.unwrap());
        assert!(!verify("wrong horse battery", Some(hash)).await.unwrap());
        assert!(!verify("no user has this password", None).await.unwrap());
    }

    #[tokio::test]
    async fn more_callers_than_threads_and_places_are_all_answered() {
        let passwords = Passwords::new(2).unwrap();
        let hash = passwords.hash("correct horse battery".into()).await.unwrap();
        let callers = (0..QUEUE + 4).map(|_| {
            let (passwords, hash) = (passwords.clone(), hash.clone());
            tokio::spawn(async move {
                passwords.verify("correct horse battery".into(), Some(hash)).await.unwrap()
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            assert!(caller.await.unwrap());
        }
    }
}
