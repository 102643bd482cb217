//! Stands between a daemon and the broker: passes each call on, and stops at the one that a test
//! waits for, so that something can die at that very moment.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use berth_proto::v1::provisioner_service_client::ProvisionerServiceClient;
use berth_proto::v1::provisioner_service_server::{ProvisionerService, ProvisionerServiceServer};
use berth_proto::{MAX_MESSAGE, v1};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// When a call is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// The broker has not heard of it.
    Before,
    /// It took effect, and the answer is on its way.
    After,
}

/// A call that stands still. Dropping it loses the call to whoever made it.
pub(super) type Stopped = oneshot::Sender<()>;

struct Trap {
    call: &'static str,
    moment: Moment,
    sprung: oneshot::Sender<Stopped>,
}

/// The way from the daemons to a broker.
#[derive(Clone)]
pub(super) struct Relay {
    /// Where daemons connect.
    pub(super) addr: SocketAddr,
    broker: ProvisionerServiceClient<Channel>,
    trap: Arc<Mutex<Option<Trap>>>,
    flows: watch::Sender<bool>,
}

impl Relay {
    /// Serves from now on; nothing is at the broker's port yet.
    pub(super) async fn before(broker: u16) -> Self {
        let channel = Channel::from_shared(format!("http://127.0.0.1:{broker}"));
        let broker = ProvisionerServiceClient::new(channel.expect("an address").connect_lazy())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let inside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let relay = Self {
            addr: outside.local_addr().expect("an address"),
            broker,
            trap: Arc::default(),
            flows: watch::Sender::new(true),
        };
        tokio::spawn(wire(outside, inside.local_addr().expect("an address"), relay.flows.clone()));
        let service = ProvisionerServiceServer::new(relay.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let server = tonic::transport::Server::builder().add_service(service);
        let incoming = TcpListenerStream::new(inside);
        tokio::spawn(async move { server.serve_with_incoming(incoming).await.expect("it serves") });
        relay
    }

    /// Stops the next call of that name at that moment.
    pub(super) fn stop_at(&self, call: &'static str, moment: Moment) -> oneshot::Receiver<Stopped> {
        let (sprung, stopped) = oneshot::channel();
        *self.trap.lock().expect("nobody panics holding it") = Some(Trap { call, moment, sprung });
        stopped
    }

    /// Nothing passes, in no direction, and no connection breaks; until it flows again.
    pub(super) fn cut(&self, is_cut: bool) {
        self.flows.send_replace(!is_cut);
    }

    /// Stands still if this is the call and the moment; then the call is lost.
    async fn moment(&self, call: &'static str, moment: Moment) -> Result<(), Status> {
        let is_it = |trap: &mut Trap| trap.call == call && trap.moment == moment;
        let trap = self.trap.lock().expect("nobody panics holding it").take_if(is_it);
        let Some(trap) = trap else { return Ok(()) };
        let (resume, resumed) = oneshot::channel();
        trap.sprung.send(resume).expect("somebody waits for it");
        // Whoever holds it drops it.
        let _ = resumed.await;
        Err(Status::unavailable("lost on the way"))
    }

    /// Passes a call of one message on.
    async fn pass<Q, A, F>(
        &self,
        call: &'static str,
        request: Request<Q>,
        ask: impl FnOnce(ProvisionerServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.moment(call, Moment::Before).await?;
        let answer = ask(self.broker.clone(), onward(request)).await?;
        self.moment(call, Moment::After).await?;
        Ok(answer)
    }
}

/// The same request, with the key and the trace that it came with.
fn onward<T>(request: Request<T>) -> Request<T> {
    let (metadata, _, message) = request.into_parts();
    let mut onward = Request::new(message);
    *onward.metadata_mut() = metadata;
    onward
}

/// What a caller sends, as far as it comes.
fn sent<T: Send + 'static>(stream: Streaming<T>) -> impl Stream<Item = T> + Send + 'static {
    stream.map_while(Result::ok)
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ProvisionerService for Relay {
    type RegisterStream = Answers<v1::RegisterResponse>;
    type DownloadFileStream = Answers<v1::DownloadFileResponse>;

    async fn register(
        &self,
        request: Request<Streaming<v1::RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let answer = self.pass("register", request, async |mut broker, request| {
            broker.register(request.map(sent)).await
        });
        Ok(answer.await?.map(|stream| Box::pin(stream) as Answers<_>))
    }

    async fn acquire_job(
        &self,
        request: Request<v1::AcquireJobRequest>,
    ) -> Result<Response<v1::AcquireJobResponse>, Status> {
        self.moment("acquire", Moment::Before).await?;
        let answer = self.broker.clone().acquire_job(onward(request)).await?;
        if answer.get_ref().job.is_some() {
            self.moment("acquire", Moment::After).await?;
        }
        Ok(answer)
    }

    async fn update_job(
        &self,
        request: Request<v1::UpdateJobRequest>,
    ) -> Result<Response<v1::UpdateJobResponse>, Status> {
        let ask = async |mut broker: ProvisionerServiceClient<_>, it| broker.update_job(it).await;
        self.pass("update", request, ask).await
    }

    async fn commit_quota(
        &self,
        request: Request<v1::CommitQuotaRequest>,
    ) -> Result<Response<v1::CommitQuotaResponse>, Status> {
        let ask = async |mut broker: ProvisionerServiceClient<_>, it| broker.commit_quota(it).await;
        self.pass("quota", request, ask).await
    }

    async fn complete_job(
        &self,
        request: Request<v1::CompleteJobRequest>,
    ) -> Result<Response<v1::CompleteJobResponse>, Status> {
        let ask = async |mut broker: ProvisionerServiceClient<_>, it| broker.complete_job(it).await;
        self.pass("complete", request, ask).await
    }

    async fn fail_job(
        &self,
        request: Request<v1::FailJobRequest>,
    ) -> Result<Response<v1::FailJobResponse>, Status> {
        let ask = async |mut broker: ProvisionerServiceClient<_>, it| broker.fail_job(it).await;
        self.pass("fail", request, ask).await
    }

    async fn give_up_jobs(
        &self,
        request: Request<v1::GiveUpJobsRequest>,
    ) -> Result<Response<v1::GiveUpJobsResponse>, Status> {
        let ask = async |mut broker: ProvisionerServiceClient<_>, it| broker.give_up_jobs(it).await;
        self.pass("give_up", request, ask).await
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<v1::UploadFileRequest>>,
    ) -> Result<Response<v1::UploadFileResponse>, Status> {
        let ask = async |mut broker: ProvisionerServiceClient<_>, it: Request<_>| {
            broker.upload_file(it.map(sent)).await
        };
        self.pass("upload", request, ask).await
    }

    async fn download_file(
        &self,
        request: Request<v1::DownloadFileRequest>,
    ) -> Result<Response<Self::DownloadFileStream>, Status> {
        let ask =
            async |mut broker: ProvisionerServiceClient<_>, it| broker.download_file(it).await;
        let answer = self.pass("download", request, ask).await?;
        Ok(answer.map(|stream| Box::pin(stream) as Answers<_>))
    }
}

/// Passes bytes on while they flow.
async fn wire(outside: TcpListener, inside: SocketAddr, flows: watch::Sender<bool>) {
    while let Ok((near, _)) = outside.accept().await {
        let flows = flows.subscribe();
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(inside).await else { return };
            let (near, far) = (near.into_split(), far.into_split());
            let (up, down) = (flows.clone(), flows);
            // When one direction ends, the connection does.
            tokio::select! {
                () = carry(near.0, far.1, up) => {}
                () = carry(far.0, near.1, down) => {}
            }
        });
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flows: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if flows.wait_for(|flows| *flows).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}
