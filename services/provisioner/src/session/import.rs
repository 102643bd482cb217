//! The session of an import: what a template has, and what it asks for.

use berth_proto::v1;

use super::{Asking, Code, Declared, Driver, Failure, Session};
use crate::report::Findings;
use crate::transfer;
use crate::veil::Veil;

/// How much of a README is kept, in bytes.
const MAX_README: u64 = 64 * 1024;

/// Reads a template version: what it has running and stopped, and what it asks for.
pub(crate) async fn import(
    driver: &mut Driver,
    session: &Session,
    asking: &Asking<'_>,
) -> Result<v1::TemplateImportResult, Failure> {
    session.step(v1::Step::Init, "Initializing", driver.init(session, &[])).await?;
    let declared = check_variables(driver, session, asking.job).await?;
    let planned = async {
        // Stop first: parameters and presets are taken off the last plan, that for start.
        let stopped = driver.plan(session, v1::Transition::Stop).await?;
        Ok((driver.plan(session, v1::Transition::Start).await?, stopped))
    };
    let (mut started, stopped) = session.step(v1::Step::Plan, "Planning", planned).await?;
    if let Some(text) = started.refused {
        return Err(Failure::new(Code::Template, text));
    }
    let findings = async {
        started.findings.readme = readme(session).await;
        if let Some(variables) = declared {
            started.findings.variables = variables;
        }
        tell_unclear_tags(session, &started.findings);
        session.reporter.found(std::mem::take(&mut started.findings));
        keep_modules(driver, session, asking).await
    };
    let modules = session.step(v1::Step::Graph, "Reading resources", findings).await?;
    Ok(v1::TemplateImportResult {
        start_resources: started.resources,
        stop_resources: stopped.resources,
        parameters: started.parameters,
        presets: started.presets,
        modules_file_id: modules,
    })
}

/// Says of which tags every workspace gets the same value, though the template may mean otherwise.
fn tell_unclear_tags(session: &Session, findings: &Findings) {
    for name in &findings.unclear_tags {
        let value = findings.tags.get(name).map_or("", String::as_str);
        let text = format!(
            "the tag {name:?} is {value:?} for every workspace: how it depends on parameters cannot be \
             followed; write it as a text with ${{data.coder_parameter.LABEL.value}} in it"
        );
        session.reporter.daemon(v1::LogLevel::Warn, &text);
    }
}

/// Tells of the variables that the template declares, whatever comes of the import, and refuses to
/// plan while one has no value.
async fn check_variables(
    driver: &Driver,
    session: &Session,
    job: &v1::Job,
) -> Result<Option<Vec<v1::TemplateVariable>>, Failure> {
    let Some(Declared { variables, missing }) = driver.declared(session).await else {
        return Ok(None);
    };
    session.reporter.veil_with(Veil::declared(job, &variables));
    session.reporter.found(Findings { variables: variables.clone(), ..Findings::default() });
    if missing.is_empty() {
        return Ok(Some(variables));
    }
    Err(Failure::new(
        Code::RequiredVariables,
        format!(
            "the template needs values for these variables: {}; give them with the push \
             (--variable name=value, or --variables-file)",
            missing.join(", ")
        ),
    ))
}

/// Stores what the template fetched for the builds to come. Without it they fetch it themselves,
/// which is worse, but no reason to refuse the template.
async fn keep_modules(
    driver: &Driver,
    session: &Session,
    asking: &Asking<'_>,
) -> Result<Option<String>, Failure> {
    let stored = async {
        let Some(packed) = driver.modules(session).await? else { return Ok(None) };
        let file = (transfer::MODULES, &*packed);
        anyhow::Ok(Some(transfer::upload(asking.client, asking.job, file).await?))
    };
    let stored = tokio::select! {
        stored = stored => stored,
        () = session.reporter.stop().asked() => {
            session.reporter.going()?;
            return Ok(None);
        }
    };
    match stored {
        Ok(file) => Ok(file),
        Err(error) => {
            let text = format!("The modules are not kept, so each build fetches them: {error:#}");
            session.reporter.daemon(v1::LogLevel::Warn, &text);
            Ok(None)
        }
    }
}

async fn readme(session: &Session) -> Option<String> {
    use tokio::io::AsyncReadExt;
    let path = session.template().join("README.md");
    let mut text = Vec::new();
    let file = tokio::fs::File::open(path).await.ok()?;
    file.take(MAX_README).read_to_end(&mut text).await.ok()?;
    Some(String::from_utf8_lossy(&text).replace('\0', "\u{fffd}"))
}
