//! Connections beyond the limit: each gets a 503 and is closed, so that no client waits in vain. Their
//! requests are not read as HTTP, and never reach the engine.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use seckill_api::{self as api, ProblemType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::json::to_json;

/// Refused connections that are open at once, in one event loop. Further ones are closed without a
/// response.
const OPEN_MAX: usize = 256;
/// The longest time that a refused connection stays open.
const OPEN_WAIT: Duration = Duration::from_secs(1);

pub(crate) struct Refusals {
    response: Bytes,
    open: Arc<Semaphore>,
}

impl Refusals {
    pub(crate) fn new(retry_after_s: u32) -> Self {
        let detail =
            "the service has as many connections as it accepts; nothing was done, retry later";
        let problem = api::Problem {
            effect: Some(api::Effect::None),
            ..api::Problem::new(ProblemType::Overloaded, detail)
        };
        let body = to_json(&problem);
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
             retry-after: {retry_after_s}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Self {
            response: [head.as_bytes(), &body].concat().into(),
            open: Arc::new(Semaphore::new(OPEN_MAX)),
        }
    }

    pub(crate) fn refuse(&self, stream: TcpStream) {
        let Ok(permit) = Arc::clone(&self.open).try_acquire_owned() else {
            return;
        };
        let response = self.response.clone();
        tokio::spawn(async move {
            let refused = tokio::time::timeout(OPEN_WAIT, answer(stream, &response)).await;
            if let Ok(Err(error)) = refused {
                tracing::debug!(%error, "a client did not take its refusal");
            }
            drop(permit);
        });
    }
}

/// Answers once the client has sent something, and then reads until it closes: the system would
/// otherwise reset the connection, and the client could lose the response.
async fn answer(mut stream: TcpStream, response: &[u8]) -> io::Result<()> {
    let mut ignored = [0; 1_024];
    if stream.read(&mut ignored).await? == 0 {
        return Ok(());
    }
    stream.write_all(response).await?;
    stream.shutdown().await?;
    while stream.read(&mut ignored).await? > 0 {}
    Ok(())
}
