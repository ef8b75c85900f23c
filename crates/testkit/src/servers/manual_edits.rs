//! Manual edits of the servers, as an operator would make them: a statement in MySQL, a record in
//! Kafka, a command in Redis.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mysql_async::prelude::Queryable;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::Urls;

impl Urls {
    /// Runs one MySQL statement and returns the first column of its rows as text.
    pub fn mysql(&self, sql: &str) -> anyhow::Result<Vec<String>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut conn = mysql_async::Conn::from_url(&self.mysql).await?;
            let rows: Vec<Option<String>> = conn
                .query_map(sql, |mut row: mysql_async::Row| row.take(0))
                .await?;
            conn.disconnect().await?;
            Ok(rows.into_iter().flatten().collect())
        })
    }

    /// Runs statements in sequence on one connection and returns the time that they took.
    pub fn mysql_timed(&self, statements: &[String]) -> anyhow::Result<Duration> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut conn = mysql_async::Conn::from_url(&self.mysql).await?;
            let began = Instant::now();
            for statement in statements {
                conn.query_drop(statement).await?;
            }
            let took = began.elapsed();
            conn.disconnect().await?;
            Ok(took)
        })
    }

    /// Writes one record to a topic.
    pub fn produce(&self, topic: &str, payload: &[u8]) -> anyhow::Result<()> {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .create()?;
        let record = BaseRecord::<(), [u8]>::to(topic).payload(payload);
        producer.send(record).map_err(|(error, _)| error)?;
        Ok(producer.flush(Duration::from_secs(10))?)
    }

    /// Sends one inline command to Redis and returns the raw reply.
    pub fn redis(&self, command: &str) -> anyhow::Result<String> {
        let place = self
            .redis
            .strip_prefix("redis://")
            .context("not a redis:// URL")?;
        let mut stream = TcpStream::connect(place)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut said = vec![0; 65_536];
        let count = stream.read(&mut said)?;
        if count == 0 {
            bail!("Redis closed the connection without a reply to {command}");
        }
        said.truncate(count);
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}
