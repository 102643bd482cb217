//! What certificates name, and what names nothing.

use super::*;

const ORG: &str = "11111111-2222-3333-4444-555555555555";

fn uri(rest: &str) -> String {
    format!("berth://organization/{ORG}/provisioner/{rest}")
}

#[test]
fn a_name_is_read_as_it_is_written() {
    for (text, daemon, tags) in [
        (uri("*"), None, vec![]),
        (uri("builder-1.eu"), Some("builder-1.eu"), vec![]),
        (uri("*?zone=eu&gpu="), None, vec![("gpu", ""), ("zone", "eu")]),
    ] {
        let identity: DaemonIdentity = text.parse().unwrap();
        assert_eq!(identity.organization_id.to_string(), ORG);
        assert_eq!(identity.daemon.as_deref(), daemon);
        let read: Vec<_> = identity.tags.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(read, tags, "{text}");
        let written: DaemonIdentity = identity.to_string().parse().unwrap();
        assert_eq!(written, identity);
    }
}

#[test]
fn what_names_no_one_organization_and_daemon_is_refused_with_the_reason() {
    let many = (0..33).map(|n| format!("t{n}=1")).collect::<Vec<_>>().join("&");
    for (text, reason) in [
        ("https://example.com".to_owned(), "begin with berth://"),
        ("berth://organization/acme/provisioner/*".to_owned(), "by its id"),
        (format!("berth://organization/{ORG}"), "other parts"),
        (format!("berth://organization/{ORG}/provisioner"), "other parts"),
        (uri(""), "other than letters"),
        (uri("a/b"), "other parts"),
        (uri("a%20b"), "other than letters"),
        (uri("*#x"), "other than letters"),
        (uri(&"x".repeat(129)), "other than letters"),
        (uri("*?zone"), "no value"),
        (uri("*?zone=e%75"), "a tag has other"),
        (uri("*?zone=eu&zone=us"), "twice"),
        (uri(&format!("*?{many}")), "32 tags"),
    ] {
        let error = text.parse::<DaemonIdentity>().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(error.contains("<organization id>/provisioner/<daemon name or *>"), "{error}");
    }
}
