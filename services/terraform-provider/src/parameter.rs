//! Parameters: what their definition may be, and which values they take. Pure.

use std::collections::BTreeSet;

use regex::Regex;

use crate::check::quoted;

/// The type of a parameter's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// A JSON array of strings.
    TextList,
}

/// The names of [`Kind`]s in templates.
pub(crate) const KINDS: &[&str] = &["string", "number", "bool", "list(string)"];

/// How a page asks for a value.
pub(crate) const FORM_TYPES: &[&str] = &[
    "",
    "radio",
    "slider",
    "input",
    "dropdown",
    "checkbox",
    "switch",
    "multi-select",
    "tag-input",
    "textarea",
    "error",
];

impl Kind {
    /// The kind with this name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "string" => Self::Text,
            "number" => Self::Number,
            "bool" => Self::Bool,
            "list(string)" => Self::TextList,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Number => "number",
            Self::Bool => "bool",
            Self::TextList => "list(string)",
        }
    }

    /// The form types this kind can be asked with; the first one when none is named.
    fn form_types(self, has_options: bool) -> &'static [&'static str] {
        match (self, has_options) {
            (Self::Text | Self::Number, true) => &["radio", "dropdown"],
            (Self::Text, false) => &["input", "textarea"],
            (Self::Number, false) => &["input", "slider"],
            (Self::Bool, true) => &["radio"],
            (Self::Bool, false) => &["checkbox", "switch"],
            (Self::TextList, true) => &["radio", "multi-select"],
            (Self::TextList, false) => &["tag-input"],
        }
    }

    fn admits(self, value: &str) -> bool {
        // The words that the public provider takes for booleans.
        const BOOLEANS: &[&str] =
            &["true", "false", "1", "0", "t", "f", "T", "F", "TRUE", "FALSE", "True", "False"];
        match self {
            Self::Text => true,
            Self::Number => value.parse::<f64>().is_ok_and(f64::is_finite),
            Self::Bool => BOOLEANS.contains(&value),
            Self::TextList => list(value).is_some(),
        }
    }
}

fn list(value: &str) -> Option<Vec<String>> {
    serde_json::from_str(value).ok()
}

/// One of the values to choose from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    /// What is shown.
    pub(crate) name: String,
    /// What the parameter becomes.
    pub(crate) value: String,
}

/// The `validation` block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Validation {
    /// The least number.
    pub(crate) min: Option<i64>,
    /// The greatest number.
    pub(crate) max: Option<i64>,
    /// How a number may change from build to build.
    pub(crate) monotonic: Option<String>,
    /// What text has to match.
    pub(crate) regex: Option<String>,
    /// What to say of a value that does not fit; `{min}`, `{max}`, `{value}` are filled in.
    pub(crate) error: Option<String>,
}

/// A parameter as the template defines it.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    /// Its name.
    pub(crate) name: String,
    /// The type of its value.
    pub(crate) kind: Kind,
    /// How a page asks for it; empty for the usual way.
    pub(crate) form_type: String,
    /// Whether it may change after the first build.
    pub(crate) mutable: bool,
    /// Whether each build starts again from the default.
    pub(crate) ephemeral: bool,
    /// Its value when none is given.
    pub(crate) default: Option<String>,
    /// What to choose from; empty for free input.
    pub(crate) options: Vec<Choice>,
    /// What a value has to be.
    pub(crate) validation: Option<Validation>,
}

/// A parameter with its value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The value; empty when there is neither input nor default, as in an import.
    pub(crate) value: String,
    /// How a page asks for it.
    pub(crate) form_type: &'static str,
}

/// Why a definition or a value is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The argument of the template it is about; none when it is the input.
    pub(crate) argument: Option<&'static str>,
    /// One line: what is wrong.
    pub(crate) summary: String,
    /// The value, the bound, and what to do.
    pub(crate) detail: String,
}

impl Definition {
    /// The parameter's value: the input, else the default. A value that the template defines and
    /// nobody uses is not held against it, apart from the options' types.
    pub(crate) fn resolve(
        &self,
        input: Option<&str>,
        previous: Option<&str>,
    ) -> Result<Resolved, Refused> {
        let form_type = self.check_definition()?;
        let (value, argument) = match (input, self.default.as_deref()) {
            (Some(input), _) => (input, None),
            (None, Some(default)) => (default, Some("default")),
            // Nothing to judge yet: an import asks for no values, and the server refuses a build
            // that lacks one.
            (None, None) => return Ok(Resolved { value: String::new(), form_type }),
        };
        let checked = self.check_value(value, form_type).and_then(|()| match previous {
            Some(previous) => self.check_monotonic(value, previous),
            None => Ok(()),
        });
        checked.map_err(|why| {
            let what = if argument.is_some() { "default" } else { "value" };
            Refused {
                argument,
                summary: format!("Invalid {what} for parameter {:?}", self.name),
                detail: format!("The {what} {value:?} {why}"),
            }
        })?;
        Ok(Resolved { value: value.to_owned(), form_type })
    }

    /// Checks what does not depend on any input.
    pub(crate) fn check(&self) -> Result<(), Refused> {
        self.check_definition().map(drop)
    }

    /// Checks what does not depend on any input, and tells how a page asks for the value.
    fn check_definition(&self) -> Result<&'static str, Refused> {
        let refused = |argument| {
            move |detail| Refused {
                argument: Some(argument),
                summary: format!("Invalid definition of parameter {:?}", self.name),
                detail,
            }
        };
        self.check_ephemeral().map_err(refused("ephemeral"))?;
        let form_type = self.actual_form_type().map_err(refused("form_type"))?;
        self.check_options(form_type).map_err(refused("option"))?;
        self.check_validation().map_err(refused("validation"))?;
        Ok(form_type)
    }

    fn check_ephemeral(&self) -> Result<(), String> {
        if self.ephemeral && !self.mutable {
            return Err("An ephemeral parameter changes from build to build, so \"mutable\" has \
                        to be true."
                .to_owned());
        }
        if self.ephemeral && self.default.is_none() {
            return Err("An ephemeral parameter returns to its default, so it needs \"default\"."
                .to_owned());
        }
        Ok(())
    }

    fn actual_form_type(&self) -> Result<&'static str, String> {
        let allowed = self.kind.form_types(!self.options.is_empty());
        let named = self.form_type.as_str();
        if named.is_empty() {
            return Ok(allowed[0]);
        }
        allowed.iter().copied().find(|allowed| *allowed == named).ok_or_else(|| {
            let which = if self.options.is_empty() { "without" } else { "with" };
            let (kind, allowed) = (self.kind.name(), quoted(allowed));
            format!("{named:?} is no way to ask for a {kind} {which} options; use {allowed}.")
        })
    }

    fn check_options(&self, form_type: &str) -> Result<(), String> {
        let kind = self.option_kind(form_type);
        let (mut names, mut values) = (BTreeSet::new(), BTreeSet::new());
        for Choice { name, value } in &self.options {
            if !names.insert(name) {
                return Err(format!("Two options have the name {name:?}; names must be unique."));
            }
            if !values.insert(value) {
                return Err(format!(
                    "Two options have the value {value:?}; values must be unique."
                ));
            }
            if !kind.admits(value) {
                let kind = kind.name();
                return Err(format!("The option {name:?} has the value {value:?}: no {kind}."));
            }
        }
        Ok(())
    }

    /// Of a list that is put together from options, each option is one element.
    fn option_kind(&self, form_type: &str) -> Kind {
        if form_type == "multi-select" { Kind::Text } else { self.kind }
    }

    fn check_validation(&self) -> Result<(), String> {
        let Some(rules) = &self.validation else { return Ok(()) };
        let kind = self.kind.name();
        let numeric = [
            ("min", rules.min.is_some()),
            ("max", rules.max.is_some()),
            ("monotonic", rules.monotonic.is_some()),
        ];
        if let Some((name, _)) = numeric.iter().find(|(_, set)| *set && self.kind != Kind::Number) {
            return Err(format!("{name:?} is for numbers; the type is {kind}."));
        }
        if let (Some(min), Some(max)) = (rules.min, rules.max)
            && min > max
        {
            return Err(format!("\"min\" is {min}, which is more than \"max\", {max}."));
        }
        if let Some(word) = &rules.monotonic
            && !["increasing", "decreasing"].contains(&word.as_str())
        {
            return Err(format!(
                "\"monotonic\" is {word:?}; it can be \"increasing\" or \"decreasing\"."
            ));
        }
        let Some(pattern) = &rules.regex else { return Ok(()) };
        if self.kind != Kind::Text {
            return Err(format!("\"regex\" is for strings; the type is {kind}."));
        }
        if rules.error.is_none() {
            return Err("\"regex\" needs \"error\": what to tell who gives another value.".into());
        }
        Regex::new(pattern)
            .map(drop)
            .map_err(|error| format!("\"regex\" is not a regular expression: {error}"))
    }

    fn check_value(&self, value: &str, form_type: &str) -> Result<(), String> {
        if !self.kind.admits(value) {
            return Err(format!("is not a {}.", self.kind.name()));
        }
        self.check_choice(value, form_type)?;
        let Some(rules) = &self.validation else { return Ok(()) };
        match self.kind {
            Kind::Number => rules.check_number(value),
            Kind::Text => rules.check_text(value),
            Kind::Bool if !["true", "false"].contains(&value) => {
                Err("is neither \"true\" nor \"false\".".to_owned())
            }
            Kind::Bool | Kind::TextList => Ok(()),
        }
    }

    fn check_choice(&self, value: &str, form_type: &str) -> Result<(), String> {
        if self.options.is_empty() {
            return Ok(());
        }
        let options: Vec<_> = self.options.iter().map(|option| option.value.as_str()).collect();
        let chosen = match form_type {
            "multi-select" => list(value).unwrap_or_default(),
            _ => vec![value.to_owned()],
        };
        let strange: Vec<_> =
            chosen.iter().filter(|it| !options.contains(&it.as_str())).cloned().collect();
        if strange.is_empty() {
            return Ok(());
        }
        let options = quoted(&options);
        Err(match form_type {
            "multi-select" => {
                format!("has {}, which none of the options is: {options}.", quoted(&strange))
            }
            _ => format!("is not a valid option; the options are {options}."),
        })
    }

    fn check_monotonic(&self, value: &str, previous: &str) -> Result<(), String> {
        let direction = self.validation.as_ref().and_then(|rules| rules.monotonic.as_deref());
        // A previous value that is no number is no reason to refuse every later one.
        let (Ok(number), Ok(was)) = (value.parse::<f64>(), previous.parse::<f64>()) else {
            return Ok(());
        };
        match direction {
            Some("increasing") if number < was => {
                Err(format!("is less than {previous}, the value before; it may only increase."))
            }
            Some("decreasing") if number > was => {
                Err(format!("is more than {previous}, the value before; it may only decrease."))
            }
            _ => Ok(()),
        }
    }
}

impl Validation {
    fn check_number(&self, value: &str) -> Result<(), String> {
        let Ok(number) = value.parse::<f64>() else { return Ok(()) };
        #[expect(clippy::cast_precision_loss, reason = "bounds beyond 2^53 are compared roughly")]
        let beyond = |bound: Option<i64>, side: fn(f64, f64) -> bool| {
            bound.filter(|bound| side(number, *bound as f64))
        };
        let usual = if let Some(min) = beyond(self.min, |number, min| number < min) {
            format!("is less than the minimum, {min}.")
        } else if let Some(max) = beyond(self.max, |number, max| number > max) {
            format!("is more than the maximum, {max}.")
        } else {
            return Ok(());
        };
        Err(match self.own_words(value) {
            Some(words) => format!("{usual} {words}"),
            None => usual,
        })
    }

    fn check_text(&self, value: &str) -> Result<(), String> {
        let Some(pattern) = &self.regex else { return Ok(()) };
        match Regex::new(pattern) {
            Ok(regex) if regex.is_match(value) => Ok(()),
            _ => {
                let words = self.own_words(value).unwrap_or_default();
                Err(format!("does not match {pattern:?}. {words}"))
            }
        }
    }

    fn own_words(&self, value: &str) -> Option<String> {
        let bound = |bound: Option<i64>| bound.map(|bound| bound.to_string()).unwrap_or_default();
        let words = self.error.as_ref()?;
        let words = words.replace("{min}", &bound(self.min)).replace("{max}", &bound(self.max));
        Some(words.replace("{value}", value))
    }
}

#[cfg(test)]
mod tests;
