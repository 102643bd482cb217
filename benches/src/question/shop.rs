//! Prebuilds, and requests that claim them: each by somebody else, each accounted for once.

use std::collections::HashSet;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::data::{self, Base, Pools};
use crate::psql::Psql;
use crate::report::Report;
use crate::wire::{self, Answer};

/// Pools that are claimed from, in turn.
pub(super) struct Shop {
    base: Base,
    pools: Pools,
    targets: Vec<Target>,
    /// Prebuilds that each pool had besides those it had at first.
    had: u64,
    /// Requests made so far.
    asked: u64,
    /// Workspaces that were handed over so far.
    sold: HashSet<String>,
}

/// Where one pool's requests go.
struct Target {
    organization: String,
    template: String,
    preset: String,
}

impl Shop {
    /// Loads the pools.
    pub(super) async fn open(sql: &mut Psql, base: Base, pools: Pools) -> anyhow::Result<Self> {
        pools.load(sql, base.organizations).await?;
        let (set, from, last) = (pools.set, pools.from, pools.to - 1);
        let rows = sql
            .rows(&format!(
                "select organization_id, template_id, preset_id from generate_series({from}, {last}) n
                 join prebuild_pools on preset_id = bench_id('{set}-version-preset', n) order by n"
            ))
            .await?;
        let targets = rows.into_iter().map(|row| {
            let [organization, template, preset] = row.try_into().ok().context("three columns")?;
            Ok(Target { organization, template, preset })
        });
        let targets = targets.collect::<anyhow::Result<_>>()?;
        let (had, asked, sold) = (pools.members + u64::from(pools.one_more > 0), 0, HashSet::new());
        Ok(Self { base, pools, targets, had, asked, sold })
    }

    /// How many pools there are.
    pub(super) fn pools(&self) -> u64 {
        self.targets.len() as u64
    }

    /// Puts a prebuild into the pools for each of `count` requests, a multiple of the pools.
    pub(super) async fn restock(&mut self, sql: &mut Psql, count: u64) -> anyhow::Result<()> {
        let members = count / self.pools();
        let more = Pools { members, one_more: 0, had: self.had, ..self.pools };
        more.restock(sql, self.base.organizations).await?;
        self.had += members;
        sql.run("analyze workspaces, workspace_builds, provisioner_jobs").await
    }

    /// Requests for a workspace from one pool after the other, each by somebody else.
    pub(super) fn requests(&mut self, count: u64) -> Vec<Vec<u8>> {
        (0..count).map(|_| self.request()).collect()
    }

    fn request(&mut self) -> Vec<u8> {
        let turn = self.asked;
        self.asked += 1;
        let place = turn % self.pools();
        let target = &self.targets[usize::try_from(place).unwrap_or_default()];
        let Base { organizations, users, .. } = self.base;
        let organization = (self.pools.from + place) / self.pools.per_template % organizations;
        // The first in each organization is left out: one of them owns the deployment.
        let member = 1 + turn % (users / organizations - 1);
        let token = data::token(organization + organizations * member);
        let body = json!({
            "name": format!("{}-{turn}", self.pools.set),
            "template_id": target.template,
            "template_version_preset_id": target.preset,
        });
        let path = format!("/organizations/{}/members/me/workspaces", target.organization);
        wire::post(&path, &token, &body)
    }

    /// Each answer hands over a workspace that nobody was given before. Answers with how many do
    /// not, because there was none to be had.
    pub(super) fn settle(&mut self, answers: &[Answer], report: &mut Report) -> u64 {
        let (mut misses, mut wrong) = (0, Vec::new());
        for answer in answers {
            match answer.json() {
                Ok(made) if made["prebuild_claim"]["outcome"] == "hit" => {
                    let id = made["id"].as_str().unwrap_or_default().to_owned();
                    if !self.sold.insert(id.clone()) {
                        wrong.push(format!("{id} was handed over twice"));
                    }
                }
                Ok(Value::Object(made)) if made.contains_key("prebuild_claim") => misses += 1,
                Ok(other) => wrong.push(format!("an answer without an outcome: {other}")),
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
        let (count, first) = (wrong.len(), wrong.into_iter().next());
        report.check(first.is_none(), || {
            format!("{count} answers are wrong, the first: {}", first.unwrap_or_default())
        });
        misses
    }

    /// What Postgres has agrees with what was answered.
    pub(super) async fn audit(&self, sql: &mut Psql, report: &mut Report) -> anyhow::Result<()> {
        let set = self.pools.set;
        let stored = sql
            .count(&format!(
                "select count(distinct a.workspace_id) from claim_attempts a
                 join prebuild_pools p on p.preset_id = a.preset_id
                 join templates t on t.id = p.template_id and t.name like '{set}-%'
                 join workspaces w on w.id = a.workspace_id and w.owner_id = a.user_id
                                  and w.pool_preset_id is null
                 where a.outcome = 'hit'"
            ))
            .await?;
        let sold = self.sold.len() as u64;
        report.check(stored == sold, || {
            format!("{sold} workspaces were handed over; Postgres knows of {stored}")
        });
        Ok(())
    }
}
