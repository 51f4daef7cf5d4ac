//! A tree from a tar, which may come from anybody.
//!
//! Nothing is written outside the folder that is given: a path that leads out of it, by `..`, from the root or through a link,
//! is refused. What was written before a refusal is the caller's to remove.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::acl;
use crate::error::{At, FilesError, Result};
use crate::header::{self, BLOCK, Header, filling};
use crate::meta::Meta;
use crate::tree::{self, Branch};
use crate::{Report, Watch, of_machine};

/// What becomes of a path of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// It is unpacked as this path.
    As(Vec<u8>),
    /// It is passed over.
    Skip,
    /// Nothing that follows matters.
    Stop,
}

/// What is wanted of a tar.
pub struct Wish<'a> {
    /// Says what becomes of a path.
    pub pick: &'a dyn Fn(&[u8]) -> Pick,
    /// Whether owners, set-user-id bits and attributes are wanted, too; else everything is the caller's.
    pub faithful: bool,
    /// What it may hold at most.
    pub most: Most,
}

/// What a tar may hold. Holes and further names of a file count as if they were content: whoever copies it on may write them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Bytes.
    pub bytes: u64,
    /// Files, folders, links.
    pub entries: u64,
}

impl Most {
    /// As much as there is.
    pub const ALL: Most = Most { bytes: u64::MAX, entries: u64::MAX };
}

/// The most an extended header may hold: attributes have at most 64 KiB each.
const HEADER: u64 = 16 << 20;
/// The longest path that programs are held to. See PATH_MAX in limits.h(0p).
const PATH: usize = 4096;
/// The most parts a file with holes may have.
const PARTS: u64 = 1 << 20;

/// Something in a tar.
#[derive(Debug)]
struct Entry {
    path: Vec<u8>,
    header: Header,
    meta: Meta,
    /// Size of the file with its holes, and the parts that are no holes.
    sparse: Option<(u64, Vec<(u64, u64)>)>,
    unknown_acl: bool,
}

struct Reader<'r> {
    input: &'r mut dyn Read,
    /// Bytes of the current entry that were not read.
    left: u64,
    filling: usize,
}

impl Reader<'_> {
    fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.exact(&mut block)?;
        Ok(block)
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input.read_exact(buffer).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                FilesError::Tar("it ends in the middle: a part is missing".into())
            }
            _ => FilesError::Read(e),
        })
    }

    /// Content of the current entry.
    fn take(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        self.exact(&mut buffer[..n])?;
        self.left -= n as u64;
        Ok(n)
    }

    fn skip(&mut self) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        while self.left > 0 {
            self.take(&mut buffer)?;
        }
        let filling = std::mem::take(&mut self.filling);
        self.exact(&mut buffer[..filling])
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.filling = filling(size);
    }

    /// All content of a header's extension.
    fn text(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > HEADER {
            return Err(FilesError::Tar("an extended header is larger than any could be".into()));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
        self.begin(size);
        self.take(&mut text)?;
        self.skip()?;
        Ok(text)
    }

    /// The next entry; what was left of the one before is passed over.
    fn next(&mut self) -> Result<Option<Entry>> {
        self.skip()?;
        let (mut records, mut long_name, mut long_link, mut extended) = (Vec::new(), None, None, 0);
        loop {
            let block = self.block()?;
            if block.iter().all(|b| *b == 0) {
                return Ok(None);
            }
            let header = Header::read(&block)?;
            match header.kind {
                b'x' => {
                    extended += header.size;
                    if extended > HEADER {
                        return Err(FilesError::Tar("an entry has more headers than any could".into()));
                    }
                    records.extend(header::records(&self.text(header.size)?)?);
                }
                // Of a whole tar: nothing that matters here.
                b'g' => drop(self.text(header.size)?),
                b'L' => long_name = Some(until_nul(self.text(header.size)?)),
                b'K' => long_link = Some(until_nul(self.text(header.size)?)),
                _ => {
                    let header = Header {
                        name: long_name.unwrap_or_else(|| header.name.clone()),
                        link: long_link.unwrap_or_else(|| header.link.clone()),
                        ..header
                    };
                    return self.entry(header, records).map(Some);
                }
            }
        }
    }

    fn entry(&mut self, mut header: Header, records: header::Records) -> Result<Entry> {
        let mut modified = (header.modified, 0);
        let (mut attributes, mut sparse_size, mut major, mut unknown_acl) = (Vec::new(), None, None, false);
        for (key, value) in records {
            let number = || std::str::from_utf8(&value).ok().and_then(|v| v.parse::<u64>().ok());
            let needed = |what: &str| FilesError::Tar(format!("an extended header has no valid {what}"));
            match key.as_slice() {
                b"path" | b"GNU.sparse.name" => header.name = value,
                b"linkpath" => header.link = value,
                b"size" => header.size = number().ok_or_else(|| needed("size"))?,
                b"uid" => header.uid = number().ok_or_else(|| needed("owner"))?,
                b"gid" => header.gid = number().ok_or_else(|| needed("group"))?,
                b"mtime" => modified = parse_time(&value).ok_or_else(|| needed("time"))?,
                b"GNU.sparse.major" => major = number(),
                b"GNU.sparse.realsize" => sparse_size = number(),
                b"SCHILY.acl.access" | b"SCHILY.acl.default" => {
                    let name: &[u8] = if key.ends_with(b"access") {
                        b"system.posix_acl_access"
                    } else {
                        b"system.posix_acl_default"
                    };
                    match acl::from_text(&value, &|i| of_machine(i.into()).0) {
                        Some(v) => attributes.push((name.to_vec(), v)),
                        None => unknown_acl = true,
                    }
                }
                key => attributes.extend(header::attribute_name(key).map(|name| (name, value))),
            }
        }
        let shown = || codchi_core::text::printable_line(&String::from_utf8_lossy(&header.name));
        let kind = match header.kind {
            b'0' | 0 | b'7' if header.name.ends_with(b"/") => FileType::Directory,
            b'0' | 0 | b'7' | b'1' => FileType::RegularFile,
            b'2' => FileType::Symlink,
            b'3' => FileType::CharacterDevice,
            b'4' => FileType::BlockDevice,
            b'5' => FileType::Directory,
            b'6' => FileType::Fifo,
            _ => {
                return Err(FilesError::Entry {
                    entry: shown(),
                    why: "is of a kind that is not known".into(),
                });
            }
        };
        let path =
            clean(&header.name).map_err(|why| FilesError::Entry { entry: shown(), why: why.into() })?;
        // Only files have content, whatever else a header says.
        self.begin(if matches!(header.kind, b'1'..=b'6') { 0 } else { header.size });
        let sparse = match (major, sparse_size) {
            (Some(1), Some(size)) => Some((size, self.map(size)?)),
            (None, None) => None,
            _ => {
                return Err(FilesError::Entry {
                    entry: shown(),
                    why: "has holes in a form that is not known".into(),
                });
            }
        };
        let meta = Meta {
            kind,
            mode: header.mode,
            uid: of_machine(header.uid).0,
            gid: of_machine(header.gid).0,
            modified,
            device: rustix::fs::makedev(header.device.0, header.device.1),
            size: self.left,
            used: self.left,
            links: 1,
            id: (0, 0),
            attributes,
            target: header.link.clone(),
        };
        Ok(Entry { path, header, meta, sparse, unknown_acl })
    }

    /// The map of a file with holes.
    fn map(&mut self, size: u64) -> Result<Vec<(u64, u64)>> {
        let bad = || FilesError::Tar("the map of a file with holes makes no sense".into());
        let mut text = Vec::new();
        let mut at = 0;
        let mut line = |reader: &mut Self| -> Result<u64> {
            loop {
                if let Some(end) = text[at..].iter().position(|c| *c == b'\n') {
                    let number = std::str::from_utf8(&text[at..at + end]).ok().and_then(|t| t.parse().ok());
                    at += end + 1;
                    return number.ok_or_else(bad);
                }
                if text.len() - at > 20 || reader.left < BLOCK as u64 {
                    return Err(bad());
                }
                text.drain(..at);
                at = 0;
                let mut block = [0; BLOCK];
                reader.take(&mut block)?;
                text.extend_from_slice(&block);
            }
        };
        let count = line(self)?;
        if count > PARTS {
            return Err(bad());
        }
        let (mut parts, mut end, mut sum) = (Vec::new(), 0u64, 0u64);
        for _ in 0..count {
            let (start, length) = (line(self)?, line(self)?);
            let next = start.checked_add(length).filter(|n| *n <= size && start >= end).ok_or_else(bad)?;
            end = next;
            sum += length;
            parts.push((start, length));
        }
        if sum != self.left {
            return Err(bad());
        }
        Ok(parts)
    }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|c| *c == 0) {
        text.truncate(end);
    }
    text
}

/// A decimal number of seconds since 1970.
pub(crate) fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    Some(match (negative, nanos) {
        (false, n) => (seconds, n),
        (true, 0) => (-seconds, 0),
        (true, n) => (-seconds - 1, 1_000_000_000 - n),
    })
}

/// A path without what means nothing; refused where it leads elsewhere.
fn clean(name: &[u8]) -> std::result::Result<Vec<u8>, &'static str> {
    if name.starts_with(b"/") {
        return Err("has a path from the root");
    }
    if name.contains(&0) {
        return Err("has a name that cannot be");
    }
    let mut path = Vec::new();
    for part in name.split(|c| *c == b'/').filter(|p| !p.is_empty() && *p != b".") {
        if part == b".." {
            return Err("has a path that leads out of the tar");
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    Ok(path)
}

/// Unpacks a tar into a folder.
///
/// # Errors
/// [`FilesError::Entry`] where the tar wants something that is refused, [`FilesError::Tar`] where it is none or not whole.
pub fn unpack(input: &mut dyn Read, to: &Path, wish: &Wish, watch: Watch) -> Result<Report> {
    let root = tree::open_root(to)?;
    let whole = root.try_clone().at("open", b"")?;
    let meta = Meta::of_open(&root).at("examine", b"")?;
    let mut unpack = Unpack {
        branch: Branch::new(root).at("open", b"")?,
        open: vec![(Vec::new(), wish.faithful.then_some(meta))],
        wish,
        report: Report::default(),
        held: Most { bytes: 0, entries: 0 },
        buffer: vec![0; 256 << 10],
        watch,
    };
    let mut reader = Reader { input, left: 0, filling: 0 };
    while let Some(mut entry) = reader.next()? {
        let told = entry.path.clone();
        match (wish.pick)(&entry.path) {
            Pick::As(path) => entry.path = path,
            Pick::Skip => continue,
            Pick::Stop => break,
        }
        unpack.entry(&entry, &told, &mut reader)?;
    }
    while let Some(last) = unpack.open.last().map(|(p, _)| p.clone()) {
        unpack.close(&last)?;
    }
    rustix::fs::syncfs(whole).at("write to the disk", b"")?;
    Ok(unpack.report)
}

struct Unpack<'a> {
    branch: Branch,
    /// The folders of the branch: path, and what they get when all in them is made. The root is the first.
    open: Vec<(Vec<u8>, Option<Meta>)>,
    wish: &'a Wish<'a>,
    report: Report,
    /// What was unpacked, as [`Most`] counts.
    held: Most,
    buffer: Vec<u8>,
    watch: Watch<'a>,
}

fn refused(path: &[u8], why: &str) -> FilesError {
    FilesError::Entry {
        entry: codchi_core::text::printable_line(&String::from_utf8_lossy(path)),
        why: why.into(),
    }
}

impl Unpack<'_> {
    fn go_on(&mut self) -> Result<()> {
        if (self.watch)(&self.report.tally) { Ok(()) } else { Err(FilesError::Interrupted) }
    }

    /// Leaves the folder that was entered last.
    fn close(&mut self, path: &[u8]) -> Result<()> {
        let Some((_, meta)) = self.open.pop() else { return Ok(()) };
        let dir = self.branch.pop().at("go back from", path)?;
        if let (Some(dir), Some(meta)) = (dir, meta) {
            self.give(path, &meta, |m| m.apply_open(&dir))?;
        }
        Ok(())
    }

    /// Applies what an entry has, as far as that is wished.
    fn give(
        &mut self,
        path: &[u8],
        meta: &Meta,
        apply: impl FnOnce(&Meta) -> std::io::Result<Vec<String>>,
    ) -> Result<()> {
        for what in apply(meta).at("change", path)? {
            self.report.lose(path, &what);
        }
        Ok(())
    }

    /// The folder in which a path is made, and its name there. Folders that are missing are made.
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = match path.iter().rposition(|c| *c == b'/') {
            Some(i) => (&path[..i], &path[i + 1..]),
            None => (&path[..0], path),
        };
        let within = |above: &[u8]| {
            above.is_empty()
                || parent == above
                || (parent.starts_with(above) && parent.get(above.len()) == Some(&b'/'))
        };
        while let Some((last, _)) = self.open.last().filter(|(p, _)| !within(p)) {
            let last = last.clone();
            self.close(&last)?;
        }
        let have = self.open.last().map_or(0, |(p, _)| p.len());
        let mut end = have;
        for part in parent[have..].split(|c| *c == b'/').filter(|p| !p.is_empty()) {
            end += part.len() + usize::from(end > 0);
            let above = self.branch.top().at("open", path)?;
            match rustix::fs::mkdirat(above, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e).at("create directory", path),
            }
            let dir = open_dir(above, part, path)?;
            self.branch.push(dir).at("open", path)?;
            self.count(path, 0)?;
            // No entry told of it just now: it keeps what it has.
            self.open.push((path[..end].to_vec(), None));
        }
        let parent = self.branch.top().and_then(OwnedFd::try_clone).at("open", path)?;
        Ok((parent, name))
    }

    fn entry(&mut self, entry: &Entry, told: &[u8], reader: &mut Reader) -> Result<()> {
        let path = entry.path.as_slice();
        let mut meta = entry.meta.clone();
        if !self.wish.faithful {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            // Whoever unpacks it can remove it.
            let own = if meta.kind == FileType::Directory { 0o700 } else { 0o600 };
            meta = Meta { uid, gid, mode: meta.mode & 0o755 | own, attributes: Vec::new(), ..meta };
        }
        if entry.unknown_acl {
            self.report.lose(path, "an ACL that names users, not numbers");
        }
        if !of_machine(entry.header.uid).1 || !of_machine(entry.header.gid).1 {
            self.report.lose(path, "an owner that no machine has; nobody owns it now");
        }
        if path.is_empty() {
            if meta.kind != FileType::Directory {
                return Err(refused(told, "is the root, and no folder"));
            }
            if let (Some((_, root)), true) = (self.open.first_mut(), self.wish.faithful) {
                *root = Some(meta);
            }
            return Ok(());
        }
        if !self.wish.faithful && path.len() > PATH {
            return Err(refused(b"one", "has a longer path than any program can use"));
        }
        if entry.header.kind != b'1' {
            self.count(told, entry.sparse.as_ref().map_or(reader.left, |(size, _)| *size))?;
        }
        let (parent, name) = self.place(path)?;
        match meta.kind {
            FileType::Directory => {
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(e).at("create directory", path),
                }
                let dir = open_dir(&parent, name, path)?;
                self.bare(&dir);
                self.branch.push(dir).at("open", path)?;
                self.open.push((path.to_vec(), Some(meta)));
            }
            FileType::RegularFile if entry.header.kind == b'1' => self.link(entry, told, &parent, name)?,
            FileType::RegularFile => {
                let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let file = anew(path, &parent, name, || {
                    rustix::fs::openat(
                        &parent,
                        name,
                        new | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                        Mode::from_raw_mode(0o600),
                    )
                })?;
                self.content(path, &file, entry, reader)?;
                self.bare(&file);
                self.give(path, &meta, |m| m.apply_open(&file))?;
            }
            FileType::Symlink => {
                anew(path, &parent, name, || rustix::fs::symlinkat(meta.target.as_slice(), &parent, name))?;
                self.give(path, &meta, |m| m.apply_closed(&parent, name))?;
            }
            FileType::CharacterDevice | FileType::BlockDevice
                if meta.device != 0 || meta.kind == FileType::BlockDevice =>
            {
                self.report.lose(path, "a device node");
                return self.go_on();
            }
            kind => {
                let mode = Mode::from_raw_mode(0o600);
                match anew(path, &parent, name, || rustix::fs::mknodat(&parent, name, kind, mode, 0)) {
                    Ok(()) => self.give(path, &meta, |m| m.apply_closed(&parent, name))?,
                    Err(FilesError::File { source, .. })
                        if source.raw_os_error() == Some(Errno::PERM.raw_os_error()) =>
                    {
                        self.report.lose(path, "a device node");
                        return self.go_on();
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        self.report.tally.entries += 1;
        self.go_on()
    }

    /// Counts something with a name, and what it holds.
    fn count(&mut self, told: &[u8], bytes: u64) -> Result<()> {
        self.held = Most { bytes: self.held.bytes.saturating_add(bytes), entries: self.held.entries + 1 };
        if self.held.bytes > self.wish.most.bytes || self.held.entries > self.wish.most.entries {
            return Err(refused(told, "is more than may be taken"));
        }
        Ok(())
    }

    /// Takes away what a folder hands down to what is made in it.
    fn bare(&self, file: &OwnedFd) {
        if self.wish.faithful {
            // That there is none is the rule.
            let _ = rustix::fs::fremovexattr(file, "system.posix_acl_access");
            let _ = rustix::fs::fremovexattr(file, "system.posix_acl_default");
        }
    }

    fn link(&mut self, entry: &Entry, told: &[u8], parent: &OwnedFd, name: &[u8]) -> Result<()> {
        let target =
            clean(&entry.header.link).map_err(|why| refused(told, &format!("is a hard link that {why}")))?;
        let Pick::As(target) = (self.wish.pick)(&target) else {
            return Err(refused(told, "is a hard link to something that is not unpacked"));
        };
        let path = entry.path.as_slice();
        let outside = |_| refused(told, "is a hard link to something that is not in the tar before it");
        let root = self.branch.root().at("open", path)?;
        let (folder, old) = tree::open_parent(root, &target).map_err(outside)?;
        let stat =
            rustix::fs::statat(&folder, old, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| outside(e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refused(told, "is a hard link to a folder"));
        }
        self.count(told, u64::try_from(stat.st_size).unwrap_or(0))?;
        if target == path {
            return Ok(());
        }
        anew(path, parent, name, || rustix::fs::linkat(&folder, old, parent, name, AtFlags::empty()))
    }

    fn content(&mut self, path: &[u8], file: &OwnedFd, entry: &Entry, reader: &mut Reader) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::from(file.try_clone().at("write", path)?);
        let whole = [(0, reader.left)];
        let parts = entry.sparse.as_ref().map_or(whole.as_slice(), |(_, parts)| parts);
        let mut buffer = std::mem::take(&mut self.buffer);
        for (start, length) in parts {
            let (mut at, end) = (*start, start + length);
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(buffer.len()).min(buffer.len());
                let n = reader.take(&mut buffer[..most])?;
                file.write_all_at(&buffer[..n], at).at("write", path)?;
                at += n as u64;
                self.report.tally.bytes += n as u64;
                self.go_on()?;
            }
        }
        self.buffer = buffer;
        if let Some((size, _)) = entry.sparse {
            file.set_len(size).at("write", path)?;
        }
        Ok(())
    }
}

/// Opens a folder, which is one and no link.
fn open_dir(parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<OwnedFd> {
    tree::open_dir(parent, name).map_err(|e| match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::LOOP | Errno::NOTDIR) => refused(path, "goes through something that is no folder"),
        _ => FilesError::File {
            op: "open",
            path: codchi_core::text::printable_line(&String::from_utf8_lossy(path)),
            source: e,
        },
    })
}

/// Makes something; what is there already of that name, but a folder, goes before: of two entries the last counts.
fn anew<T>(
    path: &[u8],
    parent: &OwnedFd,
    name: &[u8],
    mut make: impl FnMut() -> rustix::io::Result<T>,
) -> Result<T> {
    match make() {
        Err(Errno::EXIST) => {}
        done => return done.at("create", path),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) => make().at("create", path),
        Err(Errno::ISDIR) => Err(refused(path, "is there twice, once as a folder")),
        Err(e) => Err(e).at("replace", path),
    }
}
