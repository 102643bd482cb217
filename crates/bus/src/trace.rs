//! W3C trace context in message headers and in stored rows.

use std::collections::{BTreeMap, HashMap};

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The current span's context as headers; empty when tracing is off.
#[must_use]
pub fn inject() -> BTreeMap<String, String> {
    let mut headers = Headers::default();
    let span = Span::current().context();
    // A span that is only logged (its level is too low for the collector) has no context; the one
    // around it has.
    let context = if span.span().span_context().is_valid() { span } else { Context::current() };
    opentelemetry::global::get_text_map_propagator(|it| it.inject_context(&context, &mut headers));
    headers.0.into_iter().collect()
}

/// Links the current span to the context found in `headers`, if there is one. Consumers of queued
/// work start a trace of their own, so that a pool's traces neither last for hours nor explode.
pub fn link<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let context = extract(headers);
    let producer = context.span().span_context().clone();
    if producer.is_valid() {
        Span::current().add_link(producer);
    }
}

/// Makes `span` a part of the trace found in `headers`, if there is one. Must be called before the
/// span is entered.
pub fn continue_from<'a>(span: &Span, headers: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let context = extract(headers);
    if context.span().span_context().is_valid() {
        // Fails only where no tracing layer is installed; there is nothing to continue then.
        let _ = span.set_parent(context);
    }
}

fn extract<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Context {
    let headers = Headers(headers.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
    // From nothing: where the headers carry no trace, the current span would be found instead.
    opentelemetry::global::get_text_map_propagator(|it| {
        it.extract_with_context(&Context::new(), &headers)
    })
}

#[derive(Default)]
struct Headers(HashMap<String, String>);

impl Injector for Headers {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}

impl Extractor for Headers {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}
