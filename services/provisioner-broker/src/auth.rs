//! Who calls: every call carries a provisioner key, or comes over a connection with a client
//! certificate, or both. Each is looked up each time, so that a revoked one is refused at once. The
//! certificate is the one that TLS verified; nothing that a caller sends beside it counts.

use std::sync::Arc;

use berth_db::provisioner_certificate::{self, Standing};
use berth_db::provisioner_key::{self, ProvisionerKey};
use berth_db::{DbError, Pool, daemon};
use berth_domain::build::Tags;
use berth_domain::certificate::DaemonIdentity;
use berth_domain::id::{DaemonId, OrganizationId, ProvisionerKeyId};
use berth_proto::KEY_HEADER;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tonic::{Request, Status};

use crate::broker::Broker;
use crate::certificate::{Certificate, Peer};
use crate::error::{self, of_db};
use crate::gather::Gather;

/// A key as it is stored, with the hash of its secret; `None`: there is no such key.
type Stored = Option<Arc<(ProvisionerKey, Vec<u8>)>>;
/// Keys that calls show at the same time are looked up together.
pub(crate) type Keys = Gather<ProvisionerKeyId, Result<Stored, Status>>;

/// What a caller shows.
pub(crate) struct Credentials {
    key: Option<String>,
    certificate: Option<Arc<Certificate>>,
}

impl Credentials {
    /// What came with this call.
    pub(crate) fn of<T>(call: &Request<T>) -> Self {
        let key = call.metadata().get(KEY_HEADER);
        Self {
            // What is no text is no key, which is not the same as none.
            key: key.map(|it| it.to_str().unwrap_or_default().to_owned()),
            certificate: call.extensions().get::<Peer>().and_then(|it| it.0.clone()),
        }
    }
}

/// A caller that may be here.
pub(crate) struct Admission {
    /// The organization whose daemons the caller is one of.
    pub(crate) organization_id: OrganizationId,
    /// The key that was shown, if any.
    pub(crate) key: Option<ProvisionerKey>,
    /// The certificate that was shown, if any, with whom it admits.
    pub(crate) certificate: Option<(Arc<Certificate>, DaemonIdentity)>,
}

impl Admission {
    /// Tags of every daemon that enters so; empty: the daemon names its own.
    pub(crate) fn tags(&self) -> &Tags {
        static NONE: Tags = Tags::new();
        let of_key = self.key.as_ref().map(|it| &it.tags).filter(|it| !it.is_empty());
        of_key.or(self.certificate.as_ref().map(|it| &it.1.tags)).unwrap_or(&NONE)
    }

    /// SHA-256 of the certificate that was shown, in hexadecimal digits.
    pub(crate) fn fingerprint(&self) -> Option<&str> {
        self.certificate.as_ref().map(|it| it.0.fingerprint.as_str())
    }

    /// Whether the caller may be the daemon of this name.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), Status> {
        match self.certificate.as_ref().and_then(|it| it.1.daemon.as_deref()) {
            Some(bound) if bound != name => Err(Status::permission_denied(format!(
                "the client certificate is for the daemon {bound:?}, and this one is {name:?}: \
                 change `provisioner.name`, or issue a certificate for {name:?} or for `*`"
            ))),
            _ => Ok(()),
        }
    }
}

/// Checks the caller by what is stored after the call began. One answer for every kind of wrong key.
pub(crate) async fn authenticate(broker: &Broker, shown: Credentials) -> Result<Admission, Status> {
    let certificate = match shown.certificate {
        Some(certificate) => {
            let identity = admitted(broker, &certificate)?.clone();
            standing(broker, &certificate, &identity).await.map_err(of_db)??;
            Some((certificate, identity))
        }
        None => None,
    };
    let key = match (&shown.key, &certificate) {
        (None, Some(_)) => None,
        (key, _) => Some(check_key(broker, key.as_deref()).await?),
    };
    let organization_id = match (&key, &certificate) {
        (Some(key), Some((_, identity))) => agreed(key, identity)?,
        (Some(key), None) => key.organization_id,
        (None, Some((_, identity))) => identity.organization_id,
        (None, None) => return Err(Status::internal("nobody is admitted with nothing")),
    };
    Ok(Admission { organization_id, key, certificate })
}

/// The organization of both.
fn agreed(key: &ProvisionerKey, identity: &DaemonIdentity) -> Result<OrganizationId, Status> {
    if key.organization_id != identity.organization_id {
        return Err(Status::unauthenticated(
            "the provisioner key and the client certificate are of different organizations: show \
             one of them, or a pair of one organization",
        ));
    }
    if !key.tags.is_empty() && !identity.tags.is_empty() && key.tags != identity.tags {
        return Err(Status::unauthenticated(
            "the provisioner key and the client certificate name different tags: show one of them, \
             or a pair with the same",
        ));
    }
    Ok(key.organization_id)
}

async fn check_key(broker: &Broker, shown: Option<&str>) -> Result<ProvisionerKey, Status> {
    let refused = || {
        let or =
            if broker.takes_certificates { ", or connect with a client certificate" } else { "" };
        Status::unauthenticated(format!(
            "no valid provisioner key: send one as {KEY_HEADER}; an organization's template admin \
             can make one{or}"
        ))
    };
    let (id, secret) = shown.and_then(provisioner_key::split).ok_or_else(refused)?;
    let db = broker.backbone.db.clone();
    let found = broker.keys.ask(id, move |ids| look_up(db.clone(), ids)).await??;
    let found = found.ok_or_else(refused)?;
    let (key, hash) = &*found;
    let is_right = bool::from(Sha256::digest(secret.as_bytes()).ct_eq(hash.as_slice()));
    if is_right && key.revoked_at.is_none() { Ok(key.clone()) } else { Err(refused()) }
}

async fn look_up(db: Pool, ids: Vec<ProvisionerKeyId>) -> Vec<Result<Stored, Status>> {
    match provisioner_key::list_by_ids(&db, &ids).await {
        Ok(found) => {
            let found: Vec<_> = found.into_iter().map(Arc::new).collect();
            let of = |id| found.iter().find(|it| it.0.id == id).cloned();
            ids.into_iter().map(|id| Ok(of(id))).collect()
        }
        Err(error) => {
            let status = of_db(error);
            ids.iter().map(|_| Err(status.clone())).collect()
        }
    }
}

/// Whom the certificate admits, by itself.
fn admitted<'a>(
    broker: &Broker,
    certificate: &'a Certificate,
) -> Result<&'a DaemonIdentity, Status> {
    let (identity, end) = certificate.admits.as_ref().map_err(|reason| {
        Status::unauthenticated(format!(
            "the client certificate admits nobody: {reason}. Issue one whose subject alternative \
             name is URI:berth://organization/<organization id>/provisioner/<daemon name or *>"
        ))
    })?;
    // Another connection may show a newer one: the daemon need not give up what it has in hand.
    if broker.backbone.clock.now() > *end {
        return Err(Status::unavailable(format!(
            "the client certificate of this connection expired at {end}: connect again with a newer \
             one"
        )));
    }
    Ok(identity)
}

/// Whether the organization that the certificate names exists and takes it.
async fn standing(
    broker: &Broker,
    certificate: &Certificate,
    identity: &DaemonIdentity,
) -> Result<Result<(), Status>, DbError> {
    let (organization, fingerprint) = (identity.organization_id, &certificate.fingerprint);
    let standing =
        provisioner_certificate::standing(&broker.backbone.db, organization, fingerprint).await?;
    Ok(match standing {
        Standing::Good => Ok(()),
        Standing::Revoked => {
            Err(Status::unauthenticated("the client certificate was revoked: issue another one"))
        }
        Standing::NoOrganization => Err(Status::unauthenticated(format!(
            "the client certificate is for the organization {organization}, which does not exist: \
             issue one for the right organization's id"
        ))),
    })
}

/// Checks a caller again that was admitted before. Where the database is away, it is not to blame.
pub(crate) async fn check_again(broker: &Broker, admission: &Admission) -> Result<(), Status> {
    if let Some(key) = &admission.key {
        let found = provisioner_key::find(&broker.backbone.db, key.id).await;
        if found.is_ok_and(|it| it.is_none_or(|(key, _)| key.revoked_at.is_some())) {
            return Err(Status::unauthenticated("the provisioner key was revoked"));
        }
    }
    if let Some((certificate, _)) = &admission.certificate {
        let identity = admitted(broker, certificate)?;
        standing(broker, certificate, identity).await.unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// The organization whose daemons the caller is one of.
pub(crate) async fn organization(
    broker: &Broker,
    shown: Credentials,
) -> Result<OrganizationId, Status> {
    Ok(authenticate(broker, shown).await?.organization_id)
}

/// The same, for a caller that says which daemon it is: a certificate may be for one daemon alone.
pub(crate) async fn organization_of(
    broker: &Broker,
    shown: Credentials,
    daemon: &str,
) -> Result<OrganizationId, Status> {
    let admission = authenticate(broker, shown).await?;
    let organization = admission.organization_id;
    let is_bound = admission.certificate.as_ref().is_some_and(|it| it.1.daemon.is_some());
    if is_bound {
        let id: DaemonId = error::id(daemon, "daemon")?;
        let found = daemon::find(&broker.backbone.db, organization, id).await.map_err(of_db)?;
        // One that does not exist is told so by the call itself.
        found.map_or(Ok(()), |it| admission.check_name(&it.name))?;
    }
    Ok(organization)
}
