//! The daemon's side of the broker's gRPC API.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use berth_proto::v1::provisioner_service_client::ProvisionerServiceClient;
use berth_proto::{KEY_HEADER, MAX_MESSAGE, v1};
use hyper_util::rt::TokioIo;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::config::ProvisionerConfig;
use crate::connect::{Contents, Target, Trouble};
use crate::trace;

/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(5);
/// How often an idle connection is asked whether it still stands, and how long the answer may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// How long a small call may take.
const CALL: Duration = Duration::from_secs(10);
/// How long a result, which carries a state, may take.
const RESULT: Duration = Duration::from_mins(1);
/// How long a file may take on its way to the broker.
const UPLOAD: Duration = Duration::from_mins(5);
/// Waits between attempts: the first, and the longest. Each is twice the one before.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The broker answered, and would answer the same again.
    #[error("the broker refused: {}", .0.message())]
    Refused(#[source] Status),
    /// The broker could not be asked, or could not answer for now.
    #[error("the broker cannot be reached: {}", .0.message())]
    Unreachable(#[source] Status),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let status = match reason(&status) {
            Some(reason) => Status::new(status.code(), reason),
            None => status,
        };
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Self::Refused(status),
            _ => Self::Unreachable(status),
        }
    }
}

/// Why there is no connection, out of the layers that wrapped it.
fn reason(status: &Status) -> Option<String> {
    let mut next = std::error::Error::source(status);
    let (mut innermost, mut trouble) = (None, None);
    while let Some(error) = next {
        if error.is::<Trouble>() {
            trouble = Some(error.to_string());
        }
        innermost = Some(error.to_string());
        next = error.source();
    }
    let innermost = innermost.filter(|it| !status.message().contains(it));
    trouble.or_else(|| innermost.map(|it| format!("{}: {it}", status.message())))
}

impl CallError {
    /// The broker refuses what was sent, not the sender: another report may be taken.
    pub(crate) fn is_about_content(&self) -> bool {
        let Self::Refused(status) = self else { return false };
        matches!(status.code(), Code::InvalidArgument | Code::OutOfRange)
    }
}

/// Waits that double up to a bound.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    /// Starts with the shortest wait.
    pub(crate) fn new() -> Self {
        Self(BACKOFF.0)
    }

    /// Waits, longer each time, with up to a quarter of jitter so that daemons that lost one broker
    /// do not return to it together.
    pub(crate) async fn wait(&mut self) {
        let jitter = u64::from(crate::clock::now().subsec_nanosecond().unsigned_abs()) % 1000;
        let wait = self.0 + self.0 * u32::try_from(jitter).unwrap_or(0) / 4000;
        self.0 = (self.0 * 2).min(BACKOFF.1);
        tokio::time::sleep(wait).await;
    }
}

/// Adds the key, where there is one, and the trace to every request.
#[derive(Clone)]
struct Identify(Option<AsciiMetadataValue>);

impl Interceptor for Identify {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert(KEY_HEADER, key.clone());
        }
        trace::inject(request.metadata_mut());
        Ok(request)
    }
}

type Stub = ProvisionerServiceClient<InterceptedService<Channel, Identify>>;

/// The broker as one daemon sees it. Clones share the connection, which opens when it is needed
/// and again when it is lost.
#[derive(Clone)]
pub(crate) struct Client {
    stub: Arc<RwLock<Stub>>,
    target: Target,
    endpoint: Endpoint,
    identify: Identify,
}

impl Client {
    /// A client for the configured broker; nothing is connected yet. PEM files that cannot be used
    /// are an error.
    pub(crate) async fn new(config: &ProvisionerConfig) -> anyhow::Result<Self> {
        let target = Target::new(config)?;
        if let Some(contents) = target.contents().await? {
            contents.check()?;
        }
        let origin = config.broker_url.parse().context("`provisioner.broker_url`")?;
        // The connection, TLS or not, is ours: it is told of no TLS.
        let endpoint = Endpoint::from_static("http://broker")
            .origin(origin)
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true);
        let key = match config.key.expose() {
            "" => None,
            key => {
                let mut key = AsciiMetadataValue::try_from(key)
                    .ok()
                    .context("`provisioner.key` has characters that no key has")?;
                key.set_sensitive(true);
                Some(key)
            }
        };
        let identify = Identify(key);
        let stub = Arc::new(RwLock::new(stub(&target, &endpoint, &identify)));
        Ok(Self { stub, target, endpoint, identify })
    }

    /// Looks at the PEM files from time to time; when they changed, later calls go over a new
    /// connection. Those under way end on the one before. Never returns.
    pub(crate) async fn renew(self, every: Duration) {
        let mut known = self.target.contents().await.ok().flatten();
        let mut refused = None;
        loop {
            tokio::time::sleep(every).await;
            self.look(&mut known, &mut refused).await;
        }
    }

    async fn look(&self, known: &mut Option<Contents>, refused: &mut Option<Contents>) {
        // Files that are being replaced may be away for a moment.
        let Ok(Some(contents)) = self.target.contents().await else { return };
        if known.as_ref() == Some(&contents) || refused.as_ref() == Some(&contents) {
            return;
        }
        if let Err(error) = contents.check() {
            let error = format!("{error:#}");
            tracing::warn!(error, "changed TLS files cannot be used; the connection stays");
            *refused = Some(contents);
            return;
        }
        tracing::info!("TLS files changed; connecting with them");
        let stub = stub(&self.target, &self.endpoint, &self.identify);
        *self.stub.write().unwrap_or_else(PoisonError::into_inner) = stub;
        (*known, *refused) = (Some(contents), None);
    }

    fn stub(&self) -> Stub {
        self.stub.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens the registration stream.
    pub(crate) async fn register(
        &self,
        messages: impl tonic::IntoStreamingRequest<Message = v1::RegisterRequest>,
    ) -> Result<tonic::Streaming<v1::RegisterResponse>, CallError> {
        Ok(self.stub().register(messages).await?.into_inner())
    }

    /// Asks for a job to be held under `lease_token`, waiting up to `wait`.
    pub(crate) async fn acquire(
        &self,
        daemon_id: String,
        lease_token: String,
        wait: Duration,
    ) -> Result<Option<v1::Job>, CallError> {
        let wait_seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX);
        let mut request =
            Request::new(v1::AcquireJobRequest { daemon_id, wait_seconds, lease_token });
        request.set_timeout(wait + CALL);
        Ok(self.stub().acquire_job(request).await?.into_inner().job)
    }

    /// Reports progress once.
    pub(crate) async fn update(
        &self,
        update: v1::UpdateJobRequest,
    ) -> Result<v1::UpdateJobResponse, CallError> {
        let mut request = Request::new(update);
        request.set_timeout(CALL);
        Ok(self.stub().update_job(request).await?.into_inner())
    }

    /// Asks for quota, for as long as the broker cannot be reached.
    pub(crate) async fn commit_quota(
        &self,
        quota: v1::CommitQuotaRequest,
    ) -> Result<v1::CommitQuotaResponse, CallError> {
        self.until_answered(CALL, quota, async |mut client, request| {
            client.commit_quota(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Reports success until the broker answers.
    pub(crate) async fn complete(&self, result: v1::CompleteJobRequest) -> Result<(), CallError> {
        self.until_answered(RESULT, result, async |mut client, request| {
            client.complete_job(request).await.map(drop)
        })
        .await
    }

    /// Reports failure until the broker answers.
    pub(crate) async fn fail(&self, failure: v1::FailJobRequest) -> Result<(), CallError> {
        self.until_answered(RESULT, failure, async |mut client, request| {
            client.fail_job(request).await.map(drop)
        })
        .await
    }

    /// Gives leases up, for as long as the broker cannot be reached.
    pub(crate) async fn give_up(&self, leases: v1::GiveUpJobsRequest) -> Result<(), CallError> {
        self.until_answered(CALL, leases, async |mut client, request| {
            client.give_up_jobs(request).await.map(drop)
        })
        .await
    }

    /// Opens a download.
    pub(crate) async fn download(
        &self,
        file: v1::DownloadFileRequest,
    ) -> Result<tonic::Streaming<v1::DownloadFileResponse>, CallError> {
        Ok(self.stub().download_file(file).await?.into_inner())
    }

    /// Sends a file, message by message.
    pub(crate) async fn upload(
        &self,
        messages: impl tonic::IntoStreamingRequest<Message = v1::UploadFileRequest>,
    ) -> Result<v1::UploadFileResponse, CallError> {
        let mut request = messages.into_streaming_request();
        request.set_timeout(UPLOAD);
        Ok(self.stub().upload_file(request).await?.into_inner())
    }

    async fn until_answered<Q: Clone, A, F>(
        &self,
        timeout: Duration,
        message: Q,
        send: impl Fn(Stub, Request<Q>) -> F,
    ) -> Result<A, CallError>
    where
        F: Future<Output = Result<A, Status>>,
    {
        let mut backoff = Backoff::new();
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(timeout);
            match send(self.stub(), request).await.map_err(CallError::from) {
                Err(CallError::Unreachable(status)) => {
                    tracing::warn!(error = %status.message(), "the broker cannot be reached; again");
                    backoff.wait().await;
                }
                answered => return answered,
            }
        }
    }
}

/// Calls over a connection of their own, which opens with the first.
fn stub(target: &Target, endpoint: &Endpoint, identify: &Identify) -> Stub {
    let target = target.clone();
    let connect = tower::service_fn(move |_| {
        let target = target.clone();
        async move { target.connect().await.map(TokioIo::new) }
    });
    let channel = endpoint.connect_with_connector_lazy(connect);
    ProvisionerServiceClient::with_interceptor(channel, identify.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}
