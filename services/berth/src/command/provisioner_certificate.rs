//! `berth provisioner certificates`: the names that certificates of daemons carry, and those that are
//! not taken any more.

use std::path::PathBuf;

use anyhow::Context as _;
use berth_domain::certificate::DaemonIdentity;
use clap::{Args, Subcommand};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::cli::Global;
use crate::client::{Client, text};
use crate::command::provisioner::{Within, daemons};
use crate::command::workspace::pair;
use crate::output::Output;

const PATH: &str = "provisionercertificates/revocations";

#[derive(Args)]
pub(crate) struct CertificateArgs {
    #[command(flatten)]
    within: Within,
    #[command(subcommand)]
    command: CertificateCommand,
}

#[derive(Subcommand)]
enum CertificateCommand {
    /// Print the URI that a daemon's certificate must have as its subject alternative name
    Uri {
        /// The one daemon that may use it; without, any daemon of the organization
        #[arg(long, value_name = "NAME")]
        daemon: Option<String>,
        /// A tag of every daemon that uses it; may be given several times
        #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = pair)]
        tags: Vec<(String, String)>,
    },
    /// List the revoked certificates
    List,
    /// Revoke a certificate; daemons that use it are refused from then on, and lose what they run
    Revoke {
        #[command(flatten)]
        which: Which,
        /// Why, for the list
        #[arg(long, default_value = "", value_name = "TEXT")]
        reason: String,
    },
}

/// The certificate to revoke.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Its SHA-256, as `openssl x509 -noout -fingerprint -sha256` prints it
    fingerprint: Option<String>,
    /// The one in this PEM file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The one that this daemon entered with last
    #[arg(long, value_name = "NAME")]
    daemon: Option<String>,
}

pub(crate) async fn run(
    global: &Global,
    output: Output,
    args: CertificateArgs,
) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let path = args.within.path(PATH);
    match args.command {
        CertificateCommand::Uri { daemon, tags } => {
            let uri = uri(&args.within.id(&client).await?, daemon, tags)?;
            output.fields(&json!({ "uri": uri }), &[("URI", uri)]);
        }
        CertificateCommand::List => {
            let revoked = client.get(&path).await?;
            let rows = revoked.as_array().into_iter().flatten();
            let rows = rows.map(|it| {
                ["fingerprint", "created_at", "reason"].map(|field| text(it, field).to_owned())
            });
            let rows = rows.map(Vec::from).collect();
            output.rows(&revoked, &["fingerprint", "revoked", "reason"], rows);
        }
        CertificateCommand::Revoke { which, reason } => {
            let fingerprint = which.fingerprint(&client, &args.within).await?;
            let body = json!({ "fingerprint": fingerprint, "reason": reason });
            client.post(&path, &body).await?;
            output.fields(&json!({ "revoked": fingerprint }), &[("Revoked", fingerprint.clone())]);
        }
    }
    Ok(())
}

/// What a certificate must carry; checked as the broker will.
fn uri(
    organization: &str,
    daemon: Option<String>,
    tags: Vec<(String, String)>,
) -> anyhow::Result<String> {
    let organization_id = organization.parse().context("the organization's id")?;
    let identity = DaemonIdentity { organization_id, daemon, tags: tags.into_iter().collect() };
    let uri = identity.to_string();
    uri.parse::<DaemonIdentity>()?;
    Ok(uri)
}

impl Which {
    async fn fingerprint(self, client: &Client, within: &Within) -> anyhow::Result<String> {
        if let Some(file) = &self.file {
            let certificate = CertificateDer::from_pem_file(file)
                .ok()
                .with_context(|| format!("{} has no certificate in PEM", file.display()))?;
            return Ok(hex::encode(Sha256::digest(&certificate)));
        }
        let Some(name) = &self.daemon else {
            // `sha256 Fingerprint=AB:CD:…`, or the digits alone.
            let given = self.fingerprint.unwrap_or_default();
            return Ok(given.rsplit('=').next().unwrap_or_default().to_owned());
        };
        let daemons = daemons(client, within).await?;
        let found = daemons.as_array().into_iter().flatten().find(|it| text(it, "name") == name);
        let found = found.with_context(|| format!("no daemon is named {name:?}"))?;
        let fingerprint = text(found, "certificate_fingerprint");
        anyhow::ensure!(
            !fingerprint.is_empty(),
            "daemon {name:?} entered with a key, not a certificate: `berth provisioner keys revoke {}`",
            text(found, "key_name")
        );
        Ok(fingerprint.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uri_is_one_that_brokers_take() {
        let organization = "11111111-2222-3333-4444-555555555555";
        let tags = vec![("zone".to_owned(), "eu".to_owned())];
        assert_eq!(
            uri(organization, Some("one".to_owned()), tags).unwrap(),
            format!("berth://organization/{organization}/provisioner/one?zone=eu")
        );
        assert!(uri(organization, None, Vec::new()).unwrap().ends_with("/provisioner/*"));
        assert!(uri(organization, Some("a b".to_owned()), Vec::new()).is_err());
    }
}
