//! Identity documents of Amazon EC2.
//!
//! They do not expire. A document is signed either by itself (`signature`: RSA and SHA-256) or in a
//! PKCS#7 message that holds it (`rsa2048`). The third form, `pkcs7` with DSA and SHA-1, is not
//! accepted.

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Deserialize;
use x509_cert::Certificate;

use super::config::AwsConfig;
use super::rsa::{Digest, PublicKey, Strength};
use super::{Refusal, certificates, cms, unbase64, usable};

/// AWS' certificates.
pub(crate) struct Aws(Vec<Signer>);

struct Signer {
    key: PublicKey,
    /// In seconds since 1970.
    valid: std::ops::RangeInclusive<i64>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "instanceId")]
    instance_id: String,
}

impl Aws {
    pub(super) fn load(config: &AwsConfig) -> anyhow::Result<Option<Self>> {
        let found = certificates("certificates", &config.certificates, &config.certificates_file)?;
        let signers = found.iter().enumerate().map(|(place, it)| {
            signer(it).with_context(|| format!("certificates: no. {}", place + 1))
        });
        let signers = signers.collect::<anyhow::Result<Vec<_>>>()?;
        Ok((!signers.is_empty()).then_some(Self(signers)))
    }

    /// The instance that a document is about.
    pub(crate) fn instance(
        &self,
        document: &str,
        signature: &str,
        now: Timestamp,
    ) -> Result<String, Refusal> {
        const UNSIGNED: Refusal = Refusal::Unproven(
            "The identity document is not signed by a certificate of \
             instance_identity.aws.certificates.",
        );
        let signature = unbase64(signature, "The signature is no base64.")?;
        let proven = if cms::is_message(&signature) {
            let message = cms::read(&signature)?;
            let content = |it: &PublicKey| message.content(it, Strength::Legacy);
            self.0.iter().find_map(|it| Some((it, content(&it.key)?.to_vec())))
        } else {
            let kind = (Digest::Sha256, Strength::Legacy);
            let text = document.as_bytes();
            let signer = self.0.iter().find(|it| it.key.has_signed(kind, text, &signature));
            signer.map(|it| (it, text.to_vec()))
        };
        let (signer, content) = proven.ok_or(UNSIGNED)?;
        if content.trim_ascii() != document.trim_ascii().as_bytes() {
            return Err(Refusal::Unproven("The signature is over another identity document."));
        }
        if !signer.valid.contains(&now.as_second()) {
            return Err(Refusal::Unproven(
                "The certificate that signed the identity document is not valid now.",
            ));
        }
        let document: Document = serde_json::from_slice(&content)
            .map_err(|_| Refusal::Malformed("The identity document has no instanceId."))?;
        usable(document.instance_id)
    }
}

fn signer(certificate: &Certificate) -> anyhow::Result<Signer> {
    let it = certificate.tbs_certificate();
    let key = PublicKey::of(it.subject_public_key_info())
        .context("its key is not RSA; AWS' DSA certificates are not used")?;
    let seconds = |time: x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs());
    let valid = seconds(it.validity().not_before)?..=seconds(it.validity().not_after)?;
    Ok(Signer { key, valid })
}
