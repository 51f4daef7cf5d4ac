//! `/etc/ld.so.cache`, which spares every program a look into each library folder, and makes folders of `ld.so.conf`
//! known at all. ldconfig(8) would write it, but it reads a `/usr` that exists only in a machine.
//!
//! The format is glibc's `glibc-ld.so.cache1.1` (`sysdeps/generic/dl-cache.h`): a header, entries in descending order of
//! names, their strings. Everything is little-endian, as are the processors the base knows.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::loader::library_folders;
use super::merge::placed;
use crate::Result;

const MAGIC: &[u8; 20] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
const LITTLE_ENDIAN: u8 = 2;

/// A library as its file says: its name, and the flags a cache has for its kind.
#[derive(Debug, PartialEq)]
struct Library {
    soname: Option<String>,
    flags: u32,
}

/// The cache of the libraries of unpacked packages; `usr` holds links that are in none of them.
pub fn make(usr: &Path, debs: &[&Path]) -> Result<Vec<u8>> {
    let mut found: BTreeMap<Name, (String, u32)> = BTreeMap::new();
    for folder in folders(debs)? {
        let below = folder.strip_prefix("/").unwrap_or(&folder);
        let places: Vec<PathBuf> = std::iter::once(usr.join(below.strip_prefix("usr").unwrap_or(below)))
            .chain(debs.iter().map(|raw| raw.join(below)))
            .filter(|p| p.is_dir())
            .collect();
        let mut names = BTreeSet::new();
        for place in &places {
            for e in codchi_fs::read_dir(place)? {
                let name = e.file_name().to_string_lossy().into_owned();
                if (name.starts_with("lib") || name.starts_with("ld-")) && name.contains(".so") {
                    names.insert(name);
                }
            }
        }
        for name in &names {
            let path = folder.join(name);
            let Some(library) = real(usr, debs, &path, 0).and_then(|file| read(&file)) else { continue };
            // A library is asked for by the name it has itself; Debian ships a link of that name beside it.
            let key = library.soname.unwrap_or_else(|| name.clone());
            let value = if names.contains(&key) { folder.join(&key) } else { path };
            found.entry(Name(key)).or_insert_with(|| (value.to_string_lossy().into_owned(), library.flags));
        }
    }
    Ok(encode(&found))
}

/// Where libraries are looked for, in the order of ldconfig: what `ld.so.conf` names, then the usual places.
fn folders(debs: &[&Path]) -> Result<Vec<PathBuf>> {
    let mut lists = BTreeMap::new();
    let mut usual = BTreeSet::new();
    for raw in debs {
        for folder in library_folders(raw)? {
            usual.extend(folder.strip_prefix(raw).ok().map(|below| Path::new("/").join(below)));
        }
        let dir = raw.join("etc/ld.so.conf.d");
        for e in if dir.is_dir() { codchi_fs::read_dir(&dir)? } else { Vec::new() } {
            lists.insert(e.file_name(), codchi_fs::read_to_string(e.path())?);
        }
    }
    usual.insert("/usr/lib".into());
    let named = lists.values().flat_map(|text| text.lines()).map(|line| line.trim().trim_end_matches('/'));
    // What a person installs below /usr/local is found in the usual way.
    let named = named.filter(|l| l.starts_with('/')).map(placed).filter(|p| p.starts_with("/usr/lib"));
    let mut all: Vec<PathBuf> = Vec::new();
    for folder in named.chain(usual) {
        if !all.contains(&folder) {
            all.push(folder);
        }
    }
    Ok(all)
}

/// The file that a path of the machine leads to.
fn real(usr: &Path, debs: &[&Path], path: &Path, depth: usize) -> Option<PathBuf> {
    let below = path.strip_prefix("/usr").ok()?;
    let places = std::iter::once(usr.join(below)).chain(debs.iter().map(|raw| raw.join("usr").join(below)));
    for place in places {
        let Ok(meta) = place.symlink_metadata() else { continue };
        if meta.is_file() {
            return Some(place);
        }
        if meta.is_symlink() && depth < 16 {
            let target = std::fs::read_link(&place).ok()?;
            let next = clean(&path.parent()?.join(target));
            return real(usr, debs, &placed(next.to_str()?), depth + 1);
        }
    }
    None
}

/// A path without `..`.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Reads a shared library's own name (elf(5), `DT_SONAME`); none for what is no library of this base's processors.
fn read(path: &Path) -> Option<Library> {
    const DYNAMIC: u64 = 2;
    const LOAD: u64 = 1;
    const STRTAB: u64 = 5;
    const SONAME: u64 = 14;
    const SHARED: u64 = 3;
    let file = codchi_fs::open(path).ok()?;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).ok()?;
    if head[..6] != *b"\x7fELF\x02\x01" || number(&head, 16, 2)? != SHARED {
        return None;
    }
    let flags = match number(&head, 18, 2)? {
        62 => 0x0303,
        183 => 0x0a03,
        _ => return None,
    };
    let count = number(&head, 56, 2)? as usize;
    let mut table = vec![0; count * 56];
    file.read_exact_at(&mut table, number(&head, 32, 8)?).ok()?;
    // Kind, place in the file, address, bytes in the file.
    let segments: Vec<[u64; 4]> = table
        .chunks(56)
        .map(|s| Some([number(s, 0, 4)?, number(s, 8, 8)?, number(s, 16, 8)?, number(s, 32, 8)?]))
        .collect::<Option<_>>()?;
    let [_, at, _, size] = *segments.iter().find(|s| s[0] == DYNAMIC)?;
    let mut dynamic = vec![0; usize::try_from(size).ok().filter(|s| *s < 1 << 20)?];
    file.read_exact_at(&mut dynamic, at).ok()?;
    let entry = |tag: u64| -> Option<u64> {
        let mut all = dynamic.chunks_exact(16);
        all.find(|e| number(e, 0, 8) == Some(tag)).and_then(|e| number(e, 8, 8))
    };
    let Some(soname) = entry(SONAME) else { return Some(Library { soname: None, flags }) };
    let address = entry(STRTAB)?;
    let [_, from, start, _] =
        *segments.iter().find(|s| s[0] == LOAD && s[2] <= address && address - s[2] < s[3])?;
    let mut text = vec![0; 256];
    let read = file.read_at(&mut text, from.checked_add(address - start)?.checked_add(soname)?).ok()?;
    let end = text[..read].iter().position(|b| *b == 0)?;
    Some(Library { soname: Some(String::from_utf8(text[..end].to_vec()).ok()?), flags })
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let mut wide = [0; 8];
    wide[..size].copy_from_slice(bytes.get(at..at + size)?);
    Some(u64::from_le_bytes(wide))
}

/// A library's name in the loader's order: digits that stand together are compared as the number they are, and come
/// after everything else.
#[derive(PartialEq, Eq)]
struct Name(String);

impl Ord for Name {
    fn cmp(&self, other: &Name) -> Ordering {
        let (mut a, mut b) = (self.0.as_bytes(), other.0.as_bytes());
        loop {
            match (a.first(), b.first()) {
                (None, None) => return Ordering::Equal,
                (None, Some(_)) => return Ordering::Less,
                (Some(_), None) => return Ordering::Greater,
                (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                    let order = value(&mut a).cmp(&value(&mut b));
                    if order.is_ne() {
                        return order;
                    }
                }
                (Some(x), Some(_)) if x.is_ascii_digit() => return Ordering::Greater,
                (Some(_), Some(y)) if y.is_ascii_digit() => return Ordering::Less,
                // As signed bytes, which is what C compares.
                (Some(x), Some(y)) if x != y => return (*x as i8).cmp(&(*y as i8)),
                _ => (a, b) = (&a[1..], &b[1..]),
            }
        }
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Takes the number in front, as a C `int` holds it.
fn value(text: &mut &[u8]) -> i32 {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, rest) = text.split_at(digits);
    *text = rest;
    number.iter().fold(0, |n: i32, d| n.wrapping_mul(10).wrapping_add(i32::from(d - b'0')))
}

fn encode(found: &BTreeMap<Name, (String, u32)>) -> Vec<u8> {
    let mut strings = Vec::new();
    let mut entries = Vec::new();
    let start = HEADER + ENTRY * found.len();
    let put = |text: &str, strings: &mut Vec<u8>| {
        let at = (start + strings.len()) as u32;
        strings.extend(text.as_bytes());
        strings.push(0);
        at
    };
    for (Name(key), (path, flags)) in found.iter().rev() {
        let (key, path) = (put(key, &mut strings), put(path, &mut strings));
        for n in [*flags, key, path, 0, 0, 0] {
            entries.extend(n.to_le_bytes());
        }
    }
    let mut out = MAGIC.to_vec();
    out.extend((found.len() as u32).to_le_bytes());
    out.extend((strings.len() as u32).to_le_bytes());
    out.push(LITTLE_ENDIAN);
    out.resize(HEADER, 0);
    out.extend(entries);
    out.extend(strings);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_loaders_order() {
        for (a, b) in [
            ("liba.so.2", "liba.so.10"),
            ("liba.so", "liba.so.1"),
            ("liba-x.so.1", "liba2.so.1"),
            ("libA.so.1", "liba.so.1"),
            ("libc++.so.1", "libc.so.1"),
        ] {
            assert_eq!(Name(a.into()).cmp(&Name(b.into())), Ordering::Less, "{a} < {b}");
            assert_eq!(Name(b.into()).cmp(&Name(a.into())), Ordering::Greater, "{b} > {a}");
        }
    }

    /// The C library of this host, under a name and by a link as a package has them.
    fn library() -> Option<PathBuf> {
        let maps = codchi_fs::read_to_string("/proc/self/maps").ok()?;
        maps.lines()
            .filter_map(|l| l.split_whitespace().last())
            .find(|p| p.ends_with("libc.so.6"))
            .map(Into::into)
    }

    #[test]
    fn ldconfig_reads_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let libc = library().expect("tests run with glibc");
        let raw = dir.path().join("raw");
        let (lib, far) = (raw.join("usr/lib/x86_64-linux-gnu"), raw.join("usr/lib/far"));
        for d in [&lib, &far, &raw.join("etc/ld.so.conf.d")] {
            codchi_fs::create_dir_all(d).unwrap();
        }
        std::fs::copy(&libc, lib.join("libc-2.so")).unwrap();
        std::os::unix::fs::symlink("libc-2.so", lib.join("libc.so.6")).unwrap();
        codchi_fs::write(lib.join("libno.so.1"), "/* GNU ld script */").unwrap();
        codchi_fs::write(raw.join("etc/ld.so.conf.d/far.conf"), "# far\n/usr/lib/far\n").unwrap();
        // An alternative: a link that only the merged tree has.
        let usr = dir.path().join("usr");
        codchi_fs::create_dir_all(usr.join("lib/far")).unwrap();
        std::os::unix::fs::symlink("/lib/x86_64-linux-gnu/libc-2.so", usr.join("lib/far/libfar.so.1"))
            .unwrap();
        let cache = make(&usr, &[&raw]).unwrap();
        let file = dir.path().join("ld.so.cache");
        codchi_fs::write(&file, &cache).unwrap();
        let ldconfig = ["/sbin/ldconfig", "/usr/sbin/ldconfig", "/usr/bin/ldconfig"];
        let ldconfig = ldconfig.into_iter().find(|p| Path::new(p).exists()).expect("glibc has ldconfig");
        let out = std::process::Command::new(ldconfig).arg("-p").arg("-C").arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.starts_with("1 libs found"), "{text}{}", String::from_utf8_lossy(&out.stderr));
        // The folder that is named comes first, and has that library under another name.
        assert!(text.contains("libc.so.6 (libc6,") && text.contains("=> /usr/lib/far/libfar.so.1"), "{text}");
    }

    #[test]
    fn what_is_no_library_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        for bytes in [&b""[..], b"\x7fELF", &[0xff; 200]] {
            codchi_fs::write(&file, bytes).unwrap();
            assert_eq!(read(&file), None);
        }
        let libc = codchi_fs::read(library().unwrap()).unwrap();
        for end in (0..libc.len()).step_by(libc.len() / 97) {
            codchi_fs::write(&file, &libc[..end]).unwrap();
            let _ = read(&file);
        }
    }
}
