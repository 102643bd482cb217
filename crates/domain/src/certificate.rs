//! The name under which a daemon enters with a certificate: a URI among the certificate's subject
//! alternative names, `berth://organization/<id>/provisioner/<daemon>[?tag=value&…]`.
//!
//! The organization is given by its id: names can be given away and taken by somebody else. The
//! daemon is one name, or `*` for any of the organization.

use std::fmt;

use crate::build::Tags;
use crate::id::OrganizationId;

/// How every such URI begins; a certificate may have names of other kinds beside it.
pub const SCHEME: &str = "berth://";
/// In the daemon's place: any daemon of the organization.
const ANY: &str = "*";
/// Longest name of a daemon, tag or value that a certificate carries, in characters.
const WORD_MAX: usize = 128;
/// Most tags that a certificate carries.
const TAGS_MAX: usize = 32;

/// Who a certificate says that its holder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonIdentity {
    /// The one organization whose jobs it may run.
    pub organization_id: OrganizationId,
    /// The one name under which it may register; `None`: any.
    pub daemon: Option<String>,
    /// The tags of every daemon that enters with it; empty: the daemon names its own.
    pub tags: Tags,
}

/// Why a text names no daemon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{uri:?} is no name of a daemon: {reason}; it must be \
     berth://organization/<organization id>/provisioner/<daemon name or *>"
)]
pub struct IdentityError {
    uri: String,
    reason: &'static str,
}

/// What needs no escaping in a URI: escapes are not read, so that one identity has one spelling.
fn is_word(text: &str) -> bool {
    (1..=WORD_MAX).contains(&text.len())
        && text.bytes().all(|it| it.is_ascii_alphanumeric() || b"-._~".contains(&it))
}

fn read(uri: &str) -> Result<DaemonIdentity, &'static str> {
    let rest = uri.strip_prefix(SCHEME).ok_or("it does not begin with berth://")?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let parts: Vec<&str> = path.split('/').collect();
    let ["organization", organization, "provisioner", daemon] = parts[..] else {
        return Err("its path has other parts");
    };
    let organization_id: OrganizationId =
        organization.parse().map_err(|_| "the organization is not given by its id, a UUID")?;
    let daemon = match daemon {
        ANY => None,
        name if is_word(name) => Some(name.to_owned()),
        _ => return Err("the daemon's name has other than letters, digits and `-._~`"),
    };
    let mut tags = Tags::new();
    for pair in query.split('&').filter(|it| !it.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or("a tag has no value")?;
        if !is_word(name) || !(value.is_empty() || is_word(value)) {
            return Err("a tag has other than letters, digits and `-._~`");
        }
        if tags.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err("a tag is given twice");
        }
    }
    if tags.len() > TAGS_MAX {
        return Err("it has more than 32 tags");
    }
    Ok(DaemonIdentity { organization_id, daemon, tags })
}

impl std::str::FromStr for DaemonIdentity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        read(uri).map_err(|reason| IdentityError { uri: uri.to_owned(), reason })
    }
}

impl fmt::Display for DaemonIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let daemon = self.daemon.as_deref().unwrap_or(ANY);
        write!(f, "{SCHEME}organization/{}/provisioner/{daemon}", self.organization_id)?;
        for (n, (name, value)) in self.tags.iter().enumerate() {
            let mark = if n == 0 { '?' } else { '&' };
            write!(f, "{mark}{name}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
