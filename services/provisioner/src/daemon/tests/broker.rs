//! A broker that keeps its state in memory, can lose its answers and can go away.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_proto::v1::provisioner_service_server::{ProvisionerService, ProvisionerServiceServer};
use berth_proto::{KEY_HEADER, MAX_MESSAGE, v1};
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, broadcast};
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub(super) const KEY: &str = "test-key";

/// What the broker knows. It outlives the server that shows it.
#[derive(Default)]
pub(super) struct State {
    pub(super) queue: VecDeque<v1::Job>,
    pub(super) files: HashMap<String, Vec<u8>>,
    pub(super) hello: Option<v1::Hello>,
    /// Jobs handed out, by id.
    pub(super) held: BTreeMap<String, Job>,
    /// How many answers of a call are lost, after it took effect.
    pub(super) lose: HashMap<&'static str, u32>,
    /// How the quota answers.
    pub(super) quota: Option<v1::CommitQuotaResponse>,
    pub(super) costs: Vec<i32>,
    /// The call in which the server dies, and whether that is after the call took effect.
    pub(super) dies: Option<(&'static str, bool)>,
    /// Jobs handed out, each as often as it was.
    pub(super) taken: Vec<String>,
    /// Leases given up.
    pub(super) given_up: Vec<String>,
}

/// One job handed out.
#[derive(Default)]
pub(super) struct Job {
    pub(super) token: String,
    /// What was stored of its log, by number.
    pub(super) lines: BTreeMap<u64, String>,
    pub(super) steps: Vec<v1::Step>,
    pub(super) update: v1::UpdateJobRequest,
    pub(super) canceled: bool,
    /// Given to somebody else: nothing of this holding counts any more.
    pub(super) taken_away: bool,
    pub(super) completed: Option<v1::CompleteJobRequest>,
    pub(super) failed: Option<v1::FailJobRequest>,
}

impl Job {
    pub(super) fn is_done(&self) -> bool {
        self.completed.is_some() || self.failed.is_some()
    }
}

#[derive(Clone)]
pub(super) struct Broker {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    says: broadcast::Sender<v1::RegisterResponse>,
    /// Stops the server of now.
    serving: Arc<Mutex<CancellationToken>>,
    pub(super) lease_seconds: u32,
}

/// A running server of a [`Broker`].
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Goes away at once, with all its connections.
    pub(super) async fn kill(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
        self.stop.cancel();
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Waits until the server dies of a call, and starts it again.
    pub(super) async fn revive(&mut self, broker: &Broker) {
        self.stop.cancelled().await;
        self.end().await;
        *self = broker.serve(self.addr).await;
    }
}

impl Broker {
    pub(super) fn new(lease_seconds: u32) -> Self {
        let says = broadcast::channel(16).0;
        let (state, changed, serving) = Default::default();
        Self { state, changed, says, serving, lease_seconds }
    }

    pub(super) async fn serve(&self, addr: SocketAddr) -> Server {
        let listener = loop {
            // The port of a server that has just gone may still be taken.
            match tokio::net::TcpListener::bind(addr).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        *self.serving.lock().unwrap() = stop.clone();
        let service = ProvisionerServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let stopped = stop.clone();
        // Each connection ends with the server, as when its process is killed.
        let incoming = TcpListenerStream::new(listener).map(move |it| {
            it.map(|io| Cut { io, stopped: Box::pin(stopped.clone().cancelled_owned()) })
        });
        let server =
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        let task = tokio::spawn(async move { server.await.unwrap() });
        Server { addr, stop, task }
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let outcome = change(&mut self.state.lock().unwrap());
        self.changed.notify_waiters();
        outcome
    }

    pub(super) fn say(&self, message: v1::register_response::Message) {
        let _ = self.says.send(v1::RegisterResponse { message: Some(message) });
    }

    /// Waits until `holds`, looking at every change.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if holds(&self.state.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
        waited.unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// Dies if this is the call and the moment for it.
    async fn moment(&self, call: &'static str, after: bool) {
        if self.with(|state| state.dies.take_if(|it| *it == (call, after)).is_some()) {
            self.serving.lock().unwrap().cancel();
            std::future::pending::<()>().await;
        }
    }

    /// Answers, unless the answer is to be lost.
    async fn answer<T>(&self, call: &'static str, answer: T) -> Result<Response<T>, Status> {
        self.moment(call, true).await;
        let lost = self.with(|state| {
            let left = state.lose.entry(call).or_default();
            let lost = *left > 0;
            *left = left.saturating_sub(1);
            lost
        });
        if lost { Err(Status::unavailable("lost")) } else { Ok(Response::new(answer)) }
    }

    fn on_job<T>(
        &self,
        id: &str,
        token: &str,
        change: impl FnOnce(&mut Job) -> Result<T, Status>,
    ) -> Result<T, Status> {
        self.with(|state| match state.held.get_mut(id) {
            Some(job) if job.token == token && !job.taken_away => change(job),
            _ => Err(Status::failed_precondition("this daemon does not hold the job")),
        })
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ProvisionerService for Broker {
    type RegisterStream = Answers<v1::RegisterResponse>;
    type DownloadFileStream = Answers<v1::DownloadFileResponse>;

    async fn register(
        &self,
        request: Request<Streaming<v1::RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        if request.metadata().get(KEY_HEADER).is_none_or(|key| key != KEY) {
            return Err(Status::unauthenticated("unknown key"));
        }
        self.moment("register", false).await;
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|it| it.message);
        let Some(v1::register_request::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("no hello"));
        };
        let says = BroadcastStream::new(self.says.subscribe());
        let accepted = v1::Accepted { daemon_id: hello.name.clone(), ..Default::default() };
        self.with(|state| state.hello = Some(hello));
        let accepted = v1::RegisterResponse {
            message: Some(v1::register_response::Message::Accepted(accepted)),
        };
        let later = says.map(|it| it.map_err(|_| Status::internal("lagged")));
        Ok(Response::new(Box::pin(futures_util::stream::iter([Ok(accepted)]).chain(later))))
    }

    async fn acquire_job(
        &self,
        request: Request<v1::AcquireJobRequest>,
    ) -> Result<Response<v1::AcquireJobResponse>, Status> {
        let lease_token = request.into_inner().lease_token;
        let job = loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let job = self.state.lock().unwrap().queue.pop_front();
            if let Some(job) = job {
                break job;
            }
            changed.await;
        };
        if self.with(|state| state.dies.is_some_and(|(call, _)| call == "acquire")) {
            // What was taken for a caller that is gone goes back to the queue.
            self.with(|state| state.queue.push_back(job.clone()));
            let after = self.with(|state| state.dies.is_some_and(|(_, after)| after));
            self.moment("acquire", after).await;
        }
        let job = v1::Job { lease_seconds: self.lease_seconds, lease_token, ..job };
        self.with(|state| state.taken.push(job.id.clone()));
        let held = Job { token: job.lease_token.clone(), ..Default::default() };
        self.with(|state| state.held.insert(job.id.clone(), held));
        Ok(Response::new(v1::AcquireJobResponse { job: Some(job) }))
    }

    async fn update_job(
        &self,
        request: Request<v1::UpdateJobRequest>,
    ) -> Result<Response<v1::UpdateJobResponse>, Status> {
        self.moment("update", false).await;
        let it = request.into_inner();
        let canceled = self.on_job(&it.job_id.clone(), &it.lease_token.clone(), |job| {
            for line in &it.logs {
                job.lines.entry(line.number).or_insert_with(|| line.output.clone());
            }
            let step = it.step();
            if step != v1::Step::Unspecified && job.steps.last() != Some(&step) {
                job.steps.push(step);
            }
            if it.readme.is_some() || !it.template_variables.is_empty() {
                job.update = it;
            }
            Ok(job.canceled)
        })?;
        let lease_seconds = self.lease_seconds;
        self.answer("update", v1::UpdateJobResponse { canceled, lease_seconds }).await
    }

    async fn commit_quota(
        &self,
        request: Request<v1::CommitQuotaRequest>,
    ) -> Result<Response<v1::CommitQuotaResponse>, Status> {
        self.moment("quota", false).await;
        let answer = self.with(|state| {
            state.costs.push(request.get_ref().daily_cost);
            state.quota.unwrap_or(v1::CommitQuotaResponse { ok: true, ..Default::default() })
        });
        self.answer("quota", answer).await
    }

    async fn complete_job(
        &self,
        request: Request<v1::CompleteJobRequest>,
    ) -> Result<Response<v1::CompleteJobResponse>, Status> {
        self.moment("complete", false).await;
        let it = request.into_inner();
        self.on_job(&it.job_id.clone(), &it.lease_token.clone(), |job| match &job.completed {
            Some(first) if *first != it => Err(Status::failed_precondition("another result")),
            _ if job.failed.is_some() => Err(Status::failed_precondition("it failed")),
            _ => {
                job.completed = Some(it);
                Ok(())
            }
        })?;
        self.answer("complete", v1::CompleteJobResponse {}).await
    }

    async fn fail_job(
        &self,
        request: Request<v1::FailJobRequest>,
    ) -> Result<Response<v1::FailJobResponse>, Status> {
        self.moment("fail", false).await;
        let it = request.into_inner();
        self.on_job(&it.job_id.clone(), &it.lease_token.clone(), |job| {
            if job.completed.is_some() {
                return Err(Status::failed_precondition("it succeeded"));
            }
            job.failed = Some(it);
            Ok(())
        })?;
        self.answer("fail", v1::FailJobResponse {}).await
    }

    async fn give_up_jobs(
        &self,
        request: Request<v1::GiveUpJobsRequest>,
    ) -> Result<Response<v1::GiveUpJobsResponse>, Status> {
        let tokens = request.into_inner().lease_tokens;
        self.with(|state| {
            let given_up = |job: &&mut Job| tokens.contains(&job.token) && !job.is_done();
            for job in state.held.values_mut().filter(given_up) {
                job.taken_away = true;
            }
            state.given_up.extend(tokens);
        });
        self.answer("give_up", v1::GiveUpJobsResponse {}).await
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<v1::UploadFileRequest>>,
    ) -> Result<Response<v1::UploadFileResponse>, Status> {
        use v1::file_part::Part;
        self.moment("upload", false).await;
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap_or_default();
        self.on_job(&first.job_id, &first.lease_token, |_| Ok(()))?;
        let Some(Part::Header(header)) = first.part.and_then(|it| it.part) else {
            return Err(Status::invalid_argument("no header"));
        };
        let mut data = Vec::new();
        while let Some(message) = messages.message().await? {
            let Some(Part::Chunk(chunk)) = message.part.and_then(|it| it.part) else {
                return Err(Status::invalid_argument("no chunk"));
            };
            data.extend(chunk.data);
        }
        assert_eq!(Sha256::digest(&data)[..], header.sha256[..]);
        assert_eq!(data.len() as u64, header.size);
        let file_id = format!("{}-{}", header.kind, first.job_id);
        self.with(|state| state.files.insert(file_id.clone(), data));
        self.answer("upload", v1::UploadFileResponse { file_id, error: String::new() }).await
    }

    async fn download_file(
        &self,
        request: Request<v1::DownloadFileRequest>,
    ) -> Result<Response<Self::DownloadFileStream>, Status> {
        self.moment("download", false).await;
        let file = self.with(|state| state.files.get(&request.get_ref().file_id).cloned());
        let Some(file) = file else {
            let error = "no such file".to_owned();
            let answer = v1::DownloadFileResponse { part: None, error };
            return Ok(Response::new(Box::pin(futures_util::stream::iter([Ok(answer)]))));
        };
        let sha256 = Sha256::digest(&file).to_vec();
        let chunks: Vec<_> = file.chunks(700).map(<[u8]>::to_vec).collect();
        let header = v1::FileHeader {
            kind: "archive".into(),
            sha256: sha256.clone(),
            size: file.len() as u64,
            chunks: u32::try_from(chunks.len()).unwrap(),
        };
        let part = |part| {
            let part = Some(v1::FilePart { part: Some(part) });
            Ok(v1::DownloadFileResponse { part, error: String::new() })
        };
        let chunk = move |(index, data)| {
            let index = u32::try_from(index).unwrap();
            let chunk = v1::FileChunk { sha256: sha256.clone(), index, data };
            v1::file_part::Part::Chunk(chunk)
        };
        let parts = [v1::file_part::Part::Header(header)]
            .into_iter()
            .chain(chunks.into_iter().enumerate().map(chunk));
        let answers: Vec<_> = parts.map(part).collect();
        Ok(Response::new(Box::pin(futures_util::stream::iter(answers))))
    }
}

/// A connection that breaks when its server is killed.
struct Cut {
    io: tokio::net::TcpStream,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl tonic::transport::server::Connected for Cut {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl tokio::io::AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Cut {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
