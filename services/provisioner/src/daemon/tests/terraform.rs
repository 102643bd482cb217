//! Sessions of the real Terraform, with resources that are built into it. They need one on PATH and
//! say so where there is none.

use super::*;

pub(super) const MAIN: &str = r#"
variable "fail" { default = false }
resource "terraform_data" "first" {
  input = "one"
  provisioner "local-exec" {
    when    = destroy
    command = "echo gone >> $OUT/destroyed"
  }
}
resource "terraform_data" "second" {
  input            = terraform_data.first.id
  triggers_replace = terraform_data.first.output
  provisioner "local-exec" { command = "echo made; exit ${var.fail ? 4 : 0}" }
}
"#;

/// A scene, or `None` and a word about it.
pub(super) async fn scene() -> Option<Scene> {
    let scene = Scene::new(60).await;
    let types = scene.broker.until("it registered", |state| state.hello.is_some());
    types.await;
    let hello = scene.broker.with(|state| state.hello.clone()).unwrap();
    if hello.provisioner_types.contains(&"terraform".to_owned()) {
        return Some(scene);
    }
    eprintln!("skipped: there is no terraform or tofu on PATH");
    scene.stop().await;
    None
}

pub(super) fn transition(
    transition: v1::Transition,
    state: &[u8],
    in_life: v1::BuildStage,
) -> v1::job::Input {
    let v1::job::Input::WorkspaceBuild(mut build) = build(in_life, state) else { unreachable!() };
    build.metadata.as_mut().unwrap().transition = transition.into();
    v1::job::Input::WorkspaceBuild(build)
}

pub(super) fn start_with(state: &[u8]) -> v1::job::Input {
    transition(v1::Transition::Start, state, v1::BuildStage::None)
}

impl Scene {
    pub(super) async fn terraform(&self, id: &str, main: &str, input: v1::job::Input) {
        self.queue_for("terraform", id, (archive(&[("main.tf", main)]), input));
        self.done(id).await;
    }
}

#[tokio::test]
async fn a_workspace_is_built_and_deleted_and_its_state_travels() {
    let Some(scene) = scene().await else { return };
    scene.terraform("j", MAIN, start_with(b"")).await;
    let built = scene.built("j");
    let names: Vec<_> = built.resources.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["first", "second"]);
    scene.job("j", |job| {
        let timings = &job.completed.as_ref().unwrap().timings;
        let made = |it: &v1::Timing| it.resource == "terraform_data.first" && it.action == "create";
        assert!(timings.iter().any(made), "{timings:?}");
        assert!(job.lines.values().any(|line| line.contains("made")), "{:?}", job.lines);
    });
    let delete = transition(v1::Transition::Delete, &built.state, v1::BuildStage::None);
    scene.terraform("k", MAIN, delete).await;
    assert!(scene.built("k").resources.is_empty());
    assert_eq!(scene.until_file("destroyed").await, "gone");
    scene.stop().await;
}

#[tokio::test]
async fn a_failed_apply_reports_what_it_wrote_and_why() {
    let Some(scene) = scene().await else { return };
    scene.terraform("j", &MAIN.replace("default = false", "default = true"), start_with(b"")).await;
    let failed = scene.failed("j");
    assert_eq!(failed.error_code, "template");
    assert!(failed.error.contains("exit status 4"), "{}", failed.error);
    let state = String::from_utf8(failed.state.unwrap()).unwrap();
    assert!(state.contains("\"first\""), "{state}");
    scene.stop().await;
}

#[tokio::test]
async fn a_failed_plan_reports_its_diagnostics_and_no_state() {
    let Some(scene) = scene().await else { return };
    let main = "resource \"terraform_data\" \"a\" { input = terraform_data.b.id }";
    scene.terraform("j", main, start_with(b"")).await;
    let failed = scene.failed("j");
    assert_eq!(failed.state, None);
    assert!(failed.error.contains("Reference to undeclared resource"), "{}", failed.error);
    scene.terraform("k", "resource {", start_with(b"")).await;
    assert!(
        scene.failed("k").error.starts_with("terraform init failed"),
        "{:?}",
        scene.failed("k")
    );
    scene.stop().await;
}

#[tokio::test]
async fn a_claim_reports_what_it_replaces_and_what_forces_it() {
    let Some(scene) = scene().await else { return };
    scene.terraform("j", MAIN, start_with(b"")).await;
    let state = scene.built("j").state;
    let changed = MAIN.replace("\"one\"", "\"two\"");
    let claim = |state| transition(v1::Transition::Start, state, v1::BuildStage::Claim);
    scene.terraform("k", MAIN, claim(&state)).await;
    assert_eq!(scene.built("k").replacements, []);
    scene.terraform("l", &changed, claim(&state)).await;
    let [replaced] = &scene.built("l").replacements[..] else { panic!("{:?}", scene.built("l")) };
    assert_eq!(replaced.resource, "terraform_data.second");
    assert_eq!(replaced.paths, ["triggers_replace"]);
    scene.stop().await;
}

#[tokio::test]
async fn a_cancelled_apply_ends_terraform_and_keeps_the_state() {
    let Some(scene) = scene().await else { return };
    let main = r#"
resource "terraform_data" "first" {}
resource "terraform_data" "slow" {
  input = terraform_data.first.id
  provisioner "local-exec" { command = "echo $$ > $OUT/child; exec sleep 600" }
}
"#;
    scene.queue_for("terraform", "j", (archive(&[("main.tf", main)]), start_with(b"")));
    let child = scene.until_file("child").await;
    let canceled = v1::JobCanceled { job_id: "j".into() };
    scene.broker.say(v1::register_response::Message::JobCanceled(canceled));
    scene.done("j").await;
    let failed = scene.failed("j");
    assert_eq!(failed.error_code, "canceled");
    assert!(String::from_utf8(failed.state.unwrap()).unwrap().contains("\"first\""));
    gone(&child).await;
    scene.stop().await;
}

#[tokio::test]
async fn an_import_reads_variables_off_the_plan() {
    let Some(scene) = scene().await else { return };
    let main = "variable \"n\" {\n  default = 2\n  description = \"how many\"\n}\n\
                variable \"secret\" {\n  default = \"x\"\n  sensitive = true\n}\n";
    let import = v1::TemplateImport { metadata: None };
    scene.terraform("j", main, v1::job::Input::TemplateImport(import)).await;
    scene.job("j", |job| {
        assert!(job.completed.is_some(), "{:?}", job.failed);
        let variables = &job.update.template_variables;
        let read: Vec<_> = variables
            .iter()
            .map(|it| (&*it.name, &*it.r#type, &*it.default_value, it.sensitive))
            .collect();
        assert_eq!(read, [("n", "number", "2", false), ("secret", "string", "", true)]);
    });
    scene.stop().await;
}

/// The module is gone when the workspace is built; a lost answer does not matter.
#[tokio::test]
async fn modules_are_kept_at_import_and_come_with_each_build() {
    let Some(scene) = scene().await else { return };
    let module = scene.dir.path().join("module");
    std::fs::create_dir(&module).unwrap();
    std::fs::write(module.join("main.tf"), "resource \"terraform_data\" \"in\" {}\n").unwrap();
    let main = format!("module \"m\" {{ source = \"{}\" }}\n", module.display());
    scene.broker.with(|state| state.lose = HashMap::from([("upload", 1)]));
    let import = v1::TemplateImport { metadata: None };
    scene.terraform("j", &main, v1::job::Input::TemplateImport(import)).await;
    let imported = scene.job("j", |job| job.completed.clone().map(|it| it.result));
    let Some(Some(Done::TemplateImport(imported))) = imported else {
        panic!("{:?}", scene.failed("j"))
    };
    assert_eq!(imported.modules_file_id.as_deref(), Some("modules-j"));
    std::fs::remove_dir_all(&module).unwrap();
    let archive = archive(&[("main.tf", &main)]);
    scene.queue_with("terraform", "k", (archive, start_with(b""), imported.modules_file_id));
    scene.done("k").await;
    let built = scene.built("k");
    assert_eq!((&*built.resources[0].name, &*built.resources[0].module_path), ("in", "module.m"));
    scene.stop().await;
}

/// Terraform through a wrapper: what a full disk, a hang and a crash look like.
async fn wrapped(wrapper: &str) -> Option<Scene> {
    let path = std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join("terraform"))
        .find(|it| it.is_file())?;
    let dir = tempfile::tempdir().unwrap().keep();
    let script = format!("#!/bin/sh\n{wrapper}\nexec {} \"$@\"\n", path.display());
    let program = dir.join("terraform");
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    Some(
        Scene::with(60, |config| {
            config.provisioner.terraform_path = program.display().to_string();
            config.provisioner.force_cancel_interval = Period::from_secs(1);
        })
        .await,
    )
}

/// Only apply writes much; its state neither fits where it belongs nor beside it.
#[tokio::test]
async fn a_state_that_the_disk_has_no_room_for_is_not_lost() {
    let wrapper = "[ \"$1\" != apply ] || ulimit -f 24";
    let Some(scene) = wrapped(wrapper).await else { return };
    let main = "resource \"terraform_data\" \"many\" {\n  count = 60\n  \
                input = \"0123456789012345678901234567890123456789\"\n}\n";
    scene.terraform("j", main, start_with(b"")).await;
    let failed = scene.failed("j");
    assert!(failed.error.contains("Failed to save state"), "{}", failed.error);
    let state = failed.state.expect("the state is lost");
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state["resources"][0]["instances"].as_array().unwrap().len(), 60);
    let leaked = |job: &broker::Job| job.lines.values().any(|line| line.contains("\"lineage\""));
    assert!(!scene.job("j", leaked), "the state is in the log");
    scene.stop().await;
}

#[tokio::test]
async fn a_terraform_that_crashes_fails_the_job_and_the_next_one_runs() {
    let wrapper =
        "[ \"$1\" != plan ] || [ -e $OUT/crashed ] || { touch $OUT/crashed; kill -SEGV $$; }";
    let Some(scene) = wrapped(wrapper).await else { return };
    scene.terraform("j", MAIN, start_with(b"")).await;
    let failed = scene.failed("j");
    assert_eq!((&*failed.error_code, &failed.state), ("template", &None));
    assert!(failed.error.contains("signal: 11"), "{}", failed.error);
    scene.terraform("k", MAIN, start_with(b"")).await;
    assert!(!scene.built("k").state.is_empty());
    scene.stop().await;
}

/// Real Terraform, canceled in each of its commands; it and what it started hang and ignore the
/// interrupt.
#[tokio::test]
async fn a_cancel_in_each_step_ends_even_a_terraform_that_hangs_and_keeps_the_right_state() {
    for (command, state) in [("init", false), ("plan", false), ("apply", true), ("graph", true)] {
        let hang = "{ trap '' INT TERM; setsid sleep 600 & echo $! > $OUT/detached; \
                    echo $$ > $OUT/child; while :; do sleep 1; done; }";
        // The last command shows the state and is given no file.
        let when = if command == "graph" { "[ \"$1 $#\" = 'show 3' ]" } else { "" };
        let when = if when.is_empty() { format!("[ \"$1\" = {command} ]") } else { when.into() };
        let Some(scene) = wrapped(&format!("if {when}; then {hang}; fi")).await else { return };
        let main = "resource \"terraform_data\" \"first\" {}\n";
        scene.queue_for("terraform", "j", (archive(&[("main.tf", main)]), start_with(b"")));
        let (child, detached) =
            (scene.until_file("child").await, scene.until_file("detached").await);
        let canceled = v1::JobCanceled { job_id: "j".into() };
        scene.broker.say(v1::register_response::Message::JobCanceled(canceled));
        scene.done("j").await;
        let failed = scene.failed("j");
        assert_eq!(failed.error_code, "canceled", "{command}: {failed:?}");
        // Apply hung before it wrote anything; what it wrote before the last step is kept.
        let written = failed.state.is_some_and(|it| !it.is_empty());
        assert_eq!(written, state && command == "graph", "{command}");
        gone(&child).await;
        gone(&detached).await;
        scene.stop().await;
    }
}

/// The second build finds what the first one made, a third after a change of the template does not.
#[tokio::test]
async fn a_template_that_wants_it_has_its_folder_kept_between_builds() {
    let scene = Scene::with(60, |config| {
        config.provisioner.experiments = vec![crate::Experiment::ReuseTerraformWorkspace];
    })
    .await;
    let kept = scene.dir.path().join("work/daemon/workspaces/w1");
    let main = "module \"m\" { source = \"./m\" }\n";
    let files = [("main.tf", main), ("m/main.tf", "resource \"terraform_data\" \"in\" {}\n")];
    let queue = |id: &str, file: &str, state: &[u8], wanted: bool| {
        scene.queue_for("terraform", id, (archive(&files), start_with(state)));
        scene.broker.with(|all| {
            let archive = all.files.remove(&format!("file-{id}")).unwrap();
            all.files.insert(file.to_owned(), archive);
            let job = all.queue.back_mut().unwrap();
            job.reuse_terraform_workspace = wanted;
            job.archive_file_id = file.to_owned();
        });
    };
    queue("unwanted", "v1", b"", false);
    scene.done("unwanted").await;
    if scene.failed_with("no provisioner") {
        return scene.stop().await;
    }
    assert!(!kept.exists());
    let found = |id: &str| {
        let line = "With the providers of the build before";
        scene.job(id, |job| job.lines.values().any(|it| it == line))
    };
    let mut state = Vec::new();
    for (id, file, expected) in
        [("a", "v1", false), ("b", "v1", true), ("c", "v2", false), ("d", "v2", true)]
    {
        queue(id, file, &state, true);
        scene.done(id).await;
        state = scene.built(id).state;
        assert_eq!(found(id), expected, "{id}");
        assert!(kept.join("template").exists() && !kept.join("terraform.tfstate").exists());
    }
    let delete = transition(v1::Transition::Delete, &state, v1::BuildStage::None);
    scene.queue_for("terraform", "e", (archive(&files), delete));
    scene.broker.with(|all| all.queue.back_mut().unwrap().reuse_terraform_workspace = true);
    scene.done("e").await;
    assert!(scene.built("e").resources.is_empty());
    assert!(!kept.exists(), "a deleted workspace is remembered");
    scene.stop().await;
}

impl Scene {
    fn failed_with(&self, text: &str) -> bool {
        self.job("unwanted", |job| job.failed.as_ref().is_some_and(|it| it.error.contains(text)))
    }
}
