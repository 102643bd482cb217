//! How the time of a claim grows with what there is.

use hdrhistogram::Histogram;

use super::shop::Shop;
use crate::api::Api;
use crate::data::{self, Base, Pools};
use crate::figure::{Cell, histogram, quantile};
use crate::load;
use crate::report::{Report, Table};
use crate::stage::{Estate, Stage, settle_statistics};
use crate::yardstick::{Load, Yardstick};

/// A deployment of one size.
struct Size {
    workspaces: u64,
    estate: Estate,
    shop: Shop,
    api: Api,
    latency: Histogram<u64>,
}

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (sizes, rounds, claims): (&[u64], _, _) =
        if stage.quick { (&[1_000, 5_000], 1, 100) } else { (&[1_000, 50_000, 200_000], 5, 400) };
    let mut all = Vec::new();
    for &workspaces in sizes {
        all.push(load_size(stage, workspaces, report).await?);
        eprintln!("bench: {workspaces} loaded");
    }
    let mut yardstick = Yardstick::default();
    // The first round is not counted: its statements are prepared, and its pages come from files.
    for round in 0..=rounds {
        yardstick.run(stage, Load::OneRow, 1, None).await?;
        for size in &mut all {
            size.shop.restock(&mut size.estate.sql, claims).await?;
            size.estate.sql.run("checkpoint").await?;
            let requests = size.shop.requests(claims);
            let played = load::closed(size.api.client.address(), 1, requests).await?;
            let misses = size.shop.settle(&played.answers, report);
            report.check(misses == 0, || format!("{misses} claims found no prebuild"));
            if round > 0 {
                size.latency += &played.latency;
            }
        }
    }
    let columns = ["workspaces", "claims", "p50 ms", "p95 ms", "p99 ms", "p50 to the first's"];
    let mut table = Table::new("A claim, one after the other", &columns);
    let first = all.first().map_or(1, |it| it.latency.value_at_quantile(0.5));
    for mut size in all {
        let own = size.latency.value_at_quantile(0.5);
        let ratio = [own, first].map(|it| u32::try_from(it).map_or(f64::INFINITY, f64::from));
        table.row([
            size.workspaces.into(),
            size.latency.len().into(),
            quantile(&size.latency, 0.5),
            quantile(&size.latency, 0.95),
            quantile(&size.latency, 0.99),
            Cell::Number(ratio[0] / ratio[1], 2),
        ]);
        size.shop.audit(&mut size.estate.sql, report).await?;
        size.api.service.stop().await?;
        stage.remove(size.estate).await?;
    }
    report.table(table);
    report.note(yardstick.describe(Load::OneRow));
    report.note("rounds take turns, so that each size sees the same machine; aim: <= 1.3x");
    Ok(())
}

/// Three of five workspaces live, a tenth of them prebuilds, people as many as workspaces.
async fn load_size(stage: &Stage, workspaces: u64, report: &mut Report) -> anyhow::Result<Size> {
    let mut estate = stage.estate(&format!("growth_{workspaces}")).await?;
    let base = Base {
        organizations: 10,
        users: workspaces,
        live: workspaces / 2,
        deleted: workspaces * 4 / 10,
        imports: workspaces / 5,
    };
    base.load(&mut estate.sql).await?;
    let to = workspaces / 20;
    let pools = Pools { to, per_template: 10, members: 2, ..Pools::none() };
    // As many pools in each take part, so that what is claimed is as warm in one as in another.
    let taking = Pools { set: "taking", to: 50, per_template: 5, ..Pools::none() };
    pools.load(&mut estate.sql, base.organizations).await?;
    let shop = Shop::open(&mut estate.sql, base, taking).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let api = Api::start(stage, &estate).await?;
    Ok(Size { workspaces, estate, shop, api, latency: histogram() })
}
