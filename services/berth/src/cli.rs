//! The command line's grammar, and who carries out what.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::output::{Format, Output};
use crate::{command, process, up};

/// Pools of prebuilt development workspaces, handed over the moment somebody asks.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Clone)]
pub(crate) struct Global {
    /// Address of the deployment; without it, the one of `berth login` or `berth up`
    #[arg(long, global = true, env = "BERTH_URL", value_name = "URL")]
    pub(crate) url: Option<String>,
    /// API token; without it, the session of `berth login` or `berth up`
    #[arg(long, global = true, env = "BERTH_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Tables for people, JSON for programs
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything on this machine: Postgres, NATS, all services, two provisioners
    Up(up::UpArgs),
    /// Stop what a killed `berth up` may have left; with --purge remove its data
    Down(up::DownArgs),
    /// Log in to a deployment
    Login(command::login::LoginArgs),
    /// Give a new deployment its first user, a provisioner key and templates
    Setup(command::setup::SetupArgs),
    /// Push, list and promote templates
    #[command(subcommand)]
    Templates(command::template::TemplateCommand),
    /// Create a workspace: a prebuild if one is ready, else a new one
    Create(command::workspace::CreateArgs),
    /// List workspaces
    List(command::workspace::ListArgs),
    /// Show one workspace
    Show(command::workspace::OneArgs),
    /// Start a workspace
    Start(command::workspace::StartArgs),
    /// Start a workspace with its template's active version
    Update(command::workspace::StartArgs),
    /// Stop a workspace
    Stop(command::workspace::BuildArgs),
    /// Delete a workspace
    Delete(command::workspace::BuildArgs),
    /// Show the log of a workspace's latest build and of its agents
    Logs(command::logs::LogsArgs),
    /// Open a terminal in a workspace, or run a command there
    Shell(command::shell::ShellArgs),
    /// Print every workspace build update, as it happens
    Watch(command::watch::WatchArgs),
    /// Show who got a prebuild, who did not, and why not
    Claims(command::claims::ClaimsArgs),
    /// Show every pool: its size, and why
    Pools,
    /// Look after pools: plan, explain, pause, policies, invalidate
    #[command(subcommand)]
    Prebuilds(command::prebuild::PrebuildCommand),
    /// Run one service
    Service(process::ServiceArgs),
    /// Run provisioner daemons
    #[command(subcommand)]
    Provisioner(process::ProvisionerCommand),
    /// Run the agent inside a workspace
    Agent(berth_agent::AgentArgs),
    /// Look after the deployment's own data
    #[command(subcommand)]
    Server(command::server::ServerCommand),
    /// Apply the database migrations
    Migrate(process::MigrateArgs),
    /// Serve the coder/coder Terraform provider; Terraform itself starts this
    #[command(hide = true)]
    TerraformProvider,
    /// Write the coder/coder provider into a filesystem mirror for Terraform
    TerraformMirror {
        /// Where the mirror goes
        dir: PathBuf,
    },
}

/// Parses the arguments and carries out the command.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.output);
    let global = cli.global;
    match cli.command {
        Command::Service(args) => process::service(args),
        Command::Provisioner(process::ProvisionerCommand::Start(args)) => {
            process::provisioner(args)
        }
        Command::Agent(args) => process::agent(args),
        command => process::block_on(async move {
            match command {
                Command::Up(args) => up::up(args).await,
                Command::Down(args) => up::down(args).await,
                Command::Login(args) => command::login::login(&global, output, args).await,
                Command::Setup(args) => command::setup::setup(&global, output, args).await,
                Command::Templates(it) => command::template::run(&global, output, it).await,
                Command::Create(args) => command::workspace::create(&global, output, args).await,
                Command::List(args) => command::workspace::list(&global, output, args).await,
                Command::Show(args) => command::workspace::show(&global, output, args).await,
                Command::Start(args) => command::workspace::start(&global, output, args).await,
                Command::Update(args) => command::workspace::update(&global, output, args).await,
                Command::Stop(args) => {
                    command::workspace::build(&global, output, args, "stop").await
                }
                Command::Delete(args) => {
                    command::workspace::build(&global, output, args, "delete").await
                }
                Command::Logs(args) => command::logs::logs(&global, output, args).await,
                Command::Shell(args) => command::shell::shell(&global, args).await,
                Command::Watch(args) => command::watch::watch(&global, output, args).await,
                Command::Claims(args) => command::claims::claims(&global, output, args).await,
                Command::Pools => command::prebuild::pools(&global, output).await,
                Command::Prebuilds(it) => command::prebuild::run(&global, output, it).await,
                Command::Server(it) => command::server::run(it).await,
                Command::Migrate(args) => process::migrate(args).await,
                Command::TerraformProvider => berth_terraform_provider::serve().await,
                Command::TerraformMirror { dir } => process::terraform_mirror(&dir),
                Command::Provisioner(it) => provisioner(&global, output, it).await,
                // These have a main of their own, above.
                Command::Service(_) | Command::Agent(_) => Ok(()),
            }
        }),
    }
}

async fn provisioner(
    global: &Global,
    output: Output,
    command: process::ProvisionerCommand,
) -> anyhow::Result<()> {
    use process::ProvisionerCommand as It;
    match command {
        // It has a main of its own, above.
        It::Start(_) => Ok(()),
        It::List(args) => command::provisioner::show(global, output, args).await,
        It::Drain(args) => command::provisioner::drain(global, output, args).await,
        It::Undrain(args) => command::provisioner::undrain(global, output, args).await,
        It::Keys(args) => command::provisioner_key::run(global, output, args).await,
        It::Certificates(args) => command::provisioner_certificate::run(global, output, args).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        super::Cli::command().debug_assert();
    }
}
