//! Registers a [`Vfs`] with SQLite and forwards SQLite's calls to it.
//!
//! SQLite uses a VFS through C structs, function pointers and raw pointers, which only unsafe code
//! can provide. All unsafe code of the crate is in this file. Whatever safe code can do must not be
//! here: nothing about disks, locks or machines. A panic must not unwind into C.

#![allow(unsafe_code, reason = "SQLite's interface of a VFS takes raw pointers")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{ptr, slice};

use rusqlite::ffi::{self as sqlite, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

use crate::interface::{LockLevel, OpenMode, ShmLockMode, Vfs, VfsFile, VfsResult, is_temporary};

/// The longest path in bytes. Longer ones are refused.
const PATH_BYTES_MAX: c_int = 1024;

/// What `pAppData` of a registered VFS points to. It is never freed.
struct Registered<V> {
    vfs: V,
    /// The default VFS, which provides everything that does not concern files.
    system: *mut sqlite3_vfs,
}

/// An open file. SQLite allocates it and knows only its first field.
#[repr(C)]
struct OpenFile<F> {
    base: sqlite3_file,
    /// From [`Box::into_raw`]; valid as long as `base.pMethods` is not null.
    file: *mut F,
}

impl<F: VfsFile> OpenFile<F> {
    /// Version 2 has shared memory, but no memory-mapped files.
    const METHODS: &'static sqlite3_io_methods = &sqlite3_io_methods {
        iVersion: 2,
        xClose: Some(x_close::<F>),
        xRead: Some(x_read::<F>),
        xWrite: Some(x_write::<F>),
        xTruncate: Some(x_truncate::<F>),
        xSync: Some(x_sync::<F>),
        xFileSize: Some(x_file_size::<F>),
        xLock: Some(x_lock::<F>),
        xUnlock: Some(x_unlock::<F>),
        xCheckReservedLock: Some(x_check_reserved_lock::<F>),
        xFileControl: Some(x_file_control),
        xSectorSize: Some(x_sector_size::<F>),
        xDeviceCharacteristics: Some(x_device_characteristics::<F>),
        xShmMap: Some(x_shm_map::<F>),
        xShmLock: Some(x_shm_lock::<F>),
        xShmBarrier: Some(x_shm_barrier::<F>),
        xShmUnmap: Some(x_shm_unmap::<F>),
        xFetch: None,
        xUnfetch: None,
    };
}

/// Registers a VFS, which is never unregistered and not the default. No other may have its name.
pub(crate) fn register<V: Vfs>(name: &str, vfs: V) -> VfsResult<()> {
    let name = CString::new(name).map_err(|_| sqlite::SQLITE_MISUSE)?;
    let file_bytes = c_int::try_from(size_of::<OpenFile<V::File>>());
    let file_bytes = file_bytes.map_err(|_| sqlite::SQLITE_MISUSE)?;
    // SAFETY: a null name asks for the default VFS. SQLite initializes itself first.
    let system = unsafe { sqlite::sqlite3_vfs_find(ptr::null()) };
    if system.is_null() {
        return Err(sqlite::SQLITE_ERROR);
    }
    let registered = Box::new(Registered { vfs, system });
    let vfs = Box::new(sqlite3_vfs {
        iVersion: 2,
        szOsFile: file_bytes,
        mxPathname: PATH_BYTES_MAX,
        pNext: ptr::null_mut(),
        zName: name.into_raw(),
        pAppData: Box::into_raw(registered).cast(),
        xOpen: Some(x_open::<V>),
        xDelete: Some(x_delete::<V>),
        xAccess: Some(x_access::<V>),
        xFullPathname: Some(x_full_pathname),
        // SQLite calls these four only to load an extension, which only unsafe code can enable.
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(x_randomness::<V>),
        xSleep: Some(x_sleep::<V>),
        // SQLite prefers `xCurrentTimeInt64`.
        xCurrentTime: None,
        xGetLastError: None,
        xCurrentTimeInt64: Some(x_current_time_int64::<V>),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    });
    // SAFETY: the struct is complete for its version. It, its name and its data are never freed,
    // and from here on only SQLite changes it.
    let code = unsafe { sqlite::sqlite3_vfs_register(Box::into_raw(vfs), 0) };
    if code == sqlite::SQLITE_OK {
        Ok(())
    } else {
        Err(code)
    }
}

/// Turns a panic into an I/O error.
///
/// Unwind safety is asserted, not checked: the VFS keeps its state behind mutexes, and an operation
/// that failed may have happened partly.
fn guard(act: impl FnOnce() -> VfsResult<()>) -> c_int {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(Ok(())) => sqlite::SQLITE_OK,
        // An error must never look like success: SQLite would use what was not set.
        Ok(Err(sqlite::SQLITE_OK)) | Err(_) => sqlite::SQLITE_IOERR,
        Ok(Err(code)) => code,
    }
}

/// # Safety
///
/// The pointer must be one that SQLite passed to a method of a VFS that `register::<V>` made.
unsafe fn registered<V: Vfs>(vfs: *mut sqlite3_vfs) -> &'static Registered<V> {
    // SAFETY: `pAppData` was set by `register::<V>` and is never freed. This reads the field alone,
    // because SQLite may change `pNext` at the same time.
    unsafe { &*(*vfs).pAppData.cast() }
}

/// # Safety
///
/// The pointer must be one that SQLite passed to a method of an [`OpenFile<F>`]. The reference must
/// not be used after that method has returned.
unsafe fn opened<'a, F: VfsFile>(file: *mut sqlite3_file) -> &'a F {
    // SAFETY: SQLite calls methods only between `x_open` and `x_close`, so the file is in its box.
    // Others may use it at the same time: it is `Sync`, and only shared references are made.
    unsafe { &*(*file.cast::<OpenFile<F>>()).file }
}

/// # Safety
///
/// The pointer must be null or point to a C string. The result must not be used after the string
/// has been changed or freed.
unsafe fn string<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: it is not null, and the caller guarantees the rest.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

fn utf8(path: Option<&CStr>) -> VfsResult<&str> {
    let text = path.and_then(|path| path.to_str().ok());
    text.ok_or(sqlite::SQLITE_CANTOPEN)
}

fn non_negative(number: impl TryInto<usize>) -> VfsResult<usize> {
    number.try_into().map_err(|_| sqlite::SQLITE_IOERR)
}

unsafe extern "C" fn x_open<V: Vfs>(
    vfs: *mut sqlite3_vfs,
    path: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes `szOsFile` bytes that nothing else uses. While `pMethods` is null,
    // SQLite considers the file not opened, and calls no method of it.
    unsafe { (*file).pMethods = ptr::null() };
    // SAFETY: the VFS is the registered one. The path is null or valid until this returns.
    let (vfs, path) = unsafe { (registered::<V>(vfs), string(path)) };
    guard(|| {
        let opened = if path.is_none() || is_temporary(flags) {
            vfs.vfs.open_temporary()?
        } else {
            vfs.vfs.open(utf8(path)?, OpenMode::from_flags(flags))?
        };
        let opened = OpenFile {
            base: sqlite3_file {
                pMethods: OpenFile::<V::File>::METHODS,
            },
            file: Box::into_raw(Box::new(opened)),
        };
        // SAFETY: `szOsFile` is the size of this struct, and SQLite aligns its memory to 8 bytes.
        unsafe { file.cast::<OpenFile<V::File>>().write(opened) };
        if !out_flags.is_null() {
            // SAFETY: it points to a variable of the caller.
            unsafe { *out_flags = flags };
        }
        Ok(())
    })
}

unsafe extern "C" fn x_delete<V: Vfs>(
    vfs: *mut sqlite3_vfs,
    path: *const c_char,
    _sync_folder: c_int,
) -> c_int {
    // SAFETY: the VFS is the registered one. The path is valid until this returns.
    let (vfs, path) = unsafe { (registered::<V>(vfs), string(path)) };
    guard(|| vfs.vfs.delete(utf8(path)?))
}

/// The flags are ignored: except in deprecated pragmas, SQLite only asks whether a file exists.
unsafe extern "C" fn x_access<V: Vfs>(
    vfs: *mut sqlite3_vfs,
    path: *const c_char,
    _flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the VFS is the registered one. The path is valid until this returns.
    let (vfs, path) = unsafe { (registered::<V>(vfs), string(path)) };
    guard(|| {
        let exists = vfs.vfs.exists(utf8(path)?)?;
        // SAFETY: it points to a variable of the caller.
        unsafe { *out = c_int::from(exists) };
        Ok(())
    })
}

/// Paths are not changed.
unsafe extern "C" fn x_full_pathname(
    _vfs: *mut sqlite3_vfs,
    path: *const c_char,
    out_bytes: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: the path is valid until this returns.
    let path = unsafe { string(path) };
    guard(|| {
        let path = path.ok_or(sqlite::SQLITE_CANTOPEN)?.to_bytes_with_nul();
        if path.len() > non_negative(out_bytes)? {
            return Err(sqlite::SQLITE_CANTOPEN);
        }
        // SAFETY: `out` has `out_bytes` bytes, which are enough.
        unsafe { out.copy_from(path.as_ptr().cast(), path.len()) };
        Ok(())
    })
}

unsafe extern "C" fn x_randomness<V: Vfs>(
    vfs: *mut sqlite3_vfs,
    bytes: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: the VFS is the registered one.
    let system = unsafe { registered::<V>(vfs) }.system;
    // SAFETY: SQLite's own VFS is never freed, and gets the arguments that this one got.
    unsafe {
        let call = (*system).xRandomness;
        call.map_or(0, |call| call(system, bytes, out))
    }
}

unsafe extern "C" fn x_sleep<V: Vfs>(vfs: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    // SAFETY: the VFS is the registered one.
    let system = unsafe { registered::<V>(vfs) }.system;
    // SAFETY: SQLite's own VFS is never freed, and gets the argument that this one got.
    unsafe {
        let call = (*system).xSleep;
        call.map_or(0, |call| call(system, microseconds))
    }
}

unsafe extern "C" fn x_current_time_int64<V: Vfs>(
    vfs: *mut sqlite3_vfs,
    out: *mut sqlite3_int64,
) -> c_int {
    // SAFETY: the VFS is the registered one.
    let system = unsafe { registered::<V>(vfs) }.system;
    // SAFETY: SQLite's own VFS is never freed, has this field, since its version is 3, and gets the
    // argument that this one got.
    unsafe {
        let call = (*system).xCurrentTimeInt64;
        call.map_or(sqlite::SQLITE_ERROR, |call| call(system, out))
    }
}

unsafe extern "C" fn x_close<F: VfsFile>(file: *mut sqlite3_file) -> c_int {
    let open = file.cast::<OpenFile<F>>();
    // SAFETY: the box is from `x_open`. SQLite closes a file once, while no other method runs, and
    // calls none afterwards.
    let file = unsafe {
        (*open).base.pMethods = ptr::null();
        Box::from_raw((*open).file)
    };
    guard(|| {
        drop(file);
        Ok(())
    })
}

unsafe extern "C" fn x_read<F: VfsFile>(
    file: *mut sqlite3_file,
    out: *mut c_void,
    bytes: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| {
        let (bytes, offset) = (non_negative(bytes)?, non_negative(offset)?);
        let out = out.cast::<u8>();
        // SAFETY: `out` has `bytes` bytes that only this call uses. Rust requires them to be
        // initialized, which they may not be yet.
        let buffer = unsafe {
            out.write_bytes(0, bytes);
            slice::from_raw_parts_mut(out, bytes)
        };
        let done = file.read(offset, buffer)?;
        if done < bytes {
            // SQLite relies on zeros after the end of the file.
            buffer[done..].fill(0);
            return Err(sqlite::SQLITE_IOERR_SHORT_READ);
        }
        Ok(())
    })
}

unsafe extern "C" fn x_write<F: VfsFile>(
    file: *mut sqlite3_file,
    data: *const c_void,
    bytes: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| {
        let (bytes, offset) = (non_negative(bytes)?, non_negative(offset)?);
        // SAFETY: `data` has `bytes` bytes, which do not change until this returns.
        let data = unsafe { slice::from_raw_parts(data.cast::<u8>(), bytes) };
        file.write(offset, data)
    })
}

unsafe extern "C" fn x_truncate<F: VfsFile>(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| file.truncate(non_negative(size)?))
}

unsafe extern "C" fn x_sync<F: VfsFile>(file: *mut sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| file.sync())
}

unsafe extern "C" fn x_file_size<F: VfsFile>(
    file: *mut sqlite3_file,
    out: *mut sqlite3_int64,
) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| {
        let size = file.size()?.try_into();
        let size = size.map_err(|_| sqlite::SQLITE_IOERR_FSTAT)?;
        // SAFETY: it points to a variable of the caller.
        unsafe { *out = size };
        Ok(())
    })
}

unsafe extern "C" fn x_lock<F: VfsFile>(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| file.lock(LockLevel::from_code(level).ok_or(sqlite::SQLITE_IOERR_LOCK)?))
}

unsafe extern "C" fn x_unlock<F: VfsFile>(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| file.unlock(LockLevel::from_code(level).ok_or(sqlite::SQLITE_IOERR_UNLOCK)?))
}

unsafe extern "C" fn x_check_reserved_lock<F: VfsFile>(
    file: *mut sqlite3_file,
    out: *mut c_int,
) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| {
        let is_reserved = file.check_reserved_lock()?;
        // SAFETY: it points to a variable of the caller.
        unsafe { *out = c_int::from(is_reserved) };
        Ok(())
    })
}

/// No request is supported. On this result, SQLite continues as if it had not made the request; any
/// other error would fail a PRAGMA, for example.
unsafe extern "C" fn x_file_control(
    _file: *mut sqlite3_file,
    _request: c_int,
    _argument: *mut c_void,
) -> c_int {
    sqlite::SQLITE_NOTFOUND
}

/// A panic returns 0, for which SQLite uses a default.
unsafe extern "C" fn x_sector_size<F: VfsFile>(file: *mut sqlite3_file) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    catch_unwind(AssertUnwindSafe(|| file.sector_size())).unwrap_or(0)
}

/// A panic returns 0, which promises nothing about the disk.
unsafe extern "C" fn x_device_characteristics<F: VfsFile>(file: *mut sqlite3_file) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    catch_unwind(AssertUnwindSafe(|| file.device_characteristics())).unwrap_or(0)
}

unsafe extern "C" fn x_shm_map<F: VfsFile>(
    file: *mut sqlite3_file,
    index: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: a method of an open file. `out` points to a variable of the caller.
    let file = unsafe {
        *out = ptr::null_mut();
        opened::<F>(file)
    };
    guard(|| {
        let (index, bytes) = (non_negative(index)?, non_negative(bytes)?);
        let Some(region) = file.shm_map(index, bytes, extend != 0)? else {
            return Ok(());
        };
        if size_of_val(region) < bytes {
            return Err(sqlite::SQLITE_IOERR_SHMMAP);
        }
        // SAFETY: as above. The region is never freed and large enough, and SQLite may write to it,
        // since it consists of atomics.
        unsafe { *out = region.as_ptr().cast_mut().cast() };
        Ok(())
    })
}

unsafe extern "C" fn x_shm_lock<F: VfsFile>(
    file: *mut sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| {
        let mode = ShmLockMode::from_flags(flags).ok_or(sqlite::SQLITE_IOERR_SHMLOCK)?;
        file.shm_lock(non_negative(offset)?, non_negative(count)?, mode)
    })
}

unsafe extern "C" fn x_shm_barrier<F: VfsFile>(file: *mut sqlite3_file) {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| {
        file.shm_barrier();
        Ok(())
    });
}

unsafe extern "C" fn x_shm_unmap<F: VfsFile>(file: *mut sqlite3_file, _delete: c_int) -> c_int {
    // SAFETY: a method of an open file.
    let file = unsafe { opened::<F>(file) };
    guard(|| file.shm_unmap())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::vfs::VFS_NAME;

    #[test]
    fn a_panic_is_an_io_error_and_an_error_is_never_success() {
        assert_eq!(guard(|| Ok(())), sqlite::SQLITE_OK);
        assert_eq!(guard(|| Err(sqlite::SQLITE_BUSY)), sqlite::SQLITE_BUSY);
        assert_eq!(guard(|| Err(sqlite::SQLITE_OK)), sqlite::SQLITE_IOERR);
        assert_eq!(guard(|| panic!("a test")), sqlite::SQLITE_IOERR);
    }

    #[test]
    fn a_file_is_opened_read_and_closed_as_sqlite_expects() {
        const FLAGS: c_int = sqlite::SQLITE_OPEN_MAIN_DB | sqlite::SQLITE_OPEN_READWRITE;
        const CREATE: c_int = FLAGS | sqlite::SQLITE_OPEN_CREATE;
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::new(dir.path(), 1).unwrap();
        let path = machine.folder().join("file");
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let name = CString::new(VFS_NAME).unwrap();
        let mut memory = [usize::MAX; 16];
        let file: *mut sqlite3_file = memory.as_mut_ptr().cast();
        let mut buffer = [9_u8; 5];
        let (data, out) = ([1_u8, 2, 3], buffer.as_mut_ptr().cast());
        let mut out_flags = 0;
        // SAFETY: the calls are such as SQLite makes, on memory that is large enough and aligned.
        unsafe {
            let vfs = sqlite::sqlite3_vfs_find(name.as_ptr());
            assert!((*vfs).szOsFile as usize <= size_of_val(&memory));
            let open = (*vfs).xOpen.unwrap();
            let refused = open(vfs, path.as_ptr(), file, FLAGS, ptr::null_mut());
            assert_eq!(refused, sqlite::SQLITE_CANTOPEN);
            assert!((*file).pMethods.is_null());
            let opened = open(vfs, path.as_ptr(), file, CREATE, &raw mut out_flags);
            assert_eq!((opened, out_flags), (sqlite::SQLITE_OK, CREATE));
            let methods = *(*file).pMethods;
            let written = methods.xWrite.unwrap()(file, data.as_ptr().cast(), 3, 0);
            assert_eq!(written, sqlite::SQLITE_OK);
            let read = methods.xRead.unwrap();
            assert_eq!(read(file, out, 5, 1), sqlite::SQLITE_IOERR_SHORT_READ);
            assert_eq!(read(file, out, 5, -1), sqlite::SQLITE_IOERR);
            let control = methods.xFileControl.unwrap();
            let controlled = control(file, sqlite::SQLITE_FCNTL_PRAGMA, ptr::null_mut());
            assert_eq!(controlled, sqlite::SQLITE_NOTFOUND);
            assert_eq!(methods.xClose.unwrap()(file), sqlite::SQLITE_OK);
            assert!((*file).pMethods.is_null());
        }
        assert_eq!(buffer, [2, 3, 0, 0, 0]);
    }
}
