//! A tree as a tar.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use crate::acl;
use crate::copy::next_data;
use crate::error::{At, FilesError, Result};
use crate::header::{self, Header, Records, filling};
use crate::meta::Meta;
use crate::tree::{self, Entry, Visitor};
use crate::{Ids, Report, Watch};

/// Says which paths are left out; for a link it is asked again, with what the link points to.
pub type Without<'a> = &'a dyn Fn(&[u8], Option<&[u8]>) -> bool;

/// A tree that goes into a tar.
pub struct Tree<'a> {
    /// Where it is.
    pub from: &'a Path,
    /// The path of its root in the tar; empty: the tar's root.
    pub at: &'a [u8],
    /// Whether everything belongs to root, whoever owns it here.
    pub roots: bool,
    /// Says which paths are left out, with all below them.
    pub without: Without<'a>,
}

/// Bytes that are read at a time.
const CHUNK: usize = 256 << 10;

/// Writes trees, one after the other, as one tar: PAX, with attributes and ACLs as GNU tar and bsdtar write them.
///
/// # Errors
/// Whatever could not be read or written; a part is written then.
pub fn pack(trees: &[Tree], ids: &Ids, out: &mut dyn Write, watch: Watch) -> Result<Report> {
    let mut pack = Pack {
        tree: None,
        ids,
        out,
        report: Report::default(),
        linked: HashMap::new(),
        head: Vec::new(),
        buffer: vec![0; CHUNK],
        watch,
    };
    for tree in trees {
        let root = tree::open_root(tree.from)?;
        pack.tree = Some(tree);
        pack.linked.clear();
        tree::walk(root, &mut pack)?;
    }
    // Two blocks of zeros end a tar.
    pack.put(&[0; 2 * header::BLOCK])?;
    pack.out.flush().map_err(FilesError::Write)?;
    Ok(pack.report)
}

struct Pack<'a> {
    tree: Option<&'a Tree<'a>>,
    ids: &'a Ids,
    out: &'a mut dyn Write,
    report: Report,
    /// Files with several names: what the first is in the tar, and how many names are still to come.
    linked: HashMap<(u64, u64), (Vec<u8>, u64)>,
    head: Vec<u8>,
    buffer: Vec<u8>,
    watch: Watch<'a>,
}

impl Visitor for Pack<'_> {
    fn skips(&mut self, path: &[u8], _: &Stat) -> bool {
        self.tree.is_some_and(|t| (t.without)(path, None))
    }

    fn enter(&mut self, entry: &Entry) -> Result<()> {
        self.write(entry, b'5', Vec::new(), 0, &[])?;
        if entry.path.is_empty() { Ok(()) } else { self.entry() }
    }

    fn leave(&mut self, _: &Meta, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn other(&mut self, entry: &Entry) -> Result<()> {
        let Entry { path, meta, .. } = *entry;
        if meta.kind == FileType::Symlink && self.tree.is_some_and(|t| (t.without)(path, Some(&meta.target)))
        {
            return Ok(());
        }
        if meta.links > 1 {
            if let Some((first, left)) = self.linked.get_mut(&meta.id) {
                let first = first.clone();
                *left -= 1;
                if *left == 0 {
                    self.linked.remove(&meta.id);
                }
                self.write(entry, b'1', Vec::new(), 0, &first)?;
                return self.entry();
            }
            self.linked.insert(meta.id, (self.name(path), meta.links - 1));
        }
        match (meta.kind, entry.file) {
            (FileType::RegularFile, Some(file)) => self.file(entry, file)?,
            (FileType::Symlink, _) => self.write(entry, b'2', Vec::new(), 0, &meta.target)?,
            (FileType::CharacterDevice, _) => self.write(entry, b'3', Vec::new(), 0, &[])?,
            (FileType::BlockDevice, _) => self.write(entry, b'4', Vec::new(), 0, &[])?,
            (FileType::Fifo, _) => self.write(entry, b'6', Vec::new(), 0, &[])?,
            // A tar has no word for them; whoever listens makes its socket anew.
            _ => return Ok(()),
        }
        self.entry()
    }
}

impl Pack<'_> {
    fn entry(&mut self) -> Result<()> {
        self.report.tally.entries += 1;
        self.go_on()
    }

    fn go_on(&mut self) -> Result<()> {
        if (self.watch)(&self.report.tally) { Ok(()) } else { Err(FilesError::Interrupted) }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(FilesError::Write)
    }

    /// What a path of the tree is in the tar.
    fn name(&self, path: &[u8]) -> Vec<u8> {
        match self.tree.map(|t| t.at).filter(|at| !at.is_empty()) {
            Some(at) if path.is_empty() => at.to_vec(),
            Some(at) => [at, b"/", path].concat(),
            None if path.is_empty() => b".".to_vec(),
            None => path.to_vec(),
        }
    }

    fn write(&mut self, entry: &Entry, kind: u8, mut records: Records, size: u64, link: &[u8]) -> Result<()> {
        let Entry { path, meta, .. } = *entry;
        let mut name = self.name(path);
        if kind == b'5' {
            name.push(b'/');
        }
        let roots = self.tree.is_some_and(|t| t.roots);
        let (uid, gid) = if roots { (0, 0) } else { (self.ids.user(meta.uid), self.ids.group(meta.gid)) };
        let (seconds, nanos) = meta.modified;
        if nanos != 0 || !(0..1 << 33).contains(&seconds) {
            records.push((b"mtime".to_vec(), time(seconds, nanos).into_bytes()));
        }
        if kind != b'1' && !roots {
            for (attribute, value) in &meta.attributes {
                let acl = || acl::to_text(value, &|i| self.ids.user(i), &|i| self.ids.group(i));
                match attribute.as_slice() {
                    b"system.posix_acl_access" => {
                        records.extend(acl().map(|t| (b"SCHILY.acl.access".to_vec(), t)))
                    }
                    b"system.posix_acl_default" => {
                        records.extend(acl().map(|t| (b"SCHILY.acl.default".to_vec(), t)))
                    }
                    name => records.push((header::attribute_key(name), value.clone())),
                }
            }
        }
        let header = Header {
            name,
            mode: meta.mode,
            uid: uid.into(),
            gid: gid.into(),
            size,
            modified: seconds,
            kind,
            link: link.to_vec(),
            device: (rustix::fs::major(meta.device), rustix::fs::minor(meta.device)),
        };
        let mut head = std::mem::take(&mut self.head);
        head.clear();
        header.write(records, &mut head);
        let done = self.put(&head);
        self.head = head;
        done
    }

    fn file(&mut self, entry: &Entry, file: &OwnedFd) -> Result<()> {
        let Entry { path, meta, .. } = *entry;
        let mut parts = vec![(0, meta.size)];
        if meta.used < meta.size {
            parts.clear();
            let mut at = 0;
            while let Some((start, end)) = next_data(file, at, meta.size).at("read", path)? {
                parts.push((start, end - start));
                at = end;
            }
            // A hole at the end is told of by a part of no length after it.
            if parts.last().is_none_or(|(start, length)| start + length < meta.size) {
                parts.push((meta.size, 0));
            }
        }
        let mut file = std::fs::File::from(file.try_clone().at("read", path)?);
        if parts == [(0, meta.size)] || meta.size == 0 {
            self.write(entry, b'0', Vec::new(), meta.size, &[])?;
            use std::io::Seek;
            file.rewind().at("read", path)?;
            self.content(path, &mut file, meta.size)?;
            return self.put(&vec![0; filling(meta.size)]);
        }
        // Version 1.0 of GNU tar's way: the map of what is no hole stands before the content.
        let mut map = format!("{}\n", parts.len());
        for (start, length) in &parts {
            map.push_str(&format!("{start}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        let length = map.len() as u64;
        header::fill(&mut map, length);
        let size = map.len() as u64 + parts.iter().map(|(_, n)| n).sum::<u64>();
        let records = vec![
            (b"GNU.sparse.major".to_vec(), b"1".to_vec()),
            (b"GNU.sparse.minor".to_vec(), b"0".to_vec()),
            (b"GNU.sparse.name".to_vec(), self.name(path)),
            (b"GNU.sparse.realsize".to_vec(), meta.size.to_string().into_bytes()),
        ];
        self.write(entry, b'0', records, size, &[])?;
        self.put(&map)?;
        for (start, length) in parts {
            use std::io::Seek;
            file.seek(io::SeekFrom::Start(start)).at("read", path)?;
            self.content(path, &mut file, length)?;
        }
        self.put(&vec![0; filling(size)])
    }

    fn content(&mut self, path: &[u8], file: &mut std::fs::File, mut left: u64) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let n = file.read(&mut buffer[..most]).at("read", path)?;
            if n == 0 {
                return Err(io::Error::other("it became shorter meanwhile")).at("read", path);
            }
            self.put(&buffer[..n])?;
            left -= n as u64;
            self.report.tally.bytes += n as u64;
            self.go_on()?;
        }
        self.buffer = buffer;
        Ok(())
    }
}

/// Seconds since 1970 as a decimal number.
fn time(seconds: i64, nanos: u32) -> String {
    let fraction = |n: u32| format!("{n:09}").trim_end_matches('0').to_string();
    match (seconds, nanos) {
        (s, 0) => s.to_string(),
        (s, n) if s >= 0 => format!("{s}.{}", fraction(n)),
        // -1.25 is two seconds before 1970 and 0.75 after that.
        (s, n) => format!("-{}.{}", -(s + 1), fraction(1_000_000_000 - n)),
    }
}

#[cfg(test)]
mod tests {
    use super::time;
    use crate::unpack::parse_time;

    #[test]
    fn times_before_1970_are_written_as_people_count() {
        for (s, n, text) in [
            (0, 0, "0"),
            (1, 500_000_000, "1.5"),
            (-2, 750_000_000, "-1.25"),
            (-1, 1, "-0.999999999"),
            (-3, 0, "-3"),
        ] {
            assert_eq!(time(s, n), text);
            assert_eq!(parse_time(text.as_bytes()), Some((s, n)));
        }
        assert_eq!(parse_time(b"1.0000000019"), Some((1, 1)));
        assert_eq!(parse_time(b"x"), None);
    }
}
