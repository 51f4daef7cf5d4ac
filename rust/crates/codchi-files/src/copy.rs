//! A copy of a tree in another folder.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::error::{At, FilesError, Result};
use crate::meta::Meta;
use crate::tree::{self, Branch, Entry, Visitor};
use crate::{Report, Watch};

/// Bytes that are copied between two looks at whether to go on.
const STEP: u64 = 64 << 20;

/// Copies all below `from` to `to`, an empty folder. Where the file system can, contents are shared until one side is changed.
/// When it answers, the copy is on the disk. `without` names paths that are left out, with all below them.
///
/// # Errors
/// Whatever could not be read or written; `to` then holds a part.
pub fn copy(from: &Path, to: &Path, without: &dyn Fn(&[u8]) -> bool, watch: Watch) -> Result<Report> {
    let source = tree::open_root(from)?;
    let target = tree::open_root(to)?;
    let whole = target.try_clone().at("open", b"")?;
    let mut copy = Copy {
        to: Branch::new(target).at("open", b"")?,
        report: Report::default(),
        linked: HashMap::new(),
        shares: true,
        without,
        watch,
    };
    tree::walk(source, &mut copy)?;
    rustix::fs::syncfs(whole).at("write to the disk", b"")?;
    Ok(copy.report)
}

struct Copy<'a> {
    to: Branch,
    report: Report,
    /// Files with several names: where the first copy is, and how many names are still to come.
    linked: HashMap<(u64, u64), (Vec<u8>, u64)>,
    /// Whether contents can be shared, as far as is known.
    shares: bool,
    without: &'a dyn Fn(&[u8]) -> bool,
    watch: Watch<'a>,
}

impl Visitor for Copy<'_> {
    fn skips(&mut self, path: &[u8], _: &Stat) -> bool {
        (self.without)(path)
    }

    fn enter(&mut self, entry: &Entry) -> Result<()> {
        // What the folder itself has comes last: a default ACL would be handed down, a mode could lock us out.
        if entry.path.is_empty() {
            return Ok(());
        }
        let above = self.to.top().at("open", entry.path)?;
        rustix::fs::mkdirat(above, entry.name, Mode::from_raw_mode(0o700))
            .at("create directory", entry.path)?;
        let dir = tree::open_dir(above, entry.name).at("open", entry.path)?;
        self.to.push(dir).at("examine", entry.path)
    }

    fn leave(&mut self, meta: &Meta, path: &[u8]) -> Result<()> {
        let left = match self.to.depth() {
            1 => meta.apply_open(self.to.root().at("open", path)?),
            _ => match self.to.pop().at("go back from", path)? {
                Some(dir) => meta.apply_open(&dir),
                None => Ok(Vec::new()),
            },
        };
        self.kept(path, left)?;
        if path.is_empty() { Ok(()) } else { self.entry() }
    }

    fn other(&mut self, entry: &Entry) -> Result<()> {
        let Entry { path, name, meta, .. } = *entry;
        if self.link(entry)? {
            return self.entry();
        }
        let above = self.to.top().at("open", path)?;
        match (meta.kind, entry.file) {
            (FileType::RegularFile, Some(source)) => {
                let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let target = tree::open(above, name, new, Mode::from_raw_mode(0o600)).at("create", path)?;
                self.content(path, source, &target, meta.size)?;
                let left = meta.apply_open(&target);
                self.kept(path, left)?;
            }
            (FileType::Symlink, _) => {
                rustix::fs::symlinkat(meta.target.as_slice(), above, name).at("create link", path)?;
                let left = meta.apply_closed(above, name);
                self.kept(path, left)?;
            }
            _ => match rustix::fs::mknodat(above, name, meta.kind, Mode::from_raw_mode(0o600), meta.device) {
                Ok(()) => {
                    let left = meta.apply_closed(above, name);
                    self.kept(path, left)?;
                }
                Err(Errno::PERM) => self.report.lose(path, "a device cannot be made here"),
                Err(e) => return Err(e).at("create", path),
            },
        }
        self.entry()
    }
}

impl Copy<'_> {
    fn kept(&mut self, path: &[u8], refused: io::Result<Vec<String>>) -> Result<()> {
        for what in refused.at("change", path)? {
            self.report.lose(path, &what);
        }
        Ok(())
    }

    fn entry(&mut self) -> Result<()> {
        self.report.tally.entries += 1;
        self.count(0)
    }

    fn count(&mut self, bytes: u64) -> Result<()> {
        self.report.tally.bytes += bytes;
        if (self.watch)(&self.report.tally) { Ok(()) } else { Err(FilesError::Interrupted) }
    }

    /// Makes a further name of a file that was copied already.
    fn link(&mut self, entry: &Entry) -> Result<bool> {
        let Entry { path, name, meta, .. } = *entry;
        if meta.links < 2 {
            return Ok(false);
        }
        let Some((first, left)) = self.linked.get_mut(&meta.id) else {
            self.linked.insert(meta.id, (path.to_vec(), meta.links - 1));
            return Ok(false);
        };
        let (folder, old) = tree::open_parent(self.to.root().at("open", path)?, first).at("open", path)?;
        let above = self.to.top().at("open", path)?;
        match rustix::fs::linkat(&folder, old, above, name, AtFlags::empty()) {
            Ok(()) => {}
            // What could not be made has no further names either.
            Err(Errno::NOENT) if meta.kind != FileType::RegularFile => return Ok(false),
            Err(e) => return Err(e).at("link", path),
        }
        *left -= 1;
        if *left == 0 {
            self.linked.remove(&meta.id);
        }
        Ok(true)
    }

    fn content(&mut self, path: &[u8], source: &OwnedFd, target: &OwnedFd, size: u64) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        if self.shares {
            match rustix::fs::ioctl_ficlone(target, source) {
                Ok(()) => return self.count(size),
                Err(Errno::NOTSUP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {
                    self.shares = false
                }
                // A file that may not be shared, such as one in use for swapping.
                Err(Errno::TXTBSY | Errno::PERM) => {}
                Err(e) => return Err(e).at("write", path),
            }
        }
        let mut at = 0;
        while let Some((start, end)) = next_data(source, at, size).at("read", path)? {
            at = start;
            while at < end {
                let n = range(source, target, at, (end - at).min(STEP)).at("write", path)?;
                if n == 0 {
                    break;
                }
                at += n;
                self.count(n)?;
            }
            at = at.max(end);
        }
        rustix::fs::ftruncate(target, size).at("write", path)
    }
}

/// The next part of a file from `at` on that is no hole.
pub(crate) fn next_data(file: impl AsFd, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
        Ok(s) => s,
        Err(Errno::NXIO) => return Ok(None),
        // Not told by this file system: all of it is data.
        Err(Errno::INVAL | Errno::NOTSUP) => return Ok(Some((at, size))),
        Err(e) => return Err(e.into()),
    };
    let end = match rustix::fs::seek(&file, SeekFrom::Hole(start)) {
        Ok(e) => e.min(size),
        Err(_) => size,
    };
    Ok((start < size).then_some((start, end)))
}

/// Copies a part of a file to the same place in another and answers how much; in the kernel where it can.
fn range(source: &OwnedFd, target: &OwnedFd, at: u64, length: u64) -> io::Result<u64> {
    let (mut from, mut to) = (at, at);
    match rustix::fs::copy_file_range(
        source,
        Some(&mut from),
        target,
        Some(&mut to),
        usize::try_from(length).unwrap_or(usize::MAX),
    ) {
        Ok(n) if n > 0 => return Ok(n as u64),
        Ok(_) => {}
        Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM | Errno::IO) => {}
        Err(e) => return Err(e.into()),
    }
    use std::os::unix::fs::FileExt;
    let (source, target) = (File::from(source.try_clone()?), File::from(target.try_clone()?));
    let mut buffer = vec![0; usize::try_from(length.min(1 << 20)).unwrap_or(1 << 20)];
    let n = source.read_at(&mut buffer, at)?;
    target.write_all_at(&buffer[..n], at)?;
    Ok(n as u64)
}
