//! The calls, each passed on to its module.

use std::pin::Pin;

use berth_proto::v1::provisioner_service_server::ProvisionerService;
use berth_proto::v1::{
    AcquireJobRequest, AcquireJobResponse, CommitQuotaRequest, CommitQuotaResponse,
    CompleteJobRequest, CompleteJobResponse, DownloadFileRequest, DownloadFileResponse,
    FailJobRequest, FailJobResponse, GiveUpJobsRequest, GiveUpJobsResponse, RegisterRequest,
    RegisterResponse, UpdateJobRequest, UpdateJobResponse, UploadFileRequest, UploadFileResponse,
};
use futures_util::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::Credentials;
use crate::broker::Broker;
use crate::{acquire, auth, complete, file, give_up, quota, register, update};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The gRPC service.
pub(crate) struct Service(pub(crate) Broker);

#[tonic::async_trait]
impl ProvisionerService for Service {
    type RegisterStream = Answers<RegisterResponse>;
    type DownloadFileStream = Answers<DownloadFileResponse>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let stream = register::register(&self.0, request).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn acquire_job(
        &self,
        request: Request<AcquireJobRequest>,
    ) -> Result<Response<AcquireJobResponse>, Status> {
        let daemon = &request.get_ref().daemon_id;
        let organization =
            auth::organization_of(&self.0, Credentials::of(&request), daemon).await?;
        let job = acquire::acquire(&self.0, organization, request.get_ref()).await?;
        Ok(Response::new(AcquireJobResponse { job }))
    }

    async fn update_job(
        &self,
        request: Request<UpdateJobRequest>,
    ) -> Result<Response<UpdateJobResponse>, Status> {
        let organization = auth::organization(&self.0, Credentials::of(&request)).await?;
        let answer = update::update(&self.0, organization, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn commit_quota(
        &self,
        request: Request<CommitQuotaRequest>,
    ) -> Result<Response<CommitQuotaResponse>, Status> {
        let organization = auth::organization(&self.0, Credentials::of(&request)).await?;
        let answer = quota::commit(&self.0, organization, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn complete_job(
        &self,
        request: Request<CompleteJobRequest>,
    ) -> Result<Response<CompleteJobResponse>, Status> {
        let organization = auth::organization(&self.0, Credentials::of(&request)).await?;
        complete::complete(&self.0, organization, request.into_inner()).await?;
        Ok(Response::new(CompleteJobResponse {}))
    }

    async fn fail_job(
        &self,
        request: Request<FailJobRequest>,
    ) -> Result<Response<FailJobResponse>, Status> {
        let organization = auth::organization(&self.0, Credentials::of(&request)).await?;
        complete::fail(&self.0, organization, request.get_ref()).await?;
        Ok(Response::new(FailJobResponse {}))
    }

    async fn give_up_jobs(
        &self,
        request: Request<GiveUpJobsRequest>,
    ) -> Result<Response<GiveUpJobsResponse>, Status> {
        let organization = auth::organization(&self.0, Credentials::of(&request)).await?;
        give_up::give_up(&self.0, organization, request.get_ref()).await?;
        Ok(Response::new(GiveUpJobsResponse {}))
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<UploadFileRequest>>,
    ) -> Result<Response<UploadFileResponse>, Status> {
        let organization = auth::organization(&self.0, Credentials::of(&request)).await?;
        let answer = file::upload(&self.0, organization, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn download_file(
        &self,
        request: Request<DownloadFileRequest>,
    ) -> Result<Response<Self::DownloadFileStream>, Status> {
        let organization = auth::organization(&self.0, Credentials::of(&request)).await?;
        let stream = file::download(&self.0, organization, request.get_ref());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
