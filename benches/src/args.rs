//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::question::Question;

/// Measures Berth on private servers of its own, each question beside its yardstick. Prints tables,
/// then one line of JSON. Exit code 1: a run lost or doubled something, or could not be done.
#[derive(Parser, Debug)]
#[command(name = "berth-bench")]
pub(crate) struct Args {
    /// A question's name, `all`, or `list`
    #[arg(value_parser = wanted)]
    pub(crate) wanted: Wanted,
    /// Smaller sizes and shorter runs: to see that it works, not to measure
    #[arg(long)]
    pub(crate) quick: bool,
    /// The binary to measure; without it, Cargo builds the one of this source
    #[arg(long, value_name = "FILE")]
    pub(crate) berth: Option<PathBuf>,
    /// Write the JSON here as well
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The names.
    List,
    /// Every question, one after the other.
    All,
    /// One question.
    One(Question),
}

impl Wanted {
    /// The questions to answer.
    pub(crate) fn questions(self) -> Vec<Question> {
        match self {
            Self::List => Vec::new(),
            Self::All => Question::ALL.to_vec(),
            Self::One(question) => vec![question],
        }
    }
}

fn wanted(text: &str) -> Result<Wanted, String> {
    match text {
        "list" => Ok(Wanted::List),
        "all" => Ok(Wanted::All),
        name => Question::ALL.into_iter().find(|it| it.name() == name).map(Wanted::One).ok_or_else(
            || {
                let known: Vec<&str> = Question::ALL.iter().map(|it| it.name()).collect();
                format!("there is no question {name:?}; there are {}", known.join(", "))
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_can_be_asked_by_its_name() {
        for question in Question::ALL {
            let args = Args::try_parse_from(["berth-bench", question.name()]).unwrap();
            assert_eq!(args.wanted.questions(), [question]);
        }
        let all = Args::try_parse_from(["berth-bench", "all", "--quick"]).unwrap();
        assert!(all.quick);
        assert_eq!(all.wanted.questions(), Question::ALL);
    }

    #[test]
    fn an_unknown_question_is_told_the_known_ones() {
        let error = Args::try_parse_from(["berth-bench", "idle"]).unwrap_err().to_string();
        assert!(error.contains("idle-sweep"), "{error}");
    }
}
