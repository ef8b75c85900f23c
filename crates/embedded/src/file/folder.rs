//! The data folder: who may read it, its identity, and what makes its entries durable.
//! It knows nothing of what the database holds.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Tells a folder from others; made once, when the folder gets its database.
pub(crate) const ID_FILE: &str = "seckill.id";
const ID_MAX_BYTES: u64 = 64;
/// Buyers' names and keys are in the files: nobody but the user of the service may read them.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const OTHERS: u32 = 0o077;

/// Makes the folder if it does not exist, for this user alone.
pub(crate) fn make(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        warn_of_others(dir)?;
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

/// A folder that somebody made for the service keeps its mode: the files in it are closed anyway.
fn warn_of_others(dir: &Path) -> std::io::Result<()> {
    let mode = std::fs::metadata(dir)?.permissions().mode();
    if mode & OTHERS != 0 {
        tracing::warn!(
            "other users can look into {0} (mode {1:o}); `chmod 700 {0}` keeps them out",
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

/// Opens a file for this user alone, and takes the rights of others away from one that exists.
/// Never of a database that is open: closing it would drop SQLite's locks.
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

/// Takes the rights of others away. A file that does not exist is closed enough.
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

/// The identity of the folder, if it ever had a database.
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

/// Gives the folder an identity, durably.
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
    fn folder_and_files_are_for_their_user_alone() {
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
