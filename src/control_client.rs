//! Asks a running service for sales over its operator's socket.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

const ANSWER_MAX_BYTES: usize = 64 << 20;
const ANSWER_WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Sends one request and reads the answer; a problem becomes an error with its detail.
pub(crate) async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<T> {
    let asked = tokio::time::timeout(ANSWER_WAIT, exchange(socket, method, path, body)).await;
    asked.map_err(|_| anyhow!("the running service did not answer within {ANSWER_WAIT:?}"))?
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<T> {
    let unreachable = || {
        format!(
            "the running service cannot be reached at {}",
            socket.display()
        )
    };
    let stream = UnixStream::connect(socket)
        .await
        .with_context(unreachable)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let body = match body {
        Some(body) => Full::new(Bytes::from(serde_json::to_vec(body)?)),
        None => Full::default(),
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "seckill")
        .header("content-type", "application/json")
        .body(body)?;
    let answer = sender
        .send_request(request)
        .await
        .with_context(unreachable)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_MAX_BYTES)
        .collect()
        .await;
    let body = body
        .map_err(|error| anyhow!("the answer broke off: {error}"))?
        .to_bytes();
    if !status.is_success() {
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        match problem["detail"].as_str() {
            Some(detail) => bail!("{detail}"),
            None => bail!("the running service answered {status}"),
        }
    }
    serde_json::from_slice(&body).context("the running service gave an answer that cannot be read")
}
