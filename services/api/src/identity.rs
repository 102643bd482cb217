//! Which cloud instance somebody runs on, shown by what its cloud signed.
//!
//! Nothing is fetched: certificates and keys are the operator's, in the configuration or in files.

mod aws;
mod azure;
mod cms;
mod config;
mod google;
mod rsa;
#[cfg(test)]
pub(crate) mod signing;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::SignedDuration;
use x509_cert::Certificate;
use x509_cert::der::DecodePem as _;

pub(crate) use self::aws::Aws;
pub(crate) use self::azure::Azure;
pub use self::config::{AwsConfig, AzureConfig, GoogleConfig, InstanceIdentityConfig};
pub(crate) use self::google::Google;
use crate::error::ApiError;

/// A clock that is ahead of ours by less than this is taken for right.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);
/// Most bytes of an instance's id.
const ID_MAX: usize = 256;

/// Why a document shows nothing. The texts quote none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It cannot be read.
    #[error("{0}")]
    Malformed(&'static str),
    /// It can be read, and is not to be believed.
    #[error("{0}")]
    Unproven(&'static str),
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(text) => Self::invalid(text),
            Refusal::Unproven(text) => Self::Unauthenticated(text),
        }
    }
}

/// What documents are checked against. A cloud that is not configured is `None`.
pub(crate) struct Identities {
    pub(crate) aws: Option<Aws>,
    pub(crate) azure: Option<Azure>,
    pub(crate) google: Option<Google>,
}

impl Identities {
    /// Reads certificates and keys. What cannot be used fails here, with its setting's name.
    pub(crate) fn load(config: &InstanceIdentityConfig, access_url: &str) -> anyhow::Result<Self> {
        Ok(Self {
            aws: Aws::load(&config.aws).context("instance_identity.aws")?,
            azure: Azure::load(&config.azure).context("instance_identity.azure")?,
            google: Google::load(&config.google, access_url).context("instance_identity.google")?,
        })
    }
}

/// The certificates of a setting: written into it, and in its file.
fn certificates(setting: &str, inline: &str, file: &Path) -> anyhow::Result<Vec<Certificate>> {
    let mut found = chain(inline).with_context(|| setting.to_owned())?;
    if !file.as_os_str().is_empty() {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("{setting}_file: cannot read {}", file.display()))?;
        let in_file =
            chain(&text).with_context(|| format!("{setting}_file: {}", file.display()))?;
        anyhow::ensure!(
            !in_file.is_empty(),
            "{setting}_file: {} has no PEM certificate",
            file.display()
        );
        found.extend(in_file);
    }
    Ok(found)
}

/// Every certificate of a PEM text. Words between them, as lists of certificates have, are skipped.
fn chain(text: &str) -> anyhow::Result<Vec<Certificate>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        let length = rest[start..].find(END).context("a certificate has no END line")? + END.len();
        let pem = &rest[start..start + length];
        let number = found.len() + 1;
        let certificate = Certificate::from_pem(pem.as_bytes())
            .with_context(|| format!("certificate no. {number} cannot be read"))?;
        found.push(certificate);
        rest = &rest[start + length..];
    }
    anyhow::ensure!(
        !found.is_empty() || text.trim().is_empty(),
        "is no PEM text: it must have {BEGIN}"
    );
    Ok(found)
}

/// Decodes base64 that may be broken into lines.
fn unbase64(text: &str, or: &'static str) -> Result<Vec<u8>, Refusal> {
    let plain: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(plain).map_err(|_| Refusal::Malformed(or))
}

/// An id that a cloud has signed, of a form that can be looked up.
fn usable(id: String) -> Result<String, Refusal> {
    let plain = id.bytes().all(|byte| byte.is_ascii_graphic());
    if !id.is_empty() && id.len() <= ID_MAX && plain {
        Ok(id)
    } else {
        Err(Refusal::Malformed("The document names no instance id that can be used."))
    }
}
