//! What a file has beside its content.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// An extended attribute: its name and its value.
pub(crate) type Attribute = (Vec<u8>, Vec<u8>);

/// Owner, mode, times, extended attributes (ACLs and file capabilities are some of them), and where a link points.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: (i64, u32),
    pub device: u64,
    pub size: u64,
    /// Bytes on the disk.
    pub used: u64,
    pub links: u64,
    pub id: (u64, u64),
    pub attributes: Vec<Attribute>,
    pub target: Vec<u8>,
}

impl Meta {
    // The number of links has another width on other processors.
    #[allow(clippy::useless_conversion)]
    fn new(stat: &Stat) -> Meta {
        Meta {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            device: stat.st_rdev,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            used: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
            links: stat.st_nlink.into(),
            id: (stat.st_dev, stat.st_ino),
            attributes: Vec::new(),
            target: Vec::new(),
        }
    }

    /// Of a regular file or a folder.
    pub fn of_open(fd: &OwnedFd) -> io::Result<Meta> {
        let mut meta = Meta::new(&rustix::fs::fstat(fd)?);
        let names = bytes(|b| rustix::fs::flistxattr(fd, spare_capacity(b)))?;
        meta.attributes = attributes(&names, |n| bytes(|b| rustix::fs::fgetxattr(fd, n, spare_capacity(b))))?;
        Ok(meta)
    }

    /// Of anything else, which is not opened.
    pub fn of_closed(parent: &OwnedFd, name: &[u8], stat: Stat) -> io::Result<Meta> {
        let mut meta = Meta::new(&stat);
        if meta.kind == FileType::Symlink {
            meta.target = rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes();
        }
        let path = closed(parent, name);
        let names = bytes(|b| rustix::fs::llistxattr(path.as_slice(), spare_capacity(b)))?;
        meta.attributes =
            attributes(&names, |n| bytes(|b| rustix::fs::lgetxattr(path.as_slice(), n, spare_capacity(b))))?;
        Ok(meta)
    }

    /// Gives a regular file or a folder all that this one has. Answers what the file system or the kernel refused.
    pub fn apply_open(&self, fd: &OwnedFd) -> io::Result<Vec<String>> {
        // The order matters: a new owner takes set-user-id bits and capabilities away.
        rustix::fs::fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        let mut refused = Vec::new();
        for (name, value) in &self.attributes {
            match rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(e) => refused.extend(unkept(name, e)?),
            }
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode))?;
        rustix::fs::futimens(fd, &self.times())?;
        Ok(refused)
    }

    /// The same for what was made by name.
    pub fn apply_closed(&self, parent: &OwnedFd, name: &[u8]) -> io::Result<Vec<String>> {
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        let path = closed(parent, name);
        let mut refused = Vec::new();
        for (attribute, value) in &self.attributes {
            match rustix::fs::lsetxattr(path.as_slice(), attribute.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(e) => refused.extend(unkept(attribute, e)?),
            }
        }
        if self.kind != FileType::Symlink {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        }
        rustix::fs::utimensat(parent, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(refused)
    }

    fn times(&self) -> Timestamps {
        let modified = Timespec { tv_sec: self.modified.0, tv_nsec: self.modified.1.into() };
        Timestamps { last_access: modified, last_modification: modified }
    }
}

/// Something in a folder that is not opened, as a path whose last part no function that begins with `l` follows.
fn closed(parent: &OwnedFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// What the kernel answers, whose length is not known before.
fn bytes(mut ask: impl FnMut(&mut Vec<u8>) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(256);
    loop {
        match ask(&mut buffer) {
            Ok(_) => return Ok(buffer),
            Err(Errno::RANGE) if buffer.capacity() < 1 << 20 => {
                buffer = Vec::with_capacity(buffer.capacity() * 8)
            }
            // The file system has no such thing.
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn attributes(names: &[u8], value: impl Fn(&[u8]) -> io::Result<Vec<u8>>) -> io::Result<Vec<Attribute>> {
    let mut all = Vec::new();
    for name in names.split(|c| *c == 0).filter(|n| !n.is_empty() && !is_the_hosts(n)) {
        match value(name) {
            Ok(v) => all.push((name.to_vec(), v)),
            // It went meanwhile, or is not for us.
            Err(e) if e.raw_os_error() == Some(Errno::NODATA.raw_os_error()) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Labels that the host's own security system gives each file anew.
fn is_the_hosts(name: &[u8]) -> bool {
    matches!(name, b"security.selinux" | b"security.ima" | b"security.evm" | b"security.apparmor")
}

/// An attribute that cannot be set here, in words; anything else is an error.
fn unkept(name: &[u8], error: Errno) -> io::Result<Option<String>> {
    match error {
        Errno::NOTSUP | Errno::PERM => {
            Ok(Some(format!("the attribute `{}`: {error}", String::from_utf8_lossy(name))))
        }
        other => Err(other.into()),
    }
}
