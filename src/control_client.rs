//! Sends requests to a running service over its control socket. A request whose effect is unknown
//! must never be reported as refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use seckill_api::{Effect, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;

const RESPONSE_MAX_BYTES: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("the running service cannot be reached at {}: {error}", path.display())]
    Unreachable {
        path: PathBuf,
        error: std::io::Error,
    },
    /// Nothing was done.
    #[error("{0}")]
    Refused(String),
    /// Nothing was done, but it may work later.
    #[error("{0}")]
    Unavailable(String),
    /// The request may have taken effect.
    #[error("{0}")]
    Unknown(String),
}

/// Sends one request and reads the response.
pub(crate) async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
    wait: Duration,
) -> Result<T, ControlError> {
    let asked = tokio::time::timeout(wait, exchange(socket, method, path, body)).await;
    asked.unwrap_or_else(|_| {
        let detail = format!("the running service did not answer within {wait:?}");
        Err(ControlError::Unknown(detail))
    })
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, ControlError> {
    let connected = seckill_service::connect_control(socket).await;
    let stream = connected.map_err(|error| ControlError::Unreachable {
        path: socket.to_owned(),
        error,
    })?;
    let unsent =
        |error: String| ControlError::Refused(format!("the request could not be sent: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unsent(error.to_string()))?;
    tokio::spawn(connection);
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(|error| unsent(error.to_string()))?,
        None => Vec::new(),
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "seckill")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| unsent(error.to_string()))?;
    let lost = |what: String| ControlError::Unknown(format!("the response was lost: {what}"));
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| lost(error.to_string()))?;
    let status = response.status();
    let body = read(response).await.map_err(lost)?;
    if status.is_success() {
        return serde_json::from_slice(&body)
            .map_err(|error| lost(format!("it is not valid: {error}")));
    }
    let problem: Problem = match serde_json::from_slice(&body) {
        Ok(problem) => problem,
        Err(_) => {
            let detail = format!("the running service answered {status}");
            // A service of another version may have a problem that this program cannot read.
            return Err(if status.is_server_error() {
                ControlError::Unknown(detail)
            } else {
                ControlError::Refused(detail)
            });
        }
    };
    let detail = problem.detail.into_owned();
    Err(match problem.effect {
        Some(Effect::Unknown) => ControlError::Unknown(detail),
        Some(Effect::None) if status == StatusCode::SERVICE_UNAVAILABLE => {
            ControlError::Unavailable(detail)
        }
        _ => ControlError::Refused(detail),
    })
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Bytes, String> {
    let limited = Limited::new(response.into_body(), RESPONSE_MAX_BYTES);
    let body = limited.collect().await.map_err(|error| error.to_string())?;
    Ok(body.to_bytes())
}
