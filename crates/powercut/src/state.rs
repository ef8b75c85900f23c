//! A folder and its simulated disk: operations go to real files, and what a power cut may lose of
//! them is recorded. It knows only SQLite's error codes, and does not interpret the files' content.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rusqlite::ffi as sqlite;

use crate::disk::{Contents, PendingOp};
use crate::interface::{LockLevel, OpenMode, VfsResult};
use crate::locks::{FileLocks, HandleId};
use crate::rng::Rng;
use crate::shm::Shm;

const PRIVATE: u32 = 0o600;

/// When a machine stops: at the operation that follows `after_ops` others. Writes, truncations,
/// syncs and deletions are operations.
#[derive(Debug, Clone, Copy)]
pub struct Fuse {
    pub after_ops: u64,
    /// Waits for the next sync from then on, so that a commit is written but not durable.
    pub in_sync: bool,
}

pub(crate) type InodeId = u64;

/// A file, independent of its name. Locks and shared memory end with the process, so they are not
/// copied.
#[derive(Debug, Default)]
pub(crate) struct Inode {
    contents: Contents,
    pub(crate) locks: FileLocks,
    pub(crate) shm: Shm,
}

impl Inode {
    fn new(contents: Contents) -> Self {
        Self {
            contents,
            ..Self::default()
        }
    }
}

/// A file that was just opened.
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) inode: InodeId,
    pub(crate) handle: HandleId,
}

pub(crate) struct State {
    folder: PathBuf,
    inodes: BTreeMap<InodeId, Inode>,
    /// The folder as processes see it.
    names: BTreeMap<String, InodeId>,
    /// The folder as it is on the disk.
    durable_names: BTreeMap<String, InodeId>,
    next_id: u64,
    pub(crate) ops: u64,
    pub(crate) fuse: Option<Fuse>,
    pub(crate) is_down: bool,
    rng: Rng,
}

impl State {
    pub(crate) fn new(folder: &Path, seed: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            next_id: 0,
            ops: 0,
            fuse: None,
            is_down: false,
            rng: Rng::new(seed),
        }
    }

    /// Fails with `code` once the machine has stopped.
    pub(crate) fn check_up(&self, code: i32) -> VfsResult<()> {
        if self.is_down { Err(code) } else { Ok(()) }
    }

    /// Counts an operation, and returns whether the machine stops during it.
    fn stops_in_op(&mut self, code: i32) -> VfsResult<bool> {
        self.check_up(code)?;
        self.ops += 1;
        if let Some(fuse) = &mut self.fuse {
            let is_sync = code == sqlite::SQLITE_IOERR_FSYNC;
            self.is_down = fuse.after_ops == 0 && (is_sync || !fuse.in_sync);
            fuse.after_ops = fuse.after_ops.saturating_sub(1);
        }
        Ok(self.is_down)
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn inode(&mut self, id: InodeId) -> VfsResult<&mut Inode> {
        self.inodes.get_mut(&id).ok_or(sqlite::SQLITE_IOERR)
    }

    pub(crate) fn open(&mut self, name: &str, mode: OpenMode) -> VfsResult<Opened> {
        self.check_up(sqlite::SQLITE_IOERR)?;
        let path = self.path(name);
        let exists = path.exists();
        let possible = match mode {
            OpenMode::ReadOnly | OpenMode::ReadWrite => exists,
            OpenMode::Create => true,
            OpenMode::CreateNew => !exists,
        };
        if !possible {
            return Err(sqlite::SQLITE_CANTOPEN);
        }
        let inode = match self.names.get(name) {
            Some(&inode) if exists => inode,
            _ => self.adopt(name, exists)?,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(mode != OpenMode::ReadOnly)
            .create(!exists)
            .truncate(false)
            .mode(PRIVATE)
            .open(&path)
            .map_err(|_| sqlite::SQLITE_CANTOPEN)?;
        let handle = self.new_id();
        Ok(Opened {
            file,
            inode,
            handle,
        })
    }

    /// Adds a file that is not known yet. One that is already in the folder counts as synced.
    fn adopt(&mut self, name: &str, exists: bool) -> VfsResult<InodeId> {
        if exists {
            let content = fs::read(self.path(name)).map_err(|_| sqlite::SQLITE_CANTOPEN)?;
            return Ok(self.adopt_durable(name, content));
        }
        let id = self.new_id();
        self.inodes.insert(id, Inode::default());
        self.names.insert(name.to_owned(), id);
        Ok(id)
    }

    fn adopt_durable(&mut self, name: &str, content: Vec<u8>) -> InodeId {
        let id = self.new_id();
        let inode = Inode::new(Contents::durable(content));
        self.inodes.insert(id, inode);
        self.names.insert(name.to_owned(), id);
        self.durable_names.insert(name.to_owned(), id);
        id
    }

    pub(crate) fn close(&mut self, inode: InodeId, handle: HandleId) {
        if let Ok(inode) = self.inode(inode) {
            inode.locks.unlock(handle, LockLevel::Unlocked);
            inode.shm.unmap(handle);
        }
    }

    pub(crate) fn write(
        &mut self,
        inode: InodeId,
        file: &File,
        offset: usize,
        data: &[u8],
    ) -> VfsResult<()> {
        const FAILED: i32 = sqlite::SQLITE_IOERR_WRITE;
        let stops = self.stops_in_op(FAILED)?;
        // An interrupted write happens completely, partly or not at all.
        let len = match (stops, self.rng.below(3)) {
            (false, _) | (true, 0) => data.len(),
            (true, 1) => 0,
            (true, _) => self.rng.below(data.len() as u64) as usize,
        };
        let data = &data[..len];
        if !data.is_empty() {
            let written = file.write_all_at(data, offset as u64);
            written.map_err(|_| FAILED)?;
            let data = data.to_vec();
            let op = PendingOp::Write { offset, data };
            self.inode(inode)?.contents.push(op);
        }
        if stops { Err(FAILED) } else { Ok(()) }
    }

    pub(crate) fn truncate(&mut self, inode: InodeId, file: &File, size: usize) -> VfsResult<()> {
        const FAILED: i32 = sqlite::SQLITE_IOERR_TRUNCATE;
        let stops = self.stops_in_op(FAILED)?;
        if !stops || self.rng.one_in(2) {
            file.set_len(size as u64).map_err(|_| FAILED)?;
            let op = PendingOp::Truncate { size };
            self.inode(inode)?.contents.push(op);
        }
        if stops { Err(FAILED) } else { Ok(()) }
    }

    /// Makes a file durable, together with its name and with earlier deletions in the folder.
    ///
    /// On ext4, XFS and Btrfs, the sync of a new file covers its name; POSIX does not guarantee it.
    /// Earlier deletions in the folder are assumed to be covered as well. A sync of the folder
    /// itself does not go through SQLite and has no effect here, so a cut may lose too much.
    pub(crate) fn sync(&mut self, inode: InodeId) -> VfsResult<()> {
        const FAILED: i32 = sqlite::SQLITE_IOERR_FSYNC;
        if self.stops_in_op(FAILED)? {
            return Err(FAILED);
        }
        self.inode(inode)?.contents.sync();
        let names = &self.names;
        self.durable_names
            .retain(|name, id| names.get(name) == Some(&*id));
        if let Some((name, _)) = names.iter().find(|(_, id)| **id == inode) {
            self.durable_names.insert(name.clone(), inode);
        }
        Ok(())
    }

    pub(crate) fn delete(&mut self, name: &str) -> VfsResult<()> {
        const FAILED: i32 = sqlite::SQLITE_IOERR_DELETE;
        self.check_up(FAILED)?;
        if !self.path(name).exists() {
            return Err(sqlite::SQLITE_IOERR_DELETE_NOENT);
        }
        if !self.names.contains_key(name) {
            // A power cut may undo the deletion, so the content must be known.
            self.adopt(name, true)?;
        }
        let stops = self.stops_in_op(FAILED)?;
        if !stops || self.rng.one_in(2) {
            fs::remove_file(self.path(name)).map_err(|_| FAILED)?;
            self.names.remove(name);
        }
        if stops { Err(FAILED) } else { Ok(()) }
    }

    pub(crate) fn exists(&self, name: &str) -> VfsResult<bool> {
        self.check_up(sqlite::SQLITE_IOERR_ACCESS)?;
        Ok(self.path(name).exists())
    }

    /// Kills the processes. The next ones work in `folder`, which must exist.
    pub(crate) fn kill_into(&mut self, folder: &Path) -> anyhow::Result<Self> {
        self.is_down = true;
        let mut next = Self::new(folder, self.rng.next_u64());
        for name in self.names.keys() {
            copy_private(&self.path(name), &next.path(name))?;
        }
        for id in self.names.values().chain(self.durable_names.values()) {
            if let Some(inode) = self.inodes.get(id) {
                let contents = inode.contents.clone();
                next.inodes.insert(*id, Inode::new(contents));
            }
        }
        next.names = self.names.clone();
        next.durable_names = self.durable_names.clone();
        next.next_id = self.next_id;
        self.copy_others(folder)?;
        Ok(next)
    }

    /// Cuts the power. What the disk has then is written to `folder`, which must exist.
    pub(crate) fn power_cut_into(&mut self, folder: &Path, rng: &mut Rng) -> anyhow::Result<Self> {
        self.is_down = true;
        let mut next = Self::new(folder, self.rng.next_u64());
        for name in self.all_names() {
            let (seen, durable) = (self.names.get(&name), self.durable_names.get(&name));
            let survivor = if rng.one_in(2) { seen } else { durable };
            let Some(inode) = survivor.and_then(|id| self.inodes.get(id)) else {
                continue;
            };
            let image = inode.contents.after_power_cut(rng);
            let path = next.path(&name);
            fs::write(&path, &image)?;
            fs::set_permissions(&path, Permissions::from_mode(PRIVATE))?;
            next.adopt_durable(&name, image);
        }
        self.copy_others(folder)?;
        Ok(next)
    }

    fn all_names(&self) -> BTreeSet<String> {
        let names = self.names.keys().chain(self.durable_names.keys());
        names.cloned().collect()
    }

    /// Copies the files that SQLite did not open, such as a lock file, as if they were synced.
    /// Sockets are not copied, and neither is shared memory.
    fn copy_others(&self, to: &Path) -> anyhow::Result<()> {
        let known = self.all_names();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            let is_other = !known.contains(text.as_ref()) && !text.ends_with("-shm");
            if is_other && entry.file_type()?.is_file() {
                copy_private(&entry.path(), &to.join(&name))?;
            }
        }
        Ok(())
    }
}

fn copy_private(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    fs::set_permissions(to, Permissions::from_mode(PRIVATE))?;
    Ok(())
}
