//! Who calls: every call carries a provisioner key, looked up each time, so that a revoked one is
//! refused at once.

use std::sync::Arc;

use berth_db::Pool;
use berth_db::provisioner_key::{self, ProvisionerKey};
use berth_domain::id::{OrganizationId, ProvisionerKeyId};
use berth_proto::KEY_HEADER;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::broker::Broker;
use crate::error::of_db;
use crate::gather::Gather;

/// A key as it is stored, with the hash of its secret; `None`: there is no such key.
type Stored = Option<Arc<(ProvisionerKey, Vec<u8>)>>;
/// Keys that calls show at the same time are looked up together.
pub(crate) type Keys = Gather<ProvisionerKeyId, Result<Stored, Status>>;

/// Checks the caller's key as it is stored after the call began. One answer for every kind of wrong key.
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

/// The organization whose daemons the caller is one of.
pub(crate) async fn organization(
    broker: &Broker,
    metadata: &MetadataMap,
) -> Result<OrganizationId, Status> {
    Ok(authenticate(broker, metadata).await?.organization_id)
}
