//! A collector of traces that keeps what it is sent.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::wait::{SOON, wait_until};

/// A span as it arrived. Ids are lower case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenSpan {
    /// `service.name` of the process that sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// The trace it is a part of.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// Its parent's id; empty for the first of a trace.
    pub parent: String,
    /// The traces it links to.
    pub links: Vec<String>,
    /// Everything that arrived of it, attributes and events too.
    pub text: String,
}

/// An OTLP collector over gRPC on a port of its own. It ends with this value.
pub struct TraceSink {
    url: String,
    seen: Seen,
    serving: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<SeenSpan>>>);

impl TraceSink {
    /// Starts it.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let seen = Seen::default();
        let service = TraceServiceServer::new(seen.clone());
        let serving = tokio::spawn(async move {
            let server = Server::builder().add_service(service);
            server.serve_with_incoming(TcpIncoming::from(listener)).await.expect("it serves");
        });
        Self { url, seen, serving }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` should be.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Everything that has arrived so far.
    #[must_use]
    pub fn spans(&self) -> Vec<SeenSpan> {
        self.seen.all().clone()
    }

    /// Waits for a span that `is` what is meant. `what` names it: the test fails with it, and with
    /// what has arrived, when it does not come.
    pub async fn span(&self, what: &str, is: impl Fn(&SeenSpan) -> bool) -> SeenSpan {
        wait_until(what, SOON, async || self.spans().into_iter().find(&is)).await
    }
}

impl Drop for TraceSink {
    fn drop(&mut self) {
        self.serving.abort();
        if std::thread::panicking() {
            eprintln!("---- spans that arrived ----");
            for span in self.spans() {
                let SeenSpan { service, name, trace, links, .. } = span;
                eprintln!("{service} {name} of {trace} links to {links:?}");
            }
        }
    }
}

impl Seen {
    fn all(&self) -> MutexGuard<'_, Vec<SeenSpan>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl TraceService for Seen {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let arrived = request.into_inner().resource_spans.into_iter().flat_map(spans_of);
        self.all().extend(arrived);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn spans_of(sent: ResourceSpans) -> Vec<SeenSpan> {
    let service = service_name(&sent);
    let spans = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
    let seen = spans.map(|span| SeenSpan {
        service: service.clone(),
        text: format!("{span:?}"),
        name: span.name,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        links: span.links.iter().map(|link| hex(&link.trace_id)).collect(),
    });
    seen.collect()
}

fn service_name(sent: &ResourceSpans) -> String {
    let attributes = sent.resource.iter().flat_map(|resource| &resource.attributes);
    let mut names = attributes.filter(|it| it.key == "service.name").filter_map(|it| {
        match it.value.as_ref()?.value.as_ref()? {
            any_value::Value::StringValue(name) => Some(name.clone()),
            _ => None,
        }
    });
    names.next().unwrap_or_default()
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}
