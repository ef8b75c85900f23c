//! The data folder: its permissions, its identity, and how its entries are made durable.
//! It does not know what the database contains.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Contains the folder's identity, which is created once, together with its database.
pub(crate) const ID_FILE: &str = "seckill.id";
const ID_MAX_BYTES: u64 = 256;
/// The files contain buyers' names and keys, so only the user of the service may read them.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// The permission bits of the group and of others.
const OTHERS: u32 = 0o077;

/// Creates the folder, for this user alone, if it does not exist.
pub(crate) fn make(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        warn_if_open_to_others(dir)?;
        return Ok(());
    }
    let missing: Vec<&Path> = dir
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
        .collect();
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(dir)?;
    // The entry of each new folder is in its parent.
    missing.into_iter().try_for_each(|made| sync(parent(made)))
}

/// The folder that a path is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A folder that already exists keeps its mode: the files in it are private anyway.
fn warn_if_open_to_others(dir: &Path) -> std::io::Result<()> {
    let mode = std::fs::metadata(dir)?.permissions().mode();
    if mode & OTHERS != 0 {
        tracing::warn!(
            "other users have access to {0} (mode {1:o}); remove it with `chmod 700 {0}`",
            dir.display(),
            mode & 0o777
        );
    }
    Ok(())
}

/// Makes the entries of the folder durable.
pub(crate) fn sync(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Opens a file that only this user may access. Removes the permissions of others from an existing
/// file. Must not be used on an open database: closing the file would drop SQLite's locks.
pub(crate) fn open_private(path: &Path) -> std::io::Result<File> {
    let is_new = !path.exists();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)?;
    if is_new {
        give_to_owner_of_folder(path)?;
    }
    close_to_others(path)?;
    Ok(file)
}

/// Creates a file that only this user may access, and fails if it exists.
pub(crate) fn create_private(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    give_to_owner_of_folder(path)?;
    Ok(file)
}

/// What root creates in the folder of a service must be usable by the service.
fn give_to_owner_of_folder(path: &Path) -> std::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let folder = std::fs::metadata(parent(path))?;
    std::os::unix::fs::chown(path, Some(folder.uid()), Some(folder.gid()))
}

/// Removes the permissions of others from a file, if it exists.
pub(crate) fn close_to_others(path: &Path) -> std::io::Result<()> {
    let mode = match std::fs::metadata(path) {
        Ok(found) => found.permissions().mode(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if mode & OTHERS == 0 {
        return Ok(());
    }
    match std::fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS & 0o777)) {
        // Another user's file that this one may write, or a file system without modes.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::Unsupported
            ) =>
        {
            tracing::warn!(%error, "other users can read {}", path.display());
            Ok(())
        }
        done => done,
    }
}

/// The identity of a folder, in `seckill.id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FolderId {
    pub(crate) id: String,
    /// Names the opening of the database that was not closed cleanly yet.
    pub(crate) opening: Option<String>,
}

impl FolderId {
    /// What a database that is open in this folder is marked with.
    pub(crate) fn mark(&self) -> Option<String> {
        let opening = self.opening.as_ref()?;
        Some(format!("{}-{opening}", self.id))
    }
}

/// The identity of the folder, if it ever had a database.
pub(crate) fn id(dir: &Path) -> std::io::Result<Option<FolderId>> {
    let file = match File::open(dir.join(ID_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(ID_MAX_BYTES).read_to_string(&mut text)?;
    let mut lines = text.lines().map(|line| line.trim().to_owned());
    Ok(Some(FolderId {
        id: lines.next().unwrap_or_default(),
        opening: lines.next().filter(|opening| !opening.is_empty()),
    }))
}

/// Makes the identity durable.
pub(crate) fn write_id(dir: &Path, folder: &FolderId) -> std::io::Result<()> {
    let path = dir.join(ID_FILE);
    let unfinished = path.with_extension("id-new");
    let mut file = open_private(&unfinished)?;
    file.set_len(0)?;
    let opening = folder.opening.as_deref().unwrap_or_default();
    write!(file, "{}\n{opening}\n", folder.id)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    sync(dir)
}

/// 128 random bits in hexadecimal digits.
pub(crate) fn random() -> std::io::Result<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    Ok(format!("{:032x}", u128::from_be_bytes(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn folder_and_files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        make(&data).unwrap();
        assert_eq!(mode(&data), 0o700);
        let path = data.join("file");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
        drop(open_private(&path).unwrap());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(id(&data).unwrap(), None);
        let mut made = FolderId {
            id: random().unwrap(),
            opening: None,
        };
        write_id(&data, &made).unwrap();
        assert_eq!(id(&data).unwrap(), Some(made.clone()));
        assert_eq!(made.mark(), None);
        made.opening = Some(random().unwrap());
        write_id(&data, &made).unwrap();
        assert_eq!(id(&data).unwrap(), Some(made));
        assert_eq!(mode(&data.join(ID_FILE)), 0o600);
    }
}
