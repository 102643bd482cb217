//! Connections of daemons, from accepted to ready for HTTP/2.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::certificate::{Certificate, Peer};
use crate::tls::ServerTls;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once; further connections wait to be accepted.
const HANDSHAKES: usize = 1024;
/// How long, and for how many bytes, a refused client is heard out, so that it reads why.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 64 * 1024);
/// Pause after the system gives no connection: mostly it is out of file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection that is ready for HTTP/2.
pub(crate) enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>, Peer),
}

/// Accepts connections until `stop`. A slow handshake keeps nobody else waiting.
pub(crate) fn connections(
    listener: TcpListener,
    tls: Option<ServerTls>,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(64);
    tokio::spawn(accept(listener, tls.map(Arc::new), (ready, stop)));
    ReceiverStream::new(connections)
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    (ready, stop): (mpsc::Sender<io::Result<Connection>>, CancellationToken),
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(place) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "no connection accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            let connection = match tls {
                None => Some(Connection::Plain(stream)),
                Some(tls) => handshake(&tls, stream).await,
            };
            if let Some(connection) = connection {
                // When nobody takes it, the process ends.
                let _ = ready.send(Ok(connection)).await;
            }
            drop(place);
        });
    }
}

async fn handshake(tls: &ServerTls, stream: TcpStream) -> Option<Connection> {
    let peer = stream.peer_addr().map(|it| it.to_string()).unwrap_or_default();
    let acceptor = tls.acceptor().await;
    let outcome = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream).into_fallible()).await;
    match outcome {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let shown = shown.map(|it| Arc::new(Certificate::read(it)));
            Some(Connection::Tls(Box::new(stream), Peer(shown)))
        }
        Ok(Err((error, mut stream))) => {
            tracing::info!(peer, %error, "no TLS with this client");
            // The client has the reason in an alert, which is lost to it when its own bytes are
            // left unread here.
            let _ = stream.shutdown().await;
            let mut rest = stream.take(LINGER.1);
            let _ =
                tokio::time::timeout(LINGER.0, tokio::io::copy(&mut rest, &mut tokio::io::sink()))
                    .await;
            None
        }
        Err(_) => {
            tracing::info!(peer, "no TLS with this client: its handshake took more than 5 s");
            None
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match self {
            Self::Plain(_) => Peer::default(),
            Self::Tls(_, peer) => peer.clone(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(it) => Pin::new(it).poll_read(cx, buffer),
            Self::Tls(it, _) => Pin::new(it).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(it) => Pin::new(it).poll_write(cx, bytes),
            Self::Tls(it, _) => Pin::new(it).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(it) => Pin::new(it).poll_flush(cx),
            Self::Tls(it, _) => Pin::new(it).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(it) => Pin::new(it).poll_shutdown(cx),
            Self::Tls(it, _) => Pin::new(it).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(it) => Pin::new(it).poll_write_vectored(cx, parts),
            Self::Tls(it, _) => Pin::new(it).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(it) => it.is_write_vectored(),
            Self::Tls(it, _) => it.is_write_vectored(),
        }
    }
}
