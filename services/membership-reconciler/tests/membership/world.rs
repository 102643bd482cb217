//! Organizations with templates, and replicas that keep them in order.

use std::sync::{Arc, Mutex};

use berth_backbone::{Clock, Ids};
use berth_membership_reconciler::{Membership, Metrics};
use berth_testkit::TestDatabase;
use prometheus::Registry;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// The prebuilds user's rows in a table: all of them.
const OURS: &str = "user_id = 'c42fdf75-3097-471c-8c33-fb52454d81c0'";

/// Organizations `org-1`, `org-2`, …, each with a template `go` whose active version has `presets`
/// presets with a prebuild configuration.
pub(crate) async fn given_organizations(count: i64, presets: i64) -> TestDatabase {
    let database = TestDatabase::create().await;
    let ada = "00000000-0000-0000-0000-0000000000ff";
    database
        .rows(&format!(
            "
            begin;
            insert into users (id, username, email, created_at, updated_at)
            values ('{ada}', 'ada', 'ada@example.com', now(), now());
            create temporary table made as
                select gen_random_uuid() as org, gen_random_uuid() as template,
                       gen_random_uuid() as version, gen_random_uuid() as job, n
                from generate_series(1, {count}) n;
            insert into organizations (id, name, created_at, updated_at)
                select org, 'org-' || n, now(), now() from made;
            insert into provisioner_jobs (id, organization_id, initiator_id, kind, provisioner,
                                          class, file_id, input, created_at, updated_at)
                select job, org, '{ada}', 'template_version_import', 'terraform', 0,
                       gen_random_uuid(), '{{}}', now(), now() from made;
            insert into templates (id, organization_id, name, provisioner, active_version_id,
                                   created_by, created_at, updated_at)
                select template, org, 'go', 'terraform', version, '{ada}', now(), now() from made;
            insert into template_versions (id, template_id, organization_id, name, job_id,
                                           provisioner, created_by, created_at, updated_at)
                select version, template, org, 'v1', job, 'terraform', '{ada}', now(), now()
                from made;
            insert into template_version_presets (id, template_version_id, name, desired_instances,
                                                  created_at)
                select gen_random_uuid(), version, 'preset ' || p, 1, now()
                from made, generate_series(1, {presets}) p;
            commit;"
        ))
        .await;
    database
}

/// One replica with a clock, and its metrics.
pub(crate) fn replica(database: &TestDatabase, clock: &Clock) -> (Membership, Registry) {
    let registry = Registry::new();
    let membership = Membership {
        db: berth_db::connect(&database.url, 4, "test").expect("the address is one"),
        clock: clock.clone(),
        ids: Ids,
        concurrency: 4,
        remove_unused: false,
        metrics: Metrics::register(&registry).expect("the metrics are new"),
    };
    (membership, registry)
}

/// One replica.
pub(crate) fn membership(database: &TestDatabase) -> Membership {
    replica(database, &Clock::default()).0
}

/// The sum of a metric's series.
pub(crate) fn metric(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|it| it.name() == name);
    let series = family.unwrap_or_else(|| panic!("no metric {name}")).get_metric();
    series.iter().map(|it| it.get_counter().get_value() + it.get_gauge().get_value()).sum()
}

/// Rows of a table for which a condition holds.
pub(crate) async fn count(database: &TestDatabase, table: &str, filter: &str) -> usize {
    let count = database.count(&format!("select count(*) from {table} where {filter}")).await;
    usize::try_from(count).expect("counts are not negative")
}

/// How many memberships, groups and group memberships prebuilds have.
pub(crate) async fn seats(database: &TestDatabase) -> (usize, usize, usize) {
    (
        count(database, "organization_members", OURS).await,
        count(database, "groups", "name = 'coderprebuiltworkspaces'").await,
        count(database, "group_members", OURS).await,
    )
}

/// What was said while it was listened to.
#[derive(Clone, Default)]
pub(crate) struct Ear {
    statements: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Ear {
    /// Listens on this thread until the guard is dropped.
    pub(crate) fn listen(&self) -> tracing::subscriber::DefaultGuard {
        tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone()))
    }

    /// The statements that the driver sent, and forgets them.
    pub(crate) fn statements(&self) -> Vec<String> {
        std::mem::take(&mut *self.statements.lock().expect("no test panics while it listens"))
    }

    /// What was logged as an error.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.errors.lock().expect("no test panics while it listens").clone()
    }
}

impl<S: tracing::Subscriber> Layer<S> for Ear {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let heard = if event.metadata().target() == "sqlx::query" {
            &self.statements
        } else if *event.metadata().level() == tracing::Level::ERROR {
            &self.errors
        } else {
            return;
        };
        heard.lock().expect("no test panics while it listens").push(text.0);
    }
}

/// All fields of an event.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write as _;
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}
