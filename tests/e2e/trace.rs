//! What a collector of traces sees of a pool and of a claim.

use std::collections::BTreeSet;

use berth_testkit::{SeenSpan, Service, TestStack, TraceSink};

use crate::{BERTH, template};

const TRACED: [(Service, &str); 4] = [
    (Service::Api, "berth-api"),
    (Service::Reconciler, "berth-reconciler"),
    (Service::Broker, "berth-provisioner-broker"),
    (Service::Provisioner, "berth-provisioner"),
];

/// From a claim one can walk to the passes of the reconciler before and after it, to its own job,
/// and to the prebuild's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_leads_to_its_job_and_to_the_pass_that_ordered_the_prebuild() {
    let sink = TraceSink::start().await;
    let mut builder = TestStack::builder(BERTH);
    for (service, _) in TRACED {
        // With it there are spans that are logged and not exported; traces go on through them.
        builder = builder.set(service, "BERTH_PROCESS__LOG__LEVEL", "info,berth_backbone=debug");
        builder = builder.set(service, "OTEL_EXPORTER_OTLP_ENDPOINT", sink.url());
        builder = builder.set(service, "OTEL_BSP_SCHEDULE_DELAY", "100");
    }
    let stack = builder.start().await;
    let pushed = stack.given_template("traced", template::plain(&[("small", 1)])).await;
    stack.pool_has(&pushed, 1).await;
    let preset = stack.app.preset(&stack.owner, &pushed, "small").await;
    let workspace =
        stack.app.create_workspace(&stack.owner, &pushed, Some(&preset), "mine").await.ok();
    stack.app.built(&stack.owner, &workspace).await;
    stack.pool_has(&pushed, 1).await;
    assert_eq!(hits(&stack).await, 1, "the workspace is a prebuild");

    let claim = sink.span("the claim", |it| is(it, "berth-api", "http.workspace.create")).await;
    sink.span("the edge's span around it", |it| it.id == claim.parent).await;
    follows(&sink, &claim.trace, "berth-reconciler", "reconcile.wakeup").await;
    let job = follows(&sink, &claim.trace, "berth-provisioner", "job.run").await;
    sink.span("a call in the job's trace, as the broker sees it", |it| {
        it.trace == job.trace
            && it.service == "berth-provisioner-broker"
            && it.name == "rpc.provisioner.complete_job"
    })
    .await;

    let [ordered] = &claim.links[..] else { panic!("one link, to the prebuild: {claim:?}") };
    sink.span("the prebuild's order", |it| {
        it.trace == *ordered && is(it, "berth-reconciler", "reconcile.create")
    })
    .await;
    let first = follows(&sink, ordered, "berth-provisioner", "job.run").await;
    assert_ne!(first.trace, job.trace, "each job has a trace of its own");

    let own = sink.spans().into_iter().find(|it| it.links.contains(&it.trace));
    assert_eq!(own, None, "what carries no trace links to none");

    let seen: BTreeSet<String> = sink.spans().into_iter().map(|it| it.service).collect();
    for (_, name) in TRACED {
        assert!(seen.contains(name), "nothing of {name}: {seen:?}");
    }
}

/// Waits for a span in a trace of its own that links to `trace`.
async fn follows(sink: &TraceSink, trace: &str, service: &str, name: &str) -> SeenSpan {
    let what = format!("{name} of {service}, linked to {trace}");
    sink.span(&what, |it| {
        is(it, service, name) && it.trace != trace && it.links.iter().any(|link| link == trace)
    })
    .await
}

fn is(span: &SeenSpan, service: &str, name: &str) -> bool {
    span.service == service && span.name == name
}

async fn hits(stack: &TestStack) -> i64 {
    stack.database().count("select count(*) from claim_attempts where outcome = 'hit'").await
}
