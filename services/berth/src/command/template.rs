//! `berth templates`.

pub(crate) mod example;
mod init;
mod variable;
pub(crate) mod version;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::client::{Client, text};
use crate::command::logs;
use crate::command::promotion::{self, PromoteArgs, PromotionArgs, WarmArgs};
use crate::output::Output;
use init::{InitArgs, PullArgs};
use variable::VariableArgs;
use version::{ArchiveArgs, DryRunArgs, VersionsArgs};

#[derive(Subcommand)]
pub(crate) enum TemplateCommand {
    /// Write an example template into a folder, to begin with
    Init(InitArgs),
    /// Push a directory as a new version and make it the active one
    Push(PushArgs),
    /// Write a version of a template into a folder
    #[command(disable_version_flag = true)]
    Pull(PullArgs),
    /// List templates
    List,
    /// List the versions of a template, and what a claim of their prebuilds replaces
    Versions(VersionsArgs),
    /// Plan a version with given values and show what a workspace would have; nothing is made
    #[command(disable_version_flag = true)]
    DryRun(DryRunArgs),
    /// Put a version away: nothing new is made of it
    Archive(ArchiveArgs),
    /// Take a version out again that was put away
    Unarchive(ArchiveArgs),
    /// Make a version the active one, at once or when its prebuilds are ready
    Promote(PromoteArgs),
    /// Show how a warm promotion goes, or the newest one went
    Promotion(PromotionArgs),
}

#[derive(Args)]
pub(crate) struct PushArgs {
    /// The template's directory
    dir: PathBuf,
    /// Name of the template; without it, the directory's
    #[arg(long)]
    name: Option<String>,
    /// What changed
    #[arg(long, short, default_value = "")]
    message: String,
    /// Leave the active version as it is
    #[arg(long, conflicts_with = "warm")]
    no_activate: bool,
    #[command(flatten)]
    variables: VariableArgs,
    #[command(flatten)]
    warm: WarmArgs,
}

pub(crate) async fn run(
    global: &Global,
    output: Output,
    command: TemplateCommand,
) -> anyhow::Result<()> {
    if let TemplateCommand::Init(args) = &command {
        return init::init(output, args);
    }
    let client = Client::from_session(global)?;
    match command {
        TemplateCommand::Init(_) => Ok(()),
        TemplateCommand::Push(args) => push(&client, output, &args).await.map(drop),
        TemplateCommand::Pull(args) => init::pull(&client, output, &args).await,
        TemplateCommand::List => show_templates(&client, output).await,
        TemplateCommand::Versions(args) => version::versions(&client, output, &args).await,
        TemplateCommand::DryRun(args) => version::dry_run(&client, output, &args).await,
        TemplateCommand::Archive(args) => version::archive(&client, output, &args, "archive").await,
        TemplateCommand::Unarchive(args) => {
            version::archive(&client, output, &args, "unarchive").await
        }
        TemplateCommand::Promote(args) => promotion::promote(&client, output, &args).await,
        TemplateCommand::Promotion(args) => promotion::promotion(&client, output, &args).await,
    }
}

impl PushArgs {
    /// Push `dir` under `name` and activate it.
    pub(crate) fn of(dir: PathBuf, name: &str) -> Self {
        Self {
            dir,
            name: Some(name.to_owned()),
            message: String::new(),
            no_activate: false,
            variables: VariableArgs::default(),
            warm: WarmArgs::plain(),
        }
    }
}

/// Uploads a directory, waits for its import and activates the version. Answers with the template.
pub(crate) async fn push(
    client: &Client,
    output: Output,
    args: &PushArgs,
) -> anyhow::Result<Value> {
    let name = name(args)?;
    let provisioner = if args.dir.join("template.toml").exists() { "exec" } else { "terraform" };
    let file = client.upload(archive(&args.dir)?).await?;
    let existing = find(client, &name).await?;
    let mut body = json!({
        "file_id": file, "storage_method": "file", "provisioner": provisioner,
        "message": args.message, "user_variable_values": args.variables.values()?,
    });
    if let Some(template) = &existing {
        body["template_id"] = template["id"].clone();
    }
    let version = client.post("/organizations/default/templateversions", &body).await?;
    let version_path = format!("/templateversions/{}", text(&version, "id"));
    logs::follow_job(client, output, &version_path).await?;
    let version = client.get(&version_path).await?;
    if text(&version, "job.status") != "succeeded" {
        bail!(
            "the import of {name} {}: {}",
            text(&version, "job.status"),
            text(&version, "job.error")
        );
    }
    let template = match existing {
        None => {
            let body = json!({ "name": name, "template_version_id": version["id"] });
            client.post("/organizations/default/templates", &body).await?
        }
        Some(template) if args.no_activate => template,
        Some(template) => {
            promotion::activate(client, output, &template, &version, &args.warm).await?;
            client.get(&format!("/templates/{}", text(&template, "id"))).await?
        }
    };
    output.fields(
        &json!({ "template": template, "version": version }),
        &[
            ("Template", name.clone()),
            ("Version", text(&version, "name").to_owned()),
            ("Active", (template["active_version_id"] == version["id"]).to_string()),
        ],
    );
    Ok(template)
}

fn name(args: &PushArgs) -> anyhow::Result<String> {
    if let Some(name) = &args.name {
        return Ok(name.clone());
    }
    let dir = args
        .dir
        .canonicalize()
        .with_context(|| format!("no template directory at {}", args.dir.display()))?;
    let name = dir.file_name().context("the root directory has no name: pass --name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Packs a directory. Terraform's own leftovers and hidden version control stay out.
fn archive(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let encoder = zstd::Encoder::new(Vec::new(), 3)?;
    let mut tar = tar::Builder::new(encoder);
    tar.follow_symlinks(false);
    add(&mut tar, dir, Path::new("")).with_context(|| format!("cannot pack {}", dir.display()))?;
    Ok(tar.into_inner()?.finish()?)
}

fn add<W: std::io::Write>(
    tar: &mut tar::Builder<W>,
    dir: &Path,
    below: &Path,
) -> anyhow::Result<()> {
    let mut entries: Vec<_> = dir.read_dir()?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let left_out = [".git", ".terraform", "terraform.tfstate", "terraform.tfstate.backup"];
        if left_out.iter().any(|it| name == **it) {
            continue;
        }
        let inside = below.join(&name);
        if entry.file_type()?.is_dir() {
            tar.append_dir(&inside, entry.path())?;
            add(tar, &entry.path(), &inside)?;
        } else {
            tar.append_path_with_name(entry.path(), &inside)?;
        }
    }
    Ok(())
}

/// The template of that name, if there is one.
pub(crate) async fn find(client: &Client, name: &str) -> anyhow::Result<Option<Value>> {
    let templates = client.get("/templates").await?;
    Ok(templates.as_array().into_iter().flatten().find(|it| text(it, "name") == name).cloned())
}

/// The template of that name, or an error that says which there are.
pub(crate) async fn get(client: &Client, name: &str) -> anyhow::Result<Value> {
    let templates = client.get("/templates").await?;
    let all = templates.as_array().map_or(&[] as &[Value], Vec::as_slice);
    if let Some(template) = all.iter().find(|it| text(it, "name") == name) {
        return Ok(template.clone());
    }
    let names: Vec<&str> = all.iter().map(|it| text(it, "name")).collect();
    bail!("no template {name:?}; there are: {}", names.join(", "))
}

async fn show_templates(client: &Client, output: Output) -> anyhow::Result<()> {
    let templates = client.get("/templates").await?;
    let rows = templates.as_array().into_iter().flatten().map(|it| {
        vec![
            text(it, "name").to_owned(),
            text(it, "organization_name").to_owned(),
            text(it, "provisioner").to_owned(),
            text(it, "updated_at").to_owned(),
            text(it, "deprecation_message").to_owned(),
        ]
    });
    let rows = rows.collect();
    output.rows(
        &templates,
        &["name", "organization", "provisioner", "updated", "deprecated"],
        rows,
    );
    Ok(())
}
