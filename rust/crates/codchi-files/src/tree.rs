//! Walking a tree by descriptors: no path is resolved twice, no link is followed, depth has no limit.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::error::{At, Result};
use crate::meta::Meta;

/// Folders of a branch that are held open at a time; those above are opened again on the way back.
const OPEN: usize = 64;

/// The folders from the root of a tree to where a walk is.
pub(crate) struct Branch {
    levels: Vec<(Option<OwnedFd>, (u64, u64))>,
}

impl Branch {
    pub fn new(root: OwnedFd) -> io::Result<Branch> {
        let mut branch = Branch { levels: Vec::new() };
        branch.push(root)?;
        Ok(branch)
    }

    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Goes down into a folder.
    pub fn push(&mut self, fd: OwnedFd) -> io::Result<()> {
        let stat = rustix::fs::fstat(&fd)?;
        self.levels.push((Some(fd), (stat.st_dev, stat.st_ino)));
        // The root stays open: hard links are found from there.
        if let Some(far) = self.levels.len().checked_sub(OPEN).filter(|i| *i > 0) {
            self.levels[far].0 = None;
        }
        Ok(())
    }

    /// Where the walk is.
    pub fn top(&self) -> io::Result<&OwnedFd> {
        self.levels
            .last()
            .and_then(|(fd, _)| fd.as_ref())
            .ok_or_else(|| io::Error::other("no folder is open"))
    }

    /// The root of the tree.
    pub fn root(&self) -> io::Result<&OwnedFd> {
        self.levels
            .first()
            .and_then(|(fd, _)| fd.as_ref())
            .ok_or_else(|| io::Error::other("no folder is open"))
    }

    /// Goes up, and gives the folder that was left.
    pub fn pop(&mut self) -> io::Result<Option<OwnedFd>> {
        let left = self.levels.pop().and_then(|(fd, _)| fd);
        if let (Some((above @ None, id)), Some(left)) = (self.levels.last_mut(), &left) {
            let fd = rustix::fs::openat(
                left,
                "..",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let stat = rustix::fs::fstat(&fd)?;
            if (stat.st_dev, stat.st_ino) != *id {
                return Err(io::Error::other("the folder above was moved meanwhile"));
            }
            *above = Some(fd);
        }
        Ok(left)
    }
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens something below a folder without following any link.
pub(crate) fn open(parent: impl AsFd, name: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(&parent, name, flags | OFlags::CLOEXEC, mode, BENEATH) {
            // Something was renamed in the same moment.
            Err(rustix::io::Errno::AGAIN) => {}
            done => return Ok(done?),
        }
    }
}

/// Opens a folder below another.
pub(crate) fn open_dir(parent: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    open(parent, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// Opens the folder that holds a path, however long that is, and gives the last name.
pub(crate) fn open_parent(root: impl AsFd, path: &[u8]) -> io::Result<(OwnedFd, &[u8])> {
    /// Well below PATH_MAX.
    const MOST: usize = 2048;
    let (mut dirs, name) = match path.iter().rposition(|c| *c == b'/') {
        Some(i) => (&path[..i], &path[i + 1..]),
        None => (&path[..0], path),
    };
    let mut at = open_dir(root, b".")?;
    while !dirs.is_empty() {
        let end = match dirs.len() > MOST {
            true => dirs[..MOST].iter().rposition(|c| *c == b'/').unwrap_or(dirs.len()),
            false => dirs.len(),
        };
        at = open_dir(&at, &dirs[..end])?;
        dirs = dirs.get(end + 1..).unwrap_or_default();
    }
    Ok((at, name))
}

/// Opens the root of a tree, which is a folder and no link.
pub(crate) fn open_root(path: &std::path::Path) -> codchi_fs::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    codchi_fs::Context::at(rustix::fs::open(path, flags, Mode::empty()), "open", path)
}

/// Something of a tree, as a walk comes by.
pub(crate) struct Entry<'a> {
    /// Its path in the tree; the root's is empty.
    pub path: &'a [u8],
    /// What it is called there.
    pub name: &'a [u8],
    /// It, open, when it is a regular file or a folder.
    pub file: Option<&'a OwnedFd>,
    pub meta: &'a Meta,
}

/// Receives what a walk comes by: a folder before and after what is in it, anything else once.
pub(crate) trait Visitor {
    /// Whether something is left out, with all in it.
    fn skips(&mut self, path: &[u8], stat: &Stat) -> bool;
    fn enter(&mut self, entry: &Entry) -> Result<()>;
    fn leave(&mut self, meta: &Meta, path: &[u8]) -> Result<()>;
    fn other(&mut self, entry: &Entry) -> Result<()>;
}

struct Frame {
    names: std::vec::IntoIter<OsString>,
    meta: Meta,
    /// Length of the path of the folder above.
    above: usize,
}

fn list(fd: &OwnedFd) -> io::Result<std::vec::IntoIter<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    // One tree gives one tar.
    names.sort_unstable();
    Ok(names.into_iter())
}

/// Walks all below a folder. The folder itself is entered and left, too, with an empty path.
pub(crate) fn walk(root: OwnedFd, visitor: &mut dyn Visitor) -> Result<()> {
    let mut path: Vec<u8> = Vec::new();
    let meta = Meta::of_open(&root).at("examine", &path)?;
    let names = list(&root).at("list", &path)?;
    visitor.enter(&Entry { path: &path, name: b".", file: Some(&root), meta: &meta })?;
    let mut frames = vec![Frame { names, meta, above: 0 }];
    let mut branch = Branch::new(root).at("examine", &path)?;
    while let Some(frame) = frames.last_mut() {
        let Some(name) = frame.names.next() else {
            visitor.leave(&frame.meta, &path)?;
            path.truncate(frame.above);
            frames.pop();
            branch.pop().at("go back from", &path)?;
            continue;
        };
        let name = name.as_bytes();
        let above = path.len();
        if above > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let parent = branch.top().at("examine", &path)?;
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).at("examine", &path)?;
        if visitor.skips(&path, &stat) {
            path.truncate(above);
            continue;
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let fd = open_dir(parent, name).at("open", &path)?;
                let meta = Meta::of_open(&fd).at("examine", &path)?;
                visitor.enter(&Entry { path: &path, name, file: Some(&fd), meta: &meta })?;
                frames.push(Frame { names: list(&fd).at("list", &path)?, meta, above });
                branch.push(fd).at("examine", &path)?;
                continue;
            }
            FileType::RegularFile => {
                let fd =
                    open(parent, name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).at("open", &path)?;
                let meta = Meta::of_open(&fd).at("examine", &path)?;
                visitor.other(&Entry { path: &path, name, file: Some(&fd), meta: &meta })?;
            }
            _ => {
                let meta = Meta::of_closed(parent, name, stat).at("examine", &path)?;
                visitor.other(&Entry { path: &path, name, file: None, meta: &meta })?;
            }
        }
        path.truncate(above);
    }
    Ok(())
}
