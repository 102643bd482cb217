//! Private Postgres and NATS.

use anyhow::Context as _;
use berth_devstack::{Nats, NatsOptions, Postgres, PostgresOptions, Toolbox};

use super::state::{Home, State};

/// There from the start: the private server makes it.
const DATABASE: &str = "berth";

/// The running stores.
pub(super) struct Stores {
    postgres: Postgres,
    nats: Nats,
    database_url: String,
}

impl Stores {
    /// Finds or fetches the servers, starts them, and brings the schema up to date.
    pub(super) async fn start(home: &Home, state: &State) -> anyhow::Result<Self> {
        let tools = Toolbox::locate(|line| eprintln!("berth: {line}")).await?;
        let postgres = PostgresOptions {
            port: state.postgres_port,
            ..PostgresOptions::new(home.join("postgres"))
        };
        let nats = NatsOptions { port: state.nats_port, ..NatsOptions::new(home.join("nats")) };
        let (postgres, nats) =
            tokio::join!(Postgres::start(&tools, postgres), Nats::start(&tools, nats));
        let (postgres, nats) = (postgres?, nats?);
        let database_url = postgres.url(DATABASE);
        let pool = berth_db::connect(&database_url, 1, "berth-migrate")?;
        berth_db::schema::migrate(&pool).await.context("cannot bring the schema up to date")?;
        pool.close().await;
        Ok(Self { postgres, nats, database_url })
    }

    pub(super) fn database_url(&self) -> &str {
        &self.database_url
    }

    pub(super) fn nats_url(&self) -> String {
        self.nats.url()
    }

    pub(super) fn postgres_port(&self) -> u16 {
        self.postgres.port()
    }

    pub(super) fn nats_port(&self) -> u16 {
        self.nats.port()
    }

    pub(super) async fn stop(&mut self) {
        if let Err(error) = self.nats.stop().await {
            eprintln!("berth: nats: {error}");
        }
        if let Err(error) = self.postgres.stop().await {
            eprintln!("berth: postgres: {error}");
        }
    }
}
