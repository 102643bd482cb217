//! What instance identities are checked against.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What instance identities are checked against. A cloud without certificates or keys is off, and
/// its endpoint answers 404.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InstanceIdentityConfig {
    /// Amazon EC2.
    pub aws: AwsConfig,
    /// Azure.
    pub azure: AzureConfig,
    /// Google Compute Engine.
    pub google: GoogleConfig,
}

/// Amazon EC2: identity documents.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwsConfig {
    /// AWS' public certificates of the regions in use, as PEM, one after the other.
    pub certificates: String,
    /// A file of more of them.
    pub certificates_file: PathBuf,
}

/// Azure: attested data.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AzureConfig {
    /// Root certificates, as PEM, one after the other.
    pub roots: String,
    /// A file of more of them.
    pub roots_file: PathBuf,
    /// Intermediate certificates, as PEM; those in the document itself are tried too.
    pub intermediates: String,
    /// A file of more of them.
    pub intermediates_file: PathBuf,
    /// Names of the certificates that may sign, and all names below these.
    pub signers: Vec<String>,
}

impl Default for AzureConfig {
    fn default() -> Self {
        let signers = [
            "metadata.azure.com",
            "metadata.azure.us",
            "metadata.azure.cn",
            "metadata.microsoftazure.de",
        ];
        Self {
            roots: String::new(),
            roots_file: PathBuf::new(),
            intermediates: String::new(),
            intermediates_file: PathBuf::new(),
            signers: signers.map(str::to_owned).to_vec(),
        }
    }
}

/// Google Compute Engine: identity tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GoogleConfig {
    /// Google's public keys: a JSON Web Key Set.
    pub keys: String,
    /// A file of such a set, read again once a minute: Google changes its keys every few weeks.
    pub keys_file: PathBuf,
    /// Audiences that a token may be for; empty: `http.access_url` alone.
    pub audiences: Vec<String>,
    /// Who may have issued a token.
    pub issuers: Vec<String>,
}

impl Default for GoogleConfig {
    fn default() -> Self {
        Self {
            keys: String::new(),
            keys_file: PathBuf::new(),
            audiences: Vec::new(),
            issuers: ["https://accounts.google.com", "accounts.google.com"]
                .map(str::to_owned)
                .to_vec(),
        }
    }
}
