//! Signed messages (PKCS#7, RFC 5652) with their content inside and one signer.

use cms::cert::CertificateChoices;
use cms::content_info::CmsVersion;
use cms::revocation::RevocationInfoChoices;
use cms::signed_data::{
    CertificateSet, DigestAlgorithmIdentifiers, SignerIdentifier, SignerInfo, SignerInfos,
};
use der::asn1::{ObjectIdentifier, OctetString, OctetStringRef};
use der::{Decode as _, Encode as _, Sequence};
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectKeyIdentifier;

use super::Refusal;
use super::rsa::{Digest, PublicKey, Strength};

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");

/// Not `ContentInfo` and `SignedData` of the crate `cms`: AWS writes indefinite lengths, which can be
/// read only where a type says what is in them.
#[derive(Sequence)]
struct Message {
    content_type: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    content: SignedData,
}

#[derive(Sequence)]
struct SignedData {
    version: CmsVersion,
    digest_algorithms: DigestAlgorithmIdentifiers,
    content: Content,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", optional = "true")]
    certificates: Option<CertificateSet>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    crls: Option<RevocationInfoChoices>,
    signers: SignerInfos,
}

#[derive(Sequence)]
struct Content {
    kind: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    octets: Option<OctetString>,
}

/// A message whose signature has not been checked yet.
pub(super) struct Unchecked {
    content: Vec<u8>,
    /// The bytes under the signature: the content itself, or attributes that have its digest.
    signed: Vec<u8>,
    digest: Digest,
    signature: Vec<u8>,
    signer: SignerIdentifier,
    /// Those that came with it.
    pub(super) certificates: Vec<Certificate>,
}

/// Reads a message. The digest in its attributes, if it has any, is that of its content.
pub(super) fn read(bytes: &[u8]) -> Result<Unchecked, Refusal> {
    const UNREADABLE: Refusal = Refusal::Malformed("The signature is no PKCS#7 message.");
    const EMPTY: Refusal = Refusal::Malformed("The PKCS#7 message has no content.");
    let Message { content_type, content: data } =
        Message::from_ber(bytes).map_err(|_| UNREADABLE)?;
    if content_type != SIGNED_DATA || data.content.kind != DATA {
        return Err(UNREADABLE);
    }
    let content = data.content.octets.ok_or(EMPTY)?.as_bytes().to_vec();
    let [signer] = data.signers.0.as_slice() else {
        return Err(Refusal::Malformed("The PKCS#7 message must have one signer."));
    };
    let digest = Digest::of(signer.digest_alg.oid)
        .ok_or(Refusal::Malformed("The PKCS#7 message must be signed with SHA-256 or longer."))?;
    let certificates = data.certificates.iter().flat_map(|set| set.0.iter());
    let certificates = certificates.filter_map(|choice| match choice {
        CertificateChoices::Certificate(certificate) => Some(certificate.clone()),
        CertificateChoices::Other(_) => None,
    });
    Ok(Unchecked {
        signed: under_signature(signer, digest, &content)?,
        content,
        digest,
        signature: signer.signature.as_bytes().to_vec(),
        signer: signer.sid.clone(),
        certificates: certificates.collect(),
    })
}

/// The bytes that the signature is over.
fn under_signature(
    signer: &SignerInfo,
    digest: Digest,
    content: &[u8],
) -> Result<Vec<u8>, Refusal> {
    const WRONG: Refusal = Refusal::Unproven("The PKCS#7 message's digest is not its content's.");
    let Some(attributes) = &signer.signed_attrs else { return Ok(content.to_vec()) };
    let only = |wanted: ObjectIdentifier| {
        let mut found = attributes.iter().filter(|it| it.oid == wanted);
        match (found.next().map(|it| it.values.as_slice()), found.next()) {
            (Some([value]), None) => Some(value),
            _ => None,
        }
    };
    let kind = only(CONTENT_TYPE).and_then(|it| it.decode_as::<ObjectIdentifier>().ok());
    let told = only(MESSAGE_DIGEST).and_then(|it| it.decode_as::<&OctetStringRef>().ok());
    let computed = digest.compute(content);
    if kind != Some(DATA) || told.map(OctetStringRef::as_bytes) != Some(computed.as_ref()) {
        return Err(WRONG);
    }
    // As a SET, whatever tag it has in the message (RFC 5652, 5.4).
    attributes.to_der().map_err(|_| WRONG)
}

/// Whether bytes begin as a signed message does, rather than being a bare signature.
pub(super) fn is_message(bytes: &[u8]) -> bool {
    const BEGINNING: usize = 24;
    let name = SIGNED_DATA.as_bytes();
    let beginning = &bytes[..bytes.len().min(BEGINNING)];
    beginning.windows(name.len()).any(|window| window == name)
}

impl Unchecked {
    /// The certificate of the signer, among those that came with the message.
    pub(super) fn signer(&self) -> Option<&Certificate> {
        self.certificates.iter().find(|certificate| {
            let it = certificate.tbs_certificate();
            match &self.signer {
                SignerIdentifier::IssuerAndSerialNumber(id) => {
                    *it.issuer() == id.issuer && *it.serial_number() == id.serial_number
                }
                SignerIdentifier::SubjectKeyIdentifier(id) => {
                    let own = it.get_extension::<SubjectKeyIdentifier>().ok().flatten();
                    own.is_some_and(|(_, own)| own == *id)
                }
            }
        })
    }

    /// The content, if `key` has signed it.
    pub(super) fn content(&self, key: &PublicKey, strength: Strength) -> Option<&[u8]> {
        key.has_signed((self.digest, strength), &self.signed, &self.signature)
            .then_some(self.content.as_slice())
    }
}
