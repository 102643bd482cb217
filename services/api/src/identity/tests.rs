use std::fs;
use std::slice::from_ref;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::signing::{
    AUDIENCE, Form, Of, SHA256_WITH_RSA, attested, aws_certificate, aws_document, chain, claims,
    key, key_set, lines, pkcs7, token,
};
use super::*;

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

#[track_caller]
fn unproven(outcome: Result<String, Refusal>, says: &str) {
    let text = match outcome {
        Err(Refusal::Unproven(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(text.contains(says), "{text}");
}

#[track_caller]
fn malformed(outcome: Result<String, Refusal>) {
    match outcome {
        Err(Refusal::Malformed(_)) => {}
        other => panic!("{other:?}"),
    }
}

fn aws(certificates: String) -> Aws {
    let config = AwsConfig { certificates, ..AwsConfig::default() };
    Aws::load(&config).unwrap().unwrap()
}

#[test]
fn an_aws_document_is_believed_with_either_of_its_signatures() {
    let words = "US East\n";
    let both =
        aws_certificate(key(Of::Stranger), 2040) + words + &aws_certificate(key(Of::Aws), 2040);
    let aws = aws(both);
    let document = aws_document("i-0abc");
    let bare = lines(&key(Of::Aws).sign(document.as_bytes()));
    assert_eq!(aws.instance(&document, &bare, now()).as_deref(), Ok("i-0abc"));
    for (is_open, has_attributes) in [(true, true), (true, false), (false, true)] {
        let form = Form { is_open, has_attributes, ..Form::default() };
        let message = lines(&pkcs7(&form, document.as_bytes(), key(Of::Aws), &[]));
        assert_eq!(aws.instance(&document, &message, now()).as_deref(), Ok("i-0abc"), "{is_open}");
    }
}

#[test]
fn an_aws_document_of_another_key_or_another_text_is_not_believed() {
    let aws = aws(aws_certificate(key(Of::Aws), 2040));
    let (document, other) = (aws_document("i-0abc"), aws_document("i-0abd"));
    let signed = |of| lines(&key(of).sign(document.as_bytes()));
    unproven(aws.instance(&document, &signed(Of::Stranger), now()), "not signed");
    unproven(aws.instance(&other, &signed(Of::Aws), now()), "not signed");
    unproven(aws.instance(&document, "", now()), "not signed");
    malformed(aws.instance(&document, "~", now()));

    let message = |form: &Form, of| lines(&pkcs7(form, document.as_bytes(), key(of), &[]));
    let form = Form::default();
    unproven(aws.instance(&document, &message(&form, Of::Stranger), now()), "not signed");
    unproven(aws.instance(&other, &message(&form, Of::Aws), now()), "another identity document");
    let form = Form { digest: Some([7; 32]), ..Form::default() };
    unproven(aws.instance(&document, &message(&form, Of::Aws), now()), "digest");
    unproven(aws.instance(&document, &lines(&[0x30; 2000]), now()), "not signed");
    let mut cut = pkcs7(&Form::default(), document.as_bytes(), key(Of::Aws), &[]);
    cut.truncate(cut.len() - 1);
    malformed(aws.instance(&document, &lines(&cut), now()));
}

#[test]
fn an_aws_certificate_that_is_over_signs_nothing_any_more() {
    let aws = aws(aws_certificate(key(Of::Aws), 2026));
    let document = aws_document("i-0abc");
    let signature = lines(&key(Of::Aws).sign(document.as_bytes()));
    unproven(aws.instance(&document, &signature, now()), "not valid now");
}

#[test]
fn an_aws_document_without_an_instance_is_malformed() {
    let aws = aws(aws_certificate(key(Of::Aws), 2040));
    for document in ["{}", "no json", r#"{"instanceId": ""}"#, r#"{"instanceId": "a b"}"#] {
        malformed(aws.instance(document, &lines(&key(Of::Aws).sign(document.as_bytes())), now()));
    }
}

fn azure(root: String, intermediates: String) -> Azure {
    let config = AzureConfig { roots: root, intermediates, ..AzureConfig::default() };
    Azure::load(&config).unwrap().unwrap()
}

#[test]
fn attested_data_are_believed_along_their_chain() {
    let it = chain(Of::Root, "westeurope.metadata.azure.com", 2040);
    let azure = azure(it.root, it.intermediate);
    let data = attested("c2e1b6f0", now());
    // Azure signs the content itself, and names the signature's algorithm for the digest's.
    let form = Form { has_attributes: false, digest_algorithm: SHA256_WITH_RSA, ..Form::default() };
    for form in [form, Form::default(), Form { is_open: true, ..Form::default() }] {
        let message = pkcs7(&form, data.as_bytes(), key(Of::Signer), from_ref(&it.signer));
        assert_eq!(azure.instance(&lines(&message), now()).as_deref(), Ok("c2e1b6f0"));
    }
}

#[test]
fn attested_data_bring_their_intermediate_themselves_or_find_it_in_the_configuration() {
    let it = chain(Of::Root, "metadata.azure.com", 2040);
    let azure = azure(it.root, String::new());
    let data = attested("c2e1b6f0", now());
    let send = |certificates: &[Vec<u8>]| {
        let message = pkcs7(&Form::default(), data.as_bytes(), key(Of::Signer), certificates);
        azure.instance(&lines(&message), now())
    };
    unproven(send(from_ref(&it.signer)), "no root");
    let intermediate = super::chain(&it.intermediate).unwrap().remove(0);
    let intermediate = x509_cert::der::Encode::to_der(&intermediate).unwrap();
    assert_eq!(send(&[it.signer.clone(), intermediate]).as_deref(), Ok("c2e1b6f0"));
    malformed(send(&[]));
}

#[test]
fn attested_data_of_another_root_name_key_or_time_are_not_believed() {
    let it = chain(Of::Root, "metadata.azure.com", 2040);
    let azure = azure(it.root.clone(), it.intermediate.clone());
    let data = attested("c2e1b6f0", now());
    let send = |signer: &[u8], data: &str, of| {
        let message = pkcs7(&Form::default(), data.as_bytes(), key(of), &[signer.to_vec()]);
        azure.instance(&lines(&message), now())
    };
    assert!(send(&it.signer, &data, Of::Signer).is_ok());
    let strange = chain(Of::Stranger, "metadata.azure.com", 2040);
    let strangers = Azure::load(&AzureConfig {
        roots: strange.root,
        intermediates: it.intermediate.clone(),
        ..AzureConfig::default()
    });
    let message = pkcs7(&Form::default(), data.as_bytes(), key(Of::Signer), from_ref(&it.signer));
    unproven(strangers.unwrap().unwrap().instance(&lines(&message), now()), "no root");
    for name in ["metadata.azure.com.evil.org", "evilmetadata.azure.com", "berth.example.com"] {
        let other = chain(Of::Root, name, 2040);
        unproven(send(&other.signer, &data, Of::Signer), "signers");
    }
    unproven(send(&it.signer, &data, Of::Stranger), "not signed");
    let over = chain(Of::Root, "metadata.azure.com", 2026);
    unproven(send(&over.signer, &data, Of::Signer), "not valid now");

    let hours = |hours| attested("c2e1b6f0", now() + SignedDuration::from_hours(hours));
    unproven(send(&it.signer, &hours(-6), Of::Signer), "expired");
    assert!(send(&it.signer, &hours(-5), Of::Signer).is_ok());
    unproven(send(&it.signer, &hours(1), Of::Signer), "future");
    malformed(send(&it.signer, r#"{"vmId": "x"}"#, Of::Signer));
}

fn google(keys_file: &std::path::Path) -> Google {
    let config = GoogleConfig { keys_file: keys_file.to_owned(), ..GoogleConfig::default() };
    Google::load(&config, AUDIENCE).unwrap().unwrap()
}

#[test]
fn an_identity_token_is_believed_for_our_audience_from_googles_keys_while_it_lasts() {
    let config = GoogleConfig { keys: key_set("k1", key(Of::Google)), ..GoogleConfig::default() };
    let google = Google::load(&config, &format!("{AUDIENCE}/")).unwrap().unwrap();
    let header = json!({"alg": "RS256", "kid": "k1", "typ": "JWT"});
    let good = claims("4711", now());
    let send = |claims: &serde_json::Value| {
        google.instance(&token(&header, claims, key(Of::Google)), now())
    };
    assert_eq!(send(&good).as_deref(), Ok("4711"));
    let with = |name: &str, value: serde_json::Value| {
        let mut claims = good.clone();
        claims[name] = value;
        send(&claims)
    };
    let second = now().as_second();
    assert!(with("aud", json!(["https://other", AUDIENCE])).is_ok());
    unproven(with("aud", json!("https://other")), "audience");
    unproven(with("aud", json!([])), "audience");
    unproven(with("iss", json!("https://evil.example.com")), "issuer");
    unproven(with("exp", json!(second)), "expired");
    assert!(with("exp", json!(second + 1)).is_ok());
    unproven(with("iat", json!(second + 61)), "future");
    assert!(with("iat", json!(second + 60)).is_ok());
    malformed(with("google", json!(null)));
    malformed(with("exp", json!("soon")));
}

#[test]
fn an_identity_token_with_another_key_or_algorithm_is_not_believed() {
    let config = GoogleConfig { keys: key_set("k1", key(Of::Google)), ..GoogleConfig::default() };
    let google = Google::load(&config, AUDIENCE).unwrap().unwrap();
    let good = claims("4711", now());
    let send =
        |header: serde_json::Value, of| google.instance(&token(&header, &good, key(of)), now());
    assert!(send(json!({"alg": "RS256", "kid": "k1"}), Of::Google).is_ok());
    unproven(send(json!({"alg": "RS256", "kid": "k1"}), Of::Stranger), "not signed");
    unproven(send(json!({"alg": "RS256", "kid": "k2"}), Of::Google), "not signed");
    for header in [
        json!({"alg": "none", "kid": "k1"}),
        json!({"alg": "HS256", "kid": "k1"}),
        json!({"alg": "RS256", "kid": "k1", "crit": ["x"]}),
    ] {
        malformed(send(header, Of::Google));
    }
    for text in ["", ".", "..", "a.b.c", "e30.e30.", "e30.e30.e30.e30"] {
        malformed(google.instance(text, now()));
    }
    let whole = token(&json!({"alg": "RS256", "kid": "k1"}), &good, key(Of::Google));
    let (head, rest) = whole.split_once('.').unwrap();
    let other = token(&json!({}), &claims("4712", now()), key(Of::Stranger));
    let (_, signature) = rest.split_once('.').unwrap();
    let forged = format!("{head}.{}.{signature}", other.split('.').nth(1).unwrap());
    unproven(google.instance(&forged, now()), "not signed");
}

#[test]
fn googles_keys_are_read_again_within_a_minute_and_kept_while_the_file_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    fs::write(&file, key_set("k1", key(Of::Google))).unwrap();
    let google = google(&file);
    let at = |seconds| now() + SignedDuration::from_secs(seconds);
    let send = |id: &str, of, seconds| {
        let header = json!({"alg": "RS256", "kid": id});
        google.instance(&token(&header, &claims("4711", now()), key(of)), at(seconds)).is_ok()
    };
    assert!(send("k1", Of::Google, 0));
    fs::write(&file, key_set("k2", key(Of::Stranger))).unwrap();
    assert!(!send("k2", Of::Stranger, 59));
    assert!(send("k2", Of::Stranger, 60));
    assert!(!send("k1", Of::Google, 60), "what is gone from the file is no key any more");
    fs::write(&file, "{").unwrap();
    assert!(send("k2", Of::Stranger, 120));
}

#[test]
fn what_cannot_be_used_is_named_at_the_start() {
    #[track_caller]
    fn check(config: &InstanceIdentityConfig, says: &[&str]) {
        let error = format!("{:#}", Identities::load(config, "").err().expect("refused"));
        assert!(says.iter().all(|it| error.contains(it)), "{error}");
    }
    let mut config = InstanceIdentityConfig::default();
    let none = Identities::load(&config, "").unwrap();
    assert!(none.aws.is_none() && none.azure.is_none() && none.google.is_none());
    config.aws.certificates_file = "/nowhere/aws.pem".into();
    check(&config, &["instance_identity.aws", "certificates_file", "/nowhere/aws.pem"]);
    config.aws = AwsConfig { certificates: "hello".into(), ..AwsConfig::default() };
    check(&config, &["instance_identity.aws", "PEM"]);
    config.aws = AwsConfig::default();
    config.azure.intermediates = aws_certificate(key(Of::Aws), 2040);
    check(&config, &["instance_identity.azure", "roots"]);
    config.azure = AzureConfig::default();
    config.google.keys = r#"{"keys": []}"#.into();
    check(&config, &["instance_identity.google", "no RSA key"]);
    config.google.keys = key_set("k1", key(Of::Google));
    check(&config, &["audiences", "http.access_url"]);
}
