//! The simulated machines of this process, by folder, and what can happen to them.
//! The content of their disks is in `state`.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::ensure;

use crate::rng::Rng;
use crate::state::{Fuse, State};

const PRIVATE: u32 = 0o700;

pub(crate) type SharedState = Arc<Mutex<State>>;

static MACHINES: Mutex<BTreeMap<PathBuf, SharedState>> = Mutex::new(BTreeMap::new());

fn machines() -> MutexGuard<'static, BTreeMap<PathBuf, SharedState>> {
    MACHINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The machine that a path belongs to, and the name of the file in its folder.
pub(crate) fn machine_of(path: &str) -> Option<(SharedState, String)> {
    let path = Path::new(path);
    let name = path.file_name()?.to_str()?;
    let machines = machines();
    let state = machines.get(path.parent()?)?;
    Some((Arc::clone(state), name.to_owned()))
}

pub(crate) fn lock_state(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A simulated machine. SQLite uses its folder through the VFS. Dropping it discards what a power
/// cut would do, but keeps the files.
pub struct Machine {
    folder: PathBuf,
    state: SharedState,
}

impl Machine {
    /// A machine with this folder, which is created if it does not exist. SQLite must open its
    /// files under exactly this path.
    pub fn new(folder: &Path, seed: u64) -> anyhow::Result<Self> {
        crate::vfs::register()?;
        create_private(folder)?;
        Self::with_state(folder, State::new(folder, seed))
    }

    fn with_state(folder: &Path, state: State) -> anyhow::Result<Self> {
        let state = Arc::new(Mutex::new(state));
        let mut machines = machines();
        ensure!(
            !machines.contains_key(folder),
            "{} belongs to another machine",
            folder.display()
        );
        machines.insert(folder.to_owned(), Arc::clone(&state));
        Ok(Self {
            folder: folder.to_owned(),
            state,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock_state(&self.state)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Operations are counted from now on. `None` removes the fuse.
    pub fn set_fuse(&self, fuse: Option<Fuse>) {
        self.state().fuse = fuse;
    }

    /// Stops the machine between two operations.
    pub fn stop(&self) {
        self.state().is_down = true;
    }

    /// Whether it has stopped. Then, every operation fails, except those that release something.
    pub fn is_down(&self) -> bool {
        self.state().is_down
    }

    /// The number of operations so far.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Kills the processes and leaves the power on: the next ones see every write in `folder`, and
    /// unsynced writes stay unsynced.
    pub fn kill_into(&self, folder: &Path) -> anyhow::Result<Self> {
        create_private(folder)?;
        let state = self.state().kill_into(folder)?;
        Self::with_state(folder, state)
    }

    /// Cuts the power: `folder` gets what the disk may contain after that. For each unsynced write,
    /// new name and deletion, `rng` decides whether it had reached the disk.
    pub fn power_cut_into(&self, folder: &Path, rng: &mut Rng) -> anyhow::Result<Self> {
        create_private(folder)?;
        let state = self.state().power_cut_into(folder, rng)?;
        Self::with_state(folder, state)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        machines().remove(&self.folder);
    }
}

fn create_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(PRIVATE).create(folder)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::ffi as sqlite;

    use super::*;
    use crate::interface::OpenMode;

    struct TestMachine {
        dir: tempfile::TempDir,
        machine: Machine,
        folders: u32,
    }

    impl TestMachine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let machine = Machine::new(&dir.path().join("0"), 1).unwrap();
            Self {
                dir,
                machine,
                folders: 0,
            }
        }

        fn write(&self, name: &str, content: &[u8], sync: bool) {
            let mut state = self.machine.state();
            let opened = state.open(name, OpenMode::Create).unwrap();
            state.write(opened.inode, &opened.file, 0, content).unwrap();
            if sync {
                state.sync(opened.inode).unwrap();
            }
            state.close(opened.inode, opened.handle);
        }

        /// The contents of a file after many power cuts; `None` if the file is gone.
        fn after_cuts(&mut self, name: &str) -> Vec<Option<Vec<u8>>> {
            let cuts = (0..60).map(|seed| {
                self.folders += 1;
                let folder = self.dir.path().join(self.folders.to_string());
                let mut rng = Rng::new(seed);
                let next = self.machine.power_cut_into(&folder, &mut rng).unwrap();
                fs::read(next.folder().join(name)).ok()
            });
            cuts.collect()
        }
    }

    #[test]
    fn an_unsynced_file_may_vanish_and_a_synced_one_stays() {
        let mut test = TestMachine::new();
        test.write("a", b"1", false);
        let unsynced = test.after_cuts("a");
        for possible in [None, Some(Vec::new()), Some(b"1".to_vec())] {
            assert!(unsynced.contains(&possible), "{possible:?}");
        }
        let mut test = TestMachine::new();
        test.write("a", b"1", true);
        let synced = test.after_cuts("a");
        assert!(synced.iter().all(|content| *content == Some(b"1".to_vec())));
    }

    #[test]
    fn a_deletion_may_be_lost_until_another_file_is_synced() {
        let mut test = TestMachine::new();
        test.write("a", b"1", true);
        test.machine.state().delete("a").unwrap();
        let unsynced = test.after_cuts("a");
        assert!(unsynced.contains(&None) && unsynced.contains(&Some(b"1".to_vec())));
        let mut test = TestMachine::new();
        test.write("a", b"1", true);
        test.machine.state().delete("a").unwrap();
        test.write("b", b"2", true);
        assert!(test.after_cuts("a").iter().all(Option::is_none));
    }

    #[test]
    fn a_kill_keeps_every_write_but_makes_none_durable() {
        let mut test = TestMachine::new();
        test.write("a", b"1", true);
        test.write("a", b"2", false);
        fs::write(test.machine.folder().join("other"), b"o").unwrap();
        let folder = test.dir.path().join("killed");
        test.machine = test.machine.kill_into(&folder).unwrap();
        assert_eq!(fs::read(folder.join("a")).unwrap(), b"2");
        assert_eq!(fs::read(folder.join("other")).unwrap(), b"o");
        let cut = test.after_cuts("a");
        assert!(cut.contains(&Some(b"1".to_vec())) && cut.contains(&Some(b"2".to_vec())));
    }

    #[test]
    fn a_fuse_stops_everything_but_closing() {
        let test = TestMachine::new();
        test.write("a", b"1", true);
        test.machine.set_fuse(Some(Fuse {
            after_ops: 1,
            in_sync: false,
        }));
        let mut state = test.machine.state();
        let opened = state.open("a", OpenMode::Create).unwrap();
        assert_eq!(state.truncate(opened.inode, &opened.file, 0), Ok(()));
        let stopped = state.sync(opened.inode);
        assert_eq!(stopped, Err(sqlite::SQLITE_IOERR_FSYNC));
        let write = state.write(opened.inode, &opened.file, 0, b"2");
        assert_eq!(write, Err(sqlite::SQLITE_IOERR_WRITE));
        assert_eq!(state.exists("a"), Err(sqlite::SQLITE_IOERR_ACCESS));
        assert!(state.open("a", OpenMode::Create).is_err());
        state.close(opened.inode, opened.handle);
        drop(state);
        assert!(test.machine.is_down());
        assert_eq!(test.machine.ops(), 4);
    }

    #[test]
    fn a_fuse_may_wait_for_a_sync() {
        let test = TestMachine::new();
        test.machine.set_fuse(Some(Fuse {
            after_ops: 1,
            in_sync: true,
        }));
        test.write("a", b"1", false);
        test.write("a", b"2", false);
        let mut state = test.machine.state();
        let opened = state.open("a", OpenMode::Create).unwrap();
        let stopped = state.sync(opened.inode);
        assert_eq!(stopped, Err(sqlite::SQLITE_IOERR_FSYNC));
    }
}
