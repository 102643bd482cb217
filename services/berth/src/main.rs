//! berth: the services, the workers and the command line, in one binary.
mod cli;
mod client;
mod command;
mod output;
mod process;
mod up;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
