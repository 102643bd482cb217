//! Counts statements.

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

thread_local! {
    static SENT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Counts the statements that sqlx says it sends, by thread: a test's runtime has one. One for the
/// whole process: what listens on one thread only may be missed by a callsite that another thread
/// meets first.
pub(super) struct Statements;

impl Statements {
    /// Counts from now on.
    pub(super) fn listen() {
        static SET: Once = Once::new();
        SET.call_once(|| tracing::subscriber::set_global_default(Self).unwrap());
        SENT.set((0, 0));
    }

    pub(super) fn count() -> usize {
        SENT.get().0
    }

    /// Those that take jobs.
    pub(super) fn acquires() -> usize {
        SENT.get().1
    }
}

/// Whether it takes jobs, and whether it is the publisher's or the look for draining daemons, which run
/// beside what is counted.
#[derive(Default)]
struct Summary(bool, bool);

impl Visit for Summary {
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "summary" {
            self.0 = value.starts_with("with recursive asked");
            self.1 = value.starts_with("delete from outbox")
                || value.starts_with("select id from provisioner_daemons");
        }
    }
}

impl Subscriber for Statements {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut summary = Summary::default();
        event.record(&mut summary);
        let (all, acquires) = SENT.get();
        SENT.set((all + usize::from(!summary.1), acquires + usize::from(summary.0)));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
