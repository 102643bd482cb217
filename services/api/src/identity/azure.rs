//! Attested data of Azure: PKCS#7 messages, good for some hours, signed with a certificate whose
//! chain ends at a configured root.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use jiff::fmt::strtime;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::Deserialize;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_cert::Certificate;
use x509_cert::der::Encode as _;

use super::config::AzureConfig;
use super::rsa::{PublicKey, Strength};
use super::{LEEWAY, Refusal, certificates, cms, unbase64, usable};

/// As in `11/28/18 06:16:17 -0000`.
const TIME: &str = "%m/%d/%y %H:%M:%S %z";

/// Whom Azure's signers have their certificates from.
pub(crate) struct Azure {
    roots: Vec<TrustAnchor<'static>>,
    intermediates: Vec<CertificateDer<'static>>,
    signers: Vec<String>,
}

#[derive(Deserialize)]
struct Attested {
    #[serde(rename = "vmId")]
    vm_id: String,
    #[serde(rename = "timeStamp")]
    time_stamp: TimeStamp,
}

#[derive(Deserialize)]
struct TimeStamp {
    #[serde(rename = "createdOn")]
    created_on: String,
    #[serde(rename = "expiresOn")]
    expires_on: String,
}

impl Azure {
    pub(super) fn load(config: &AzureConfig) -> anyhow::Result<Option<Self>> {
        let roots = certificates("roots", &config.roots, &config.roots_file)?;
        let intermediates =
            certificates("intermediates", &config.intermediates, &config.intermediates_file)?;
        if roots.is_empty() {
            anyhow::ensure!(intermediates.is_empty(), "roots: set them beside the intermediates");
            return Ok(None);
        }
        anyhow::ensure!(!config.signers.is_empty(), "signers: name at least one");
        let anchors = roots.iter().enumerate().map(|(place, it)| {
            let der = encoded(it)?;
            let anchor = anchor_from_trusted_cert(&der)
                .with_context(|| format!("roots: no. {} cannot be a root", place + 1))?;
            anyhow::Ok(anchor.to_owned())
        });
        Ok(Some(Self {
            roots: anchors.collect::<anyhow::Result<_>>()?,
            intermediates: intermediates.iter().map(encoded).collect::<anyhow::Result<_>>()?,
            signers: config.signers.iter().map(|it| it.to_ascii_lowercase()).collect(),
        }))
    }

    /// The machine that attested data are about.
    pub(crate) fn instance(&self, signature: &str, now: Timestamp) -> Result<String, Refusal> {
        let message = cms::read(&unbase64(signature, "The signature is no base64.")?)?;
        let signer = message.signer().ok_or(Refusal::Malformed(
            "The attested data do not come with their signer's certificate.",
        ))?;
        self.check_signer(signer, &message.certificates, now)?;
        let key = PublicKey::of(signer.tbs_certificate().subject_public_key_info());
        let content = key.as_ref().and_then(|key| message.content(key, Strength::Usual));
        let content = content.ok_or(Refusal::Unproven("The attested data are not signed."))?;
        let attested: Attested = serde_json::from_slice(content)
            .map_err(|_| Refusal::Malformed("The attested data have no vmId or no timeStamp."))?;
        attested.time_stamp.check(now)?;
        usable(attested.vm_id)
    }

    /// Roots sign for everybody: the name says that this certificate is Azure's.
    fn check_signer(
        &self,
        signer: &Certificate,
        others: &[Certificate],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        const UNREADABLE: Refusal = Refusal::Malformed("The signer's certificate cannot be read.");
        let der = encoded(signer).map_err(|_| UNREADABLE)?;
        let certificate = EndEntityCert::try_from(&der).map_err(|_| UNREADABLE)?;
        let is_azures = certificate.valid_dns_names().any(|name| self.names(name));
        if !is_azures {
            return Err(Refusal::Unproven(
                "The signer's certificate has no name of instance_identity.azure.signers.",
            ));
        }
        let mut chain = self.intermediates.clone();
        chain.extend(others.iter().filter_map(|it| encoded(it).ok()));
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let usage = KeyUsage::server_auth();
        certificate
            .verify_for_usage(ALL_VERIFICATION_ALGS, &self.roots, &chain, time, usage, None, None)
            .map_err(|error| match error {
                webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
                    Refusal::Unproven("The signer's certificate is not valid now.")
                }
                _ => Refusal::Unproven(
                    "The signer's certificate leads to no root of instance_identity.azure.roots.",
                ),
            })?;
        Ok(())
    }

    fn names(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.signers.iter().any(|signer| {
            name.strip_suffix(signer.as_str()).is_some_and(|it| it.is_empty() || it.ends_with('.'))
        })
    }
}

impl TimeStamp {
    fn check(&self, now: Timestamp) -> Result<(), Refusal> {
        let read = |text: &str| {
            let time = strtime::parse(TIME, text).and_then(|it| it.to_timestamp());
            time.map_err(|_| Refusal::Malformed("The attested data's timeStamp cannot be read."))
        };
        if now >= read(&self.expires_on)? {
            return Err(Refusal::Unproven("The attested data have expired."));
        }
        if read(&self.created_on)?.duration_since(now) > LEEWAY {
            return Err(Refusal::Unproven("The attested data are from the future."));
        }
        Ok(())
    }
}

fn encoded(certificate: &Certificate) -> anyhow::Result<CertificateDer<'static>> {
    Ok(CertificateDer::from(certificate.to_der()?))
}
