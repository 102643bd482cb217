//! What a stretch of the WAL consists of, read by Postgres' own program.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context as _;

use crate::stage::{Estate, Stage};

/// Records and bytes.
pub(crate) type Weight = (u64, u64);

/// Records from one place to another, by what they do and to which relation.
pub(crate) async fn between(
    stage: &Stage,
    estate: &mut Estate,
    (from, to): (&str, &str),
) -> anyhow::Result<Vec<(String, Weight)>> {
    let folder = estate.sql.text("show data_directory").await?;
    let mut dump = stage.program("pg_waldump");
    dump.args(["--path", &format!("{folder}/pg_wal"), "--start", from, "--end", to]);
    let dumped = dump.output().await.context("run pg_waldump")?;
    let said = String::from_utf8_lossy(&dumped.stderr);
    anyhow::ensure!(dumped.status.success(), "pg_waldump: {said}");
    let sql = "select pg_relation_filenode(oid), relname from pg_class
               where relkind in ('r', 'i', 't') and pg_relation_filenode(oid) is not null";
    let names = estate.sql.rows(sql).await?.into_iter();
    let names: HashMap<String, String> = names
        .filter_map(|row| <[String; 2]>::try_from(row).ok())
        .map(|[node, name]| (node, name))
        .collect();
    Ok(weigh(&String::from_utf8_lossy(&dumped.stdout), &names))
}

fn weigh(dump: &str, names: &HashMap<String, String>) -> Vec<(String, Weight)> {
    let mut all: BTreeMap<String, Weight> = BTreeMap::new();
    for line in dump.lines() {
        let Some((manager, bytes, operation)) = record(line) else { continue };
        let node =
            line.split("rel ").nth(1).and_then(|it| it.split(' ').next()?.rsplit('/').next());
        let name = node.map(|it| names.get(it).map_or(it, String::as_str)).unwrap_or_default();
        let weight = all.entry(format!("{manager} {operation} {name}")).or_default();
        weight.0 += 1;
        // A record begins on a multiple of 8.
        weight.1 += bytes.next_multiple_of(8);
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
    all
}

/// Who wrote it, its length, and what it does.
fn record(line: &str) -> Option<(&str, u64, &str)> {
    let manager = line.strip_prefix("rmgr: ")?.split(' ').next()?;
    let bytes = line.split_once("len (rec/tot):")?.1.split_once('/')?.1.split(',').next()?;
    let operation = line.split_once("desc: ")?.1.split([' ', ',']).next()?;
    Some((manager, bytes.trim().parse().ok()?, operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_weighed_by_what_they_do_and_to_what() {
        let dump = "\
rmgr: Heap        len (rec/tot):     54/    54, tx:        753, lsn: 0/01530FC8, prev 0/01530F90, desc: LOCK xmax: 753, off: 1, infobits: [KEYSHR_LOCK], flags: 0x00, blkref #0: rel 1663/5/17 blk 0
rmgr: Heap        len (rec/tot):     54/    54, tx:        754, lsn: 0/01530FC8, prev 0/01530F90, desc: LOCK xmax: 754, off: 2, infobits: [KEYSHR_LOCK], flags: 0x00, blkref #0: rel 1663/5/17 blk 0
rmgr: Transaction len (rec/tot):     46/   146, tx:        753, lsn: 0/01530FC8, prev 0/01530F90, desc: COMMIT 2026-01-01 00:00:00.0 UTC
";
        let names = HashMap::from([("17".to_owned(), "users".to_owned())]);
        let all = weigh(dump, &names);
        let expected = [
            ("Transaction COMMIT ".to_owned(), (1, 152)),
            ("Heap LOCK users".to_owned(), (2, 112)),
        ];
        assert_eq!(all, expected);
    }
}
