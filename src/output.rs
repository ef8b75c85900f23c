//! Writes results to standard output. Logs and messages must go to standard error.

use std::io::{ErrorKind, Write};

use anyhow::Context;

/// Writes a result. A closed pipe, as with `head`, is not an error; a full disk is.
pub(crate) fn print(text: impl AsRef<str>) -> anyhow::Result<()> {
    print_more(text).map(|_| ())
}

/// Writes a part of a result. Returns false if nobody reads it any more.
pub(crate) fn print_more(text: impl AsRef<str>) -> anyhow::Result<bool> {
    let mut output = std::io::stdout().lock();
    let written = output
        .write_all(text.as_ref().as_bytes())
        .and_then(|()| output.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written
            .map(|()| true)
            .context("standard output cannot be written"),
    }
}

/// Writes a line. A failure is only logged, because a running service does not need the line.
pub(crate) fn announce(text: &str) {
    if let Err(error) = print(format!("{text}\n")) {
        tracing::warn!("{error:#}");
    }
}
