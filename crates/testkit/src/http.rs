//! One HTTP exchange over a plain socket. The caller controls every byte, so that a test can also
//! send what no client library would.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use seckill_api::ProblemKind;
use serde::de::DeserializeOwned;

const WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Response {
    /// The status code; 0 if the connection was closed without an answer.
    pub status: u16,
    /// The status line and the headers as received.
    pub head: String,
    pub body: String,
}

impl Response {
    /// The body as JSON; `null` if it is not valid JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        let mut pairs = lines.filter_map(|line| line.split_once(':'));
        pairs
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    /// The name of a problem's type, such as `sold-out`; empty if the body is not a problem.
    pub fn problem(&self) -> String {
        let problem: Option<ProblemKind> = serde_json::from_str(&self.body).ok();
        let name = problem.map(|problem| problem.problem_type.name());
        name.unwrap_or_default().to_owned()
    }

    /// The body as a type of the API.
    pub fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_str(&self.body).with_context(|| format!("unexpected answer: {self:?}"))
    }
}

/// Sends these bytes and reads until the peer closes the connection.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(WAIT))?;
    // A service that rejects the request early may close before everything is sent; its answer
    // still counts.
    let sent = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut part = [0; 4_096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(_) if sent.is_err() || !answer.is_empty() => break,
            Err(error) => return Err(error).context("no answer"),
        }
    }
    // An error means that the peer has already closed the connection.
    drop(stream.shutdown(Shutdown::Both));
    Ok(parse(&String::from_utf8_lossy(&answer)))
}

fn parse(text: &str) -> Response {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Response {
        status: status.unwrap_or(0),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// Sends one request with these headers and this body on a new connection.
pub fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> anyhow::Result<Response> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    request.push_str(body);
    raw(address, request.as_bytes())
}

pub fn get(address: SocketAddr, path: &str) -> anyhow::Result<Response> {
    exchange(address, "GET", path, &[], "")
}

/// Sends JSON, or no body if `body` is empty.
pub fn post(address: SocketAddr, path: &str, body: &str) -> anyhow::Result<Response> {
    let json = [("Content-Type", "application/json")];
    let headers = if body.is_empty() { &[][..] } else { &json[..] };
    exchange(address, "POST", path, headers, body)
}
