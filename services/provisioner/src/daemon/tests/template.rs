//! What the real Terraform tells of a template before anything is made: imports and rehearsals.

use super::terraform::{MAIN, scene, start_with, transition};
use super::*;

#[tokio::test]
async fn a_rehearsal_finds_what_a_claim_would_replace_and_applies_nothing() {
    let Some(scene) = scene().await else { return };
    scene.terraform("j", MAIN, start_with(b"")).await;
    let state = scene.built("j").state;
    let v1::job::Input::WorkspaceBuild(claim) =
        transition(v1::Transition::Start, &state, v1::BuildStage::Claim)
    else {
        unreachable!()
    };
    let rehearsal = || v1::job::Input::Rehearsal(v1::Rehearsal { claim: Some(claim.clone()) });
    let found = |id: &str| {
        let completed = scene.job(id, |job| job.completed.clone());
        match completed.and_then(|it| it.result) {
            Some(Done::Rehearsal(it)) => it.replacements,
            other => panic!("{other:?}, {:?}", scene.failed(id)),
        }
    };
    scene.terraform("k", MAIN, rehearsal()).await;
    assert_eq!(found("k"), []);
    scene.terraform("l", &MAIN.replace("\"one\"", "\"two\""), rehearsal()).await;
    let replaced = found("l");
    assert_eq!(replaced.len(), 1, "{replaced:?}");
    assert_eq!(replaced[0].resource, "terraform_data.second");
    assert_eq!(replaced[0].paths, ["triggers_replace"]);
    scene.job("l", |job| {
        assert!(!job.steps.contains(&v1::Step::Apply), "{:?}", job.steps);
        let told = |it: &String| it.contains("terraform_data.second") && it.contains("triggers");
        assert!(job.lines.values().any(told), "{:?}", job.lines);
    });
    assert!(!scene.dir.path().join("destroyed").exists(), "nothing was replaced");
    scene.stop().await;
}

#[tokio::test]
async fn an_import_without_a_required_variable_says_which_and_tells_of_all() {
    let Some(scene) = scene().await else { return };
    let main = "variable \"region\" { type = string }\nvariable \"n\" { default = 2 }\n";
    let import = v1::job::Input::TemplateImport(v1::TemplateImport { metadata: None });
    scene.terraform("j", main, import.clone()).await;
    let failed = scene.failed("j");
    assert_eq!(failed.error_code, "required_template_variables");
    assert!(failed.error.contains("variables: region;"), "{}", failed.error);
    scene.job("j", |job| {
        let names: Vec<_> = job.update.template_variables.iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["n", "region"]);
    });
    scene.stop().await;
}
