//! Passwords: argon2id, off the threads that serve requests.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use tokio::sync::{mpsc, oneshot};

/// Fewest characters of a password.
pub(crate) const SHORTEST: usize = 8;
/// Most characters of a password: hashing takes time with each.
pub(crate) const LONGEST: usize = 128;
/// Hashes handed over that no thread has begun. More callers than these wait for their turn.
const QUEUE: usize = 16;

/// One hash to compute.
type Job = Box<dyn FnOnce(&mut Hasher) + Send>;

/// Hashes passwords on threads of its own, each of which keeps the 19 MiB that a hash takes. Memory
/// taken anew for each hash is not given back: allocators keep it, in as many pieces as there were
/// threads.
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
        let nobody = Hasher::default().hash(b"no user has this password")?;
        Ok(Self { jobs, nobody: nobody.into() })
    }

    /// Hashes a new password to a PHC string.
    pub(crate) async fn hash(&self, password: String) -> anyhow::Result<String> {
        self.run(move |hasher| hasher.hash(password.as_bytes())).await?
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
            .run(move |hasher| hasher.verify(password.as_bytes(), &hash))
            .await?
            .context("check a password against its stored hash")?;
        Ok(exists && same)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Hasher) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let (answer, result) = oneshot::channel();
        // Whoever asked may have gone: then nobody takes the answer.
        let job = Box::new(move |hasher: &mut Hasher| drop(answer.send(work(hasher))));
        self.jobs.send(job).await.ok().context("the threads for passwords are gone")?;
        result.await.context("the thread that computed the hash is gone")
    }
}

/// Computes one hash after the other until nobody can ask any more.
fn serve(queue: &Mutex<mpsc::Receiver<Job>>) {
    let mut hasher = Hasher::default();
    loop {
        // One thread at a time waits; it lets go of the lock before it computes.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        match job {
            Some(job) => job(&mut hasher),
            None => return,
        }
    }
}

/// Computes hashes in memory that it keeps.
#[derive(Default)]
struct Hasher {
    memory: Vec<Block>,
}

impl Hasher {
    /// A PHC string with a salt of its own.
    fn hash(&mut self, password: &[u8]) -> anyhow::Result<String> {
        let argon2 = Argon2::default();
        let salt: [u8; Salt::RECOMMENDED_LENGTH] = rand::random();
        let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
        self.compute(&argon2, password, &salt, &mut output)?;
        let hash = PasswordHash {
            algorithm: Algorithm::default().ident(),
            version: Some(Version::default().into()),
            params: ParamsString::try_from(argon2.params()).map_err(text)?,
            salt: Some(Salt::new(&salt).map_err(text)?),
            hash: Some(Output::new(&output).map_err(text)?),
        };
        Ok(hash.to_string())
    }

    /// Whether `stored`, a PHC string, is the password's.
    fn verify(&mut self, password: &[u8], stored: &str) -> anyhow::Result<bool> {
        let stored = PasswordHash::new(stored).map_err(text)?;
        let algorithm = Algorithm::try_from(stored.algorithm.as_str()).map_err(text)?;
        let version = stored.version.map(Version::try_from).transpose().map_err(text)?;
        let params = Params::try_from(&stored).map_err(text)?;
        let (Some(salt), Some(expected)) = (&stored.salt, &stored.hash) else {
            anyhow::bail!("it has no salt or no hash");
        };
        let argon2 = Argon2::new(algorithm, version.unwrap_or_default(), params);
        let mut output = vec![0; expected.len()];
        self.compute(&argon2, password, salt, &mut output)?;
        // `Output` compares in the same time wherever the difference is.
        Ok(Output::new(&output).map_err(text)? == *expected)
    }

    fn compute(
        &mut self,
        argon2: &Argon2<'_>,
        password: &[u8],
        salt: &[u8],
        output: &mut [u8],
    ) -> anyhow::Result<()> {
        let blocks = argon2.params().block_count();
        if self.memory.len() < blocks {
            self.memory.resize(blocks, Block::default());
        }
        let memory = &mut self.memory[..blocks];
        argon2.hash_password_into_with_memory(password, salt, output, memory).map_err(text)
    }
}

/// These errors name a rule that was broken and hold nothing of a password.
fn text(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("argon2: {error}")
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

    /// Hashes of an earlier version, or that another program made.
    #[test]
    fn hashes_are_read_with_the_parameters_they_were_made_with() {
        use argon2::{PasswordHasher as _, PasswordVerifier as _};
        let params = Params::new(64, 1, 1, Some(16)).unwrap();
        let other = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let theirs = other.hash_password(b"correct horse battery").unwrap().to_string();
        let mut hasher = Hasher::default();
        assert!(hasher.verify(b"correct horse battery", &theirs).unwrap());
        assert!(!hasher.verify(b"wrong horse battery", &theirs).unwrap());
        let ours = hasher.hash(b"correct horse battery").unwrap();
        assert!(ours.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{ours}");
        assert_ne!(ours, hasher.hash(b"correct horse battery").unwrap(), "the salt is new");
        assert!(Argon2::default().verify_password(b"correct horse battery", ours.as_str()).is_ok());
        assert!(hasher.verify(b"correct horse battery", "plain text").is_err());
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
