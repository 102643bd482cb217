//! Identity tokens of Google Compute Engine: JSON Web Tokens, signed with RS256, good for an hour.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::config::GoogleConfig;
use super::{LEEWAY, Refusal, usable};

/// How old what was read from the file may be.
const READ_EVERY: SignedDuration = SignedDuration::from_secs(60);
/// Most bytes of a key set.
const SET_MAX: u64 = 1 << 20;

/// Google's keys, and what tokens must say.
pub(crate) struct Google {
    file: PathBuf,
    fixed: Vec<Key>,
    read: Mutex<Read>,
    audiences: Vec<String>,
    issuers: Vec<String>,
}

/// What was last read from the file.
struct Read {
    keys: Arc<[Key]>,
    /// `None`: at the start, when nobody knew the time.
    at: Option<Timestamp>,
}

/// One key.
#[derive(Clone)]
struct Key {
    id: String,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
    /// Extensions that must be understood: none is.
    #[serde(default)]
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: i64,
    iat: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    google: Option<Extra>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Extra {
    compute_engine: ComputeEngine,
}

#[derive(Deserialize)]
struct ComputeEngine {
    instance_id: String,
}

impl Google {
    pub(super) fn load(config: &GoogleConfig, access_url: &str) -> anyhow::Result<Option<Self>> {
        let fixed = if config.keys.trim().is_empty() {
            Vec::new()
        } else {
            keys(config.keys.as_bytes()).context("keys")?
        };
        let mut read = Read { keys: Arc::new([]), at: None };
        if !config.keys_file.as_os_str().is_empty() {
            read.keys = from_file(&config.keys_file).context("keys_file")?.into();
        } else if fixed.is_empty() {
            return Ok(None);
        }
        let access_url = access_url.trim_end_matches('/');
        let audiences = match config.audiences.as_slice() {
            [] if access_url.is_empty() => anyhow::bail!("audiences: set them, or http.access_url"),
            [] => vec![access_url.to_owned()],
            some => some.to_vec(),
        };
        anyhow::ensure!(!config.issuers.is_empty(), "issuers: name at least one");
        Ok(Some(Self {
            file: config.keys_file.clone(),
            fixed,
            read: Mutex::new(read),
            audiences,
            issuers: config.issuers.clone(),
        }))
    }

    /// The instance that a token is about.
    pub(crate) fn instance(&self, token: &str, now: Timestamp) -> Result<String, Refusal> {
        const FORM: Refusal = Refusal::Malformed("The identity token is no JSON Web Token.");
        let (signed, signature) = token.rsplit_once('.').ok_or(FORM)?;
        let (header, claims) = signed.split_once('.').ok_or(FORM)?;
        let header: Header = part(header).ok_or(FORM)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| FORM)?;
        if header.alg != "RS256" || header.crit.is_some() {
            return Err(Refusal::Malformed("The identity token must be signed with RS256."));
        }
        let known = self.known(now);
        let mut keys = self.fixed.iter().chain(known.iter()).filter(|it| it.id == header.kid);
        if !keys.any(|key| key.has_signed(signed.as_bytes(), &signature)) {
            return Err(Refusal::Unproven(
                "The identity token is not signed with a key of instance_identity.google.keys.",
            ));
        }
        // Nothing of the claims is looked at before.
        let claims: Claims = part(claims).ok_or(FORM)?;
        self.check(&claims, now)?;
        let extra = claims.google.ok_or(Refusal::Malformed(
            "The identity token names no instance: ask for it with format=full.",
        ))?;
        usable(extra.compute_engine.instance_id)
    }

    fn check(&self, claims: &Claims, now: Timestamp) -> Result<(), Refusal> {
        if !self.issuers.contains(&claims.iss) {
            return Err(Refusal::Unproven("The identity token is from another issuer."));
        }
        let is_for_us = |audience: &str| {
            let audience = audience.trim_end_matches('/');
            self.audiences.iter().any(|ours| ours.trim_end_matches('/') == audience)
        };
        let meant = match &claims.aud {
            Audience::One(one) => is_for_us(one),
            Audience::Many(many) => many.iter().any(|it| is_for_us(it)),
        };
        if !meant {
            return Err(Refusal::Unproven(
                "The identity token is for another audience than \
                 instance_identity.google.audiences.",
            ));
        }
        let seconds = now.as_second();
        if seconds >= claims.exp {
            return Err(Refusal::Unproven("The identity token has expired."));
        }
        let from = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
        if from.saturating_sub(seconds) > LEEWAY.as_secs() {
            return Err(Refusal::Unproven("The identity token is from the future."));
        }
        Ok(())
    }

    /// The keys of the file, read again when they are old. One that cannot be read is no reason to
    /// forget what was in it.
    fn known(&self, now: Timestamp) -> Arc<[Key]> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = read.at.is_some_and(|at| now.duration_since(at).abs() < READ_EVERY);
        if !self.file.as_os_str().is_empty() && !is_fresh {
            read.at = Some(now);
            match from_file(&self.file) {
                Ok(keys) => read.keys = keys.into(),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "Google's keys are those that were read before");
                }
            }
        }
        Arc::clone(&read.keys)
    }
}

impl Key {
    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        RsaPublicKeyComponents { n: &self.modulus, e: &self.exponent }
            .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            .is_ok()
    }
}

/// The JSON of a token's header or claims.
fn part<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// The few kilobytes of the file. On a worker's thread: once a minute, and from a local disk.
fn from_file(path: &Path) -> anyhow::Result<Vec<Key>> {
    let name = || path.display().to_string();
    let size = std::fs::metadata(path).with_context(name)?.len();
    anyhow::ensure!(size <= SET_MAX, "{} is {size} bytes long; at most {SET_MAX}", name());
    keys(&std::fs::read(path).with_context(name)?).with_context(name)
}

/// The keys of a set that sign with RS256.
fn keys(json: &[u8]) -> anyhow::Result<Vec<Key>> {
    let set: Set = serde_json::from_slice(json).context("is no JSON Web Key Set")?;
    let usable = |it: &Jwk| it.kty == "RSA" && it.alg.as_deref().is_none_or(|alg| alg == "RS256");
    let number = |text: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
        // Some writers keep a leading zero, which ring refuses.
        let start = bytes.iter().position(|byte| *byte != 0)?;
        Some(bytes[start..].to_vec())
    };
    let keys = set.keys.into_iter().filter(usable).map(|it| {
        let whole = number(&it.n).zip(number(&it.e));
        let (modulus, exponent) =
            whole.with_context(|| format!("the key {:?} has no n or no e", it.kid))?;
        anyhow::Ok(Key { id: it.kid, modulus, exponent })
    });
    let keys = keys.collect::<anyhow::Result<Vec<_>>>()?;
    anyhow::ensure!(!keys.is_empty(), "has no RSA key for RS256");
    Ok(keys)
}
