//! Trees with everything in them, and what there is to see of a tree.

#![allow(dead_code, clippy::collapsible_match)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Something to put into a tree.
#[derive(Clone, Debug)]
pub enum Op {
    Dir(Vec<u8>),
    File { name: Vec<u8>, parts: Vec<(u16, u16)>, length: u32 },
    Symlink(Vec<u8>, Vec<u8>),
    HardLink(Vec<u8>, prop::sample::Index),
    Fifo(Vec<u8>),
    Socket(Vec<u8>),
    Up,
    Owner(u32, u32),
    Mode(u32),
    Time(i64, i64),
    Attribute(Vec<u8>, Vec<u8>),
    Acl(bool, u32, u8),
    Capability(u8),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let awkward: &[&[u8]] = &[
        b"a\nb",
        b" ",
        b"-rf",
        b"\\x41",
        b"\xff\xfe",
        "gr\u{fc}\u{df}e \u{1f600}".as_bytes(),
        b"a=b%3D",
        b"...",
        b"'\"$(x)",
        b"nix",
        b"lib",
        b"etc",
        &[b'n'; 255],
        &[b'l'; 101],
    ];
    let awkward: Vec<Vec<u8>> = awkward.iter().map(|n| n.to_vec()).collect();
    prop_oneof![
        prop::sample::select(awkward),
        "[a-z]{1,3}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>().prop_map(|c| if c == 0 || c == b'/' { b'_' } else { c }), 3..40),
    ]
    .prop_filter("a name of its own", |n| n != b"." && n != b"..")
}

pub fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => name().prop_map(Op::Dir),
        6 => (name(), prop::collection::vec((any::<u16>(), 1u16..9000), 0..4), 0u32..900_000)
            .prop_map(|(name, parts, length)| Op::File { name, parts, length }),
        2 => (name(), prop::collection::vec(any::<u8>().prop_map(|c| c.max(1)), 1..200)).prop_map(|(n, t)| Op::Symlink(n, t)),
        2 => (name(), any::<prop::sample::Index>()).prop_map(|(n, i)| Op::HardLink(n, i)),
        1 => name().prop_map(Op::Fifo),
        1 => name().prop_map(Op::Socket),
        3 => Just(Op::Up),
        2 => (0u32..65536, 0u32..65536).prop_map(|(u, g)| Op::Owner(u, g)),
        2 => (0u32..0o10000).prop_map(Op::Mode),
        2 => (-5_000_000_000i64..90_000_000_000, 0i64..1_000_000_000).prop_map(|(s, n)| Op::Time(s, n)),
        1 => ("[a-z=%. ]{1,12}", prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(n, v)| Op::Attribute(n.into_bytes(), v)),
        1 => (any::<bool>(), 0u32..65536, 0u8..8).prop_map(|(d, u, p)| Op::Acl(d, u, p)),
        1 => any::<u8>().prop_map(Op::Capability),
    ];
    prop::collection::vec(op, 0..60)
}

/// The kernel's form of an ACL: version 2, then tag, permissions, id; see acl(5) and linux/posix_acl_xattr.h.
pub fn acl(user: u32, permissions: u8) -> Vec<u8> {
    let mut v = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (0x01u16, 6u16, u32::MAX),
        (0x02, u16::from(permissions), user),
        (0x04, 4, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 1, u32::MAX),
    ] {
        v.extend(tag.to_le_bytes());
        v.extend(perm.to_le_bytes());
        v.extend(id.to_le_bytes());
    }
    v
}

/// `cap_net_raw` and friends, permitted and effective: version 2 of linux/capability.h.
pub fn capability(which: u8) -> Vec<u8> {
    let mut v = 0x0200_0001u32.to_le_bytes().to_vec();
    v.extend((1u32 << (which % 32)).to_le_bytes());
    v.extend([0; 12]);
    v
}

/// Makes the tree; what cannot be done on this file system or by this user is left out.
pub fn make(root: &Path, ops: &[Op]) {
    let mut at = vec![root.to_path_buf()];
    let (mut last, mut files): (PathBuf, Vec<PathBuf>) = (root.into(), Vec::new());
    // Modes and times are set when nothing is made any more.
    let (mut modes, mut times) = (BTreeMap::new(), BTreeMap::new());
    for op in ops {
        let here = at.last().unwrap().clone();
        let join = |n: &[u8]| here.join(OsStr::from_bytes(n));
        match op {
            Op::Dir(n) => {
                if std::fs::create_dir(join(n)).is_ok() {
                    last = join(n);
                    at.push(last.clone());
                }
            }
            Op::File { name, parts, length } => {
                if let Ok(f) = std::fs::File::create_new(join(name)) {
                    f.set_len((*length).into()).unwrap();
                    for (i, (offset, n)) in parts.iter().enumerate() {
                        let data: Vec<u8> = (0..*n).map(|j| (j as u8) ^ (i as u8) | 1).collect();
                        f.write_all_at(&data, u64::from(*offset) * 7).unwrap();
                    }
                    last = join(name);
                    files.push(last.clone());
                }
            }
            Op::Symlink(n, target) => {
                if symlink(OsStr::from_bytes(target), join(n)).is_ok() {
                    last = join(n);
                }
            }
            Op::HardLink(n, index) if !files.is_empty() => {
                let _ = std::fs::hard_link(index.get(&files), join(n));
            }
            Op::Fifo(n) | Op::Socket(n) => {
                let kind = if matches!(op, Op::Fifo(_)) { FileType::Fifo } else { FileType::Socket };
                if rustix::fs::mknodat(CWD, join(n), kind, Mode::from_raw_mode(0o600), 0).is_ok() {
                    last = join(n);
                }
            }
            Op::Up if at.len() > 1 => {
                at.pop();
            }
            Op::Owner(u, g) if is_root() => {
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(CWD, &last, Some(Uid::from_raw(*u)), Some(Gid::from_raw(*g)), flags)
                    .unwrap();
            }
            Op::Mode(m) => {
                modes.insert(last.clone(), *m | if is_root() { 0 } else { 0o700 });
            }
            Op::Time(s, n) => {
                times.insert(last.clone(), (*s, *n));
            }
            Op::Attribute(n, v) if !last.is_symlink() => {
                let name = [b"user.".as_slice(), n].concat();
                let _ = rustix::fs::lsetxattr(&last, name.as_slice(), v, XattrFlags::empty());
            }
            Op::Acl(default, user, p) if !last.is_symlink() => {
                let name = if *default && last.is_dir() {
                    "system.posix_acl_default"
                } else {
                    "system.posix_acl_access"
                };
                let _ = rustix::fs::lsetxattr(&last, name, &acl(*user, *p), XattrFlags::empty());
            }
            Op::Capability(c) if last.is_file() && !last.is_symlink() => {
                let _ =
                    rustix::fs::lsetxattr(&last, "security.capability", &capability(*c), XattrFlags::empty());
            }
            _ => {}
        }
    }
    for (p, m) in modes.iter().filter(|(p, _)| !p.is_symlink()) {
        let _ = rustix::fs::chmodat(CWD, p, Mode::from_raw_mode(*m), rustix::fs::AtFlags::empty());
    }
    for (p, (s, n)) in times {
        let t = Timespec { tv_sec: s, tv_nsec: n };
        let _ = rustix::fs::utimensat(
            CWD,
            &p,
            &Timestamps { last_access: t, last_modification: t },
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        );
    }
}

/// All that can be seen of a tree, looked at by paths and with other functions than those under test.
pub fn snapshot(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut first_name: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    look(root, root, &mut all, &mut first_name);
    all
}

fn look(root: &Path, path: &Path, all: &mut Vec<String>, first_name: &mut BTreeMap<(u64, u64), PathBuf>) {
    let m = path.symlink_metadata().unwrap();
    let shown = path.strip_prefix(root).unwrap();
    let mut names = vec![0u8; 65536];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut attributes: Vec<String> = names[..n]
        .split(|c| *c == 0)
        .filter(|n| !n.is_empty())
        .map(|n| {
            let mut value = vec![0u8; 65536];
            let len = rustix::fs::lgetxattr(path, n, &mut value[..]).unwrap();
            format!("{}={:?}", OsStr::from_bytes(n).display(), &value[..len])
        })
        .collect();
    attributes.sort();
    let mut line = format!(
        "{shown:?} {:o} {}:{} {}.{:09} dev {} {attributes:?}",
        m.mode(),
        m.uid(),
        m.gid(),
        m.mtime(),
        m.mtime_nsec(),
        m.rdev()
    );
    if m.is_symlink() {
        line.push_str(&format!(" -> {:?}", std::fs::read_link(path).unwrap()));
    } else if !m.is_dir() {
        let first = first_name.entry((m.dev(), m.ino())).or_insert_with(|| shown.into());
        line.push_str(&format!(" first {first:?} of {}", m.nlink()));
    }
    if m.is_file() {
        let content = std::fs::read(path).unwrap();
        let sum = content.iter().fold(5381u64, |h, b| h.wrapping_mul(33) ^ u64::from(*b));
        line.push_str(&format!(" {} bytes {sum:x}", content.len()));
    }
    all.push(line);
    if m.is_dir() {
        let mut names: Vec<OsString> =
            std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for n in names {
            look(root, &path.join(n), all, first_name);
        }
    }
}

/// Lets everything below a folder be removed by whoever made it.
pub fn unlock(root: &Path) {
    if !is_root() {
        let _ = std::process::Command::new("chmod").args(["-R", "u+rwx"]).arg(root).status();
    }
}
