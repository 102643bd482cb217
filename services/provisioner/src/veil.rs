//! Keeps the secrets that came with a job out of what the daemon tells of it: log lines and errors.
//!
//! A net below the rope: Terraform hides what it knows to be sensitive, and this hides what a
//! template or its programs print all the same, word for word. What they encode, cut or take apart
//! gets through.

use std::borrow::Cow;
use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use berth_proto::v1;

/// Shortest secret that is hidden, in bytes. A shorter one is found in words that tell nothing, and
/// what is hidden there would tell of it.
const SHORTEST: usize = 4;
/// Shortest line of a secret of several lines that is hidden by itself, in bytes: the others are
/// brackets and the like.
const SHORTEST_LINE: usize = 8;
/// What stands for a secret.
const MASK: &str = "(secret)";

/// What is hidden. One pass over a text, whatever the number of secrets.
pub(crate) struct Veil {
    /// `None`: nothing is hidden.
    search: Option<AhoCorasick>,
}

impl Veil {
    /// Hides these secrets, in the spellings in which logs have them: as they are, line by line, and
    /// as JSON writes them.
    pub(crate) fn of<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut words = BTreeSet::new();
        for secret in secrets {
            let secret = secret.trim();
            if secret.len() < SHORTEST {
                continue;
            }
            let mut add = |word: &str| {
                let json = serde_json::Value::from(word).to_string();
                words.insert(json[1..json.len() - 1].to_owned());
                words.insert(word.to_owned());
            };
            add(secret);
            let lines = secret.lines().map(str::trim).filter(|it| it.len() >= SHORTEST_LINE);
            if secret.contains('\n') {
                lines.for_each(add);
            }
        }
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&words);
        // It fails for gigabytes of them, which no job has.
        Self { search: search.ok().filter(|_| !words.is_empty()) }
    }

    /// Everything secret that came with a job. Which variables of a template that is to be imported
    /// are secret is not known yet: all are, until [`Veil::declared`].
    pub(crate) fn of_job(job: &v1::Job) -> Self {
        let imports = matches!(job.input, Some(v1::job::Input::TemplateImport(_)));
        let variables = job.variables.iter().filter(|it| it.sensitive || imports);
        Self::of(variables.map(|it| &*it.value).chain(of_build(job)))
    }

    /// The same, once it is known what the template declares.
    pub(crate) fn declared(job: &v1::Job, declared: &[v1::TemplateVariable]) -> Self {
        let is_plain = |name: &str| declared.iter().any(|it| it.name == name && !it.sensitive);
        let variables = job.variables.iter().filter(|it| !is_plain(&it.name));
        Self::of(variables.map(|it| &*it.value).chain(of_build(job)))
    }

    /// The text without what is hidden.
    pub(crate) fn over<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let Some(search) = &self.search else { return Cow::Borrowed(text) };
        if !search.is_match(text) {
            return Cow::Borrowed(text);
        }
        let mut veiled = String::with_capacity(text.len());
        search.replace_all_with(text, &mut veiled, |_, _, veiled| {
            veiled.push_str(MASK);
            true
        });
        Cow::Owned(veiled)
    }
}

/// The secrets of a build's owner and agents.
fn of_build(job: &v1::Job) -> impl Iterator<Item = &str> {
    job.build().into_iter().flat_map(|build| {
        let secrets = build.user_secrets.iter().map(|it| &*it.value);
        let tokens = build.running_agents.iter().map(|it| &*it.token);
        let session = build.metadata.iter().map(|it| &*it.owner_session_token);
        secrets.chain(tokens).chain(session)
    })
}

#[cfg(test)]
mod tests;
