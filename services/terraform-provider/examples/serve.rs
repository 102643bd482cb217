//! The provider alone, for the tests that run a real Terraform: they need a program to start.

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    berth_terraform_provider::serve().await
}
