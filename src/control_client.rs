//! Sends requests to a running service over its control socket. A request whose effect is unknown
//! must never be reported as refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use seckill_api::{Effect, Problem};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

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
            // A service of another version may have a problem that this program cannot read.
            let detail = match serde_json::from_slice(&body) {
                Ok(Detail { detail }) => format!("the running service answered {status}: {detail}"),
                Err(_) => format!("the running service answered {status}"),
            };
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

/// Of a problem, only what is for people.
#[derive(Deserialize)]
struct Detail {
    detail: String,
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Bytes, String> {
    let limited = Limited::new(response.into_body(), RESPONSE_MAX_BYTES);
    let body = limited.collect().await.map_err(|error| error.to_string())?;
    Ok(body.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// What the caller gets for this answer of a service.
    fn answered(status: &str, body: &str) -> ControlError {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("seckill.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        let service = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1_024];
            assert_ne!(stream.read(&mut head).unwrap(), 0);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let wait = Duration::from_secs(10);
        let asked = ask::<()>(&path, Method::GET, "/sales", None::<&()>, wait);
        let error = runtime.block_on(asked).unwrap_err();
        service.join().unwrap();
        error
    }

    #[test]
    fn a_refusal_is_shown_with_its_detail() {
        let known =
            r#"{"type":"urn:seckill:problem:bad-request","title":"t","status":400,"detail":"why"}"#;
        let refused = answered("400 Bad Request", known);
        assert!(matches!(&refused, ControlError::Refused(_)), "{refused:?}");
        assert_eq!(refused.to_string(), "why");
        // A service of another version.
        let unknown = r#"{"type":"urn:seckill:problem:other","detail":"why"}"#;
        let refused = answered("422 Unprocessable Entity", unknown);
        assert!(matches!(&refused, ControlError::Refused(_)), "{refused:?}");
        let expected = "the running service answered 422 Unprocessable Entity: why";
        assert_eq!(refused.to_string(), expected);
        let failed = answered("500 Internal Server Error", "no JSON");
        assert!(matches!(&failed, ControlError::Unknown(_)), "{failed:?}");
        let expected = "the running service answered 500 Internal Server Error";
        assert_eq!(failed.to_string(), expected);
    }
}
