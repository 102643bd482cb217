//! The provider's process as a plugin host sees it: handshake, side services, and its end.

#![expect(clippy::unwrap_used, reason = "all of it is test code")]

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

/// What Terraform sets so that its plugins know it.
const COOKIE: (&str, &str) =
    ("TF_PLUGIN_MAGIC_COOKIE", "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2");

/// Far longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The program that `examples/serve.rs` becomes, beside the directory of this test's program.
fn provider() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let provider = tests.parent().and_then(Path::parent).unwrap().join("examples/serve");
    assert!(provider.exists(), "{} is missing: `cargo build --examples`", provider.display());
    provider
}

/// A running provider. It is killed when a test ends before it does.
struct Plugin {
    process: Child,
    socket: PathBuf,
}

impl Plugin {
    async fn start() -> Self {
        let mut process = Command::new(provider())
            .env(COOKIE.0, COOKIE.1)
            .env("PLUGIN_PROTOCOL_VERSIONS", "5,6")
            .env_remove("PLUGIN_CLIENT_CERT")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.as_mut().unwrap());
        stdout.read_line(&mut line).await.unwrap();
        let fields: Vec<_> = line.trim_end().split('|').collect();
        let ["1", "6", "unix", socket, "grpc", ""] = fields[..] else {
            panic!("not a handshake: {line:?}")
        };
        Self { socket: PathBuf::from(socket), process }
    }

    async fn connect(&self) -> Host {
        let uri = format!("unix://{}", self.socket.display());
        let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
        Host(Grpc::new(channel))
    }

    async fn signal(&self, name: &str) {
        let id = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args([name, &id]).status().await.unwrap().success());
    }

    /// Waits for its end.
    async fn ended(mut self) -> ExitStatus {
        let status = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        let status = status.expect("it does not end").unwrap();
        assert!(!self.socket.parent().unwrap().exists(), "the socket is left behind");
        status
    }
}

/// A host's connection. Requests and answers are empty or of no interest.
struct Host(Grpc<Channel>);

impl Host {
    async fn call(&mut self, method: &'static str) -> Result<(), tonic::Status> {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::from_static(method);
        let codec = ProstCodec::<(), ()>::default();
        self.0.unary(Request::new(()), path, codec).await.map(|_| ())
    }

    async fn open(&mut self, method: &'static str) -> Streaming<()> {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::from_static(method);
        let codec = ProstCodec::<(), ()>::default();
        self.0.server_streaming(Request::new(()), path, codec).await.unwrap().into_inner()
    }
}

#[tokio::test]
async fn it_ends_when_the_host_says_so() {
    let plugin = Plugin::start().await;
    let mut host = plugin.connect().await;
    host.call("/grpc.health.v1.Health/Check").await.unwrap();
    let mut stdio = host.open("/plugin.GRPCStdio/StreamStdio").await;
    host.call("/plugin.GRPCController/Shutdown").await.unwrap();
    assert!(matches!(stdio.message().await, Ok(None)), "the stream ends in order");
    assert!(plugin.ended().await.success());
}

#[tokio::test]
async fn it_ends_when_the_host_is_gone() {
    let plugin = Plugin::start().await;
    let mut host = plugin.connect().await;
    let stdio = host.open("/plugin.GRPCStdio/StreamStdio").await;
    drop((stdio, host));
    assert!(plugin.ended().await.success());
}

#[tokio::test]
async fn an_interrupt_is_the_hosts_business_and_a_termination_its_own() {
    let plugin = Plugin::start().await;
    let mut host = plugin.connect().await;
    plugin.signal("-INT").await;
    host.call("/grpc.health.v1.Health/Check").await.unwrap();
    host.call("/tfplugin6.Provider/GetProviderSchema").await.unwrap();
    plugin.signal("-TERM").await;
    assert!(plugin.ended().await.success());
}

#[tokio::test]
async fn started_by_hand_it_says_how_to_use_it() {
    let output = Command::new(provider()).env_remove(COOKIE.0).output().await.unwrap();
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("only Terraform or OpenTofu can start it"), "{said}");
}
