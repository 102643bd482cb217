//! The result of an import or a dry run.

use berth_backbone::Work;
use berth_db::completion::Place;
use berth_db::job::Locked;
use berth_db::{import, job_log, variable};
use berth_domain::id::{PresetId, VersionId};
use berth_domain::parameter::{Parameter, ParameterOption, Validation, check_definitions};
use berth_domain::preset::{self, Prebuilds, Preset, PresetSchedule, PresetSpec};
use berth_domain::state::{LogLevel, Transition};
use berth_proto::v1;

use super::{Refusal, build, collect};

/// Stores what an import found, once it was checked.
pub(super) async fn store(
    work: &mut Work,
    job: &Locked,
    result: &v1::TemplateImportResult,
) -> Result<(), Refusal> {
    let version = version_id(job)?;
    let unknown = variable::settle(work.conn(), version).await?;
    if !unknown.is_empty() {
        return Err(Refusal::Template(format!(
            "values were given for variables that the template does not declare: {}",
            unknown.join(", ")
        )));
    }
    let parameters = parameters(&result.parameters).map_err(Refusal::Template)?;
    let specs: Vec<PresetSpec> = result.presets.iter().map(spec).collect();
    let checked = preset::check(&specs, &parameters);
    if !checked.errors.is_empty() {
        let texts: Vec<String> = checked.errors.iter().map(ToString::to_string).collect();
        return Err(Refusal::Template(texts.join("; ")));
    }
    let now = work.now();
    for warning in &checked.warnings {
        let text = warning.to_string();
        job_log::insert_notes(work.conn(), &[job.id], LogLevel::Warn, &text, now).await?;
    }
    import::insert_parameters(work.conn(), version, &parameters).await?;
    let presets: Vec<Preset> =
        specs.into_iter().map(|spec| Preset { id: PresetId(work.id()), spec }).collect();
    import::insert_presets(work.conn(), version, &presets, now).await?;
    if let Some(file) = result.modules_file_id.as_deref().filter(|it| !it.is_empty()) {
        let file = file
            .parse()
            .map_err(|_| Refusal::Template(format!("modules file {file:?} is not a UUID")))?;
        import::set_modules(work.conn(), version, file, now).await?;
    }
    let start = &result.start_resources;
    store_resources(work, job, Transition::Start, start).await?;
    store_resources(work, job, Transition::Stop, &result.stop_resources).await
}

/// Stores what a dry run found.
pub(super) async fn store_dry_run(
    work: &mut Work,
    job: &Locked,
    result: &v1::TemplateDryRunResult,
) -> Result<(), Refusal> {
    store_resources(work, job, Transition::Start, &result.resources).await
}

async fn store_resources(
    work: &mut Work,
    job: &Locked,
    transition: Transition,
    resources: &[v1::Resource],
) -> Result<(), Refusal> {
    let found = collect::collect(work.ids(), job.id, resources).map_err(Refusal::Template)?;
    let place = Place { job_id: job.id, transition, owner: None };
    Ok(build::insert(work, &[place], &[&found]).await?)
}

fn version_id(job: &Locked) -> Result<VersionId, Refusal> {
    let text = job.input.get("template_version_id").and_then(serde_json::Value::as_str);
    text.and_then(|it| it.parse().ok())
        .ok_or_else(|| Refusal::Template("the job's input names no template version".to_owned()))
}

fn parameters(found: &[v1::Parameter]) -> Result<Vec<Parameter>, String> {
    let parameters = found.iter().map(parameter).collect::<Result<Vec<_>, _>>()?;
    let errors = check_definitions(&parameters);
    if errors.is_empty() {
        return Ok(parameters);
    }
    let texts: Vec<String> =
        errors.iter().map(|it| format!("parameter {:?}: {}", it.field, it.detail)).collect();
    Err(texts.join("; "))
}

fn parameter(it: &v1::Parameter) -> Result<Parameter, String> {
    let of = |error: berth_domain::state::UnknownValue| format!("parameter {:?}: {error}", it.name);
    let monotonic = match it.validation_monotonic.as_str() {
        "" => None,
        text => Some(text.parse().map_err(of)?),
    };
    let option = |it: &v1::ParameterOption| ParameterOption {
        name: it.name.clone(),
        description: it.description.clone(),
        value: it.value.clone(),
        icon: it.icon.clone(),
    };
    Ok(Parameter {
        name: it.name.clone(),
        display_name: it.display_name.clone(),
        description: it.description.clone(),
        kind: it.r#type.parse().map_err(of)?,
        mutable: it.mutable,
        default_value: it.default_value.clone(),
        icon: it.icon.clone(),
        options: it.options.iter().map(option).collect(),
        validation: Validation {
            regex: Some(it.validation_regex.clone()).filter(|it| !it.is_empty()),
            min: it.validation_min,
            max: it.validation_max,
            monotonic,
            error: it.validation_error.clone(),
        },
        required: it.required,
        ephemeral: it.ephemeral,
        form_type: it.form_type.parse().map_err(of)?,
        order: it.order,
    })
}

fn spec(it: &v1::Preset) -> PresetSpec {
    let schedule =
        |it: &v1::Schedule| PresetSchedule { cron: it.cron.clone(), instances: it.instances };
    PresetSpec {
        name: it.name.clone(),
        description: it.description.clone(),
        icon: it.icon.clone(),
        is_default: it.is_default,
        parameters: it.parameters.iter().map(|it| (it.name.clone(), it.value.clone())).collect(),
        prebuilds: it.prebuilds.as_ref().map(|it| Prebuilds {
            instances: it.instances,
            ttl_seconds: it.ttl_seconds,
            timezone: it.timezone.clone(),
            schedules: it.schedules.iter().map(schedule).collect(),
        }),
    }
}
