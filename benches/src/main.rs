//! Measures Berth: one program per question, each beside its yardstick on the same Postgres.
//! Services run as the processes they are in production, behind a proxy that counts what they ask.

mod api;
mod args;
mod daemon;
mod data;
mod figure;
mod fleet;
mod load;
mod nats;
mod proxy;
mod psql;
mod question;
mod report;
mod run;
mod service;
mod stage;
mod waldump;
mod wire;
mod yardstick;

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    match run::run(args::Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
