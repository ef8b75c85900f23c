//! Standard output, which carries results alone. Logs and messages go to standard error.

use std::io::{ErrorKind, Write};

use anyhow::Context;

/// Writes a result. A reader that has gone, such as `head`, is no error; a full disk is one.
pub(crate) fn print(text: impl AsRef<str>) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    let written = output
        .write_all(text.as_ref().as_bytes())
        .and_then(|()| output.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output cannot be written"),
    }
}

/// Writes a line that a running service can do without.
pub(crate) fn announce(text: &str) {
    if let Err(error) = print(format!("{text}\n")) {
        tracing::warn!("{error:#}");
    }
}
