//! What clouds sign, signed with keys of the tests' own.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyUsagePurpose, date_time_ymd};
use rsa::pkcs1::EncodeRsaPublicKey as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{Pkcs1v15Sign, RsaPrivateKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

pub(crate) const SHA256: &str = "2.16.840.1.101.3.4.2.1";
pub(crate) const SHA256_WITH_RSA: &str = "1.2.840.113549.1.1.11";
const RSA: &str = "1.2.840.113549.1.1.1";
const SIGNED_DATA: &str = "1.2.840.113549.1.7.2";
const DATA: &str = "1.2.840.113549.1.7.1";
const CONTENT_TYPE: &str = "1.2.840.113549.1.9.3";
const MESSAGE_DIGEST: &str = "1.2.840.113549.1.9.4";

/// The audience and issuer of good tokens.
pub(crate) const AUDIENCE: &str = "https://berth.example.com";
pub(crate) const ISSUER: &str = "https://accounts.google.com";

/// An RSA key with its public half.
pub(crate) struct Key {
    private: RsaPrivateKey,
    public: Vec<u8>,
}

/// Keys are costly: each of these is made once.
#[derive(Clone, Copy)]
pub(crate) enum Of {
    /// AWS, of 1024 bits as in most regions.
    Aws,
    Root,
    Intermediate,
    Signer,
    Google,
    /// Nobody that is trusted.
    Stranger,
}

pub(crate) fn key(of: Of) -> &'static Key {
    static KEYS: [OnceLock<Key>; 6] = [const { OnceLock::new() }; 6];
    KEYS[of as usize].get_or_init(|| {
        let bits = if matches!(of, Of::Aws) { 1024 } else { 2048 };
        let private = RsaPrivateKey::new(&mut rand::rng(), bits).unwrap();
        let public = private.to_public_key().to_pkcs1_der().unwrap().as_bytes().to_vec();
        Key { private, public }
    })
}

impl Key {
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.private.sign(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(message)).unwrap()
    }
}

impl rcgen::PublicKeyData for &Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl rcgen::SigningKey for &Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Key::sign(self, message))
    }
}

/// One DER value.
pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=127 => out.push(u8::try_from(short).unwrap()),
        long => {
            let length = u32::try_from(long).unwrap().to_be_bytes();
            out.push(0x84);
            out.extend(length);
            // The shortest form is the only one that DER has.
            while out[2] == 0 {
                out.remove(2);
                out[1] -= 1;
            }
        }
    }
    out.extend(content);
    out
}

/// The same of indefinite length.
fn open(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&[tag, 0x80], parts.concat().as_slice(), &[0, 0]].concat()
}

fn oid(text: &str) -> Vec<u8> {
    der::asn1::ObjectIdentifier::new(text).unwrap().to_der().unwrap()
}

fn algorithm(text: &str) -> Vec<u8> {
    tlv(0x30, &[&oid(text), &[5, 0]])
}

/// How a message is written.
#[derive(Clone)]
pub(crate) struct Form {
    /// Of indefinite lengths, as AWS writes.
    pub(crate) is_open: bool,
    /// Signs attributes that have the content's digest, rather than the content.
    pub(crate) has_attributes: bool,
    pub(crate) digest_algorithm: &'static str,
    /// What is written into the attributes; the content's by default.
    pub(crate) digest: Option<[u8; 32]>,
}

impl Default for Form {
    fn default() -> Self {
        Self { is_open: false, has_attributes: true, digest_algorithm: SHA256, digest: None }
    }
}

/// A PKCS#7 message that `key` signed; `signer` is its certificate, the first of `certificates`.
pub(crate) fn pkcs7(form: &Form, content: &[u8], key: &Key, certificates: &[Vec<u8>]) -> Vec<u8> {
    let octets = tlv(4, &[content]);
    let digest = form.digest.unwrap_or_else(|| Sha256::digest(content).into());
    let attributes = [
        tlv(0x30, &[&oid(CONTENT_TYPE), &tlv(0x31, &[&oid(DATA)])]),
        tlv(0x30, &[&oid(MESSAGE_DIGEST), &tlv(0x31, &[&tlv(4, &[&digest])])]),
    ]
    .concat();
    let (covered, told) = if form.has_attributes {
        (tlv(0x31, &[&attributes]), tlv(0xa0, &[&attributes]))
    } else {
        (content.to_vec(), Vec::new())
    };
    let sid = match certificates.first() {
        Some(signer) => {
            let it = Certificate::from_der(signer).unwrap();
            let it = it.tbs_certificate();
            [it.issuer().to_der().unwrap(), it.serial_number().to_der().unwrap()].concat()
        }
        None => [tlv(0x30, &[]), vec![2, 1, 7]].concat(),
    };
    let signer = tlv(
        0x30,
        &[
            &[2, 1, 1],
            &tlv(0x30, &[&sid]),
            &algorithm(form.digest_algorithm),
            &told,
            &algorithm(RSA),
            &tlv(4, &[&key.sign(&covered)]),
        ],
    );
    let algorithms = tlv(0x31, &[&algorithm(form.digest_algorithm)]);
    let certificates = match certificates.concat() {
        none if none.is_empty() => none,
        some => tlv(0xa0, &[&some]),
    };
    let signers = tlv(0x31, &[&signer]);
    if form.is_open {
        let inner = open(0x30, &[&oid(DATA), &open(0xa0, &[&open(0x24, &[&octets])])]);
        let data = open(0x30, &[&[2, 1, 1], &algorithms, &inner, &certificates, &signers]);
        return open(0x30, &[&oid(SIGNED_DATA), &open(0xa0, &[&data])]);
    }
    let inner = tlv(0x30, &[&oid(DATA), &tlv(0xa0, &[&octets])]);
    let data = tlv(0x30, &[&[2, 1, 1], &algorithms, &inner, &certificates, &signers]);
    tlv(0x30, &[&oid(SIGNED_DATA), &tlv(0xa0, &[&data])])
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// A certificate of version 1, as AWS has them, good until `year`.
pub(crate) fn aws_certificate(key: &Key, year: u16) -> String {
    let name = tlv(0x30, &[&tlv(0x31, &[&tlv(0x30, &[&oid("2.5.4.3"), &tlv(0x0c, &[b"AWS"])])])]);
    let time = |year: u16| tlv(0x17, &[format!("{:02}0101000000Z", year % 100).as_bytes()]);
    let info = tlv(0x30, &[&algorithm(RSA), &tlv(3, &[&[0], &key.public])]);
    let tbs = tlv(
        0x30,
        &[
            &[2, 1, 9],
            &algorithm(SHA256_WITH_RSA),
            &name,
            &tlv(0x30, &[&time(2012), &time(year)]),
            &name,
            &info,
        ],
    );
    let signature = tlv(3, &[&[0], &key.sign(&tbs)]);
    pem(&tlv(0x30, &[&tbs, &algorithm(SHA256_WITH_RSA), &signature]))
}

/// A chain of three.
pub(crate) struct Chain {
    pub(crate) root: String,
    pub(crate) intermediate: String,
    /// In DER.
    pub(crate) signer: Vec<u8>,
}

/// A chain whose last certificate has this name and is good until `year`.
pub(crate) fn chain(root: Of, name: &str, year: i32) -> Chain {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let (top, middle) = (authority("root"), authority("intermediate"));
    let root_der = top.self_signed(&key(root)).unwrap().der().to_vec();
    let top = Issuer::new(top, key(root));
    let middle_der = middle.signed_by(&key(Of::Intermediate), &top).unwrap().der().to_vec();
    let middle = Issuer::new(middle, key(Of::Intermediate));
    let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    leaf.not_after = date_time_ymd(year, 1, 1);
    leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let signer = leaf.signed_by(&key(Of::Signer), &middle).unwrap().der().to_vec();
    Chain { root: pem(&root_der), intermediate: pem(&middle_der), signer }
}

/// An identity document of AWS.
pub(crate) fn aws_document(instance: &str) -> String {
    let document = json!({
        "accountId": "123456789012", "instanceId": instance, "region": "eu-west-1",
        "pendingTime": "2026-11-01T00:00:00Z", "version": "2017-09-30",
    });
    format!("{document:#}")
}

/// Base64 in lines, as metadata services write it.
pub(crate) fn lines(bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    let lines = text.as_bytes().chunks(60).map(|line| std::str::from_utf8(line).unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// Attested data of Azure that are good for six hours.
pub(crate) fn attested(machine: &str, created: Timestamp) -> String {
    let text = |time: Timestamp| time.strftime("%m/%d/%y %H:%M:%S -0000").to_string();
    json!({
        "licenseType": "", "nonce": "20261121-120000", "plan": {"name": "", "product": ""},
        "timeStamp": {
            "createdOn": text(created),
            "expiresOn": text(created + SignedDuration::from_hours(6)),
        },
        "vmId": machine, "subscriptionId": "8d10da13-8125-4ba9-a717-bf7490507b3d", "sku": "18.04",
    })
    .to_string()
}

/// A good token's claims.
pub(crate) fn claims(instance: &str, now: Timestamp) -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "iat": now.as_second(), "exp": now.as_second() + 3600,
        "sub": "117", "email_verified": true,
        "google": {"compute_engine": {
            "instance_id": instance, "instance_name": "vm", "project_id": "p", "zone": "z",
            "instance_creation_timestamp": 1_700_000_000,
        }},
    })
}

/// A token with these claims.
pub(crate) fn token(header: &Value, claims: &Value, key: &Key) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// A set of this one key.
pub(crate) fn key_set(id: &str, key: &Key) -> String {
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let public = key.private.to_public_key();
    json!({"keys": [
        {"kty": "EC", "kid": "other", "crv": "P-256", "x": "", "y": ""},
        {
            "kty": "RSA", "alg": "RS256", "use": "sig", "kid": id,
            "n": number(&public.n_bytes()), "e": number(&public.e_bytes()),
        },
    ]})
    .to_string()
}
