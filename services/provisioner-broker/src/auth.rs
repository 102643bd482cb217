//! Who calls: every call carries a provisioner key, looked up each time, so that a revoked one is
//! refused at once.

use berth_db::provisioner_key::{self, ProvisionerKey};
use berth_domain::id::OrganizationId;
use berth_proto::KEY_HEADER;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::broker::Broker;
use crate::error::of_db;

/// Checks the caller's key. One answer for every kind of wrong key.
pub(crate) async fn authenticate(
    broker: &Broker,
    metadata: &MetadataMap,
) -> Result<ProvisionerKey, Status> {
    let refused = || {
        Status::unauthenticated(format!(
            "no valid provisioner key: send one as {KEY_HEADER}; an organization's template admin \
             can make one"
        ))
    };
    let shown = metadata.get(KEY_HEADER).and_then(|it| it.to_str().ok()).ok_or_else(refused)?;
    let (id, secret) = provisioner_key::split(shown).ok_or_else(refused)?;
    let found = provisioner_key::find(&broker.backbone.db, id).await.map_err(of_db)?;
    let (key, hash) = found.ok_or_else(refused)?;
    let is_right = bool::from(Sha256::digest(secret.as_bytes()).ct_eq(hash.as_slice()));
    if is_right && key.revoked_at.is_none() { Ok(key) } else { Err(refused()) }
}

/// The organization whose daemons the caller is one of.
pub(crate) async fn organization(
    broker: &Broker,
    metadata: &MetadataMap,
) -> Result<OrganizationId, Status> {
    Ok(authenticate(broker, metadata).await?.organization_id)
}
