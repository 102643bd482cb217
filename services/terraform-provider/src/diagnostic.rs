//! Errors and warnings as Terraform shows them: with the place in the configuration.

use crate::wire::tfplugin6::attribute_path::{self, step::Selector};
use crate::wire::tfplugin6::{self, AttributePath, diagnostic::Severity};

/// The way to a value: argument names and list indexes. Elements of sets have no address, so a
/// path ends at the set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(usize),
}

impl Path {
    /// The path of a top-level argument.
    pub(crate) fn of(name: &str) -> Self {
        Self::default().name(name)
    }

    /// One step into the argument or block called `name`.
    pub(crate) fn name(&self, name: &str) -> Self {
        self.with(Step::Name(name.to_owned()))
    }

    /// One step into the list's element `index`.
    pub(crate) fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The path as Terraform expects it.
    pub(crate) fn to_wire(&self) -> AttributePath {
        let selector = |step: &Step| match step {
            Step::Name(name) => Selector::AttributeName(name.clone()),
            Step::Index(index) => Selector::ElementKeyInt(
                i64::try_from(*index).expect("a list in memory has fewer than 2^63 elements"),
            ),
        };
        let steps = self.0.iter();
        AttributePath {
            steps: steps
                .map(|step| attribute_path::Step { selector: Some(selector(step)) })
                .collect(),
        }
    }
}

/// One error or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    is_error: bool,
    /// One line: what is wrong.
    pub(crate) summary: String,
    /// The value, the bound, and what to do.
    pub(crate) detail: String,
    path: Option<Path>,
}

impl Diagnostic {
    /// An error about the resource as a whole.
    pub(crate) fn error(summary: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { is_error: true, summary: summary.into(), detail: detail.into(), path: None }
    }

    /// A warning about the resource as a whole.
    pub(crate) fn warning(summary: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { is_error: false, summary: summary.into(), detail: detail.into(), path: None }
    }

    /// The same, about the value at `path`.
    pub(crate) fn at(self, path: Path) -> Self {
        Self { path: Some(path), ..self }
    }

    /// Whether it stops Terraform.
    pub(crate) fn is_error(&self) -> bool {
        self.is_error
    }

    /// The diagnostic as Terraform expects it.
    pub(crate) fn to_wire(&self) -> tfplugin6::Diagnostic {
        let severity = if self.is_error { Severity::Error } else { Severity::Warning };
        tfplugin6::Diagnostic {
            severity: severity.into(),
            summary: self.summary.clone(),
            detail: self.detail.clone(),
            attribute: self.path.as_ref().map(Path::to_wire),
        }
    }
}

/// Whether one of them stops Terraform.
pub(crate) fn any_error(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(Diagnostic::is_error)
}
