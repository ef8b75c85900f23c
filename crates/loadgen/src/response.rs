//! Finds the end of one HTTP/1.1 response and reads the fields that the load needs. Copies nothing
//! but chunked bodies.

/// More headers than any measured answer has.
const HEADERS_MAX: usize = 64;

/// A complete response at the start of the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed<'a> {
    pub(crate) status: u16,
    pub(crate) is_replay: bool,
    pub(crate) keep_alive: bool,
    pub(crate) body: std::borrow::Cow<'a, [u8]>,
    /// The size of the whole response, in bytes.
    pub(crate) length: usize,
}

/// The state of the response in the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress<'a> {
    Whole(Parsed<'a>),
    Partial,
    NotHttp,
}

#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
    None,
}

/// Parses the response at the start of the buffer.
pub(crate) fn parse(buffer: &[u8]) -> Progress<'_> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head_length = match response.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Progress::Partial,
        Err(_) => return Progress::NotHttp,
    };
    let status = response.code.unwrap_or(0);
    let mut keep_alive = response.version == Some(1);
    let mut is_replay = false;
    let mut framing = Framing::None;
    for header in response.headers.iter() {
        // Compared by length first, because most headers match none of these.
        match header.name.len() {
            14 if header.name.eq_ignore_ascii_case("content-length") => {
                let text = std::str::from_utf8(header.value).ok();
                match text.and_then(|text| text.trim().parse().ok()) {
                    Some(length) => framing = Framing::Length(length),
                    None => return Progress::NotHttp,
                }
            }
            17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                framing = Framing::Chunked;
            }
            10 if header.name.eq_ignore_ascii_case("connection") => {
                keep_alive = !header.value.eq_ignore_ascii_case(b"close");
            }
            19 if header.name.eq_ignore_ascii_case("idempotent-replayed") => is_replay = true,
            _ => {}
        }
    }
    let rest = &buffer[head_length..];
    let (body, body_length) = match framing {
        _ if status == 204 || status == 304 => (std::borrow::Cow::Borrowed(&rest[..0]), 0),
        Framing::Length(length) if rest.len() < length => return Progress::Partial,
        Framing::Length(length) => (std::borrow::Cow::Borrowed(&rest[..length]), length),
        Framing::Chunked => match unchunk(rest) {
            Some(Some((body, length))) => (std::borrow::Cow::Owned(body), length),
            Some(None) => return Progress::Partial,
            None => return Progress::NotHttp,
        },
        // The body ends with the connection: take what has arrived, and do not reuse the
        // connection.
        Framing::None => {
            keep_alive = false;
            (std::borrow::Cow::Borrowed(rest), rest.len())
        }
    };
    Progress::Whole(Parsed {
        status,
        is_replay,
        keep_alive,
        body,
        length: head_length + body_length,
    })
}

/// The body of a chunked message and its length on the wire; `Some(None)` if it is incomplete,
/// `None` if it is invalid.
fn unchunk(mut rest: &[u8]) -> Option<Option<(Vec<u8>, usize)>> {
    let whole = rest.len();
    let mut body = Vec::new();
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Some(None),
            Err(_) => return None,
        };
        let size = usize::try_from(size).ok()?;
        // A line break follows the data, and the last chunk too if there are no trailers.
        let Some(end) = start
            .checked_add(size)?
            .checked_add(2)
            .filter(|end| *end <= rest.len())
        else {
            return Some(None);
        };
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[end..];
        if size == 0 {
            return Some(Some((body, whole - rest.len())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Parsed<'_> {
        match parse(text.as_bytes()) {
            Progress::Whole(parsed) => parsed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn responses_end_at_their_content_length() {
        let text = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1";
        let parsed = whole(text);
        assert_eq!(
            (&*parsed.body, parsed.length),
            (&b"hello"[..], text.len() - 8)
        );
        assert!(parsed.keep_alive && !parsed.is_replay);
        for end in 0..parsed.length {
            assert_eq!(parse(&text.as_bytes()[..end]), Progress::Partial, "{end}");
        }
    }

    #[test]
    fn chunks_are_joined() {
        let text =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
        let parsed = whole(text);
        assert_eq!((&*parsed.body, parsed.length), (&b"hello"[..], text.len()));
        assert_eq!(parse(&text.as_bytes()[..text.len() - 1]), Progress::Partial);
    }

    #[test]
    fn replay_and_close_headers_are_read() {
        let text = "HTTP/1.1 201 Created\r\nIdempotent-Replayed: true\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let parsed = whole(text);
        assert!(parsed.is_replay && !parsed.keep_alive);
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n"), Progress::NotHttp);
    }
}
