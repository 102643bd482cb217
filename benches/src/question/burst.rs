//! Many requests at the same moment.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::shop::Shop;
use crate::api::Api;
use crate::data::{self, Base, Pools};
use crate::figure::{Cell, histogram, quantile};
use crate::load;
use crate::report::{Report, Table};
use crate::stage::{Estate, Stage, settle_statistics};
use crate::yardstick::{Load, Yardstick};

/// Who asks for what.
#[derive(Clone, Copy)]
struct Crowd {
    set: &'static str,
    title: &'static str,
    people: u64,
    prebuilds: u64,
}

const CROWDS: [Crowd; 2] = [
    Crowd { set: "burst", title: "300 for a pool of 300", people: 300, prebuilds: 300 },
    Crowd { set: "rush", title: "1 000 for 1 prebuild", people: 1_000, prebuilds: 1 },
];

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("burst").await?;
    let base = Base::of(stage.quick);
    base.load(&mut estate.sql).await?;
    Pools::whole(stage.quick).load(&mut estate.sql, base.organizations).await?;
    let mut shops = Vec::new();
    for crowd in CROWDS {
        let pools = Pools { set: crowd.set, to: 1, members: 0, ..Pools::none() };
        shops.push(Shop::open(&mut estate.sql, base, pools).await?);
    }
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let api = Api::start(stage, &estate).await?;
    let columns = [
        "requests at once",
        "rounds",
        "hits",
        "misses",
        "p50 ms",
        "p90 ms",
        "max ms",
        "all answered ms (median)",
        "one-row commit ms",
    ];
    let mut table = Table::new("Everybody at the same moment", &columns);
    let rounds = if stage.quick { 1 } else { 7 };
    for (crowd, shop) in CROWDS.into_iter().zip(&mut shops) {
        let mut found = Found::default();
        // The first round is not counted: its statements are unprepared.
        play(stage, &mut estate, &api, (crowd, shop), &mut Found::default(), report).await?;
        for _ in 0..rounds {
            play(stage, &mut estate, &api, (crowd, shop), &mut found, report).await?;
        }
        table.row(found.row(crowd));
        shop.audit(&mut estate.sql, report).await?;
    }
    report.table(table);
    report.note(
        "each request on a connection of its own that was open before; aim: 300 p90 <= 150 ms; 1 hit, \
         999 definite answers within 500 ms; the field: p90 1.74 s, and storms of conflicts",
    );
    report.note(
        "bound by the processors, which the API, Postgres and the client share: requests of one pool \
         take different rows and never wait for one another; who gets no prebuild gets an ordinary \
         workspace, which is an answer of the same weight",
    );
    api.service.stop().await?;
    stage.remove(estate).await
}

/// What the rounds of one crowd came to.
struct Found {
    latency: Histogram<u64>,
    took: Vec<Duration>,
    misses: u64,
    yardstick: Yardstick,
}

impl Default for Found {
    fn default() -> Self {
        let (latency, yardstick) = (histogram(), Yardstick::default());
        Self { latency, took: Vec::new(), misses: 0, yardstick }
    }
}

impl Found {
    fn row(mut self, crowd: Crowd) -> [Cell; 9] {
        self.took.sort_unstable();
        let median = self.took.get(self.took.len() / 2).copied().unwrap_or_default();
        [
            crowd.title.into(),
            (self.took.len() as u64).into(),
            (self.latency.len() - self.misses).into(),
            self.misses.into(),
            quantile(&self.latency, 0.5),
            quantile(&self.latency, 0.9),
            quantile(&self.latency, 1.0),
            Cell::from(median),
            self.yardstick.latency(),
        ]
    }
}

/// One round.
async fn play(
    stage: &Stage,
    estate: &mut Estate,
    api: &Api,
    (crowd, shop): (Crowd, &mut Shop),
    found: &mut Found,
    report: &mut Report,
) -> anyhow::Result<()> {
    found.yardstick.run(stage, Load::OneRow, 1, None).await?;
    shop.restock(&mut estate.sql, crowd.prebuilds).await?;
    estate.sql.run("checkpoint").await?;
    let requests = shop.requests(crowd.people);
    let clients = requests.len();
    let played = load::closed(api.client.address(), clients, requests).await?;
    let misses = shop.settle(&played.answers, report);
    report.check(misses == crowd.people - crowd.prebuilds, || {
        format!("{}: {misses} requests found no prebuild", crowd.title)
    });
    found.latency += &played.latency;
    found.took.push(played.took);
    found.misses += misses;
    Ok(())
}
