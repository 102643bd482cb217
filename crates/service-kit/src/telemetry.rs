//! Logs to stderr and, when a collector is named, traces to it.

use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::{LogConfig, LogFormat};

/// How long the last spans may take to reach the collector when the process ends.
const FLUSH: Duration = Duration::from_secs(3);

/// Why logs or traces could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `process.log.level` is not a level or a list of `module=level`.
    #[error("`{directive}` is not a log level: use info, or info,berth_api=debug")]
    Level {
        /// What was given.
        directive: String,
        /// What the parser said.
        source: ParseError,
    },
    /// The collector's endpoint cannot be used.
    #[error("cannot export traces: check OTEL_EXPORTER_OTLP_ENDPOINT, or unset it")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// Something else in this process has already taken the logs.
    #[error("logging is already set up in this process")]
    Installed(#[source] tracing_subscriber::util::TryInitError),
    /// The log filter is gone: the process is ending.
    #[error("the log level cannot be changed any more")]
    Gone(#[source] reload::Error),
}

/// Changes the log level at run time. Spans that go to the collector are not affected.
#[derive(Clone)]
pub(crate) struct LogLevel(reload::Handle<EnvFilter, Registry>);

/// The telemetry of a process; kept to flush it at the end.
pub(crate) struct Telemetry {
    pub(crate) log_level: LogLevel,
    provider: Option<SdkTracerProvider>,
}

impl LogLevel {
    pub(crate) fn set(&self, directive: &str) -> Result<(), TelemetryError> {
        self.0.reload(filter(directive)?).map_err(TelemetryError::Gone)
    }
}

impl Telemetry {
    /// Sends what is still queued, waiting at most [`FLUSH`].
    pub(crate) async fn flush(self) {
        let Some(provider) = self.provider else { return };
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "some spans did not reach the collector");
        }
    }
}

/// Sets up logs and traces for this process. Must be called inside the runtime, which carries the
/// exporter's connection.
///
/// Spans go to a bounded queue (2048 unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise) and are
/// dropped when it is full, so that a slow or dead collector never slows a request.
pub(crate) fn install(service: &str, log: &LogConfig) -> Result<Telemetry, TelemetryError> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = exporting().then(|| provider(service)).transpose()?;
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("berth"))
            .with_filter(LevelFilter::INFO)
    });
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let terminal = std::io::stderr().is_terminal();
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Pretty => false,
        LogFormat::Json => true,
    };
    // A closed stderr must not end the process: that is what the lifeline is for.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .log_internal_errors(false);
    let lines = if json {
        let inner = Format::default().json().flatten_event(true).with_current_span(false);
        let format = JsonLine { service: service.to_owned(), inner };
        lines.fmt_fields(JsonFields::new()).event_format(format).boxed()
    } else {
        lines.with_timer(PrettyTime).boxed()
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .try_init()
        .map_err(TelemetryError::Installed)?;
    if let Some(provider) = &provider {
        global::set_tracer_provider(provider.clone());
    }
    Ok(Telemetry { log_level: LogLevel(handle), provider })
}

fn filter(directive: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(directive)
        .map_err(|source| TelemetryError::Level { directive: directive.to_owned(), source })
}

/// The standard's variables that turn the exporter on and off. It reads the rest of them itself.
#[expect(
    clippy::disallowed_methods,
    reason = "these variables belong to the OpenTelemetry standard, not to our configuration"
)]
fn exporting() -> bool {
    let set = |name| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
    let says = |name, text| std::env::var(name).is_ok_and(|v| v.trim().eq_ignore_ascii_case(text));
    (set("OTEL_EXPORTER_OTLP_ENDPOINT") || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
        && !says("OTEL_SDK_DISABLED", "true")
        && !says("OTEL_TRACES_EXPORTER", "none")
}

fn provider(service: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter =
        SpanExporter::builder().with_tonic().build().map_err(TelemetryError::Exporter)?;
    let resource = Resource::builder()
        .with_service_name(format!("berth-{service}"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance()))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// Tells replicas apart: in containers every process is number 1, on one machine all have its name.
fn instance() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    format!("{host}-{}", std::process::id())
}

/// The ids of the span that is current on this thread, when traces are on.
fn current_ids() -> Option<(String, String)> {
    let context = opentelemetry::Context::current();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| (span.trace_id().to_string(), span.span_id().to_string()))
}

/// A JSON line that begins with the service and, when there are any, the trace's ids.
struct JsonLine {
    service: String,
    inner: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        // The inner format writes one object; what is ours goes in front of its first key.
        write!(writer, r#"{{"service":"{}","#, self.service)?;
        if let Some((trace, span)) = current_ids() {
            write!(writer, r#""trace_id":"{trace}","span_id":"{span}","#)?;
        }
        writer.write_str(line.strip_prefix('{').unwrap_or(&line))
    }
}

/// The time and, when there is one, the trace's id.
struct PrettyTime;

impl FormatTime for PrettyTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(writer)?;
        match current_ids() {
            Some((trace, _)) => write!(writer, " {trace}"),
            None => Ok(()),
        }
    }
}
