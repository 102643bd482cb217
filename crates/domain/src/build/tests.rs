use super::*;

fn tags(pairs: &[(&str, &str)]) -> Tags {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

const PERSON: UserId = UserId(uuid::Uuid::from_u128(7));

#[test]
fn a_workspace_shows_what_its_latest_build_does() {
    use {JobStatus as Job, Transition as Do, WorkspaceStatus as Shown};
    let table = [
        (Job::Pending, [Shown::Pending, Shown::Pending, Shown::Pending]),
        (Job::Running, [Shown::Starting, Shown::Stopping, Shown::Deleting]),
        (Job::Succeeded, [Shown::Running, Shown::Stopped, Shown::Deleted]),
        (Job::Canceling, [Shown::Canceling, Shown::Canceling, Shown::Canceling]),
        (Job::Canceled, [Shown::Canceled, Shown::Canceled, Shown::Canceled]),
        (Job::Failed, [Shown::Failed, Shown::Failed, Shown::Failed]),
    ];
    for (job, expected) in table {
        let got = [Do::Start, Do::Stop, Do::Delete].map(|it| workspace_status(it, job));
        assert_eq!(got, expected, "{job}");
    }
}

#[test]
fn a_job_is_canceled_once_a_cancel_was_asked_whatever_its_error_says() {
    let facts = |started, cancel_asked, completed, error| {
        job_status(JobFacts { started, cancel_asked, completed, error })
    };
    assert_eq!(facts(false, false, false, None), JobStatus::Pending);
    assert_eq!(facts(true, false, false, None), JobStatus::Running);
    assert_eq!(facts(true, true, false, None), JobStatus::Canceling);
    assert_eq!(facts(true, false, true, None), JobStatus::Succeeded);
    assert_eq!(facts(true, false, true, Some("boom")), JobStatus::Failed);
    assert_eq!(facts(true, true, true, Some("boom")), JobStatus::Canceled);
    assert_eq!(facts(true, true, true, None), JobStatus::Canceled);
    assert_eq!(facts(false, true, true, None), JobStatus::Canceled);
}

#[test]
fn people_who_wait_come_before_pools() {
    use {BuildStage as Stage, JobKind as Kind, Transition as Do};
    let build =
        |transition, stage, by| job_class(Kind::WorkspaceBuild, Some((transition, stage)), by);
    assert_eq!(build(Do::Start, Stage::Claim, PERSON), JobClass::Claim);
    assert_eq!(build(Do::Start, Stage::None, PERSON), JobClass::Human);
    assert_eq!(build(Do::Delete, Stage::None, PERSON), JobClass::Human);
    assert_eq!(build(Do::Start, Stage::Prebuild, PREBUILDS_USER), JobClass::PrebuildCreate);
    assert_eq!(build(Do::Delete, Stage::Prebuild, PREBUILDS_USER), JobClass::PrebuildDelete);
    assert_eq!(build(Do::Delete, Stage::Prebuild, PERSON), JobClass::Human);
    assert_eq!(build(Do::Stop, Stage::Prebuild, PERSON), JobClass::Human);
    assert_eq!(job_class(Kind::TemplateVersionImport, None, PERSON), JobClass::Template);
    assert_eq!(job_class(Kind::TemplateVersionDryRun, None, PERSON), JobClass::Template);
    assert_eq!(job_class(Kind::Rehearsal, None, PREBUILDS_USER), JobClass::PrebuildDelete);
}

#[test]
fn tags_are_normalised_by_scope() {
    let organization = tags(&[("scope", "organization"), ("owner", "")]);
    for given in [
        tags(&[]),
        tags(&[("scope", "nonsense"), ("owner", "x")]),
        tags(&[("scope", "organization"), ("owner", "x")]),
    ] {
        assert_eq!(normalize_tags(given, PERSON), organization);
    }
    let own =
        normalize_tags(tags(&[("scope", "user"), ("owner", "other"), ("os", "linux")]), PERSON);
    assert_eq!(own, tags(&[("scope", "user"), ("owner", &PERSON.to_string()), ("os", "linux")]));
}

#[test]
fn a_job_needs_its_tags_and_an_untagged_one_needs_an_untagged_daemon() {
    let plain = tags(&[("scope", "organization"), ("owner", "")]);
    let linux = tags(&[("scope", "organization"), ("owner", ""), ("os", "linux")]);
    let big = tags(&[("scope", "organization"), ("owner", ""), ("os", "linux"), ("size", "big")]);
    let own = tags(&[("scope", "user"), ("owner", "7")]);
    assert!(tags_match(&plain, &plain));
    assert!(!tags_match(&plain, &linux));
    assert!(tags_match(&linux, &linux));
    assert!(tags_match(&linux, &big));
    assert!(!tags_match(&big, &linux));
    assert!(!tags_match(&linux, &plain));
    assert!(!tags_match(&own, &plain));
    assert!(!tags_match(&tags(&[("os", "windows")]), &big));
}

#[test]
fn only_agents_without_a_parent_count_for_readiness() {
    let agent = |is_sub_agent, lifecycle| AgentReadiness { is_sub_agent, lifecycle };
    let ready = agent(false, AgentLifecycle::Ready);
    assert!(is_ready(&[]));
    assert!(is_ready(&[ready, agent(true, AgentLifecycle::Created)]));
    for &lifecycle in AgentLifecycle::ALL {
        let is_fine = lifecycle == AgentLifecycle::Ready;
        assert_eq!(is_ready(&[ready, agent(false, lifecycle)]), is_fine, "{lifecycle}");
    }
}
