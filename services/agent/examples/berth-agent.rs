//! The agent as a program of its own, for this crate's tests: `berth-agent agent …` takes the
//! arguments of `berth agent …`.

use clap::Parser;

#[derive(Parser)]
enum Cli {
    Agent(berth_agent::AgentArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let Cli::Agent(args) = Cli::parse();
    args.execute().await
}
