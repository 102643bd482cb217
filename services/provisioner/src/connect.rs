//! Connections to the broker, with and without TLS. The PEM files are read for each connection, so that
//! renewed ones need no restart.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::ProvisionerConfig;

/// The protocol of gRPC.
const ALPN: &[u8] = b"h2";
/// How an alert of a TLS server begins: record type and major version. Read as HTTP/2 it would
/// announce a first frame of more than a megabyte, which no server sends.
const ALERT: [u8; 2] = [0x15, 0x03];

/// Where the broker is, and how to speak to it.
#[derive(Clone)]
pub(crate) struct Target {
    host: String,
    port: u16,
    tls: Option<Files>,
}

/// The PEM files of TLS.
#[derive(Clone)]
struct Files {
    ca: PathBuf,
    /// Certificate and key of this daemon.
    own: Option<(PathBuf, PathBuf)>,
}

/// The contents of the PEM files.
#[derive(PartialEq, Eq)]
pub(crate) struct Contents {
    ca: Vec<u8>,
    own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Target {
    /// The configured broker.
    pub(crate) fn new(config: &ProvisionerConfig) -> anyhow::Result<Self> {
        let text = &config.broker_url;
        let no_address = || format!("`provisioner.broker_url` is {text:?}, which is no address");
        let url: tonic::transport::Uri = text.parse().with_context(no_address)?;
        let is_tls = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => anyhow::bail!(
                "`provisioner.broker_url` is {text:?}: it must begin with http:// or https://"
            ),
        };
        let host = url.host().with_context(no_address)?.trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let tls = is_tls.then(|| Files::of(config)).transpose()?;
        Ok(Self { host, port, tls })
    }

    /// What the PEM files hold now; `None` where there are none.
    pub(crate) async fn contents(&self) -> anyhow::Result<Option<Contents>> {
        match &self.tls {
            Some(files) => Ok(Some(files.read().await?)),
            None => Ok(None),
        }
    }

    /// Opens a connection.
    pub(crate) async fn connect(self) -> Result<Wire, Trouble> {
        let at = format!("{}:{}", self.host, self.port);
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| Trouble(format!("cannot connect to {at}: {error}")))?;
        let _ = stream.set_nodelay(true);
        let Some(files) = &self.tls else { return Ok(Wire::Plain(stream, Greeting::default())) };
        let config = async { files.read().await?.config() }.await;
        let config = config.map_err(|error| Trouble(format!("{error:#}")))?;
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| Trouble(format!("{:?} is no name of a host", self.host)))?;
        let connector = TlsConnector::from(Arc::new(config));
        match connector.connect(name, stream).await {
            Ok(stream) => Ok(Wire::Tls(Box::new(stream))),
            Err(error) => Err(explain(&error).unwrap_or_else(|| {
                Trouble(format!(
                    "no TLS with {at}: {error}. Does the broker speak TLS there (`grpc.tls`)? \
                     Without it, `provisioner.broker_url` begins with http://"
                ))
            })),
        }
    }
}

impl Files {
    fn of(config: &ProvisionerConfig) -> anyhow::Result<Self> {
        let ca = config.broker_ca_file.clone().context(
            "`provisioner.broker_url` is https: name the certificate authority of the broker in \
             `provisioner.broker_ca_file`",
        )?;
        let own = config.client_cert_file.clone().zip(config.client_key_file.clone());
        Ok(Self { ca, own })
    }

    async fn read(&self) -> anyhow::Result<Contents> {
        let own = match &self.own {
            Some((certificate, key)) => Some((
                content("client_cert_file", certificate).await?,
                content("client_key_file", key).await?,
            )),
            None => None,
        };
        Ok(Contents { ca: content("broker_ca_file", &self.ca).await?, own })
    }
}

impl Contents {
    /// Checks that a connection could be opened with them.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.config().map(drop)
    }

    fn config(&self) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for authority in certificates("broker_ca_file", &self.ca)? {
            roots.add(authority).context(
                "`provisioner.broker_ca_file` has a certificate that cannot be an authority's",
            )?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("client_cert_file", certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .ok()
                    .context("`provisioner.client_key_file` has no private key in PEM")?;
                builder.with_client_auth_cert(chain, key).context(
                    "use `provisioner.client_cert_file` with `provisioner.client_key_file`",
                )?
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

async fn content(setting: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    tokio::fs::read(path)
        .await
        .with_context(|| format!("read `provisioner.{setting}` {}", path.display()))
}

fn certificates(setting: &str, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.with_context(|| format!("`provisioner.{setting}` is not PEM"))?;
    anyhow::ensure!(!read.is_empty(), "`provisioner.{setting}` has no certificate in PEM");
    Ok(read)
}

/// Why there is no connection, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Trouble(String);

/// What a failure of TLS means here. `None`: nothing in particular.
fn explain(error: &io::Error) -> Option<Trouble> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let text = match error {
        rustls::Error::InvalidMessage(_) => {
            "the broker does not answer in TLS: configure it (`grpc.tls`), or use an http:// address \
             in `provisioner.broker_url` on a private network"
        }
        rustls::Error::InvalidCertificate(error) => match error {
            // The signature is wrong where two authorities have one name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the broker's certificate is of no authority in `provisioner.broker_ca_file`"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the broker's certificate is for another host than that in `provisioner.broker_url`"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the broker's certificate has expired: renew `grpc.tls.cert_file` of the broker"
            }
            other => {
                return Some(Trouble(format!("the broker's certificate is not good: {other}")));
            }
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => {
                "the broker refused this daemon's certificate, which has expired: put a newer one \
                 into `provisioner.client_cert_file`; no restart is needed"
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "the broker refused this daemon's certificate, whose authority it does not know: \
                 have `provisioner.client_cert_file` issued by one in `grpc.tls.client_ca_file`"
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => {
                let text = format!(
                    "the broker refused this daemon's certificate ({alert:?}): is \
                     `provisioner.client_cert_file` for client authentication, valid from now on, \
                     and complete?"
                );
                return Some(Trouble(text));
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(Trouble(text.to_owned()))
}

/// The first bytes that came over a plain connection.
#[derive(Default)]
pub(crate) struct Greeting {
    is_over: bool,
}

impl Greeting {
    /// Looks at what came first.
    fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() || std::mem::replace(&mut self.is_over, true) {
            return Ok(());
        }
        if bytes.starts_with(&ALERT) {
            return Err(io::Error::other(Trouble(
                "the broker speaks TLS: `provisioner.broker_url` must begin with https://, and \
                 `provisioner.broker_ca_file` name its authority"
                    .to_owned(),
            )));
        }
        Ok(())
    }
}

/// A connection to the broker. What ends it is told in words.
pub(crate) enum Wire {
    Plain(TcpStream, Greeting),
    Tls(Box<TlsStream<TcpStream>>),
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match self.get_mut() {
            Self::Plain(it, greeting) => Pin::new(it)
                .poll_read(cx, buffer)
                .map(|read| read.and_then(|()| greeting.look(&buffer.filled()[before..]))),
            // A certificate is refused after the client's part of the handshake is over.
            Self::Tls(it) => Pin::new(it)
                .poll_read(cx, buffer)
                .map_err(|error| explain(&error).map_or(error, io::Error::other)),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(it, _) => Pin::new(it).poll_write(cx, bytes),
            Self::Tls(it) => Pin::new(it).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(it, _) => Pin::new(it).poll_flush(cx),
            Self::Tls(it) => Pin::new(it).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(it, _) => Pin::new(it).poll_shutdown(cx),
            Self::Tls(it) => Pin::new(it).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
