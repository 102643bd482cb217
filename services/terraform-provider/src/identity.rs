//! Where ids come from. A provider process has no backbone to ask: Terraform starts it, asks a
//! few questions and ends it.

use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

/// A new random id or token.
pub(crate) fn random() -> Uuid {
    #[expect(clippy::disallowed_methods, reason = "the one place where this process draws ids")]
    Uuid::new_v4()
}

/// The id that the same kind and name always give, so that reading a data source twice is the
/// same as reading it once.
pub(crate) fn derived(kind: &str, name: &str) -> Uuid {
    let digest = Sha256::new().chain_update(kind).chain_update([0]).chain_update(name).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Builder::from_custom_bytes(bytes).into_uuid()
}

/// Lower-case hexadecimal SHA-256: how names with any characters enter names of variables.
pub(crate) fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}
