//! TLS, and certificates in place of keys.

use std::path::{Path, PathBuf};

use berth_backbone::Clock;
use berth_db::provisioner_certificate;
use berth_domain::id::{OrganizationId, UserId};
use berth_proto::v1;
use berth_testkit::servers;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType, date_time_ymd,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Request, Status};

use super::{ADA, Daemon, Replica, World, beat, job, named, organization};
use crate::config::{Limits, Tls};

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, both PEM, and the fingerprint.
struct Issued {
    certificate: String,
    key: String,
    fingerprint: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.as_ref().pem()
    }

    fn issue(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let fingerprint = hex::encode(Sha256::digest(certificate.der()));
        Issued { certificate: certificate.pem(), key: key.serialize_pem(), fingerprint }
    }

    fn server(&self) -> Issued {
        self.issue(&CertificateParams::new(vec!["localhost".to_owned()]).unwrap())
    }

    /// For daemons that these URIs name.
    fn client(&self, uris: &[&str]) -> Issued {
        self.client_until(uris, 2099)
    }

    fn client_until(&self, uris: &[&str], year: i32) -> Issued {
        let mut params = CertificateParams::new(vec!["daemon.example".to_owned()]).unwrap();
        let uris = uris.iter().map(|it| SanType::URI((*it).try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = date_time_ymd(year, 1, 1);
        self.issue(&params)
    }
}

/// The name of organization `org`'s daemon.
fn uri(org: u128, daemon: &str) -> String {
    format!("berth://organization/{}/provisioner/{daemon}", organization(org))
}

/// A world with an authority and the PEM files of a broker.
struct Scene {
    world: World,
    authority: Authority,
    dir: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let scene = Self {
            world: World::new().await,
            authority: Authority::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        scene.install(&scene.authority.server());
        std::fs::write(scene.file("ca.pem"), scene.authority.pem()).unwrap();
        scene
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn install(&self, server: &Issued) {
        std::fs::write(self.file("cert.pem"), &server.certificate).unwrap();
        std::fs::write(self.file("key.pem"), &server.key).unwrap();
    }

    async fn replica(&self) -> Replica {
        self.replica_at(Clock::default()).await
    }

    async fn replica_at(&self, clock: Clock) -> Replica {
        let tls = Tls {
            cert_file: Some(self.file("cert.pem")),
            key_file: Some(self.file("key.pem")),
            client_ca_file: Some(self.file("ca.pem")),
        };
        let nats = &servers().await.nats_url;
        self.world.replica_of(nats, Limits::default(), (tls, clock)).await
    }

    /// A connection that trusts this scene's authority, with a certificate or without.
    async fn connect(
        &self,
        replica: &Replica,
        shown: Option<&Issued>,
    ) -> Result<Channel, tonic::transport::Error> {
        connect(replica, &self.authority, shown).await
    }

    async fn enter(&self, replica: &Replica, shown: &Issued) -> Result<Daemon, Status> {
        let channel = self.connect(replica, Some(shown)).await.unwrap();
        Daemon::over(channel, "", named("one")).await
    }

    async fn revoke(&self, replica: &Replica, org: u128, certificate: &Issued) {
        let by = (UserId(ADA), replica.broker.backbone.clock.now());
        let what = (certificate.fingerprint.as_str(), "lost");
        let (db, org) = (&replica.broker.backbone.db, OrganizationId(organization(org)));
        assert!(provisioner_certificate::revoke(db, org, what, by).await.unwrap());
    }
}

async fn connect(
    replica: &Replica,
    authority: &Authority,
    shown: Option<&Issued>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new()
        .domain_name("localhost")
        .ca_certificate(Certificate::from_pem(authority.pem()));
    if let Some(it) = shown {
        tls = tls.identity(Identity::from_pem(&it.certificate, &it.key));
    }
    let endpoint = Channel::from_shared(format!("https://{}", replica.addr)).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await
}

#[tokio::test]
async fn a_certificate_admits_a_daemon_from_registration_to_result() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let certificate = scene.authority.client(&[&uri(1, "*")]);
    let daemon = scene.enter(&replica, &certificate).await.unwrap();
    scene.world.given_jobs(0..1).await;
    let job = daemon.acquire().await;
    daemon.update(beat(&job)).await.unwrap();
    assert_eq!(daemon.complete(&job).await, Ok(()));
    let row =
        "select organization_id, key_id is null, certificate_fingerprint from provisioner_daemons";
    let expected = [organization(1).to_string(), "t".into(), certificate.fingerprint.clone()];
    assert_eq!(scene.world.db.rows(row).await, [expected]);
}

#[tokio::test]
async fn a_certificate_that_names_no_one_organization_is_refused_with_what_to_do() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let (one, two, none) = (uri(1, "*"), uri(2, "*"), uri(9, "*"));
    for (uris, reason) in [
        (vec![], "none of its subject alternative names"),
        (vec!["https://one.example"], "none of its subject alternative names"),
        (vec![one.as_str(), two.as_str()], "more than one berth:// URI"),
        (vec!["berth://organization/one/provisioner/*"], "not given by its id"),
        (vec![none.as_str()], "does not exist"),
    ] {
        let refused = scene.enter(&replica, &scene.authority.client(&uris)).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let text = refused.message();
        assert!(text.contains(reason) && text.to_lowercase().contains("issue one"), "{text}");
    }
    // What a caller says of itself is no certificate.
    let channel = scene.connect(&replica, None).await.unwrap();
    let mut client = super::ProvisionerServiceClient::new(channel);
    let mut request = Request::new(v1::UpdateJobRequest::default());
    let said = format!("URI={one}").parse().unwrap();
    request.metadata_mut().insert("x-forwarded-client-cert", said);
    let refused = client.update_job(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("or connect with a client certificate"), "{refused:?}");
}

#[tokio::test]
async fn an_expired_certificate_and_one_of_a_stranger_get_no_connection() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let expired = scene.authority.client_until(&[&uri(1, "*")], 2001);
    let foreign = Authority::new().client(&[&uri(1, "*")]);
    for certificate in [expired, foreign] {
        // With TLS 1.3 the client's part is over before it is refused: the first call fails.
        if let Ok(channel) = scene.connect(&replica, Some(&certificate)).await {
            let refused = Daemon::over(channel, "", named("one")).await.err().unwrap();
            assert_ne!(refused.code(), Code::Unauthenticated, "it got through TLS: {refused:?}");
        }
    }
    assert_eq!(scene.world.db.count("select count(*) from provisioner_daemons").await, 0);
    // Nobody else is kept from entering.
    scene.enter(&replica, &scene.authority.client(&[&uri(1, "*")])).await.unwrap();
}

#[tokio::test]
async fn another_organizations_certificate_reports_on_no_job() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let one = scene.enter(&replica, &scene.authority.client(&[&uri(1, "*")])).await.unwrap();
    let two = scene.enter(&replica, &scene.authority.client(&[&uri(2, "*")])).await.unwrap();
    scene.world.given_jobs(0..1).await;
    let taken = one.acquire().await;
    // It has even the lease token.
    assert_eq!(two.update(beat(&taken)).await.unwrap_err(), Code::NotFound);
    assert_eq!(two.complete(&taken).await, Err(Code::NotFound));
    assert_eq!(two.fail(&taken, "mine").await, Err(Code::NotFound));
    assert_eq!(scene.world.status(job(0)).await, "running");
    assert_eq!(one.complete(&taken).await, Ok(()));
}

#[tokio::test]
async fn a_certificate_for_one_daemon_admits_no_other() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let any = scene.enter(&replica, &scene.authority.client(&[&uri(1, "*")])).await.unwrap();
    let bound = scene.authority.client(&[&uri(1, "two")]);
    let refused = scene.enter(&replica, &bound).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("for the daemon \"two\""), "{refused:?}");

    let channel = scene.connect(&replica, Some(&bound)).await.unwrap();
    let mut two = Daemon::over(channel, "", named("two")).await.unwrap();
    scene.world.given_jobs(0..1).await;
    let own = std::mem::replace(&mut two.id, any.id.clone());
    let request = v1::AcquireJobRequest { daemon_id: any.id.clone(), ..Default::default() };
    let refused = two.client.clone().acquire_job(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    two.id = own;
    assert_eq!(two.acquire().await.id, job(0).to_string());
}

#[tokio::test]
async fn key_and_certificate_together_must_agree() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let certificate = scene.authority.client(&[&uri(1, "*")]);
    for (key, refusal) in [
        (format!("{}-hush", organization(1)), None),
        (format!("{}-hush2", organization(2)), Some("of different organizations")),
        (format!("{}-wrong", organization(1)), Some("no valid provisioner key")),
    ] {
        let channel = scene.connect(&replica, Some(&certificate)).await.unwrap();
        let entered = Daemon::over(channel, &key, named("one")).await;
        match (entered, refusal) {
            (Ok(_), None) => {}
            (Err(refused), Some(reason)) => {
                assert_eq!(refused.code(), Code::Unauthenticated);
                assert!(refused.message().contains(reason), "{refused:?}");
            }
            (entered, _) => panic!("{key}: {:?}", entered.err()),
        }
    }
}

#[tokio::test]
async fn the_tags_of_a_certificate_are_those_of_its_daemons() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let certificate = scene.authority.client(&[&uri(1, "*?zone=eu&scope=user")]);
    let channel = scene.connect(&replica, Some(&certificate)).await.unwrap();
    let tags = [("zone", "us"), ("gpu", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let hello = v1::Hello { tags: tags.into(), ..named("one") };
    Daemon::over(channel, "", hello).await.unwrap();
    let tags = scene.world.db.value("select tags from provisioner_daemons").await;
    let tags: serde_json::Value = serde_json::from_str(&tags).unwrap();
    let expected = serde_json::json!({"owner": "", "scope": "organization", "zone": "eu"});
    assert_eq!(tags, expected);
}

/// The organization that a certificate does not name has no say in it.
#[tokio::test]
async fn a_revoked_certificate_is_refused_at_once_at_every_replica() {
    let scene = Scene::new().await;
    let (near, far) = (scene.replica().await, scene.replica().await);
    let certificate = scene.authority.client(&[&uri(1, "*")]);
    let one = scene.enter(&near, &certificate).await.unwrap();
    scene.world.given_jobs(0..1).await;
    let taken = one.acquire().await;
    scene.revoke(&far, 2, &certificate).await;
    one.update(beat(&taken)).await.unwrap();

    scene.revoke(&far, 1, &certificate).await;
    assert_eq!(one.update(beat(&taken)).await.unwrap_err(), Code::Unauthenticated);
    for replica in [&near, &far] {
        let refused = scene.enter(replica, &certificate).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("revoked: issue another"), "{refused:?}");
    }
    scene.enter(&near, &scene.authority.client(&[&uri(1, "*")])).await.unwrap();
}

/// It may connect again with a newer one, so that it keeps what it has in hand meanwhile.
#[tokio::test]
async fn a_connection_outlives_its_certificate_for_no_call() {
    let scene = Scene::new().await;
    let replica = scene.replica_at(Clock::manual("2040-01-01T00:00:00Z".parse().unwrap())).await;
    let short = scene.authority.client_until(&[&uri(1, "*")], 2039);
    let refused = scene.enter(&replica, &short).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("expired at 2039-01-01"), "{refused:?}");
    scene.enter(&replica, &scene.authority.client_until(&[&uri(1, "*")], 2041)).await.unwrap();
}

#[tokio::test]
async fn renewed_files_serve_the_next_connection_and_broken_ones_never() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let before = scene.connect(&replica, None).await.unwrap();
    let other = Authority::new();
    scene.install(&other.server());
    assert!(scene.connect(&replica, None).await.is_err(), "the old certificate was shown");
    connect(&replica, &other, None).await.unwrap();

    // Half of it: the key of another certificate.
    std::fs::write(scene.file("key.pem"), other.server().key).unwrap();
    connect(&replica, &other, None).await.unwrap();
    std::fs::remove_file(scene.file("cert.pem")).unwrap();
    connect(&replica, &other, None).await.unwrap();

    // A new authority of clients.
    scene.install(&other.server());
    std::fs::write(scene.file("ca.pem"), other.pem()).unwrap();
    let client = other.client(&[&uri(1, "*")]);
    let channel = connect(&replica, &other, Some(&client)).await.unwrap();
    Daemon::over(channel, "", named("one")).await.unwrap();
    // Connections that stand go on.
    let key = format!("{}-hush", organization(1));
    Daemon::over(before, &key, named("two")).await.unwrap();
}

#[tokio::test]
async fn a_broker_does_not_start_with_files_that_cannot_serve() {
    let dir = tempfile::tempdir().unwrap();
    let server = Authority::new().server();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Some(path)
    };
    let (cert, key) = (file("cert", &server.certificate), file("key", &server.key));
    let other = file("other", &Authority::new().server().key);
    let empty = file("empty", "");
    let missing = Some(Path::new("/nowhere/ca.pem").to_owned());
    for (cert_file, key_file, client_ca_file, reason) in [
        (cert.clone(), None, None, "go together"),
        (None, None, empty.clone(), "without `grpc.tls.cert_file`"),
        (cert.clone(), other, None, "`grpc.tls.cert_file` with `grpc.tls.key_file`"),
        (empty.clone(), key.clone(), None, "has no certificate"),
        (cert.clone(), empty.clone(), None, "no private key"),
        (cert.clone(), key.clone(), empty, "`grpc.tls.client_ca_file` has no certificate"),
        (cert, key, missing, "/nowhere/ca.pem"),
    ] {
        let tls = Tls { cert_file, key_file, client_ca_file };
        let error = crate::tls::ServerTls::open(&tls).await.err().expect("it cannot serve");
        assert!(format!("{error:#}").contains(reason), "{error:#}");
    }
}
