//! What is told of a failed connection. Whole daemons and brokers: `services/berth/tests/mutual_tls`.

use super::*;

fn target(url: &str) -> anyhow::Result<Target> {
    let config = ProvisionerConfig { broker_url: url.into(), ..ProvisionerConfig::default() };
    Target::new(&config)
}

#[test]
fn an_address_has_a_scheme_a_host_and_maybe_a_port() {
    for (url, host, port) in [
        ("http://broker:3010", "broker", 3010),
        ("http://broker", "broker", 80),
        ("http://[::1]:3010", "::1", 3010),
    ] {
        let target = target(url).unwrap();
        assert_eq!((&*target.host, target.port), (host, port));
    }
    for (url, reason) in [
        ("broker:3010", "must begin with http:// or https://"),
        ("ftp://broker", "must begin with http:// or https://"),
        ("http://", "no address"),
        ("https://broker", "`provisioner.broker_ca_file`"),
    ] {
        let error = format!("{:#}", target(url).err().unwrap());
        assert!(error.contains(reason), "{url}: {error}");
    }
}

#[test]
fn an_alert_in_place_of_http_is_the_answer_of_a_broker_with_tls() {
    let said = |bytes: &[u8]| Greeting::default().look(bytes).map_err(|error| error.to_string());
    assert!(said(&[0x15, 0x03, 0x03, 0, 2, 2, 10]).unwrap_err().contains("begin with https://"));
    // Settings, as every server of HTTP/2 begins.
    assert_eq!(said(&[0, 0, 0x12, 4, 0, 0, 0, 0, 0]), Ok(()));
    // Later bytes are a message's.
    let mut greeting = Greeting::default();
    greeting.look(&[]).unwrap();
    greeting.look(&[0]).unwrap();
    greeting.look(&ALERT).unwrap();
}

#[test]
fn what_tls_says_is_told_with_what_to_do() {
    let told = |error: rustls::Error| {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        explain(&error).map(|it| it.to_string()).unwrap_or_default()
    };
    for (error, expected) in [
        (rustls::Error::AlertReceived(AlertDescription::CertificateExpired), "has expired: put"),
        (rustls::Error::AlertReceived(AlertDescription::UnknownCA), "grpc.tls.client_ca_file"),
        (rustls::Error::AlertReceived(AlertDescription::BadCertificate), "BadCertificate"),
        (rustls::Error::AlertReceived(AlertDescription::DecryptError), "grpc.tls.client_ca_file"),
        (CertificateError::UnknownIssuer.into(), "provisioner.broker_ca_file"),
        (CertificateError::BadSignature.into(), "provisioner.broker_ca_file"),
        (CertificateError::NotValidForName.into(), "for another host"),
        (CertificateError::Expired.into(), "renew `grpc.tls.cert_file`"),
    ] {
        let text = told(error);
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(told(rustls::Error::AlertReceived(AlertDescription::CloseNotify)), "");
}
