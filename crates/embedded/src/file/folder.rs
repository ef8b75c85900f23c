//! The data folder: its permissions, its identity, and how its entries are made durable.
//! It does not know what the database contains.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Contains the folder's identity, which is created once, together with its database.
pub(crate) const ID_FILE: &str = "seckill.id";
const ID_MAX_BYTES: u64 = 64;
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
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(dir)?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync(parent),
        _ => sync(Path::new(".")),
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
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)?;
    close_to_others(path)?;
    Ok(file)
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
    std::fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS & 0o777))
}

/// The identity of the folder; `None` if it never had a database.
pub(crate) fn id(dir: &Path) -> std::io::Result<Option<String>> {
    use std::io::Read;
    let file = match File::open(dir.join(ID_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(ID_MAX_BYTES).read_to_string(&mut text)?;
    Ok(Some(text.trim().to_owned()))
}

/// Creates the folder's identity, and makes it durable.
pub(crate) fn make_id(dir: &Path) -> std::io::Result<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let id = format!("{:032x}", u128::from_be_bytes(random));
    let path = dir.join(ID_FILE);
    let unfinished = path.with_extension("id-new");
    let mut file = open_private(&unfinished)?;
    file.set_len(0)?;
    file.write_all(id.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    sync(dir)?;
    Ok(id)
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
        let made = make_id(&data).unwrap();
        assert_eq!(id(&data).unwrap(), Some(made));
        assert_eq!(mode(&data.join(ID_FILE)), 0o600);
    }
}
