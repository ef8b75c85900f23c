//! The plan of a run: the target, the number of requests, the pace, the buyers and what they ask for.
//! Sends nothing.

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use seckill_api::AttemptBody;

use crate::lines::{Lines, Wanted};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The address to connect to.
    pub address: SocketAddr,
    /// The value of the `Host` header.
    pub host: String,
    /// The path and query.
    pub path: String,
}

/// A URL that is not a valid target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {reason}; use a target such as http://127.0.0.1:3000/seckill")]
pub struct InvalidTarget {
    url: String,
    reason: String,
}

impl Target {
    /// Parses an `http://` URL and resolves its host.
    pub fn parse(url: &str) -> Result<Self, InvalidTarget> {
        let bad = |reason: String| InvalidTarget {
            url: url.to_owned(),
            reason,
        };
        if url.starts_with("https://") {
            return Err(bad("https is not supported".into()));
        }
        let rest = url.strip_prefix("http://");
        let rest = rest.ok_or_else(|| bad("the URL must start with http://".into()))?;
        let (host, path) = match rest.find('/') {
            Some(at) => (&rest[..at], &rest[at..]),
            None => (rest, "/"),
        };
        if path.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(bad(
                "the path contains a space or a control character".into()
            ));
        }
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let found = with_port.to_socket_addrs();
        let mut found =
            found.map_err(|error| bad(format!("the host cannot be resolved: {error}")))?;
        Ok(Self {
            address: found
                .next()
                .ok_or_else(|| bad("the host has no address".into()))?,
            host: host.to_owned(),
            path: path.to_owned(),
        })
    }

    /// The sale in the path, if there is one.
    pub fn sale(&self) -> Option<&str> {
        self.path.strip_prefix("/v1/sales/")?.split('/').next()
    }
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pacing {
    /// Each connection sends its next request as soon as it has an answer. Latency counts from the
    /// time a request was sent.
    Closed,
    /// All requests are spread evenly over this time, however long the answers take. Latency counts
    /// from the time a request was due, so that a slow target cannot hide its queue.
    Over(Duration),
}

/// The buyers that requests name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buyers {
    /// No buyer; the request has no body.
    Anonymous,
    /// A new buyer for each request.
    Unique,
    /// This many buyers, in turn.
    Repeating(u64),
}

/// The idempotency keys of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    None,
    /// A new key for each request.
    Unique,
    /// This many keys for each buyer, in turn.
    PerBuyer(u64),
}

/// What a run does.
#[derive(Debug, Clone)]
pub struct Plan {
    pub target: Target,
    pub method: String,
    /// In total, over all connections.
    pub requests: u64,
    pub pacing: Pacing,
    /// The maximum; connections are opened as needed.
    pub connections: usize,
    pub threads: usize,
    pub buyers: Buyers,
    pub keys: Keys,
    /// What each attempt asks for. Attempts with the same buyer and key ask for the same.
    pub lines: Lines,
    /// Of the random choices.
    pub seed: u64,
    /// If above 1, `{}` in the target's path becomes 0 to `paths - 1`, in turn.
    pub paths: u64,
    /// The longest wait for an answer.
    pub timeout_ms: u64,
    /// Whether to keep every confirmation, for an audit: in the report, or for
    /// [`Progress::take_confirmations`](crate::Progress::take_confirmations) meanwhile.
    pub keep_confirmations: bool,
}

impl Plan {
    /// `requests` anonymous attempts, as fast as 64 connections allow.
    pub fn new(target: Target, requests: u64) -> Self {
        Self {
            target,
            method: "POST".into(),
            requests,
            pacing: Pacing::Closed,
            connections: 64,
            threads: 1,
            buyers: Buyers::Anonymous,
            keys: Keys::None,
            lines: Lines::default(),
            seed: 1,
            paths: 1,
            timeout_ms: 10_000,
            keep_confirmations: false,
        }
    }

    /// When request `index` is due, relative to the start.
    pub(crate) fn due(&self, index: u64) -> Duration {
        match self.pacing {
            Pacing::Closed => Duration::ZERO,
            Pacing::Over(whole) => {
                let nanos = whole.as_nanos() * u128::from(index) / u128::from(self.requests.max(1));
                Duration::from_nanos(nanos as u64)
            }
        }
    }

    pub(crate) fn buyer(&self, index: u64) -> Option<String> {
        match self.buyers {
            Buyers::Anonymous => None,
            Buyers::Unique => Some(format!("b{index}")),
            Buyers::Repeating(count) => Some(format!("b{}", index % count.max(1))),
        }
    }

    pub(crate) fn key(&self, index: u64) -> Option<String> {
        let number = match (self.keys, self.buyers) {
            (Keys::None, _) => return None,
            (Keys::Unique, _) => index,
            (Keys::PerBuyer(count), Buyers::Repeating(buyers)) => {
                index / buyers.max(1) % count.max(1)
            }
            (Keys::PerBuyer(count), _) => index % count.max(1),
        };
        Some(match self.buyers {
            // Without a buyer, the service takes only keys as long as a UUID.
            Buyers::Anonymous => format!("{number:032x}"),
            Buyers::Unique | Buyers::Repeating(_) => format!("k{number}"),
        })
    }

    /// What request `index` asks for. It depends on buyer and key if keys repeat, because a key
    /// belongs to one content.
    pub fn wanted(&self, index: u64) -> Wanted<'_> {
        let number = match (self.keys, self.buyers) {
            (Keys::PerBuyer(keys), Buyers::Repeating(buyers)) => {
                index % buyers.max(1).saturating_mul(keys.max(1))
            }
            (Keys::PerBuyer(keys), Buyers::Anonymous) => index % keys.max(1),
            (Keys::PerBuyer(_), Buyers::Unique) | (Keys::None | Keys::Unique, _) => index,
        };
        self.lines.wanted(self.seed, number)
    }

    /// Whether all requests have the same bytes.
    pub(crate) fn is_uniform(&self) -> bool {
        self.buyers == Buyers::Anonymous
            && self.keys == Keys::None
            && self.paths == 1
            && self.lines.is_uniform()
    }

    /// The body of request `index`, unless the attempt asks for what it gets without one.
    fn body(&self, index: u64) -> Option<String> {
        let (quantity, lines) = match self.wanted(index) {
            Wanted::Quantity(1) => (None, None),
            Wanted::Quantity(quantity) => (Some(quantity), None),
            Wanted::Lines(lines) => (None, Some(lines)),
        };
        let buyer = self.buyer(index).map(Into::into);
        if buyer.is_none() && quantity.is_none() && lines.is_none() {
            return None;
        }
        let body = AttemptBody {
            buyer,
            quantity,
            lines,
        };
        let text = serde_json::to_string(&body);
        Some(text.unwrap_or_else(|error| unreachable!("a struct of text: {error}")))
    }

    /// Appends request `index` to `into`.
    pub(crate) fn write_request(&self, index: u64, into: &mut Vec<u8>) {
        let Self { target, method, .. } = self;
        let body = self.body(index);
        let key = self
            .key(index)
            .map(|key| format!("Idempotency-Key: {key}\r\n"));
        let key = key.unwrap_or_default();
        let path = match self.paths {
            0 | 1 => std::borrow::Cow::Borrowed(target.path.as_str()),
            paths => target
                .path
                .replace("{}", &(index % paths).to_string())
                .into(),
        };
        let host = &target.host;
        let written = match body {
            Some(body) => write!(
                into,
                "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{key}Content-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            ),
            None if method == "GET" => {
                write!(
                    into,
                    "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{key}\r\n"
                )
            }
            None => write!(
                into,
                "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{key}Content-Length: 0\r\n\r\n"
            ),
        };
        debug_assert!(written.is_ok(), "writing to memory cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(requests: u64) -> Plan {
        let target = Target::parse("http://127.0.0.1:3000/v1/sales/phone/orders").unwrap();
        Plan::new(target, requests)
    }

    #[test]
    fn targets_are_read_from_urls() {
        assert_eq!(plan(1).target.sale(), Some("phone"));
        let bare = Target::parse("http://127.0.0.1").unwrap();
        assert_eq!((bare.address.port(), bare.path.as_str()), (80, "/"));
        for bad in [
            "127.0.0.1:3000",
            "https://127.0.0.1/",
            "http://127.0.0.1:1/a b",
        ] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_are_spread_evenly() {
        let over = Pacing::Over(Duration::from_secs(5));
        let plan = Plan {
            pacing: over,
            ..plan(2_000)
        };
        assert_eq!(plan.due(0), Duration::ZERO);
        assert_eq!(plan.due(1_000), Duration::from_millis(2_500));
    }

    #[test]
    fn each_buyer_cycles_through_its_keys() {
        let plan = Plan {
            buyers: Buyers::Repeating(3),
            keys: Keys::PerBuyer(2),
            ..plan(100)
        };
        let who = |i| (plan.buyer(i).unwrap(), plan.key(i).unwrap());
        assert_eq!(who(0), ("b0".into(), "k0".into()));
        assert_eq!(who(3), ("b0".into(), "k1".into()));
        assert_eq!(who(6), ("b0".into(), "k0".into()));
        let mut bytes = Vec::new();
        plan.write_request(4, &mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        assert!(
            text.ends_with("Content-Length: 14\r\n\r\n{\"buyer\":\"b1\"}"),
            "{text}"
        );
        assert!(text.contains("Idempotency-Key: k1\r\n"));
    }

    #[test]
    fn a_body_is_sent_only_where_it_says_something() {
        let body = |lines: Lines, buyers| {
            let plan = Plan {
                lines,
                buyers,
                ..plan(9)
            };
            plan.body(0)
        };
        let fixed = || Lines::Fixed(vec![("S".into(), 1), ("M".into(), 2)]);
        assert_eq!(body(Lines::default(), Buyers::Anonymous), None);
        assert_eq!(
            body(Lines::Quantity(2..=2), Buyers::Anonymous).unwrap(),
            r#"{"quantity":2}"#
        );
        assert_eq!(
            body(fixed(), Buyers::Unique).unwrap(),
            r#"{"buyer":"b0","lines":[{"item":"S","quantity":1},{"item":"M","quantity":2}]}"#
        );
        let bare = plan(9);
        assert!(bare.is_uniform());
        let random = Plan {
            lines: Lines::Quantity(1..=3),
            ..plan(9)
        };
        assert!(!random.is_uniform());
    }

    #[test]
    fn a_key_that_repeats_asks_for_the_same() {
        for buyers in [Buyers::Anonymous, Buyers::Repeating(5), Buyers::Unique] {
            let plan = Plan {
                buyers,
                keys: Keys::PerBuyer(3),
                lines: Lines::Quantity(1..=16),
                ..plan(200)
            };
            let mut first = std::collections::HashMap::new();
            for index in 0..200 {
                let who = (plan.buyer(index), plan.key(index));
                let wanted = first.entry(who).or_insert_with(|| plan.wanted(index));
                assert_eq!(*wanted, plan.wanted(index), "{buyers:?} {index}");
            }
        }
    }
}
