//! Finds out who uses a data folder, and so whom a command has to ask.

use std::path::{Path, PathBuf};

use seckill_embedded::{CONTROL_SOCKET_FILE, LockOwner};

/// Who uses a data folder.
#[derive(Debug)]
pub(crate) enum FolderUser {
    /// Commands may read the file or open the engine.
    Nobody,
    /// A running service, which answers on this socket.
    Service { owner: LockOwner, socket: PathBuf },
    /// A process that cannot be asked. Commands may only read the file.
    Busy {
        owner: LockOwner,
        /// Why a service does not answer; `None` for a process that takes no commands.
        error: Option<std::io::Error>,
    },
}

impl FolderUser {
    pub(crate) async fn of(data: &Path) -> Self {
        let Some(owner) = seckill_embedded::lock_owner(data) else {
            return Self::Nobody;
        };
        if !owner.takes_commands {
            return Self::Busy { owner, error: None };
        }
        let socket = data.join(CONTROL_SOCKET_FILE);
        match seckill_service::connect_control(&socket).await {
            Ok(_) => Self::Service { owner, socket },
            Err(error) => Self::Busy {
                owner,
                error: Some(error),
            },
        }
    }
}

/// Tells that the file is read although a service is running.
pub(crate) fn note_unreachable(error: &std::io::Error) {
    eprintln!("seckill: the running service cannot be reached ({error}), so only its file is read");
}
