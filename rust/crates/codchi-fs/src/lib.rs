//! File access whose errors name the path, atomic writes, file locks.
//!
//! Everything in Codchi that touches a file by path goes through here, so that no error is a bare "No such file".
#![allow(clippy::disallowed_methods)]

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} `{}`: {source}", path.display())]
pub struct FsError {
    /// What was tried, such as `read`.
    pub op: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FsError {
    /// Whether the file was not there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether something was there already.
    pub fn is_already_there(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }

    /// Whether there was no space left for it.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Adds operation and path to an I/O result.
pub trait Context<T> {
    /// Names what was tried, and on which path.
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T, FsError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T, FsError> {
        self.map_err(|e| FsError { op, path: path.as_ref().into(), source: e.into() })
    }
}

/// Result of a file operation.
pub type Result<T, E = FsError> = std::result::Result<T, E>;

/// Reads a whole file.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    std::fs::read(&path).at("read", path)
}

/// Reads a whole UTF-8 file.
pub fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    std::fs::read_to_string(&path).at("read", path)
}

/// Reads a whole UTF-8 file; `None` where there is none.
pub fn read_if_exists(path: impl AsRef<Path>) -> Result<Option<String>> {
    match read_to_string(path) {
        Ok(s) => Ok(Some(s)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads a UTF-8 file of a tree that another wrote: a regular file of at most `most` bytes that no link leads out of the tree to.
/// `None` where there is none.
pub fn read_beneath(root: impl AsRef<Path>, path: impl AsRef<Path>, most: u64) -> Result<Option<String>> {
    use std::io::Read;
    let (root, shown) = (root.as_ref(), root.as_ref().join(&path));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let tree = match rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        tree => tree.at("open", root)?,
    };
    // One that has no writer would hold up whoever opens it.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(&tree, path.as_ref(), flags, Mode::empty(), beneath) {
        Err(Errno::NOENT) => return Ok(None),
        file => File::from(file.at("open", &shown)?),
    };
    let odd = |why: &str| Err(io::Error::other(why.to_owned())).at("read", &shown);
    let meta = file.metadata().at("read", &shown)?;
    if !meta.is_file() {
        return odd("it is no regular file");
    }
    if meta.len() > most {
        return odd("it is larger than such a file ever is");
    }
    let mut text = String::new();
    file.take(most).read_to_string(&mut text).at("read", &shown)?;
    Ok(Some(text))
}

/// Opens a file for reading.
pub fn open(path: impl AsRef<Path>) -> Result<File> {
    File::open(&path).at("open", path)
}

/// Creates or truncates a file for writing.
pub fn create(path: impl AsRef<Path>) -> Result<File> {
    File::create(&path).at("create", path)
}

/// Writes a file in place: for kernel files and scratch files; state goes through [`write_atomic`].
pub fn write(path: impl AsRef<Path>, data: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(&path, data).at("write", path)
}

/// Replaces a file so that a reader, or a power cut, sees the old content or the new, never a part.
pub fn write_atomic(path: impl AsRef<Path>, data: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    replace(path.as_ref(), data.as_ref(), mode, true)
}

/// Replaces a file so that a reader sees the old content or the new. For what may be lost: after a power cut it may be
/// empty.
pub fn write_cache(path: impl AsRef<Path>, data: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    replace(path.as_ref(), data.as_ref(), mode, false)
}

fn replace(path: &Path, data: &[u8], mode: u32, lasting: bool) -> Result<()> {
    let dir = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let temp = half_made(path);
    let done: std::io::Result<()> = (|| {
        let mut f = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temp)?;
        f.write_all(data)?;
        if lasting {
            f.sync_all()?;
        }
        std::fs::rename(&temp, path)?;
        if lasting {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    })();
    if done.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    done.at("write", path)
}

/// What a file or link is called until it is put in place.
fn half_made(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

/// Removes from a directory what writers did not put in place that are no more. That there is no such directory is fine.
pub fn sweep(dir: impl AsRef<Path>) -> Result<()> {
    let entries = match read_dir(&dir) {
        Err(e) if e.is_not_found() => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry.file_name();
        let named = name.to_str().and_then(|n| n.strip_prefix('.')?.strip_suffix(".new")?.rsplit_once('.'));
        let writer = named.and_then(|(_, pid)| pid.parse::<u32>().ok());
        // Nobody makes a folder like that.
        let folder = entry.file_type().is_ok_and(|t| t.is_dir());
        if !folder && writer.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove_if_exists(entry.path())?;
        }
    }
    Ok(())
}

/// Creates a directory and its parents.
pub fn create_dir_all(path: impl AsRef<Path>) -> Result<()> {
    std::fs::create_dir_all(&path).at("create directory", path)
}

/// Creates a directory and its parents that nobody else may enter (mode 0700 for those it creates).
pub fn create_private_dir(path: impl AsRef<Path>) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).at("create directory", path)
}

/// Changes the permissions of a file or directory.
pub fn set_mode(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).at("change the mode of", path)
}

/// Removes a file.
pub fn remove_file(path: impl AsRef<Path>) -> Result<()> {
    std::fs::remove_file(&path).at("remove", path)
}

/// Removes a file; that it is gone already is fine.
pub fn remove_if_exists(path: impl AsRef<Path>) -> Result<()> {
    match remove_file(path) {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

/// Removes a directory and all in it; that it is gone already is fine.
///
/// One folder is open at a time, however deep the tree is: what a machine leaves may be deeper than any path is long, and
/// than this process may hold descriptors. No link is followed.
pub fn remove_dir_all(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    match remove_tree(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}

/// A folder that is being emptied.
struct Emptied {
    /// What it is called in the folder above.
    name: CString,
    /// Which it is.
    id: (u64, u64),
    /// The folders in it that are left.
    folders: Vec<CString>,
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, name: &CStr| rustix::fs::openat(at, name, flags, Mode::empty());
    let top = CString::new(path.as_os_str().as_bytes())?;
    let mut here = match open(CWD, &top) {
        // A link to a folder is no folder: it goes, and what it leads to stays.
        Err(Errno::LOOP | Errno::NOTDIR) if path.symlink_metadata()?.is_symlink() => {
            return std::fs::remove_file(path);
        }
        r => r?,
    };
    let mut above: Vec<Emptied> = Vec::new();
    let mut current = empty(&here, top)?;
    loop {
        if let Some(name) = current.folders.pop() {
            match open(here.as_fd(), &name) {
                Ok(fd) => {
                    here = fd;
                    above.push(std::mem::replace(&mut current, empty(&here, name)?));
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
            continue;
        }
        let Some(parent) = above.pop() else { return std::fs::remove_dir(path) };
        here = open(here.as_fd(), c"..")?;
        if identity(&here)? != parent.id {
            return Err(io::Error::other("a folder in it was moved meanwhile"));
        }
        match rustix::fs::unlinkat(&here, &current.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        current = parent;
    }
}

/// Removes what is in a folder, except for the folders.
fn empty(dir: &OwnedFd, name: CString) -> io::Result<Emptied> {
    let mut folders = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                // Not every file system tells the kind of an entry.
                Err(Errno::ISDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        folders.push(name.to_owned());
    }
    Ok(Emptied { name, id: identity(dir)?, folders })
}

fn identity(dir: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Renames a file or directory.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    std::fs::rename(&from, to).at("rename", from)
}

/// Gives a file a second name, or a copy where the file system or the kernel refuses a hard link.
pub fn link_or_copy(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    if std::fs::hard_link(&from, &to).is_ok() {
        return Ok(());
    }
    std::fs::copy(&from, &to).map(drop).at("copy", from)
}

/// Entries of a directory, sorted by name.
pub fn read_dir(path: impl AsRef<Path>) -> Result<Vec<std::fs::DirEntry>> {
    let path = path.as_ref();
    let mut all =
        std::fs::read_dir(path).at("list", path)?.collect::<Result<Vec<_>, _>>().at("list", path)?;
    all.sort_by_key(|e| e.file_name());
    Ok(all)
}

/// The target of a symbolic link; `None` where there is none.
pub fn read_link_if_exists(path: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    match std::fs::read_link(&path) {
        Ok(p) => Ok(Some(p)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read link", path),
    }
}

/// Points a symbolic link at a target, replacing an earlier link in one step.
pub fn symlink_atomic(target: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<()> {
    let link = link.as_ref();
    let temp = half_made(link);
    let _ = std::fs::remove_file(&temp);
    let done = std::os::unix::fs::symlink(target, &temp).and_then(|()| std::fs::rename(&temp, link));
    if done.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    done.at("create link", link)
}

/// An exclusive lock on a file, released when dropped. The file says who holds it.
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Someone else has it.
    #[error("`{}` is held by {holder}", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The file could not be used.
    #[error(transparent)]
    File(#[from] FsError),
}

impl Lock {
    /// Takes the lock without waiting. `who` is shown to others, such as `codchi rebuild (process 4711)`.
    pub fn try_take(path: impl AsRef<Path>, who: &str) -> Result<Lock, LockError> {
        Lock::take_as(path.as_ref(), who, rustix::fs::FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes the lock as soon as nobody else has it.
    pub fn take(path: impl AsRef<Path>, who: &str) -> Result<Lock, LockError> {
        Lock::take_as(path.as_ref(), who, rustix::fs::FlockOperation::LockExclusive)
    }

    fn take_as(path: &Path, who: &str, how: rustix::fs::FlockOperation) -> Result<Lock, LockError> {
        let mut file = loop {
            let file = Lock::open(path, how)?;
            // Who held it may have removed the file with what it locked: then this is a lock on nothing.
            let here = std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
            let ours = file.metadata().at("examine", path)?;
            if here == Some((ours.dev(), ours.ino())) {
                break file;
            }
        };
        file.set_len(0).at("write", path)?;
        match file.write_all(who.as_bytes()).at("write", path) {
            // On a full disk it holds all the same; others are not told by whom.
            Err(e) if !e.is_full() => Err(e.into()),
            _ => Ok(Lock { file, path: path.into() }),
        }
    }

    /// Removes the file of the lock, with what it locked; not one that another has put in its place.
    pub fn remove(&self) -> Result<()> {
        let here = std::fs::metadata(&self.path).ok().map(|m| (m.dev(), m.ino()));
        let ours = self.file.metadata().at("examine", &self.path)?;
        match here == Some((ours.dev(), ours.ino())) {
            true => remove_if_exists(&self.path),
            false => Ok(()),
        }
    }

    fn open(path: &Path, how: rustix::fs::FlockOperation) -> Result<File, LockError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .at("open", path)?;
        loop {
            match rustix::fs::flock(&file, how) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(LockError::Held { path: path.into(), holder: Lock::holder(path) });
                }
                Err(e) => Err(e).at("lock", path)?,
            }
        }
    }

    /// What the holder wrote about itself, which it does right after it took the lock.
    fn holder(path: &Path) -> String {
        for _ in 0..50 {
            let holder = std::fs::read_to_string(path).unwrap_or_default();
            if !holder.trim().is_empty() {
                return holder.trim().into();
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        "another process".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_swept_and_nothing_else() {
        let dir = std::env::temp_dir().join(format!("codchi-fs-sweep-{}", std::process::id()));
        create_dir_all(&dir).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = child.id();
        child.wait().unwrap();
        let living = half_made(&dir.join("file"));
        let kept = [living, dir.join("a.1.new"), dir.join(".x.new"), dir.join(".x.y.new")];
        kept.iter().for_each(|file| write(file, "x").unwrap());
        write(dir.join(format!(".flake.nix.{gone}.new")), "x").unwrap();
        let folder = dir.join(format!(".folder.{gone}.new"));
        create_dir_all(&folder).unwrap();
        sweep(&dir).unwrap();
        assert!(kept.iter().all(|file| file.exists()) && folder.exists());
        assert_eq!(read_dir(&dir).unwrap().len(), kept.len() + 1);
        remove_dir_all(&dir).unwrap();
        sweep(&dir).unwrap();
    }

    #[test]
    fn a_tree_is_removed_whole_and_what_its_links_lead_to_stays() {
        let dir = std::env::temp_dir().join(format!("codchi-fs-tree-{}", std::process::id()));
        let (tree, kept) = (dir.join("tree"), dir.join("kept"));
        create_dir_all(&kept).unwrap();
        write(kept.join("file"), "x").unwrap();
        for n in 0..3 {
            create_dir_all(tree.join(format!("a{n}/b/c"))).unwrap();
            write(tree.join(format!("a{n}/b/file")), "x").unwrap();
        }
        symlink_atomic(&kept, tree.join("a1/link")).unwrap();
        remove_dir_all(&tree).unwrap();
        assert!(!tree.exists() && kept.join("file").exists());
        remove_dir_all(&tree).unwrap();
        // The link itself goes where the top is one.
        symlink_atomic(&kept, &tree).unwrap();
        remove_dir_all(&tree).unwrap();
        assert!(tree.symlink_metadata().is_err() && kept.join("file").exists());
        assert!(remove_dir_all(kept.join("file")).is_err());
        remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_a_path_is_long_is_removed() {
        let dir = std::env::temp_dir().join(format!("codchi-fs-deep-{}", std::process::id()));
        create_dir_all(&dir).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::open(&dir, flags, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "d", Mode::from(0o755)).unwrap();
            at = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        remove_dir_all(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn a_lock_names_its_holder_and_is_free_again_when_dropped() {
        let dir = std::env::temp_dir().join(format!("codchi-fs-{}", std::process::id()));
        create_dir_all(&dir).unwrap();
        let p = dir.join("lock");
        let held = Lock::try_take(&p, "the first").unwrap();
        let Err(LockError::Held { holder, .. }) = Lock::try_take(&p, "the second") else {
            panic!("taken twice")
        };
        assert_eq!(holder, "the first");
        drop(held);
        assert!(Lock::try_take(&p, "the second").is_ok());
        remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn an_atomic_write_replaces_the_file_and_leaves_no_temporary() {
        let dir = std::env::temp_dir().join(format!("codchi-fs-w-{}", std::process::id()));
        create_dir_all(&dir).unwrap();
        write_atomic(dir.join("f"), "one", 0o600).unwrap();
        write_atomic(dir.join("f"), "two", 0o600).unwrap();
        assert_eq!(read_to_string(dir.join("f")).unwrap(), "two");
        assert_eq!(read_dir(&dir).unwrap().len(), 1);
        remove_dir_all(&dir).unwrap();
    }
}
