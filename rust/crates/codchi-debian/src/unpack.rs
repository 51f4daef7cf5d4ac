//! Reads `.deb` files: control data, and the files themselves with `/usr` merged.
//!
//! Follows deb(5). A package is input from a network, so nothing in it decides where this program writes:
//! every parent directory is opened beneath the destination without following links (openat2), and files are
//! only ever created, never replaced.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use codchi_fs::Context;
use rustix::fs::{self as rfs, AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::{Error, Result};

/// Directories (below the merged root) whose content a machine does not need.
pub const DROPPED: &[&str] = &[
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
];

/// How to unpack.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directories to leave out, as paths below the merged root.
    pub drop: Vec<PathBuf>,
    /// The time of last change that everything gets, in seconds since 1970.
    pub mtime: i64,
}

impl Default for Options {
    /// Without documentation; times as Nix sets them.
    fn default() -> Self {
        Options { drop: DROPPED.iter().map(PathBuf::from).collect(), mtime: 1 }
    }
}

/// The control part of a package: its fields and its scripts and lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Fields of the `control` file; a folded value keeps its line breaks, without the leading blank.
    pub fields: BTreeMap<String, String>,
    /// The other members (`postinst`, `conffiles`, `triggers`, ...) by name.
    pub members: BTreeMap<String, Vec<u8>>,
}

impl Control {
    /// A field's value; names are compared without regard to case, as the policy manual asks.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// What [`extract`] did.
#[derive(Clone, Debug, Default)]
pub struct Unpacked {
    /// The control part.
    pub control: Control,
    /// Regular files and hard links written.
    pub files: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// Programs that had a setuid or setgid bit, which was dropped: merged path, original mode.
    pub privileged: Vec<(PathBuf, u32)>,
    /// Directories below `var` with the mode, owner and group the package gives them; whoever boots makes them.
    pub state: Vec<StateDirectory>,
}

/// A directory in which a package keeps state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateDirectory {
    /// Relative path.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Name of its owner.
    pub user: String,
    /// Name of its group.
    pub group: String,
}

/// Reads only the control part of a package.
pub fn control(deb: &Path) -> Result<Control> {
    let mut file = codchi_fs::open(deb)?;
    let (control, _) = members(&mut file, deb)?;
    read_control(&mut file, control, deb)
}

/// Unpacks a package below `dest`, which is created and should be empty.
///
/// The tree has a merged `/usr`: see [`merged`]. Owners are those of the caller, setuid and setgid bits are dropped,
/// all times are `options.mtime`. Where merging brings two files to one place, the first stays.
pub fn extract(deb: &Path, dest: &Path, options: &Options) -> Result<Unpacked> {
    let mut file = codchi_fs::open(deb)?;
    let (control, data) = members(&mut file, deb)?;
    let control = read_control(&mut file, control, deb)?;
    codchi_fs::create_dir_all(dest)?;
    let root = rfs::open(dest, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .at("open directory", dest)?;
    let mut writer = Writer {
        deb,
        dest,
        root,
        options,
        parent: None,
        dirs: HashMap::new(),
        out: Unpacked { control, ..Unpacked::default() },
    };
    let mut archive = tar::Archive::new(data.open(&mut file, deb)?);
    let entries = archive.entries().map_err(|e| bad(deb, format!("its data: {e}")))?;
    for entry in entries {
        let mut entry = entry.map_err(|e| bad(deb, format!("its data: {e}")))?;
        writer.entry(&mut entry)?;
    }
    // To the end, so that the compression's own checksum is checked.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|e| bad(deb, format!("its data: {e}")))?;
    writer.finish()
}

/// Where a path of a package lies when `/usr` is merged: `/bin`, `/lib`, `/lib32`, `/lib64`, `/libx32`, `/sbin` are below
/// `/usr`, and `sbin` and `games` are one with `bin`. Relative, without `.` components; `None` for the root itself.
///
/// `path` must be clean, as [`clean`] returns it.
pub fn merged(path: &Path) -> Option<PathBuf> {
    let mut parts: Vec<&OsStr> = path.iter().collect();
    let first = *parts.first()?;
    if ["bin", "lib", "lib32", "lib64", "libx32", "sbin"].iter().any(|d| first == OsStr::new(d)) {
        parts.insert(0, OsStr::new("usr"));
    }
    if parts.len() >= 2 && parts[0] == "usr" && (parts[1] == "sbin" || parts[1] == "games") {
        parts[1] = OsStr::new("bin");
    }
    Some(parts.into_iter().collect())
}

/// A package's path without leading `/` and `.` components; `None` when it climbs with `..` or is too long.
pub fn clean(raw: &[u8]) -> Option<PathBuf> {
    if raw.len() > 4095 || raw.contains(&0) {
        return None;
    }
    let mut path = PathBuf::new();
    for part in raw.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            p if p.len() > 255 => return None,
            p => path.push(OsStr::from_bytes(p)),
        }
    }
    Some(path)
}

/// Target of the symbolic link `link` (a clean path in the package), as it must read at the merged place of `link`.
/// `None` when the link would point to itself there.
pub fn merged_link(link: &Path, target: &[u8]) -> Option<PathBuf> {
    let place = merged(link)?;
    let raw = PathBuf::from(OsStr::from_bytes(target));
    // Where the link points, from the root, as far as the text tells.
    let mut absolute: Vec<&[u8]> = Vec::new();
    if !target.starts_with(b"/") {
        absolute.extend(link.parent().into_iter().flat_map(Path::iter).map(OsStrExt::as_bytes));
    }
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                absolute.pop();
            }
            p => absolute.push(p),
        }
    }
    let absolute: PathBuf = absolute.into_iter().map(OsStr::from_bytes).collect();
    let goal = merged(&absolute).unwrap_or_default();
    if goal == place {
        return None;
    }
    let moved = place != link || goal != absolute;
    if target.starts_with(b"/") || !moved {
        return Some(raw);
    }
    let from: Vec<_> = place.parent().into_iter().flat_map(Path::iter).collect();
    let to: Vec<_> = goal.iter().collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let mut text = PathBuf::new();
    for _ in common..from.len() {
        text.push("..");
    }
    text.extend(&to[common..]);
    Some(if text.as_os_str().is_empty() { PathBuf::from(".") } else { text })
}

/// Parses one paragraph of control data (deb822): fields by name, folded lines joined by a line break.
pub fn parse_fields(text: &str) -> BTreeMap<String, String> {
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut last: Option<String> = None;
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        if line.starts_with([' ', '\t']) {
            if let Some(value) = last.as_ref().and_then(|k| fields.get_mut(k)) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            last = Some(name.to_owned());
            fields.insert(name.to_owned(), value.trim().to_owned());
        }
    }
    fields
}

fn bad(deb: &Path, reason: impl Into<String>) -> Error {
    Error::BadPackage { path: deb.into(), reason: reason.into() }
}

/// A member of the outer archive.
struct Member {
    name: String,
    offset: u64,
    size: u64,
}

impl Member {
    /// The member's content, decompressed as its name asks.
    fn open<'f>(&self, file: &'f mut File, deb: &Path) -> Result<Box<dyn Read + 'f>> {
        file.seek(SeekFrom::Start(self.offset)).at("read", deb)?;
        let raw = BufReader::with_capacity(128 * 1024, file.take(self.size));
        Ok(match self.name.rsplit_once(".tar").map(|(_, suffix)| suffix) {
            Some("") => Box::new(raw),
            Some(".xz") => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(raw)),
            Some(".gz") => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
            Some(".zst") => Box::new(Zstd::new(raw, deb)?),
            _ => return Err(bad(deb, format!("its member `{}` is compressed in an unknown way", self.name))),
        })
    }
}

/// All zstd frames of a stream, one after the other.
struct Zstd<R: Read> {
    decoder: Option<ruzstd::decoding::StreamingDecoder<BufReader<R>, ruzstd::decoding::FrameDecoder>>,
}

impl<R: Read> Zstd<R> {
    fn new(raw: R, deb: &Path) -> Result<Self> {
        let decoder = ruzstd::decoding::StreamingDecoder::new(BufReader::new(raw))
            .map_err(|e| bad(deb, format!("its zstd data: {e}")))?;
        Ok(Zstd { decoder: Some(decoder) })
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        use std::io::BufRead;
        loop {
            let Some(decoder) = &mut self.decoder else { return Ok(0) };
            match decoder.read(buf)? {
                0 if !buf.is_empty() => {}
                n => return Ok(n),
            }
            let Some(decoder) = self.decoder.take() else { return Ok(0) };
            let mut rest = decoder.into_inner();
            if !rest.fill_buf()?.is_empty() {
                let next = ruzstd::decoding::StreamingDecoder::new(rest).map_err(io::Error::other)?;
                self.decoder = Some(next);
            }
        }
    }
}

/// Finds the control and data members; checks the format's version.
fn members(file: &mut File, deb: &Path) -> Result<(Member, Member)> {
    let end = file.metadata().at("read", deb)?.len();
    let mut magic = [0; 8];
    file.read_exact(&mut magic).map_err(|_| bad(deb, "it is too short"))?;
    if &magic != b"!<arch>\n" {
        return Err(bad(deb, "it is no `ar` archive"));
    }
    let mut offset = 8;
    let (mut version, mut control, mut data) = (false, None, None);
    while offset + 60 <= end {
        let mut header = [0; 60];
        file.seek(SeekFrom::Start(offset)).at("read", deb)?;
        file.read_exact(&mut header).at("read", deb)?;
        if &header[58..] != b"`\n" {
            return Err(bad(deb, "a member's header is damaged"));
        }
        let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&header[range]).trim().to_owned();
        let name = text(0..16).trim_end_matches('/').to_owned();
        let size: u64 =
            text(48..58).parse().map_err(|_| bad(deb, format!("the size of `{name}` is no number")))?;
        offset += 60;
        if offset.checked_add(size).is_none_or(|o| o > end) {
            return Err(bad(deb, format!("`{name}` is cut off")));
        }
        let member = Member { name, offset, size };
        if member.name == "debian-binary" {
            let mut text = [0; 2];
            file.read_exact(&mut text).at("read", deb)?;
            if &text != b"2." {
                return Err(bad(deb, "its format is newer than 2"));
            }
            version = true;
        } else if member.name.starts_with("control.tar") && control.is_none() {
            control = Some(member);
        } else if member.name.starts_with("data.tar") && data.is_none() {
            data = Some(member);
        }
        offset += size + size % 2;
    }
    match (version, control, data) {
        (false, ..) => Err(bad(deb, "`debian-binary` is missing")),
        (_, None, _) => Err(bad(deb, "`control.tar` is missing")),
        (.., None) => Err(bad(deb, "`data.tar` is missing")),
        (true, Some(control), Some(data)) => Ok((control, data)),
    }
}

/// More than any real control archive holds.
const CONTROL_LIMIT: u64 = 16 << 20;

fn read_control(file: &mut File, member: Member, deb: &Path) -> Result<Control> {
    let mut archive = tar::Archive::new(member.open(file, deb)?.take(CONTROL_LIMIT));
    let mut control = Control::default();
    let mut found = false;
    let problem = |e: io::Error| bad(deb, format!("its control data: {e}"));
    for entry in archive.entries().map_err(problem)? {
        let mut entry = entry.map_err(problem)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = clean(&entry.path_bytes()).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(problem)?;
        if name == "control" {
            control.fields = parse_fields(&String::from_utf8_lossy(&content));
            found = true;
        } else {
            control.members.insert(name, content);
        }
    }
    if found { Ok(control) } else { Err(bad(deb, "`control` is missing")) }
}

/// Writes entries below the destination.
struct Writer<'a> {
    deb: &'a Path,
    dest: &'a Path,
    root: OwnedFd,
    options: &'a Options,
    /// The directory written to last, since entries come directory by directory.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories made, with the mode they shall have in the end.
    dirs: HashMap<PathBuf, u32>,
    out: Unpacked,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

impl Writer<'_> {
    fn hostile(&self, entry: &[u8], reason: &'static str) -> Error {
        Error::Hostile { path: self.deb.into(), entry: String::from_utf8_lossy(entry).into_owned(), reason }
    }

    fn dropped(&self, path: &Path) -> bool {
        self.options.drop.iter().any(|d| path.starts_with(d))
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.options.mtime, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        use tar::EntryType as T;
        let raw = entry.path_bytes().into_owned();
        let path = clean(&raw).ok_or_else(|| self.hostile(&raw, "climbs out of the package"))?;
        let Some(place) = merged(&path) else { return Ok(()) };
        if self.dropped(&place) {
            return Ok(());
        }
        let mode = entry.header().mode().map_err(|e| bad(self.deb, e.to_string()))? & 0o7777;
        match entry.header().entry_type() {
            T::Directory => {
                self.directory(&place, &raw)?;
                if place.starts_with("var") {
                    let name = |n: std::result::Result<Option<&str>, std::str::Utf8Error>| {
                        n.ok().flatten().unwrap_or("root").to_owned()
                    };
                    let header = entry.header();
                    let (user, group) = (name(header.username()), name(header.groupname()));
                    self.out.state.push(StateDirectory { path: place.clone(), mode, user, group });
                }
                // Their owner must be able to remove what is in them.
                self.dirs.insert(place, mode & 0o777 | 0o700);
                Ok(())
            }
            T::Regular | T::Continuous => self.file(entry, &place, mode, &raw),
            T::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                if target.is_empty() || target.contains(&0) {
                    return Err(self.hostile(&raw, "is a link to nowhere"));
                }
                match merged_link(&path, &target) {
                    Some(text) => self.symlink(&place, &text, &raw),
                    None => Ok(()),
                }
            }
            T::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target =
                    clean(&target).ok_or_else(|| self.hostile(&raw, "is a hard link out of the package"))?;
                let Some(target) = merged(&target) else {
                    return Err(self.hostile(&raw, "is a hard link to the root"));
                };
                self.hard_link(&place, &target, &raw)
            }
            T::XGlobalHeader => Ok(()),
            _ => Err(self.hostile(&raw, "is neither file, directory nor link")),
        }
    }

    /// Opens the directory `path` beneath the root, made where it is missing.
    fn open_dir(&mut self, path: &Path, raw: &[u8]) -> Result<&OwnedFd> {
        if self.parent.as_ref().is_none_or(|(p, _)| p != path) {
            let fd = self.make_dir(path, raw)?;
            self.parent = Some((path.into(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd),
            None => Ok(&self.root),
        }
    }

    fn make_dir(&mut self, path: &Path, raw: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match rfs::openat2(&self.root, name, flags, Mode::empty(), BENEATH) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT) => {}
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                return Err(self.hostile(raw, "lies below something that is no directory"));
            }
            Err(e) => return Err(e).at("open directory", self.dest.join(path))?,
        }
        let parent = self.make_dir(path.parent().unwrap_or(Path::new("")), raw)?;
        let leaf = path.file_name().unwrap_or_default();
        match rfs::mkdirat(&parent, leaf, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).at("create directory", self.dest.join(path))?,
        }
        self.dirs.entry(path.into()).or_insert(0o755);
        match rfs::openat2(&parent, leaf, flags, Mode::empty(), BENEATH) {
            Ok(fd) => Ok(fd),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                Err(self.hostile(raw, "lies below something that is no directory"))
            }
            Err(e) => Err(e).at("open directory", self.dest.join(path))?,
        }
    }

    fn directory(&mut self, path: &Path, raw: &[u8]) -> Result<()> {
        self.open_dir(path, raw).map(|_| ())
    }

    fn file(&mut self, content: &mut impl Read, path: &Path, mode: u32, raw: &[u8]) -> Result<()> {
        let full = self.dest.join(path);
        let (name, times, deb) = (path.file_name().unwrap_or_default(), self.times(), self.deb);
        let parent = self.open_dir(path.parent().unwrap_or(Path::new("")), raw)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rfs::openat(parent, name, flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(()),
            Err(e) => return Err(e).at("create", &full)?,
        };
        let mut file = File::from(fd);
        let mut buffer = [0; 64 * 1024];
        loop {
            let n = content.read(&mut buffer).map_err(|e| bad(deb, format!("its data: {e}")))?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n]).at("write", &full)?;
            self.out.bytes += n as u64;
        }
        rfs::fchmod(&file, Mode::from_raw_mode(mode & 0o777)).at("set the mode of", &full)?;
        rfs::futimens(&file, &times).at("set the time of", &full)?;
        self.out.files += 1;
        if mode & 0o6000 != 0 {
            self.out.privileged.push((path.into(), mode));
        }
        Ok(())
    }

    fn symlink(&mut self, path: &Path, target: &Path, raw: &[u8]) -> Result<()> {
        let times = self.times();
        let full = self.dest.join(path);
        let name = path.file_name().unwrap_or_default();
        let parent = self.open_dir(path.parent().unwrap_or(Path::new("")), raw)?;
        match rfs::symlinkat(target, parent, name) {
            Ok(()) => Ok(rfs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                .at("set the time of", &full)?),
            Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e).at("create link", &full)?,
        }
    }

    fn hard_link(&mut self, path: &Path, target: &Path, raw: &[u8]) -> Result<()> {
        if path == target {
            return Ok(());
        }
        let full = self.dest.join(path);
        let up = target.parent().unwrap_or(Path::new(""));
        let from = match rfs::openat2(
            &self.root,
            if up.as_os_str().is_empty() { Path::new(".") } else { up },
            OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            BENEATH,
        ) {
            Ok(fd) => fd,
            Err(_) => return Err(self.hostile(raw, "is a hard link to something that is not in the package")),
        };
        let parent = self.open_dir(path.parent().unwrap_or(Path::new("")), raw)?;
        let old = target.file_name().unwrap_or_default();
        // Without SYMLINK_FOLLOW a link itself is linked, so this never leaves the tree.
        match rfs::linkat(&from, old, parent, path.file_name().unwrap_or_default(), AtFlags::empty()) {
            Ok(()) => {
                self.out.files += 1;
                Ok(())
            }
            Err(Errno::EXIST) => Ok(()),
            Err(Errno::NOENT) => {
                Err(self.hostile(raw, "is a hard link to something that is not in the package"))
            }
            Err(e) => Err(e).at("create link", &full)?,
        }
    }

    /// Sets modes and times of directories, deepest first.
    fn finish(mut self) -> Result<Unpacked> {
        let times = self.times();
        let mut dirs: Vec<_> = self.dirs.drain().collect();
        dirs.sort_by(|a, b| b.0.cmp(&a.0));
        for (path, mode) in dirs {
            let full = self.dest.join(&path);
            let fd = rfs::openat2(
                &self.root,
                &path,
                OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
                BENEATH,
            )
            .at("open directory", &full)?;
            rfs::fchmod(&fd, Mode::from_raw_mode(mode)).at("set the mode of", &full)?;
            rfs::futimens(&fd, &times).at("set the time of", &full)?;
        }
        rfs::utimensat(&self.root, "", &times, AtFlags::EMPTY_PATH)
            .or_else(|_| rfs::utimensat(rfs::CWD, self.dest, &times, AtFlags::empty()))
            .at("set the time of", self.dest)?;
        self.out.privileged.sort();
        Ok(self.out)
    }
}
