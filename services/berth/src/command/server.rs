//! `berth server`: what an operator does to the deployment's own data.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use berth_backbone::{Clock, EncryptionConfig, rekey};
use clap::{Args, Subcommand};
use tempfile::NamedTempFile;

/// Connections that a change of keys opens.
const CONNECTIONS: u32 = 2;

#[derive(Subcommand)]
pub(crate) enum ServerCommand {
    /// Look after the keys that seal secrets in the database
    #[command(subcommand)]
    Dbcrypt(DbcryptCommand),
}

#[derive(Subcommand)]
pub(crate) enum DbcryptCommand {
    /// Make a key. Keep a copy of it: without it what it sealed is lost
    Keygen(KeygenArgs),
    /// Bring every secret to the first key; older keys can then be taken out
    ///
    /// First give all services the new key in front of the old one, and restart them. The secrets
    /// themselves stay as they are: only the key that each has of its own is sealed anew. It can be
    /// repeated, and services may run meanwhile.
    Rotate(KeysArgs),
    /// Store every secret readable, so that encryption can be switched off
    ///
    /// First restart all services with `BERTH_ENCRYPTION__OFF=true` and the keys they have.
    Decrypt(KeysArgs),
}

#[derive(Args)]
pub(crate) struct KeygenArgs {
    /// Name of the key; today's date if not given
    #[arg(long)]
    name: Option<String>,
    /// Write it to this file, mode 0600, instead of showing it; a file that is there stays
    #[arg(long)]
    file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct KeysArgs {
    /// The database
    #[arg(long, env = "BERTH_DATABASE__URL", hide_env_values = true, value_name = "URL")]
    database_url: String,
    /// The keys, as services have them
    #[arg(long, env = "BERTH_ENCRYPTION__KEYS", hide_env_values = true, value_name = "KEYS")]
    keys: Option<String>,
    /// A file with the keys, as services have it
    #[arg(long, env = "BERTH_ENCRYPTION__KEYS_FILE", value_name = "FILE")]
    keys_file: Option<PathBuf>,
}

pub(crate) async fn run(command: ServerCommand) -> anyhow::Result<()> {
    let ServerCommand::Dbcrypt(command) = command;
    match command {
        DbcryptCommand::Keygen(args) => keygen(args),
        DbcryptCommand::Rotate(args) => change(args, false).await,
        DbcryptCommand::Decrypt(args) => change(args, true).await,
    }
}

/// Makes a file with a key, unless there is one.
pub(crate) fn ensure_key_file(path: &Path) -> anyhow::Result<()> {
    keygen(KeygenArgs { name: None, file: Some(path.to_owned()) })
}

fn keygen(args: KeygenArgs) -> anyhow::Result<()> {
    let name = args.name.unwrap_or_else(|| Clock::default().now().strftime("%Y-%m-%d").to_string());
    let key = berth_vault::new_key(&name)?;
    let Some(path) = args.file else {
        println!("{key}");
        return Ok(());
    };
    let failed = || format!("cannot write {}", path.display());
    let dir = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Whole or not at all, and of mode 0600 from its first byte on.
    let mut file = NamedTempFile::new_in(dir).with_context(failed)?;
    file.write_all(format!("{key}\n").as_bytes()).with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    match file.persist_noclobber(&path) {
        Ok(_) => Ok(()),
        // A key that was there may have sealed something by now.
        Err(refused) if refused.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(refused) => Err(refused.error).with_context(failed),
    }
}

async fn change(args: KeysArgs, off: bool) -> anyhow::Result<()> {
    let config = EncryptionConfig {
        keys: args.keys.unwrap_or_default().into(),
        keys_file: args.keys_file.unwrap_or_default(),
        off,
    };
    let vault = config.vault()?;
    let clock = Clock::default();
    let db = berth_db::connect(&args.database_url, CONNECTIONS, "berth-dbcrypt")?;
    berth_db::schema::check(&db).await?;
    vault.check(&db, &clock).await?;
    let done = rekey(&db, &vault, &clock).await?;
    match vault.current() {
        Some(name) => println!("{} secrets brought to the key {name}", done.values),
        None => println!("{} secrets are readable now", done.values),
    }
    if !done.retired.is_empty() {
        println!("no longer needed: {}", done.retired.join(", "));
    }
    Ok(())
}
