//! The resources: one table, one module each. All of them live in the state alone.

mod agent;
mod ai_task;
mod app;
mod attached;
mod metadata;
mod script;

use crate::data_source::Context;
use crate::diagnostic::{Diagnostic, Path, any_error};
use crate::identity;
use crate::plan;
use crate::schema::{Attribute, Block, Nested, Type};
use crate::value::{Object, Value};
use crate::wire::tfplugin6::Schema;

/// The computed id that every resource has.
const ID: Attribute = Attribute::computed("id", Type::Text, "The id of this resource.");

/// The agent that a resource belongs to.
const AGENT_ID: Attribute =
    Attribute::required("agent_id", Type::Text, "The `id` of the `coder_agent` it belongs to.");

/// One kind of resource: its schema, and what is particular to it.
pub(crate) struct Resource {
    /// Its type name in the template.
    pub(crate) name: &'static str,
    help: &'static str,
    /// The version of the state's layout. The public provider's, so that a workspace can change
    /// between the two: Terraform refuses a state of a later version than the provider knows.
    version: i64,
    block: Block,
    /// What must hold between arguments; values that are not known yet pass.
    check: fn(&Object, &mut Vec<Diagnostic>),
    /// Computed values that follow from the arguments and are known with them.
    derive: fn(&Object, &mut Object),
    /// Computed values that exist only once the resource does.
    create: fn(&Context, &mut Object),
    /// What the environment changes about a resource that exists.
    refresh: fn(&Context, &mut Object),
}

/// Every resource of the provider.
pub(crate) static RESOURCES: &[&Resource] = &[
    &agent::AGENT,
    &attached::AGENT_INSTANCE,
    &ai_task::AI_TASK,
    &app::APP,
    &attached::DEVCONTAINER,
    &attached::ENV,
    &attached::EXTERNAL_AGENT,
    &metadata::METADATA,
    &script::SCRIPT,
];

/// What is planned for a resource.
pub(crate) struct Planned {
    /// The state to be.
    pub(crate) state: Object,
    /// The arguments that make it a new resource.
    pub(crate) replaced_by: Vec<Path>,
}

impl Resource {
    /// A resource with an id and nothing else that the provider computes.
    const fn new(
        name: &'static str,
        help: &'static str,
        (attributes, blocks): (&'static [Attribute], &'static [Nested]),
    ) -> Self {
        Self {
            name,
            help,
            version: 1,
            block: Block { attributes, blocks },
            check: |_, _| {},
            derive: |_, _| {},
            create: |_, _| {},
            refresh: |_, _| {},
        }
    }

    /// The schema as Terraform expects it.
    pub(crate) fn schema(&self) -> Schema {
        self.block.to_schema(self.version, self.help)
    }

    /// What is wrong with the configuration, as far as it is known.
    pub(crate) fn validate(&self, config: &Object) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        self.block.check(config, &Path::default(), &mut found);
        (self.check)(config, &mut found);
        found
    }

    /// What the resource is to be, from its configuration and the state it has, if any.
    pub(crate) fn plan(&self, config: &Object, prior: Option<&Object>) -> Planned {
        let mut state = plan::planned(&self.block, config, prior);
        (self.derive)(config, &mut state);
        let replaced_by =
            prior.map(|prior| plan::replaced_by(&self.block, prior, &state)).unwrap_or_default();
        Planned { state, replaced_by }
    }

    /// The state of the new resource.
    pub(crate) fn create(
        &self,
        context: &Context,
        config: &Object,
        mut state: Object,
    ) -> Result<Object, Vec<Diagnostic>> {
        // Values that were unknown when the plan was made are checked here for the first time.
        let found = self.validate(config);
        if any_error(&found) {
            return Err(found);
        }
        set_if_unknown(&mut state, "id", || Value::from(identity::random().to_string()));
        (self.create)(context, &mut state);
        self.complete(state)
    }

    /// The state after a change that asked for no new resource.
    pub(crate) fn update(&self, state: Object) -> Result<Object, Vec<Diagnostic>> {
        self.complete(state)
    }

    /// The state of a resource that exists, as this build sees it.
    pub(crate) fn refresh(&self, context: &Context, mut state: Object) -> Object {
        (self.refresh)(context, &mut state);
        state
    }

    /// The state as this version of the schema has it.
    pub(crate) fn upgrade(&self, state: &Object) -> Object {
        plan::upgraded(&self.block, state)
    }

    fn complete(&self, state: Object) -> Result<Object, Vec<Diagnostic>> {
        let unknown = state.iter().find(|(_, value)| !value.is_wholly_known());
        match unknown {
            None => Ok(state),
            Some((name, _)) => Err(vec![
                Diagnostic::error(
                    format!("{} is incomplete", self.name),
                    format!("Terraform applied it although {name:?} was not known yet."),
                )
                .at(Path::of(name)),
            ]),
        }
    }
}

/// Sets a computed value that the plan left open.
fn set_if_unknown(state: &mut Object, name: &str, value: impl FnOnce() -> Value) {
    if state.get(name) == Some(&Value::Unknown) {
        state.insert(name.to_owned(), value());
    }
}

/// The text of an argument; nothing when it is null, unknown or not given.
fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_text).filter(|text| !text.is_empty())
}

/// Whether an argument is known to be true.
fn is_true(object: &Object, name: &str) -> bool {
    object.get(name).and_then(Value::as_bool) == Some(true)
}

/// Whether an argument or block is given, be it unknown.
fn is_given(object: &Object, name: &str) -> bool {
    object.get(name).is_some_and(|value| !value.is_empty())
}

/// Reports every value of `name` that two of `items` share.
fn check_unique(items: &[Value], name: &str, path: &Path, found: &mut Vec<Diagnostic>) {
    let values: Vec<_> = items.iter().filter_map(|item| text(item.as_object()?, name)).collect();
    for (index, value) in values.iter().enumerate() {
        if values[..index].contains(value) {
            let summary = format!("Duplicate {name}");
            let detail = format!("Two blocks have the {name} {value:?}; give each its own.");
            found.push(Diagnostic::error(summary, detail).at(path.clone()));
        }
    }
}

#[cfg(test)]
mod tests;
