//! `berth templates init` and `berth templates pull`: templates as folders.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde_json::json;

use super::example::Example;
use super::version;
use crate::client::{Client, text};
use crate::output::Output;

#[derive(Args)]
#[command(after_help = "Example:\n  berth templates init mine --example docker")]
pub(crate) struct InitArgs {
    /// Folder that the template is written into; it must be empty or not be there
    dir: PathBuf,
    /// The example to begin with
    #[arg(long, value_enum, default_value_t = Example::Local)]
    example: Example,
}

#[derive(Args)]
#[command(after_help = "Example:\n  berth templates pull dev ./dev --version v3")]
pub(crate) struct PullArgs {
    /// Name of the template
    template: String,
    /// Folder that the template is written into; it must be empty or not be there. Without it, one
    /// of the template's name
    dir: Option<PathBuf>,
    /// Name of the version; without it, the active one
    #[arg(long = "version", id = "template_version", value_name = "VERSION")]
    version: Option<String>,
    /// Write the archive to this file as it was pushed, and unpack nothing
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    archive: Option<PathBuf>,
}

/// `berth templates init`.
pub(crate) fn init(output: Output, args: &InitArgs) -> anyhow::Result<()> {
    empty(&args.dir)?;
    args.example.write(&args.dir)?;
    let (name, dir) = (args.example.name(), args.dir.display().to_string());
    let next = format!("berth templates push {dir}");
    let document = json!({ "example": name, "dir": dir });
    output.fields(&document, &[("Example", name.to_owned()), ("Folder", dir), ("Next", next)]);
    Ok(())
}

/// `berth templates pull`.
pub(crate) async fn pull(client: &Client, output: Output, args: &PullArgs) -> anyhow::Result<()> {
    let (_, version) = version::get(client, &args.template, args.version.as_deref()).await?;
    let path = format!("/files/{}", text(&version, "job.file_id"));
    let to = if let Some(file) = &args.archive {
        let archive = client.download(&path).await?;
        std::fs::write(file, archive)
            .with_context(|| format!("cannot write {}", file.display()))?;
        file.clone()
    } else {
        let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(&args.template));
        empty(&dir)?;
        unpack(&client.download(&path).await?, &dir)?;
        dir
    };
    let (name, to) = (text(&version, "name").to_owned(), to.display().to_string());
    let document = json!({ "template": args.template, "version": name, "path": to });
    output.fields(
        &document,
        &[("Template", args.template.clone()), ("Version", name), ("Written to", to)],
    );
    Ok(())
}

/// Makes the folder; one that has something in it is not touched.
fn empty(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut entries = dir.read_dir().with_context(|| format!("cannot read {}", dir.display()))?;
    ensure!(entries.next().is_none(), "{} is not empty: name another folder", dir.display());
    Ok(())
}

/// Unpacks what somebody else may have packed: with the provisioner's rules, which let nothing out
/// of the folder.
fn unpack(archive: &[u8], dir: &Path) -> anyhow::Result<()> {
    let mut packed = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    std::io::Write::write_all(&mut packed, archive)?;
    if let Err(error) = berth_provisioner::unpack(packed.path(), dir) {
        bail!("the archive is refused: {error:#}");
    }
    Ok(())
}
