//! `berth up`: the whole of Berth on one machine. The services are the same processes as in
//! production; only Postgres, NATS and the supervision come from here.

mod fleet;
mod launch;
mod setup;
mod state;
mod stores;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::session;
use crate::output::{Format, Output};
use fleet::Fleet;
use state::{Home, State};
use stores::Stores;

#[derive(Args)]
pub(crate) struct UpArgs {
    /// Where the data is kept
    #[arg(long, default_value = ".berth", value_name = "DIR")]
    data_dir: PathBuf,
    /// Port of the API and the web page; kept from then on. Without it, 7070 if that is free
    #[arg(long)]
    port: Option<u16>,
    /// Leave the command line's stored session as it is
    #[arg(long)]
    no_login: bool,
    /// Start with no template and no pool
    #[arg(long)]
    no_template: bool,
}

#[derive(Args)]
pub(crate) struct DownArgs {
    /// Where the data is kept
    #[arg(long, default_value = ".berth", value_name = "DIR")]
    data_dir: PathBuf,
    /// Remove all data: workspaces, templates, users
    #[arg(long)]
    purge: bool,
}

/// Starts everything, waits until pools are filling, and keeps it running until interrupted.
pub(crate) async fn up(args: UpArgs) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let started = Instant::now();
    let home = Home::open(&args.data_dir)?;
    let mut state = State::load(&home, args.port)?;
    let mut stores = Stores::start(&home, &state).await?;
    state.remember_ports(&home, &stores)?;
    let mut fleet = Fleet::default();
    let outcome = tokio::select! {
        outcome = run(&args, &home, &mut state, &stores, &mut fleet, started) => outcome,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    eprintln!("berth: stopping");
    // The provisioners first, so that no job starts a new agent; then the agents, while the API
    // still takes their last words; then the services; the stores last.
    fleet.stop_provisioners().await;
    if let Err(error) = berth_agent::stop_local(&home.workspaces(), true).await {
        eprintln!("berth: agents of local workspaces: {error}");
    }
    fleet.stop_services().await;
    stores.stop().await;
    outcome
}

async fn run(
    args: &UpArgs,
    home: &Home,
    state: &mut State,
    stores: &Stores,
    fleet: &mut Fleet,
    started: Instant,
) -> anyhow::Result<()> {
    launch::services(home, state, stores, fleet).await?;
    let client = setup::first_user(home, state).await?;
    setup::provisioner_key(home, state, &client).await?;
    launch::provisioners(home, state, fleet)?;
    if !args.no_login {
        session::save(&client.session())?;
    }
    let resumed = resume_agents(home, state).await.context("agents of local workspaces")?;
    if resumed > 0 {
        eprintln!("berth: {resumed} agents of local workspaces started again");
    }
    eprintln!("berth: all services are ready after {}", seconds(started.elapsed()));
    announce(state);
    if !args.no_template {
        let output = Output::new(Format::Table);
        setup::template(home, &client, output).await?;
        setup::pools(&client, output).await?;
        eprintln!("berth: pools are full after {}", seconds(started.elapsed()));
        eprintln!("berth: try `berth create my-ws --template {} --preset small`", setup::TEMPLATE);
    }
    fleet.watch().await
}

/// Starts the agents that the last `berth up` ended. They stop again with this process.
async fn resume_agents(home: &Home, state: &State) -> anyhow::Result<usize> {
    let (root, url, berth) = (home.workspaces(), state.url(), fleet::binary()?);
    let resumed = tokio::task::spawn_blocking(move || {
        berth_agent::retarget_local(&root, &url)?;
        berth_agent::resume_local(&root, &berth)
    });
    Ok(resumed.await??)
}

fn announce(state: &State) {
    println!("URL       {}", state.url());
    println!("E-mail    {}", state.email);
    println!("Password  {}", state.password);
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

/// Stops what a killed `berth up` left behind, and with `--purge` removes the data.
pub(crate) async fn down(args: DownArgs) -> anyhow::Result<()> {
    if !args.data_dir.exists() {
        eprintln!("berth: nothing at {}", args.data_dir.display());
        return Ok(());
    }
    let home = Home::open(&args.data_dir)?;
    berth_agent::stop_local(&home.workspaces(), !args.purge)
        .await
        .context("agents of local workspaces")?;
    if args.purge {
        if let Some(state) = State::find(&home)? {
            session::forget(&state.url())?;
        }
        berth_devstack::Postgres::purge(&home.join("postgres"))?;
        std::fs::remove_dir_all(&args.data_dir)
            .with_context(|| format!("cannot remove {}", args.data_dir.display()))?;
        eprintln!("berth: {} is removed", args.data_dir.display());
    }
    Ok(())
}
