//! What every process measures about itself.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts, Registry};

/// Adds the process' own metrics to `registry`. Called once per process, inside its runtime.
pub(crate) fn register(registry: &Registry, service: &'static str) -> prometheus::Result<()> {
    let build = Opts::new("berth_build_info", "Always 1; the labels say what is running.")
        .const_label("service", service)
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let build = IntGauge::with_opts(build)?;
    build.set(1);
    registry.register(Box::new(build))?;
    registry.register(Box::new(ProcessCollector::new()?))
}

/// Reads `/proc` and the runtime when it is scraped. Where there is no `/proc`, the gauges that
/// need it are left out.
struct ProcessCollector {
    runtime: tokio::runtime::Handle,
    resident: IntGauge,
    descriptors: IntGauge,
    threads: IntGauge,
    workers: IntGauge,
    alive: IntGauge,
    queued: IntGauge,
}

impl ProcessCollector {
    fn new() -> prometheus::Result<Self> {
        Ok(Self {
            runtime: tokio::runtime::Handle::current(),
            resident: IntGauge::new("process_resident_memory_bytes", "Resident memory.")?,
            descriptors: IntGauge::new("process_open_fds", "Open file descriptors.")?,
            threads: IntGauge::new("process_threads", "Operating system threads.")?,
            workers: IntGauge::new("berth_runtime_workers", "Worker threads of the runtime.")?,
            alive: IntGauge::new("berth_runtime_alive_tasks", "Tasks that have not ended.")?,
            queued: IntGauge::new(
                "berth_runtime_queued_tasks",
                "Tasks waiting in the runtime's shared queue.",
            )?,
        })
    }

    fn gauges(&self) -> [&IntGauge; 6] {
        [&self.resident, &self.descriptors, &self.threads, &self.workers, &self.alive, &self.queued]
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let runtime = self.runtime.metrics();
        self.workers.set(count(runtime.num_workers()));
        self.alive.set(count(runtime.num_alive_tasks()));
        self.queued.set(count(runtime.global_queue_depth()));
        let mut families: Vec<_> = [&self.workers, &self.alive, &self.queued]
            .into_iter()
            .flat_map(Collector::collect)
            .collect();

        // Two small files and one folder that the kernel makes up: no disk is touched.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let descriptors =
            std::fs::read_dir("/proc/self/fd").ok().map(|folder| count(folder.count()));
        let measured = [
            (&self.resident, field(&status, "VmRSS:").map(|kib| kib * 1024)),
            (&self.threads, field(&status, "Threads:")),
            (&self.descriptors, descriptors),
        ];
        for (gauge, value) in measured {
            if let Some(value) = value {
                gauge.set(value);
                families.extend(gauge.collect());
            }
        }
        families
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The first number on the line that starts with `name`.
fn field(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
