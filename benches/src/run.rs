//! Asks the questions one after the other.

use std::time::Instant;

use serde_json::json;

use crate::args::{Args, Wanted};
use crate::question::Question;
use crate::report::Report;
use crate::service;
use crate::stage::Stage;
use crate::yardstick::Yardstick;

/// Answers what was asked. `false`: a run is invalid.
pub(crate) async fn run(args: Args) -> anyhow::Result<bool> {
    if args.wanted == Wanted::List {
        for question in Question::ALL {
            println!("{:<12} {}", question.name(), question.about());
        }
        return Ok(true);
    }
    let berth = service::binary(args.berth.as_deref())?;
    let mut stage = Stage::open(berth, args.quick).await?;
    Yardstick::prepare(&stage).await?;
    let machine = stage.machine().await?;
    let mut reports: Vec<Report> = Vec::new();
    for question in args.wanted.questions() {
        eprintln!("bench: {}", question.name());
        let started = Instant::now();
        let report = question.answer(&mut stage).await;
        eprintln!("bench: {} took {} s", question.name(), started.elapsed().as_secs());
        report.print();
        reports.push(report);
    }
    stage.close().await?;
    let answers: Vec<_> = reports.iter().map(Report::json).collect();
    let all = json!({ "machine": machine, "quick": args.quick, "answers": answers });
    println!("\n{all}");
    if let Some(file) = &args.json {
        std::fs::write(file, format!("{all:#}\n"))?;
    }
    Ok(reports.iter().all(Report::is_valid))
}
