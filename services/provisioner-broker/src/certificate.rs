//! What a daemon's certificate says. Only certificates that TLS has verified get here.

use std::sync::Arc;

use berth_domain::certificate::{DaemonIdentity, SCHEME};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Who is at the other end of a connection; every call over it has this among its extensions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer(pub(crate) Option<Arc<Certificate>>);

/// A verified certificate.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// SHA-256 of the whole, in lower-case hexadecimal digits.
    pub(crate) fingerprint: String,
    /// Whom it admits until when; or why nobody.
    pub(crate) admits: Result<(DaemonIdentity, Timestamp), String>,
}

impl Certificate {
    /// Reads a certificate out of its DER encoding.
    pub(crate) fn read(der: &[u8]) -> Self {
        Self { fingerprint: hex::encode(Sha256::digest(der)), admits: admits(der) }
    }
}

fn admits(der: &[u8]) -> Result<(DaemonIdentity, Timestamp), String> {
    let unreadable = |error: x509_cert::der::Error| format!("it cannot be read: {error}");
    let certificate = x509_cert::Certificate::from_der(der).map_err(unreadable)?;
    let it = certificate.tbs_certificate();
    let names = it.get_extension::<SubjectAltName>().map_err(unreadable)?;
    let names = names.map(|(_, names)| names.0).unwrap_or_default();
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
        _ => None,
    });
    // Names of other kinds are for others.
    let mut ours = uris.filter(|uri| uri.starts_with(SCHEME));
    let uri = ours.next().ok_or("none of its subject alternative names is a berth:// URI")?;
    if ours.next().is_some() {
        return Err("it has more than one berth:// URI, and must belong to one organization".into());
    }
    let identity = uri.parse::<DaemonIdentity>().map_err(|error| error.to_string())?;
    let end = it.validity().not_after.to_unix_duration().as_secs();
    let end = i64::try_from(end).ok().and_then(|it| Timestamp::from_second(it).ok());
    Ok((identity, end.unwrap_or(Timestamp::MAX)))
}
