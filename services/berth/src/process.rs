//! The processes: services, provisioners, agents, and the small tasks of operators.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use berth_agent::AgentArgs;
use berth_provisioner::Experiment;
use berth_service_kit as kit;
use clap::{Args, Subcommand, ValueEnum};
use tokio::runtime::Builder;

use crate::command::provisioner::{DrainArgs, ListArgs};
use crate::command::provisioner_certificate::CertificateArgs;
use crate::command::provisioner_key::KeyArgs;
use crate::command::workspace::pair;

/// What every long-running process takes.
#[derive(Args, Default)]
pub(crate) struct ProcessArgs {
    /// Configuration file (TOML); the environment (`BERTH_SECTION__KEY`) goes over it
    #[arg(long, env = "BERTH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write addresses as JSON to this file once they are known
    #[arg(long, value_name = "FILE")]
    announce_file: Option<PathBuf>,
    /// Stop when standard input closes: the parent is gone
    #[arg(long)]
    exit_on_stdin_close: bool,
}

impl From<ProcessArgs> for kit::Args {
    fn from(args: ProcessArgs) -> Self {
        Self {
            config_file: args.config,
            exit_on_stdin_close: args.exit_on_stdin_close,
            announce_file: args.announce_file,
        }
    }
}

#[derive(Args)]
pub(crate) struct ServiceArgs {
    /// Which
    name: Service,
    #[command(flatten)]
    process: ProcessArgs,
}

/// The services, each scaled on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Service {
    /// REST, server-sent events and WebSockets
    Api,
    /// Brings every pool to its desired size
    Reconciler,
    /// Hands jobs to provisioner daemons
    ProvisionerBroker,
    /// Keeps the prebuilds user in the organizations it needs
    MembershipReconciler,
    /// Turns events into messages
    Notification,
    /// Autostart, autostop, dormancy, purges
    Lifecycle,
}

#[derive(Subcommand)]
pub(crate) enum ProvisionerCommand {
    /// Run a provisioner daemon
    Start(ProvisionerArgs),
    /// List the daemons: what they run, and whether they are there
    List(ListArgs),
    /// Have a daemon take no new jobs: it finishes those in hand and stays, idle, until it is
    /// undrained or started anew
    Drain(DrainArgs),
    /// Have a daemon take jobs again
    Undrain(DrainArgs),
    /// Make, list and revoke the keys that admit daemons
    Keys(KeyArgs),
    /// Name and revoke the certificates that admit daemons in place of keys
    Certificates(CertificateArgs),
}

#[derive(Args)]
pub(crate) struct ProvisionerArgs {
    #[command(flatten)]
    process: ProcessArgs,
    /// What to do that is not settled yet, beside the configured: reuse-terraform-workspace
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    experiments: Vec<Experiment>,
    /// The broker's gRPC address, `http://` or `https://`
    #[arg(long, value_name = "URL")]
    broker_url: Option<String>,
    /// Certificate authorities that an `https://` broker is checked against, PEM
    #[arg(long, value_name = "FILE")]
    broker_ca_file: Option<PathBuf>,
    /// Certificate that admits this daemon in place of a key, PEM; read again when it changes
    #[arg(long, requires = "client_key_file", value_name = "FILE")]
    client_cert_file: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, requires = "client_cert_file", value_name = "FILE")]
    client_key_file: Option<PathBuf>,
    /// Name of the daemon, unique in its organization; without it, the host's
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A tag that jobs are matched against; may be given several times
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = pair)]
    tags: Vec<(String, String)>,
}

impl ProvisionerArgs {
    /// Puts what was said on the command line over the configuration.
    fn over(self, config: &mut berth_provisioner::ProvisionerConfig) {
        config.experiments.extend(self.experiments);
        config.tags.extend(self.tags);
        config.broker_url = self.broker_url.unwrap_or(std::mem::take(&mut config.broker_url));
        config.name = self.name.unwrap_or(std::mem::take(&mut config.name));
        config.broker_ca_file = self.broker_ca_file.or(config.broker_ca_file.take());
        config.client_cert_file = self.client_cert_file.or(config.client_cert_file.take());
        config.client_key_file = self.client_key_file.or(config.client_key_file.take());
    }
}

#[derive(Args)]
pub(crate) struct MigrateArgs {
    /// The database
    #[arg(long, env = "BERTH_DATABASE__URL", hide_env_values = true, value_name = "URL")]
    database_url: String,
}

/// Runs one service until it is told to stop.
pub(crate) fn service(args: ServiceArgs) -> ExitCode {
    let process = args.process.into();
    match args.name {
        Service::Api => kit::run("api", process, berth_api::run),
        Service::Reconciler => kit::run("reconciler", process, berth_reconciler::run),
        Service::ProvisionerBroker => {
            kit::run("provisioner-broker", process, berth_provisioner_broker::run)
        }
        Service::MembershipReconciler => {
            kit::run("membership-reconciler", process, berth_membership_reconciler::run)
        }
        Service::Notification => kit::run("notification", process, berth_notification::run),
        Service::Lifecycle => kit::run("lifecycle", process, berth_lifecycle::run),
    }
}

/// Runs a provisioner daemon until it is told to stop.
pub(crate) fn provisioner(mut args: ProvisionerArgs) -> ExitCode {
    let process = std::mem::take(&mut args.process);
    kit::run("provisioner", process.into(), |mut ctx: kit::Context<berth_provisioner::Config>| {
        args.over(&mut ctx.config.provisioner);
        provisioner_with_mirror(ctx)
    })
}

/// The daemon needs the coder/coder provider in a mirror. Unless one is configured, it is this
/// binary.
async fn provisioner_with_mirror(
    mut ctx: kit::Context<berth_provisioner::Config>,
) -> anyhow::Result<()> {
    let config = &mut ctx.config.provisioner;
    if config.plugin_mirror.is_none() {
        let mirror = std::path::absolute(config.cache_dir.join("mirror"))?;
        terraform_mirror(&mirror)?;
        config.plugin_mirror = Some(mirror);
    }
    berth_provisioner::run(ctx).await
}

/// Writes the coder/coder provider, which is this binary, into a filesystem mirror.
pub(crate) fn terraform_mirror(dir: &Path) -> anyhow::Result<()> {
    let berth = std::env::current_exe().context("cannot find this binary")?;
    berth_terraform_provider::mirror(dir, &berth)
        .with_context(|| format!("cannot write the provider mirror {}", dir.display()))
}

/// Runs the agent, on one thread: every workspace pays for what its agent takes.
pub(crate) fn agent(args: AgentArgs) -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .with_target(false)
        .init();
    block_on_with(&mut Builder::new_current_thread(), args.execute())
}

/// Applies the migrations.
pub(crate) async fn migrate(args: MigrateArgs) -> anyhow::Result<()> {
    let pool = berth_db::connect(&args.database_url, 1, "berth-migrate")?;
    berth_db::schema::migrate(&pool).await?;
    eprintln!("schema is at version {}", berth_db::schema::needed());
    Ok(())
}

/// Runs a command to its end; an error is printed with its causes.
pub(crate) fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    block_on_with(Builder::new_multi_thread().worker_threads(2), command)
}

fn block_on_with(
    builder: &mut Builder,
    command: impl Future<Output = anyhow::Result<()>>,
) -> ExitCode {
    // Fails only when a provider is there already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("berth: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth: {error:#}");
            ExitCode::FAILURE
        }
    }
}
