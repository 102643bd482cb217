//! How often a claim asks Postgres, counted on the wire.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Counts what a client asks of Postgres, and may keep an answer from it.
pub(super) struct Proxy {
    pub(super) url: String,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    round_trips: AtomicUsize,
    /// A statement that contains this is executed, and the connection breaks before its answer.
    deaf_to: Mutex<Option<String>>,
}

impl Proxy {
    /// A proxy in front of the database at `url`.
    pub(super) async fn before(url: &str) -> Self {
        let at = url.find('@').map_or("postgres://".len(), |it| it + 1);
        let end = at + url[at..].find('/').unwrap();
        let server = url[at..end].to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{}{}{}", &url[..at], listener.local_addr().unwrap(), &url[end..]);
        let seen = Arc::new(Seen::default());
        let counted = seen.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(pass(client, server, counted.clone()));
            }
        });
        Self { url, seen }
    }

    pub(super) fn drop_answer_to(&self, statement: &str) {
        *self.seen.deaf_to.lock().unwrap() = Some(statement.to_owned());
    }

    /// Round trips since the last look.
    fn taken(&self) -> usize {
        self.seen.round_trips.swap(0, Ordering::SeqCst)
    }
}

/// Passes bytes on. A round trip ends with a Sync, or is a simple query. A Sync alone is how the pool
/// looks after a connection that was given back, when nobody waits for it any more.
async fn pass(client: TcpStream, server: TcpStream, seen: Arc<Seen>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            if to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    });
    let mut is_started = false;
    let mut is_deaf = false;
    let mut is_asking = false;
    loop {
        let mut kind = [0];
        if is_started && from_client.read_exact(&mut kind).await.is_err() {
            break;
        }
        let Ok(length) = from_client.read_u32().await else { break };
        let mut body = vec![0; length as usize - 4];
        if from_client.read_exact(&mut body).await.is_err() {
            break;
        }
        let mut message = Vec::with_capacity(body.len() + 5);
        if is_started {
            message.push(kind[0]);
        }
        message.extend(length.to_be_bytes());
        message.extend(&body);
        is_started |= body.starts_with(&196_608_u32.to_be_bytes());
        is_asking |= matches!(kind[0], b'P' | b'E' | b'Q');
        if is_asking && matches!(kind[0], b'S' | b'Q') {
            seen.round_trips.fetch_add(1, Ordering::SeqCst);
            is_asking = false;
        }
        let deaf_to = seen.deaf_to.lock().unwrap().clone();
        is_deaf |= kind[0] == b'P'
            && deaf_to.is_some_and(|it| String::from_utf8_lossy(&body).contains(&it));
        if kind[0] == b'E' && is_deaf {
            // From here on the client hears nothing more.
            answers.abort();
        }
        if to_server.write_all(&message).await.is_err() {
            break;
        }
    }
    answers.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_one_reading_and_one_statement() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 10, 3).await;
    stand.database.rows("update groups set quota_allowance = 1000").await;
    let proxy = Proxy::before(&stand.database.url).await;
    // One connection: its statements are prepared by the first request of each kind.
    let api = Replica::over(&proxy.url, 1, Config::default()).await;
    for key in [None, Some("first")] {
        let name = key.unwrap_or("warm");
        api.create_keyed(1, &small(name), key).await.expect(200);
    }
    proxy.taken();
    let hit = api.create(1, &small("counted")).await.expect(200);
    assert_eq!(hit["prebuild_claim"]["outcome"], "hit");
    // Who asks; what decides; the claim.
    assert_eq!(proxy.taken(), 3);
    api.create_keyed(1, &small("keyed"), Some("second")).await.expect(200);
    assert_eq!(proxy.taken(), 4);
}

/// Bytes of WAL that a claim writes, its commit and its events included, and full-page images left
/// out: those depend on when the last checkpoint was. A tenth more fails.
const WAL_BYTES: i64 = 4_300;

/// What the transactions of claims wrote, by Postgres' own account: other tests' are not in it.
const WAL_OF_CLAIMS: &str = "
    select coalesce(c.relname, '') || ' ' || r.resource_manager || ' ' || r.record_type, count(*)::text,
           sum(r.record_length - r.fpi_length)::text
    from audit_logs a
    join pg_get_wal_records_info($1, pg_current_wal_flush_lsn()) r on r.xid = a.xmin
    left join pg_class c on pg_relation_filenode(c.oid)::text
                          = substring(r.block_ref from 'rel [0-9]+/[0-9]+/([0-9]+)')
    where a.resource_type = 'workspace' and a.resource_target like 'counted-%'
    group by 1 order by sum(r.record_length - r.fpi_length) desc";

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_writes_no_more_wal_than_its_rows_need() {
    let stand = Stand::new().await;
    stand.given_prebuilds(SMALL, "ready", 30, 3).await;
    stand.database.rows("update groups set quota_allowance = 1000").await;
    stand.database.rows("create extension pg_walinspect").await;
    // The first claim begins pages of tables and indexes.
    stand.api.create(1, &small("warm")).await.expect(200);
    let from = stand.database.value("select pg_current_wal_insert_lsn()").await;
    let claims = 8;
    for n in 0..claims {
        let made = stand.api.create(1, &small(&format!("counted-{n}"))).await.expect(200);
        assert_eq!(made["prebuild_claim"]["outcome"], "hit");
    }
    // Commits are flushed a moment later: tests do not wait for that.
    stand.database.rows("checkpoint").await;
    let sql = WAL_OF_CLAIMS.replace("$1", &format!("'{from}'"));
    let records = stand.database.rows(&sql).await;
    let bytes: i64 = records.iter().map(|it| it[2].parse::<i64>().unwrap()).sum();
    let per_claim = bytes / claims;
    assert!(
        (1..=WAL_BYTES * 11 / 10).contains(&per_claim),
        "{per_claim} bytes of WAL a claim: {records:#?}"
    );
}
