//! Signatures by RSA keys (PKCS#1 v1.5), the only ones that the three clouds make.

use der::asn1::ObjectIdentifier;
use ring::signature::{
    RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters, UnparsedPublicKey,
};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// The digest under a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256,
    Sha384,
    Sha512,
}

impl Digest {
    /// By an algorithm's identifier. Azure names the signature's algorithm in the digest's place.
    pub(super) fn of(algorithm: ObjectIdentifier) -> Option<Self> {
        Some(match algorithm.to_string().as_str() {
            "2.16.840.1.101.3.4.2.1" | "1.2.840.113549.1.1.11" => Self::Sha256,
            "2.16.840.1.101.3.4.2.2" | "1.2.840.113549.1.1.12" => Self::Sha384,
            "2.16.840.1.101.3.4.2.3" | "1.2.840.113549.1.1.13" => Self::Sha512,
            _ => return None,
        })
    }

    /// The digest of `message`.
    pub(super) fn compute(self, message: &[u8]) -> ring::digest::Digest {
        let algorithm = match self {
            Self::Sha256 => &ring::digest::SHA256,
            Self::Sha384 => &ring::digest::SHA384,
            Self::Sha512 => &ring::digest::SHA512,
        };
        ring::digest::digest(algorithm, message)
    }
}

/// Which lengths of keys are good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strength {
    /// 2048 bits and more.
    Usual,
    /// 1024 bits and more, with SHA-256: what AWS signs with in most regions.
    Legacy,
}

/// An RSA key.
pub(super) struct PublicKey(Vec<u8>);

impl PublicKey {
    /// The key of a certificate. `None`: it is no RSA key.
    pub(super) fn of(info: &SubjectPublicKeyInfoOwned) -> Option<Self> {
        let bits = info.subject_public_key.as_bytes()?;
        (info.algorithm.oid == RSA_ENCRYPTION).then(|| Self(bits.to_vec()))
    }

    /// Whether the key made `signature` over `message`.
    pub(super) fn has_signed(
        &self,
        (digest, strength): (Digest, Strength),
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let algorithm: &RsaParameters = match (digest, strength) {
            (Digest::Sha256, Strength::Usual) => &RSA_PKCS1_2048_8192_SHA256,
            (Digest::Sha256, Strength::Legacy) => &RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
            (Digest::Sha384, _) => &RSA_PKCS1_2048_8192_SHA384,
            (Digest::Sha512, _) => &RSA_PKCS1_2048_8192_SHA512,
        };
        UnparsedPublicKey::new(algorithm, &self.0).verify(message, signature).is_ok()
    }
}
