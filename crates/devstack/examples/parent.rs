//! Starts a supervised `sleep 1000`, prints its process id and waits. `tests/lifeline.rs` kills
//! this process with SIGKILL and looks for the sleep.

use berth_devstack::{CommandSpec, DevstackError, Supervised};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), DevstackError> {
    let mut sleep = Supervised::spawn(&CommandSpec::new("sleep").args(["1000"]))?;
    println!("{}", sleep.pid());
    sleep.wait().await?;
    Ok(())
}
