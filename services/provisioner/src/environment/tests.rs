use super::*;

fn own() -> impl Iterator<Item = (String, String)> {
    let all = [("PATH", "/bin"), ("BERTH_PROVISIONER__KEY", "k3y"), ("AWS_PROFILE", "dev")];
    all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()))
}

fn base() -> Base {
    let config = ProvisionerConfig {
        passthrough_env: vec!["AWS_PROFILE".into()],
        template_env: BTreeMap::from([("TF_VAR_root".to_owned(), "/w".to_owned())]),
        berth_path: "/opt/it's/berth".into(),
        ..Default::default()
    };
    Base::new(&config, own())
}

fn build(stage: v1::BuildStage) -> v1::Job {
    let metadata = v1::Metadata {
        transition: v1::Transition::Stop.into(),
        owner_name: "alice".into(),
        owner_groups: vec!["a".into(), "b\"c".into()],
        owner_roles: vec![v1::Role { name: "member".into(), organization_id: "o".into() }],
        stage: stage.into(),
        ..Default::default()
    };
    let value =
        |name: &str, value: &str| v1::ParameterValue { name: name.into(), value: value.into() };
    let build = v1::WorkspaceBuild {
        build_id: "b1".into(),
        parameters: vec![value("size", "small")],
        previous_parameters: vec![value("size", "tiny")],
        metadata: Some(metadata),
        running_agents: vec![v1::RunningAgent { agent_id: "a1".into(), token: "t1".into() }],
        ..Default::default()
    };
    v1::Job {
        access_url: "http://berth/".into(),
        variables: [("root", "/v"), ("zone", "eu")]
            .map(|(name, value)| v1::VariableValue {
                name: name.into(),
                value: value.into(),
                sensitive: false,
            })
            .into(),
        input: Some(v1::job::Input::WorkspaceBuild(build)),
        ..Default::default()
    }
}

#[test]
fn nothing_of_the_daemons_environment_gets_in_but_what_is_listed() {
    let all = base().of_job(&build(v1::BuildStage::None));
    assert_eq!(all["PATH"], "/bin");
    assert_eq!(all["AWS_PROFILE"], "dev");
    assert!(!all.values().any(|value| value.contains("k3y")), "{all:?}");
}

#[test]
fn a_build_carries_what_the_provider_reads() {
    let all = base().of_job(&build(v1::BuildStage::None));
    assert_eq!(all["CODER_WORKSPACE_TRANSITION"], "stop");
    assert_eq!(all["CODER_WORKSPACE_BUILD_ID"], "b1");
    assert_eq!(all["CODER_WORKSPACE_OWNER"], "alice");
    assert_eq!(all["CODER_WORKSPACE_OWNER_GROUPS"], r#"["a","b\"c"]"#);
    assert_eq!(all["CODER_WORKSPACE_OWNER_RBAC_ROLES"], r#"[{"name":"member","org_id":"o"}]"#);
    assert_eq!(all[&format!("CODER_PARAMETER_{}", digest("size"))], "small");
    assert_eq!(all[&format!("CODER_PARAMETER_PREVIOUS_{}", digest("size"))], "tiny");
    assert_eq!(all[&format!("CODER_RUNNING_WORKSPACE_AGENT_TOKEN_{}", digest("a1"))], "t1");
    assert_eq!(all[&format!("CODER_RUNNING_WORKSPACE_AGENT_TOKEN_{}", digest(""))], "t1");
    assert_eq!(all["TF_VAR_zone"], "eu");
    assert_eq!(all["TF_VAR_root"], "/w", "what the daemon's operator set stands");
}

#[test]
fn names_are_hashed_as_the_provider_expects() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(digest(""), empty);
}

#[test]
fn only_a_prebuild_and_a_claim_say_so() {
    let (prebuild, claim) = ("CODER_WORKSPACE_IS_PREBUILD", "CODER_WORKSPACE_IS_PREBUILD_CLAIM");
    for (stage, expected) in [
        (v1::BuildStage::None, [false, false]),
        (v1::BuildStage::Prebuild, [true, false]),
        (v1::BuildStage::Claim, [false, true]),
    ] {
        let all = base().of_job(&build(stage));
        assert_eq!([prebuild, claim].map(|name| all.contains_key(name)), expected);
    }
}

#[test]
fn the_init_script_quotes_berth_and_names_its_machine() {
    let all = base();
    let script = &all.variables()["CODER_AGENT_SCRIPT_linux_arm64"];
    assert!(script.contains(r"command -v '/opt/it'\''s/berth'"), "{script}");
    assert!(script.contains("${ACCESS_URL}bin/berth-linux-arm64"), "{script}");
}

/// An import plans outside of any build.
#[test]
fn an_import_has_no_build() {
    let import = v1::TemplateImport { metadata: Some(v1::Metadata::default()) };
    let job = v1::Job { input: Some(v1::job::Input::TemplateImport(import)), ..Default::default() };
    assert!(!base().of_job(&job).contains_key("CODER_WORKSPACE_BUILD_ID"));
}

/// Whom a template may ask for a secret.
#[test]
fn a_build_is_one_for_the_provider_unless_its_owner_can_have_no_secrets() {
    use v1::{BuildStage as Stage, Transition};
    for (stage, transition, rehearsal, is_build) in [
        (Stage::None, Transition::Start, false, true),
        (Stage::None, Transition::Stop, false, true),
        (Stage::Claim, Transition::Start, false, true),
        (Stage::Claim, Transition::Start, true, false),
        (Stage::Prebuild, Transition::Start, false, false),
        (Stage::Prebuild, Transition::Stop, false, true),
        (Stage::Prebuild, Transition::Delete, false, true),
    ] {
        let mut job = build(stage);
        let Some(v1::job::Input::WorkspaceBuild(mut it)) = job.input.take() else { unreachable!() };
        it.metadata.as_mut().unwrap().transition = transition.into();
        job.input = Some(if rehearsal {
            v1::job::Input::Rehearsal(v1::Rehearsal { claim: Some(it) })
        } else {
            v1::job::Input::WorkspaceBuild(it)
        });
        let found = base().of_job(&job).contains_key("CODER_WORKSPACE_BUILD_ID");
        assert_eq!(found, is_build, "{stage:?} {transition:?} {rehearsal}");
    }
}

fn with_secrets(transition: v1::Transition) -> v1::Job {
    let mut job = build(v1::BuildStage::None);
    let Some(v1::job::Input::WorkspaceBuild(build)) = &mut job.input else { unreachable!() };
    build.metadata.as_mut().unwrap().transition = transition.into();
    let secret = |env: &str, path: &str| v1::UserSecret {
        env_name: env.into(),
        file_path: path.into(),
        value: "s3cret".into(),
    };
    build.user_secrets = vec![secret("TOKEN", ""), secret("", "~/.key"), secret("BOTH", "/k")];
    job
}

#[test]
fn secrets_are_there_by_variable_and_by_path_for_a_start_alone_and_never_in_the_rest() {
    let job = with_secrets(v1::Transition::Start);
    let names: Vec<_> = secrets(&job).into_keys().collect();
    assert_eq!(
        names,
        [
            "CODER_SECRET_ENV_BOTH",
            "CODER_SECRET_ENV_TOKEN",
            "CODER_SECRET_FILE_2f6b",
            "CODER_SECRET_FILE_7e2f2e6b6579",
        ]
    );
    assert!(!base().of_job(&job).values().any(|value| value.contains("s3cret")));
    for transition in [v1::Transition::Stop, v1::Transition::Delete, v1::Transition::Unspecified] {
        assert_eq!(secrets(&with_secrets(transition)), BTreeMap::new());
    }
}
