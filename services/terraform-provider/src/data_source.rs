//! The data sources: one table, one module each.

mod from_environment;
mod parameter;
mod preset;
mod user;
mod workspace;

use crate::diagnostic::{Diagnostic, Path, any_error};
use crate::env::Environment;
use crate::plan;
use crate::schema::{Attribute, Block, Nested};
use crate::value::{Object, Value};
use crate::wire::tfplugin6::Schema;

/// What a data source or resource may know besides its own configuration.
#[derive(Clone)]
pub(crate) struct Context {
    /// The environment of this build.
    pub(crate) env: Environment,
    /// Where the deployment is reached, as it was configured.
    pub(crate) access_url: String,
}

impl Context {
    /// The access URL without its path, with a slash at the end.
    pub(crate) fn access_root(&self) -> String {
        match self.access_url.parse::<http::Uri>() {
            Ok(uri) => match (uri.scheme_str(), uri.authority()) {
                (Some(scheme), Some(authority)) => format!("{scheme}://{authority}/"),
                _ => self.access_url.clone(),
            },
            Err(_) => self.access_url.clone(),
        }
    }

    /// The access URL's port, also when it is the scheme's own.
    pub(crate) fn access_port(&self) -> u16 {
        let uri = self.access_url.parse::<http::Uri>().unwrap_or_default();
        let usual = if uri.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 };
        uri.port_u16().unwrap_or(usual)
    }
}

/// One kind of data source: its schema, and how it is read.
pub(crate) struct DataSource {
    /// Its type name in the template.
    pub(crate) name: &'static str,
    help: &'static str,
    block: Block,
    /// What must hold between arguments; values that are not known yet pass.
    check: fn(&Object, &mut Vec<Diagnostic>),
    /// Fills in what is computed. The arguments are known and have their defaults.
    read: fn(&Context, &mut Object) -> Result<(), Vec<Diagnostic>>,
}

/// Every data source of the provider.
pub(crate) static DATA_SOURCES: &[&DataSource] = &[
    &user::EXTERNAL_AUTH,
    &parameter::PARAMETER,
    &from_environment::PROVISIONER,
    &user::SECRET,
    &from_environment::TASK,
    &workspace::WORKSPACE,
    &user::WORKSPACE_OWNER,
    &preset::WORKSPACE_PRESET,
    &from_environment::WORKSPACE_TAGS,
];

impl DataSource {
    const fn new(
        name: &'static str,
        help: &'static str,
        (attributes, blocks): (&'static [Attribute], &'static [Nested]),
        read: fn(&Context, &mut Object) -> Result<(), Vec<Diagnostic>>,
    ) -> Self {
        Self { name, help, block: Block { attributes, blocks }, check: |_, _| {}, read }
    }

    /// The schema as Terraform expects it.
    pub(crate) fn schema(&self) -> Schema {
        self.block.to_schema(1, self.help)
    }

    /// What is wrong with the configuration, as far as it is known.
    pub(crate) fn validate(&self, config: &Object) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        self.block.check(config, &Path::default(), &mut found);
        (self.check)(config, &mut found);
        found
    }

    /// The data source's values in this build.
    pub(crate) fn read(
        &self,
        context: &Context,
        config: &Object,
    ) -> Result<Object, Vec<Diagnostic>> {
        let found = self.validate(config);
        if any_error(&found) {
            return Err(found);
        }
        let mut state = plan::upgraded(&self.block, config);
        (self.read)(context, &mut state)?;
        Ok(state)
    }
}

/// Sets computed values.
fn set<const N: usize>(state: &mut Object, values: [(&str, Value); N]) {
    state.extend(values.map(|(name, value)| (name.to_owned(), value)));
}

/// The text of an argument; nothing when it was not given.
fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
