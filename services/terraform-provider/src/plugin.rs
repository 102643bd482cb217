//! What a go-plugin host expects of every plugin beside its own service.

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::wire::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};
use crate::wire::plugin::{
    ConnInfo, Empty, StdioData, grpc_broker_server, grpc_controller_server, grpc_stdio_server,
};

/// Ends the process, once, from whichever side comes first.
#[derive(Clone)]
pub(crate) struct Stop(watch::Sender<bool>);

impl Stop {
    /// A process that goes on.
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Asks the process to end.
    pub(crate) fn trigger(&self) {
        self.0.send_replace(true);
    }

    /// Waits until the process is to end.
    pub(crate) async fn triggered(&self) {
        let mut stopped = self.0.subscribe();
        // The sender lives in `self`, so waiting ends with the value and with nothing else.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}

/// The host's side services.
#[derive(Clone)]
pub(crate) struct Host {
    /// Ends the process.
    pub(crate) stop: Stop,
}

#[tonic::async_trait]
impl grpc_controller_server::GrpcController for Host {
    async fn shutdown(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.stop.trigger();
        Ok(Response::new(Empty {}))
    }
}

#[tonic::async_trait]
impl grpc_stdio_server::GrpcStdio for Host {
    type StreamStdioStream = ReceiverStream<Result<StdioData, Status>>;

    /// Nothing is ever sent: this process logs to its standard error, which the host reads. The
    /// stream tells something else: the host keeps it open for life, so when it breaks the host
    /// is gone, and a plugin without a host has no reason to stay.
    async fn stream_stdio(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::StreamStdioStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.triggered() => {}
                () = sender.closed() => stop.trigger(),
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl grpc_broker_server::GrpcBroker for Host {
    type StartStreamStream = ReceiverStream<Result<ConnInfo, Status>>;

    /// Open until the end: providers need no connections beside the first.
    async fn start_stream(
        &self,
        _: Request<Streaming<ConnInfo>>,
    ) -> Result<Response<Self::StartStreamStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.triggered() => {}
                () = sender.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl health_server::Health for Host {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        // go-plugin asks for the service "plugin"; others ask for the server as a whole.
        match request.get_ref().service.as_str() {
            "" | "plugin" => {
                let status = ServingStatus::Serving.into();
                Ok(Response::new(HealthCheckResponse { status }))
            }
            other => Err(Status::not_found(format!("there is no service {other:?}"))),
        }
    }
}
