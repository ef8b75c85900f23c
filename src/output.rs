//! Writes results to standard output. Logs and messages must go to standard error.

use std::io::{ErrorKind, Write};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

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

/// Whether nobody reads standard output any more, as far as that is known without writing.
pub(crate) fn is_closed() -> bool {
    let output = std::io::stdout();
    // Errors and the end of the other side are reported without being asked for.
    let mut polled = [PollFd::new(&output, PollFlags::empty())];
    let now = Timespec::default();
    poll(&mut polled, Some(&now)).is_ok()
        && polled[0]
            .revents()
            .intersects(PollFlags::ERR | PollFlags::HUP)
}

/// Writes a line. A failure is only logged, because a running service does not need the line.
pub(crate) fn announce(text: &str) {
    if let Err(error) = print(format!("{text}\n")) {
        tracing::warn!("{error:#}");
    }
}
