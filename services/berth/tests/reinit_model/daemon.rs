//! A provisioner daemon that does what the script says.

use berth_proto::v1::complete_job_request::Result as Output;
use berth_proto::v1::provisioner_service_client::ProvisionerServiceClient;
use berth_proto::{API_VERSION, KEY_HEADER, v1};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::world::IT;

/// Says for whom it runs.
pub(crate) const SCRIPT: &str = "echo $CODER_WORKSPACE_OWNER_NAME >> $HOME/starts";

pub(crate) struct Daemon {
    client: ProvisionerServiceClient<Channel>,
    id: String,
    _hello: mpsc::Sender<v1::RegisterRequest>,
    _stream: Streaming<v1::RegisterResponse>,
}

fn with_key<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let key = AsciiMetadataValue::try_from(format!("{IT}-hush")).unwrap();
    request.metadata_mut().insert(KEY_HEADER, key);
    request
}

impl Daemon {
    pub(crate) async fn register(broker: &str) -> Self {
        let address = format!("http://{broker}");
        let mut client = ProvisionerServiceClient::connect(address).await.unwrap();
        let (hello, mut requests) = mpsc::channel(4);
        let message = v1::register_request::Message::Hello(v1::Hello {
            name: "one".into(),
            version: "1".into(),
            api_version: API_VERSION.into(),
            provisioner_types: vec!["exec".into()],
            capacity: 64,
            ..v1::Hello::default()
        });
        hello.send(v1::RegisterRequest { message: Some(message) }).await.unwrap();
        let requests = futures_util::stream::poll_fn(move |context| requests.poll_recv(context));
        let answer = client.register(with_key(requests)).await;
        let mut stream = answer.unwrap().into_inner();
        let first = stream.next().await.unwrap().unwrap().message;
        let Some(v1::register_response::Message::Accepted(accepted)) = first else {
            panic!("not accepted: {first:?}");
        };
        Self { client, id: accepted.daemon_id, _hello: hello, _stream: stream }
    }

    /// Takes a job that is queued.
    pub(crate) async fn acquire(&mut self) -> v1::Job {
        let request = v1::AcquireJobRequest {
            daemon_id: self.id.clone(),
            wait_seconds: 20,
            ..Default::default()
        };
        let answer = self.client.acquire_job(with_key(request)).await.unwrap();
        answer.into_inner().job.expect("a job is queued")
    }

    /// Reports that the build is done; `token`: it has an agent with this token.
    pub(crate) async fn complete(&mut self, job: &v1::Job, token: Option<&str>) {
        let agent = |token: &str| v1::Agent {
            id: "agent-in-state".into(),
            name: "main".into(),
            auth: Some(v1::agent::Auth::Token(token.into())),
            scripts: vec![v1::Script {
                script: SCRIPT.into(),
                run_on_start: true,
                ..v1::Script::default()
            }],
            ..v1::Agent::default()
        };
        let resource = |token: &str| v1::Resource {
            name: "box".into(),
            r#type: "local".into(),
            agents: vec![agent(token)],
            ..v1::Resource::default()
        };
        let result = v1::WorkspaceBuildResult {
            resources: token.map(resource).into_iter().collect(),
            ..v1::WorkspaceBuildResult::default()
        };
        let request = v1::CompleteJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            timings: Vec::new(),
            result: Some(Output::WorkspaceBuild(result)),
        };
        self.client.complete_job(with_key(request)).await.unwrap();
    }

    /// Reports that the build failed.
    pub(crate) async fn fail(&mut self, job: &v1::Job, code: &str) {
        let request = v1::FailJobRequest {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            error_code: code.to_owned(),
            error: format!("a failure of {code}"),
            ..v1::FailJobRequest::default()
        };
        self.client.fail_job(with_key(request)).await.unwrap();
    }
}
