//! Keeps processes running: one that dies is started again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use berth_devstack::{CommandSpec, Output, Supervised};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a process may take to stop before it is killed.
const GRACE: Duration = Duration::from_secs(25);
/// The pause before a process that died is started again; doubled each time it dies young.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// A process that lived this long starts with the first pause again.
const OLD: Duration = Duration::from_secs(30);

/// The processes of one `berth up`.
#[derive(Default)]
pub(super) struct Fleet {
    services: Vec<Keeper>,
    provisioners: Vec<Keeper>,
}

struct Keeper {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// This binary.
pub(super) fn binary() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this binary")
}

impl Fleet {
    /// Starts a service and keeps it running.
    pub(super) fn service(&mut self, name: &str, spec: CommandSpec) {
        self.services.push(Keeper::start(name, spec));
    }

    /// Starts a provisioner daemon and keeps it running.
    pub(super) fn provisioner(&mut self, name: &str, spec: CommandSpec) {
        self.provisioners.push(Keeper::start(name, spec));
    }

    /// Waits for ever; an error tells of a keeper that gave up, which none does.
    pub(super) async fn watch(&mut self) -> anyhow::Result<()> {
        let all = self.services.iter_mut().chain(&mut self.provisioners);
        let tasks: Vec<_> = all.map(|it| &mut it.task).collect();
        if tasks.is_empty() {
            return std::future::pending().await;
        }
        let (ended, ..) = futures_util::future::select_all(tasks).await;
        match ended {
            Ok(()) => bail!("a process is no longer kept running"),
            Err(error) => Err(error).context("keeping a process running"),
        }
    }

    pub(super) async fn stop_provisioners(&mut self) {
        stop(&mut self.provisioners).await;
    }

    pub(super) async fn stop_services(&mut self) {
        stop(&mut self.services).await;
    }
}

async fn stop(keepers: &mut Vec<Keeper>) {
    let keepers: Vec<Keeper> = std::mem::take(keepers);
    for keeper in &keepers {
        keeper.stop.cancel();
    }
    for keeper in keepers {
        if let Err(error) = keeper.task.await {
            eprintln!("berth: {error}");
        }
    }
}

impl Keeper {
    fn start(name: &str, mut spec: CommandSpec) -> Self {
        let stop = CancellationToken::new();
        let prefix = name.to_owned();
        spec.output = Output::Lines(Arc::new(move |_, line| eprintln!("{prefix:<22}| {line}")));
        let task = tokio::spawn(keep(name.to_owned(), spec, stop.clone()));
        Self { stop, task }
    }
}

async fn keep(name: String, spec: CommandSpec, stop: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = tokio::time::Instant::now();
        match Supervised::spawn(&spec) {
            Err(error) => eprintln!("berth: {name} does not start: {error}"),
            Ok(mut process) => {
                tokio::select! {
                    status = process.wait() => match status {
                        Ok(status) => eprintln!("berth: {name} ended ({status}); starting it again"),
                        Err(error) => eprintln!("berth: {name}: {error}"),
                    },
                    () = stop.cancelled() => {
                        if let Err(error) = process.terminate(GRACE).await {
                            eprintln!("berth: {name}: {error}");
                        }
                        return;
                    }
                }
            }
        }
        pause = if started.elapsed() > OLD { FIRST_PAUSE } else { (pause * 2).min(LAST_PAUSE) };
        tokio::select! { () = tokio::time::sleep(pause) => {}, () = stop.cancelled() => return }
    }
}
