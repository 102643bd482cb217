//! Passwords: argon2id, off the threads that serve requests.

use std::sync::Arc;

use anyhow::Context as _;
use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

/// Fewest characters of a password.
pub(crate) const SHORTEST: usize = 8;
/// Most characters of a password: hashing takes time with each.
pub(crate) const LONGEST: usize = 128;

/// Hashes passwords, a few at once.
#[derive(Clone)]
pub(crate) struct Passwords {
    slots: Arc<Semaphore>,
    /// What the password of a user who does not exist is compared with, so that both take as long.
    nobody: Arc<str>,
}

impl Passwords {
    pub(crate) fn new(slots: usize) -> anyhow::Result<Self> {
        let nobody = hash(b"no user has this password").context("hash a password")?;
        Ok(Self { slots: Arc::new(Semaphore::new(slots.max(1))), nobody: nobody.into() })
    }

    /// Hashes a new password to a PHC string.
    pub(crate) async fn hash(&self, password: String) -> anyhow::Result<String> {
        let _slot = self.slots.acquire().await?;
        tokio::task::spawn_blocking(move || hash(password.as_bytes())).await?
    }

    /// Whether the password is the one. Takes the same time without a `hash`, and is never right then.
    pub(crate) async fn verify(
        &self,
        password: String,
        hash: Option<String>,
    ) -> anyhow::Result<bool> {
        let _slot = self.slots.acquire().await?;
        let exists = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.to_string());
        let same = tokio::task::spawn_blocking(move || {
            let hash = PasswordHash::new(&hash).ok()?;
            Some(Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        })
        .await?
        .context("the stored password hash is no PHC string")?;
        Ok(exists && same)
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
}
