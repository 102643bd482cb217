use super::*;

const GRACE: Duration = Duration::from_secs(5);

fn tasks() -> (Tasks, CancellationToken) {
    let shutdown = CancellationToken::new();
    (Tasks::new(shutdown.clone()), shutdown)
}

async fn drained(tasks: &Tasks) -> Result<(), String> {
    tasks.drain(GRACE, &CancellationToken::new()).await.map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn tasks_that_stop_when_asked_drain_cleanly() {
    let (tasks, shutdown) = tasks();
    tasks.spawn("sweep", shutdown.clone().cancelled_owned());
    tasks.spawn("relay", shutdown.clone().cancelled_owned());
    shutdown.cancel();
    assert_eq!(drained(&tasks).await, Ok(()));
}

#[tokio::test]
async fn a_task_that_ends_early_shuts_the_process_down() {
    let (tasks, shutdown) = tasks();
    tasks.spawn("sweep", shutdown.clone().cancelled_owned());
    tasks.spawn("relay", async {});
    assert_eq!(drained(&tasks).await, Err("task `relay` ended before shutdown".into()));
    assert!(shutdown.is_cancelled());
}

#[tokio::test]
async fn a_task_that_fails_is_named_with_its_error() {
    let (tasks, _shutdown) = tasks();
    tasks.spawn("relay", async { Err::<(), _>(std::io::Error::other("no bus")) });
    assert_eq!(drained(&tasks).await, Err("task `relay` failed: no bus".into()));
}

#[tokio::test]
async fn a_task_that_panics_shuts_the_process_down() {
    let (tasks, _shutdown) = tasks();
    tasks.spawn("relay", async { assert_eq!(1, 2, "on purpose") });
    assert_eq!(drained(&tasks).await, Err("task `relay` panicked".into()));
}

#[tokio::test]
async fn tasks_that_do_not_stop_in_time_are_named() {
    let (tasks, shutdown) = tasks();
    tasks.spawn("stuck", std::future::pending::<()>());
    tasks.spawn("stuck", std::future::pending::<()>());
    tasks.spawn("hung", std::future::pending::<()>());
    shutdown.cancel();
    let grace = Duration::from_millis(10);
    let error = tasks.drain(grace, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "tasks still running 10ms after shutdown: hung, stuck (x2)");
}

#[tokio::test]
async fn a_second_signal_ends_the_wait() {
    let (tasks, shutdown) = tasks();
    tasks.spawn("stuck", std::future::pending::<()>());
    shutdown.cancel();
    let hurry = CancellationToken::new();
    hurry.cancel();
    let error = tasks.drain(GRACE, &hurry).await.unwrap_err();
    assert_eq!(error.to_string(), "told to stop at once while these were stopping: stuck");
}
