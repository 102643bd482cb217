//! How a template makes its tags of its parameters, read off its files: a plan only tells what they
//! are with the values that it was made with, and a workspace may have others.

use std::path::Path;

use hcl::expr::{ObjectKey, Traversal, TraversalOperator};
use hcl::structure::Block;
use hcl::template::{Element, Template};
use hcl::{Body, Expression};
use serde_json::Value;

use super::declared::{self, Files};

/// A tag as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// Its name.
    pub(crate) name: String,
    /// What its value is made of.
    pub(crate) value: Making,
}

/// What a value is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Making {
    /// Nothing of a parameter: what the plan says holds for every workspace.
    Fixed,
    /// These, one after the other.
    Pieces(Vec<Piece>),
    /// Of parameters, in a way that only Terraform can follow.
    Unclear,
}

/// A piece of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A text.
    Text(String),
    /// The value of the parameter whose data source has this label.
    Parameter(String),
}

/// The tags that the template in `dir` writes in its root module. A file that cannot be read has none:
/// Terraform has read it, so nothing is lost but that the plan's values hold.
pub(crate) fn read(dir: &Path) -> Vec<Written> {
    let Ok(files) = Files::list(dir) else { return Vec::new() };
    files.templates.iter().filter_map(|path| in_file(path).ok()).flatten().collect()
}

fn in_file(path: &Path) -> anyhow::Result<Vec<Written>> {
    let text = declared::text(path)?;
    if !declared::is_json(path) {
        let body: Body = hcl::parse(&text)?;
        return Ok(body.blocks().filter(|it| is_tags(it)).flat_map(in_block).collect());
    }
    let file: Value = serde_json::from_str(&text)?;
    let blocks = file.pointer("/data/coder_workspace_tags").and_then(Value::as_object);
    let tags = blocks.into_iter().flat_map(|it| it.values()).filter_map(|it| it.get("tags"));
    let each = tags.filter_map(Value::as_object).flatten();
    Ok(each
        .map(|(name, value)| Written {
            name: name.clone(),
            value: value.as_str().map_or(Making::Unclear, |it| template(it.parse().ok().as_ref())),
        })
        .collect())
}

fn is_tags(block: &Block) -> bool {
    let first = block.labels().first().map(hcl::structure::BlockLabel::as_str);
    block.identifier() == "data" && first == Some("coder_workspace_tags")
}

fn in_block(block: &Block) -> Vec<Written> {
    let tags = block.body().attributes().find(|it| it.key.as_str() == "tags");
    let Some(Expression::Object(tags)) = tags.map(|it| it.expr().clone()) else {
        return Vec::new();
    };
    tags.iter()
        .filter_map(|(key, value)| Some(Written { name: name(key)?, value: making(value) }))
        .collect()
}

fn name(key: &ObjectKey) -> Option<String> {
    match key {
        ObjectKey::Identifier(name) => Some(name.as_str().to_owned()),
        ObjectKey::Expression(Expression::String(name)) => Some(name.clone()),
        _ => None,
    }
}

fn making(value: &Expression) -> Making {
    match value {
        Expression::Parenthesis(inner) => making(inner),
        Expression::TemplateExpr(written) => template(Template::from_expr(written).ok().as_ref()),
        _ => parameter(value).map_or_else(
            || if depends(value) { Making::Unclear } else { Making::Fixed },
            |label| Making::Pieces(vec![Piece::Parameter(label)]),
        ),
    }
}

fn template(template: Option<&Template>) -> Making {
    let Some(template) = template else { return Making::Unclear };
    let mut pieces = Vec::new();
    let mut is_clear = true;
    for element in template.elements() {
        match element {
            Element::Literal(text) => pieces.push(Piece::Text(text.clone())),
            Element::Interpolation(it) => match parameter(&it.expr) {
                Some(label) => pieces.push(Piece::Parameter(label)),
                None => is_clear = false,
            },
            Element::Directive(_) => is_clear = false,
        }
    }
    let has_parameter = pieces.iter().any(|it| matches!(it, Piece::Parameter(_)));
    match (is_clear, has_parameter) {
        (true, true) => Making::Pieces(pieces),
        (false, _) if has_parameter || mentions(&template.to_string()) => Making::Unclear,
        _ => Making::Fixed,
    }
}

/// The label in `data.coder_parameter.LABEL.value`.
fn parameter(value: &Expression) -> Option<String> {
    let Expression::Traversal(path) = value else { return None };
    let Traversal { expr: Expression::Variable(root), operators } = path.as_ref() else {
        return None;
    };
    let mut names = operators.iter().map(|it| match it {
        TraversalOperator::GetAttr(name) => Some(name.as_str()),
        TraversalOperator::Index(Expression::String(name)) => Some(name.as_str()),
        _ => None,
    });
    let mut next = || names.next().flatten();
    let is_parameter = root.as_str() == "data" && next() == Some("coder_parameter");
    let label = next().filter(|_| is_parameter)?.to_owned();
    (next() == Some("value") && operators.len() == 3).then_some(label)
}

fn depends(value: &Expression) -> bool {
    hcl::format::to_string(value).is_ok_and(|it| mentions(&it))
}

/// Whether an expression may depend on a parameter. Locals may, and are not followed.
fn mentions(text: &str) -> bool {
    ["coder_parameter", "local.", "module."].iter().any(|it| text.contains(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, expected: &Making) {
        let dir = tempfile::tempdir().unwrap();
        let text =
            format!("data \"coder_workspace_tags\" \"t\" {{\n tags = {{ \"zone\" = {value} }}\n}}");
        std::fs::write(dir.path().join("main.tf"), text).unwrap();
        assert_eq!(read(dir.path()), [Written { name: "zone".into(), value: expected.clone() }]);
    }

    fn region() -> Piece {
        Piece::Parameter("region".into())
    }

    #[test]
    fn a_value_is_fixed_or_made_of_parameters_or_unclear() {
        let text = |it: &str| Piece::Text(it.into());
        check("\"eu\"", &Making::Fixed);
        check("var.zone", &Making::Fixed);
        check("\"${var.zone}-1\"", &Making::Fixed);
        check("data.coder_parameter.region.value", &Making::Pieces(vec![region()]));
        check("(data.coder_parameter.region.value)", &Making::Pieces(vec![region()]));
        check("\"${data.coder_parameter.region.value}\"", &Making::Pieces(vec![region()]));
        let made = vec![text("zone-"), region(), text("-a")];
        check("\"zone-${data.coder_parameter.region.value}-a\"", &Making::Pieces(made));
        check("lower(data.coder_parameter.region.value)", &Making::Unclear);
        check("data.coder_parameter.region.value == \"x\" ? \"a\" : \"b\"", &Making::Unclear);
        check("data.coder_parameter.region.default", &Making::Unclear);
        check("\"${var.a}-${data.coder_parameter.region.value}\"", &Making::Unclear);
        check("local.zone", &Making::Unclear);
    }

    #[test]
    fn tags_are_found_by_either_spelling_of_names_and_in_json() {
        let dir = tempfile::tempdir().unwrap();
        let text = "data \"coder_workspace_tags\" \"t\" {\n tags = {\n zone = data.coder_parameter[\"region\"].value\n }\n}";
        std::fs::write(dir.path().join("main.tf"), text).unwrap();
        let json = r#"{"data": {"coder_workspace_tags": {"u": {"tags": {
            "size": "s-${data.coder_parameter.region.value}"}}}}}"#;
        std::fs::write(dir.path().join("more.tf.json"), json).unwrap();
        std::fs::write(dir.path().join("broken.tf"), "data {{{").unwrap();
        let sized = vec![Piece::Text("s-".into()), region()];
        let expected = [
            Written { name: "zone".into(), value: Making::Pieces(vec![region()]) },
            Written { name: "size".into(), value: Making::Pieces(sized) },
        ];
        assert_eq!(read(dir.path()), expected);
        assert_eq!(read(&dir.path().join("nowhere")), []);
    }
}
