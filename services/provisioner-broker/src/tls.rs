//! TLS of the listener. Certificate, key and client authorities are read anew for each connection, so
//! that renewing them takes no restart; where they cannot be used, those before stay in use.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail, ensure};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::Tls;

/// The protocol of gRPC.
const ALPN: &[u8] = b"h2";

/// The files' contents. Equal ones make equal configurations.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

struct InUse {
    files: Files,
    acceptor: TlsAcceptor,
    /// The files that could not be used last; told of once.
    refused: Option<Files>,
}

/// The TLS side of a listener.
pub(crate) struct ServerTls {
    config: Tls,
    in_use: Mutex<InUse>,
}

impl ServerTls {
    /// Reads the files. `None`: no TLS is configured.
    pub(crate) async fn open(config: &Tls) -> anyhow::Result<Option<Self>> {
        match (&config.cert_file, &config.key_file) {
            (Some(_), Some(_)) => {}
            (None, None) => {
                ensure!(
                    config.client_ca_file.is_none(),
                    "`grpc.tls.client_ca_file` is set without `grpc.tls.cert_file` and \
                     `grpc.tls.key_file`: clients show certificates to a TLS listener alone"
                );
                return Ok(None);
            }
            _ => bail!("`grpc.tls.cert_file` and `grpc.tls.key_file` go together: set both"),
        }
        let files = Files::read(config).await?;
        let acceptor = files.acceptor()?;
        let in_use = Mutex::new(InUse { files, acceptor, refused: None });
        Ok(Some(Self { config: config.clone(), in_use }))
    }

    /// What takes the next connection.
    pub(crate) async fn acceptor(&self) -> TlsAcceptor {
        let read = Files::read(&self.config).await;
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let files = match read {
            Ok(files) if files == in_use.files => {
                in_use.refused = None;
                return in_use.acceptor.clone();
            }
            Ok(files) if in_use.refused.as_ref() == Some(&files) => return in_use.acceptor.clone(),
            Ok(files) => files,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "TLS files cannot be read; those before stay in use");
                return in_use.acceptor.clone();
            }
        };
        match files.acceptor() {
            Ok(acceptor) => {
                tracing::info!("TLS files changed; new connections use them");
                *in_use = InUse { files, acceptor, refused: None };
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "changed TLS files cannot be used; those before stay in use");
                in_use.refused = Some(files);
            }
        }
        in_use.acceptor.clone()
    }
}

impl Files {
    async fn read(config: &Tls) -> anyhow::Result<Self> {
        Ok(Self {
            certificate: content("cert_file", config.cert_file.as_deref()).await?,
            key: content("key_file", config.key_file.as_deref()).await?,
            client_ca: match &config.client_ca_file {
                Some(path) => Some(content("client_ca_file", Some(path)).await?),
                None => None,
            },
        })
    }

    fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let chain = certificates("cert_file", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .ok()
            .context("`grpc.tls.key_file` has no private key in PEM")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates("client_ca_file", pem)? {
                    roots.add(authority).context(
                        "`grpc.tls.client_ca_file` has a certificate that is no authority's",
                    )?;
                }
                // A daemon with a key needs none.
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .allow_unauthenticated()
                        .build()
                        .context("use `grpc.tls.client_ca_file`")?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .context("use `grpc.tls.cert_file` with `grpc.tls.key_file`")?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection shows its certificate, and none is resumed without.
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

async fn content(setting: &str, path: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let path = path.with_context(|| format!("`grpc.tls.{setting}` is not set"))?;
    tokio::fs::read(path)
        .await
        .with_context(|| format!("read `grpc.tls.{setting}` {}", path.display()))
}

fn certificates(setting: &str, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.with_context(|| format!("`grpc.tls.{setting}` is not PEM"))?;
    ensure!(!read.is_empty(), "`grpc.tls.{setting}` has no certificate in PEM");
    Ok(read)
}
