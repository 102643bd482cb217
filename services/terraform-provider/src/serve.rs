//! go-plugin's handshake and the server behind it.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use crate::env::Environment;
use crate::plugin::{Host, Stop};
use crate::provider::Provider;
use crate::wire::health::health_server::HealthServer;
use crate::wire::plugin::grpc_broker_server::GrpcBrokerServer;
use crate::wire::plugin::grpc_controller_server::GrpcControllerServer;
use crate::wire::plugin::grpc_stdio_server::GrpcStdioServer;
use crate::wire::tfplugin6::provider_server::ProviderServer;

/// Tells a plugin host from a person at a terminal. Terraform sets it, OpenTofu too.
const COOKIE: (&str, &str) =
    ("TF_PLUGIN_MAGIC_COOKIE", "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2");
/// go-plugin's own version, the first field of the handshake.
const CORE_PROTOCOL: u32 = 1;
/// The version of Terraform's protocol that is served.
const PROTOCOL: &str = "6";
/// The largest message in either direction: states with long scripts exceed tonic's 4 MiB.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// How long to wait for the host's connection; go-plugin itself gives up after a minute.
const CONNECT_TIMEOUT: Duration = Duration::from_mins(1);
/// How long calls may take to end after the host asked to; go-plugin kills after 2 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the provider to the Terraform or OpenTofu that started this process, until it says so
/// or goes away. Nothing else may write to standard output: the handshake goes there.
///
/// Fails when the process was not started by a plugin host, when the host does not speak protocol
/// 6, or when no socket can be made.
pub async fn serve() -> anyhow::Result<()> {
    let env = Environment::of_process();
    check_host(&env)?;
    let stop = Stop::new();
    watch_signals(&stop)?;
    let certificate = match env.filled("PLUGIN_CLIENT_CERT") {
        Some(_) => Some(Certificate::generate()?),
        None => None,
    };
    let socket = Socket::bind(&env)?;
    announce(&socket.path, certificate.as_ref())?;
    run(env, stop, socket, certificate).await
}

/// A terminal sends SIGINT to the whole group. Terraform decides what happens then, and asks its
/// plugins to stop when it is done with them. SIGTERM is meant for this process alone.
fn watch_signals(stop: &Stop) -> anyhow::Result<()> {
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::spawn(async move { while interrupts.recv().await.is_some() {} });
    let mut terminations = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        terminations.recv().await;
        stop.trigger();
    });
    Ok(())
}

/// Whether a plugin host that speaks our protocol started this process.
fn check_host(env: &Environment) -> anyhow::Result<()> {
    if env.text(COOKIE.0) != COOKIE.1 {
        bail!(
            "this is a Terraform provider and only Terraform or OpenTofu can start it: write \
             `required_providers {{ coder = {{ source = \"coder/coder\" }} }}` in a template and \
             run `terraform init`"
        );
    }
    match env.filled("PLUGIN_PROTOCOL_VERSIONS") {
        Some(versions) if !versions.split(',').any(|version| version == PROTOCOL) => bail!(
            "the host speaks the plugin protocols {versions}, this provider speaks {PROTOCOL}: use \
             Terraform 1.5 or later, or OpenTofu"
        ),
        _ => Ok(()),
    }
}

/// The listening socket, in a directory that only this user enters and that goes with it.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Socket {
    fn bind(env: &Environment) -> anyhow::Result<Self> {
        let mut directory = tempfile::Builder::new();
        directory.prefix("berth-provider-").permissions(Permissions::from_mode(0o700));
        let directory = match env.filled("PLUGIN_UNIX_SOCKET_DIR") {
            Some(parent) => directory.tempdir_in(parent),
            None => directory.tempdir(),
        }
        .context("make a directory for the socket")?;
        let path = directory.path().join("socket");
        let listener =
            UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        Ok(Self { listener, path, _directory: directory })
    }
}

/// The server's certificate for one run. The host learns it from the handshake and trusts no
/// other.
///
/// The host's own certificate, in `PLUGIN_CLIENT_CERT`, is not asked for: its P-521 key is one
/// that ring cannot check. Who may connect is decided by the socket's directory instead.
struct Certificate {
    identity: Identity,
    der: Vec<u8>,
}

impl Certificate {
    fn generate() -> anyhow::Result<Self> {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()])
            .context("make a certificate")?;
        let identity = Identity::from_pem(signed.cert.pem(), signed.signing_key.serialize_pem());
        Ok(Self { identity, der: signed.cert.der().to_vec() })
    }
}

/// Tells the host where to connect and whom to trust.
fn announce(socket: &Path, certificate: Option<&Certificate>) -> anyhow::Result<()> {
    let line = handshake(socket, certificate.map(|it| it.der.as_slice()));
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("write the handshake")
}

fn handshake(socket: &Path, certificate: Option<&[u8]>) -> String {
    let certificate = certificate.map(|der| STANDARD_NO_PAD.encode(der)).unwrap_or_default();
    format!("{CORE_PROTOCOL}|{PROTOCOL}|unix|{}|grpc|{certificate}", socket.display())
}

async fn run(
    env: Environment,
    stop: Stop,
    socket: Socket,
    certificate: Option<Certificate>,
) -> anyhow::Result<()> {
    let host = Host { stop: stop.clone() };
    let mut server = Server::builder();
    if let Some(certificate) = certificate {
        let tls = ServerTlsConfig::new().identity(certificate.identity);
        server = server.tls_config(tls).context("use the certificate")?;
    }
    let provider = ProviderServer::new(Provider::new(env))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let router = server
        .add_service(provider)
        .add_service(HealthServer::new(host.clone()))
        .add_service(GrpcControllerServer::new(host.clone()))
        .add_service(GrpcStdioServer::new(host.clone()))
        .add_service(GrpcBrokerServer::new(host));

    let connected = Arc::new(AtomicBool::new(false));
    let seen = connected.clone();
    let connections = UnixListenerStream::new(socket.listener).map(move |connection| {
        seen.store(true, Ordering::Relaxed);
        connection
    });
    let serving = router.serve_with_incoming_shutdown(connections, {
        let stop = stop.clone();
        async move { stop.triggered().await }
    });
    tokio::select! {
        outcome = serving => outcome.context("serve the provider"),
        () = overdue(&stop) => Ok(()),
        () = abandoned(&connected) => bail!(
            "the host did not connect within {} s",
            CONNECT_TIMEOUT.as_secs()
        ),
    }
}

/// Ends when calls are still open some time after the process was asked to end.
async fn overdue(stop: &Stop) {
    stop.triggered().await;
    tokio::time::sleep(STOP_TIMEOUT).await;
}

/// Ends when no host has connected in time.
async fn abandoned(connected: &AtomicBool) {
    tokio::time::sleep(CONNECT_TIMEOUT).await;
    if connected.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
