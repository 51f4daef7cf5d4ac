//! A tar holds all of a tree, other programs agree, and one that is meant to do harm does none.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use codchi_files::{Compression, FilesError, Ids, Most, Pick, Report, Tree, Wish, decompress, pack, unpack};
use proptest::prelude::*;

fn packed(from: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    let tree = Tree { from, at: b"", roots: false, without: &|_, _| false };
    pack(&[tree], &Ids::default(), &mut out, &mut |_| true).unwrap();
    out
}

fn unpacked(tar: &[u8], to: &Path) -> Result<Report, FilesError> {
    let wish = Wish { pick: &|p| Pick::As(p.to_vec()), faithful: true, most: Most::ALL };
    unpack(&mut &*tar, to, &wish, &mut |_| true)
}

/// Two empty folders, and what holds them.
fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    (dir, a, b)
}

/// A tar has no word for sockets.
fn no_sockets(ops: &[common::Op]) -> Vec<common::Op> {
    ops.iter().filter(|o| !matches!(o, common::Op::Socket(_))).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_comes_out_is_what_went_in(ops in common::ops()) {
        let (dir, a, b) = folders();
        common::make(&a, &no_sockets(&ops));
        let before = common::snapshot(&a);
        let tar = packed(&a);
        let report = unpacked(&tar, &b).unwrap();
        prop_assert_eq!(report.named, Vec::<String>::new());
        prop_assert_eq!(common::snapshot(&b), before);
        common::unlock(dir.path());
    }

    #[test]
    fn damage_is_an_error_and_never_a_write_outside(ops in common::ops(), at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let (dir, a, b) = folders();
        common::make(&a, &no_sockets(&ops));
        let mut tar = packed(&a);
        let i = at.index(tar.len());
        if cut { tar.truncate(i) } else { tar[i] ^= 1 << bit }
        let _ = unpacked(&tar, &b);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        prop_assert_eq!(left.len(), 2);
        common::unlock(dir.path());
    }
}

#[test]
fn gnu_tar_reads_what_is_written_and_the_other_way_round() {
    if !common::is_root() {
        return;
    }
    let (dir, a, b) = folders();
    let ops: Vec<common::Op> = vec![
        common::Op::Dir(b"d\n".to_vec()),
        common::Op::Acl(true, 4711, 5),
        common::Op::File { name: vec![b'n'; 255], parts: vec![(60_000, 100)], length: 900_000 },
        common::Op::Owner(65_535, 7),
        common::Op::Mode(0o6711),
        common::Op::Time(-5, 250_000_000),
        common::Op::Attribute(b"a=b%".to_vec(), vec![0, 1, 255, b'\n']),
        common::Op::Acl(false, 4711, 5),
        common::Op::Capability(13),
        common::Op::Up,
        common::Op::Symlink(b"\xff".to_vec(), vec![b't'; 199]),
        common::Op::Fifo(b"fifo".to_vec()),
    ];
    common::make(&a, &ops);
    std::fs::hard_link(a.join("d\n").join("n".repeat(255)), a.join("hard")).unwrap();
    let before = common::snapshot(&a);
    let file = dir.path().join("t.tar");
    std::fs::write(&file, packed(&a)).unwrap();
    let flags = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"];
    let tar = |words: &[&str], more: &[&str], folder: &Path| {
        let mut c = std::process::Command::new("tar");
        let out = c
            .args(words)
            .args(flags)
            .arg("--file")
            .arg(&file)
            .arg("-C")
            .arg(folder)
            .args(more)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    tar(&["--extract", "--preserve-permissions"], &[], &b);
    assert_eq!(common::snapshot(&b), before);
    let holes = b.join("d\n").join("n".repeat(255)).metadata().unwrap();
    assert!(holes.blocks() * 512 < 100_000, "{} blocks", holes.blocks());
    std::fs::remove_file(&file).unwrap();
    tar(&["--format=pax", "--sparse", "--create"], &["."], &a);
    let c = dir.path().join("c");
    std::fs::create_dir(&c).unwrap();
    unpacked(&std::fs::read(&file).unwrap(), &c).unwrap();
    assert_eq!(common::snapshot(&c), before);
}

#[test]
fn every_compression_is_undone_by_its_first_bytes() {
    let (_dir, a, b) = folders();
    std::fs::write(a.join("f"), "content").unwrap();
    for suffix in Compression::suffixes() {
        let compression = Compression::of_name(&format!("x{suffix}")).unwrap();
        let mut out = Vec::new();
        let tree = Tree { from: &a, at: b"", roots: false, without: &|_, _| false };
        compression.around(&mut out, |w| pack(&[tree], &Ids::default(), w, &mut |_| true)).unwrap();
        let mut text = Vec::new();
        decompress(&*out).unwrap().read_to_end(&mut text).unwrap();
        unpacked(&text, &b).unwrap();
        assert_eq!(std::fs::read_to_string(b.join("f")).unwrap(), "content", "{suffix}");
    }
    assert_eq!(Compression::of_name("x.zip"), None);
}

/// A tar made by hand.
struct Forged(tar::Builder<Vec<u8>>);

impl Forged {
    fn new() -> Forged {
        Forged(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: tar::EntryType, name: &[u8], link: &[u8], data: &[u8]) -> Forged {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

#[test]
fn nothing_is_written_outside() {
    use tar::EntryType as T;
    let (dir, a, b) = folders();
    let out = dir.path().join("outside");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("victim"), "untouched").unwrap();
    let victim = out.join("victim").to_string_lossy().into_owned();
    let outside = out.to_string_lossy().into_owned();
    let hostile = [
        ("absolute", Forged::new().add(T::Regular, victim.as_bytes(), b"", b"x")),
        ("dots", Forged::new().add(T::Regular, b"../outside/victim", b"", b"x")),
        (
            "dots within",
            Forged::new().add(T::Directory, b"d/", b"", b"").add(
                T::Regular,
                b"d/../../outside/victim",
                b"",
                b"x",
            ),
        ),
        (
            "through a link",
            Forged::new().add(T::Symlink, b"l", outside.as_bytes(), b"").add(
                T::Regular,
                b"l/victim",
                b"",
                b"x",
            ),
        ),
        (
            "a folder over a link",
            Forged::new()
                .add(T::Symlink, b"l", outside.as_bytes(), b"")
                .add(T::Directory, b"l/", b"", b"")
                .add(T::Regular, b"l/victim", b"", b"x"),
        ),
        (
            "a link to dots",
            Forged::new().add(T::Symlink, b"l", b"..", b"").add(T::Regular, b"l/outside/victim", b"", b"x"),
        ),
        ("hard link outside", Forged::new().add(T::Link, b"h", victim.as_bytes(), b"")),
        ("hard link by dots", Forged::new().add(T::Link, b"h", b"../outside/victim", b"")),
        (
            "hard link through a link",
            Forged::new().add(T::Symlink, b"l", outside.as_bytes(), b"").add(T::Link, b"h", b"l/victim", b""),
        ),
        (
            "hard link to a folder",
            Forged::new().add(T::Directory, b"d/", b"", b"").add(T::Link, b"h", b"d", b""),
        ),
        (
            "a folder that was a file",
            Forged::new().add(T::Regular, b"f", b"", b"x").add(T::Regular, b"f/g", b"", b"x"),
        ),
        (
            "a file that was a folder",
            Forged::new().add(T::Directory, b"d/", b"", b"").add(T::Regular, b"d", b"", b"x"),
        ),
        ("an unknown kind", Forged::new().add(T::new(b'Z'), b"z", b"", b"")),
        (
            "the root as a file",
            Forged::new().add(T::Regular, b"./", b"", b"").add(T::Symlink, b".", b"/", b""),
        ),
    ];
    for (what, tar) in hostile {
        std::fs::remove_dir_all(&b).unwrap();
        std::fs::create_dir(&b).unwrap();
        let end = unpacked(&tar.bytes(), &b);
        assert!(matches!(end, Err(FilesError::Entry { .. })), "{what}: {end:?}");
        assert_eq!(std::fs::read_to_string(out.join("victim")).unwrap(), "untouched", "{what}");
        assert_eq!(out.join("victim").metadata().unwrap().nlink(), 1, "{what}");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1, "{what}");
    }
    assert_eq!(std::fs::read_dir(&a).unwrap().count(), 0);
}

#[test]
fn what_is_there_twice_counts_as_it_came_last_and_writes_through_nothing() {
    use tar::EntryType as T;
    let (dir, _a, b) = folders();
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    let tar = Forged::new()
        .add(T::Symlink, b"f", victim.to_string_lossy().as_bytes(), b"")
        .add(T::Regular, b"f", b"", b"second")
        .add(T::Link, b"g", b"f", b"")
        .add(T::Regular, b"f", b"", b"third")
        .bytes();
    unpacked(&tar, &b).unwrap();
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(std::fs::read_to_string(b.join("f")).unwrap(), "third");
    assert_eq!(std::fs::read_to_string(b.join("g")).unwrap(), "second");
}

#[test]
fn devices_and_owners_that_no_machine_has_are_told_of() {
    if !common::is_root() {
        return;
    }
    let (_dir, a, b) = folders();
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let zero = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(rustix::fs::CWD, a.join("zero"), rustix::fs::FileType::CharacterDevice, mode, zero)
        .unwrap();
    std::fs::write(a.join("f"), "").unwrap();
    let mut tar = packed(&a);
    // The owner of `f`, the second entry after the root's.
    let at = tar.chunks(512).position(|c| c.starts_with(b"f\0")).unwrap() * 512;
    tar[at + 108..at + 116].copy_from_slice(b"2000000\0");
    tar[at + 148..at + 156].fill(b' ');
    let sum: u64 = tar[at..at + 512].iter().map(|b| u64::from(*b)).sum();
    tar[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let report = unpacked(&tar, &b).unwrap();
    assert_eq!(report.lost, 2, "{report:?}");
    assert!(!b.join("zero").exists());
    assert_eq!(b.join("f").metadata().unwrap().uid(), 65_534);
}

#[test]
fn a_file_of_holes_takes_no_space_and_a_map_that_lies_is_refused() {
    let (_dir, a, b) = folders();
    let f = std::fs::File::create(a.join("f")).unwrap();
    f.set_len(1 << 43).unwrap();
    f.write_all_at(b"x", 1 << 42).unwrap();
    let tar = packed(&a);
    assert!(tar.len() < 64 << 10);
    unpacked(&tar, &b).unwrap();
    let meta = b.join("f").metadata().unwrap();
    assert_eq!((meta.len(), meta.blocks() < 100), (1 << 43, true));
    // How many pieces there are, then where the first begins: at 2^42.
    let map = tar.windows(6).position(|w| w[0].is_ascii_digit() && &w[1..] == b"\n4398").unwrap();
    let mut lying = tar.clone();
    lying[map + 2] = b'9';
    assert!(unpacked(&lying, &b).is_err());
}

#[test]
fn a_folder_keeps_links_and_modes_of_what_it_picks_only() {
    let (dir, a, b) = folders();
    std::fs::create_dir_all(a.join("head/in")).unwrap();
    std::fs::write(a.join("head/in/f"), "1").unwrap();
    std::fs::set_permissions(a.join("head/in/f"), PermissionsExt::from_mode(0o4777)).unwrap();
    std::fs::write(a.join("rest"), "2").unwrap();
    symlink("rest", a.join("link")).unwrap();
    let tar = packed(&a);
    let pick = |p: &[u8]| match p.strip_prefix(b"head/") {
        Some(rest) => Pick::As(rest.to_vec()),
        None if p == b"rest" => Pick::Stop,
        None => Pick::Skip,
    };
    unpack(&mut &*tar, &b, &Wish { pick: &pick, faithful: false, most: Most::ALL }, &mut |_| true).unwrap();
    assert_eq!(std::fs::read_to_string(b.join("in/f")).unwrap(), "1");
    assert_eq!(b.join("in/f").metadata().unwrap().mode() & 0o7777, 0o755);
    assert_eq!(std::fs::read_dir(&b).unwrap().count(), 1);
    drop(dir);
}

#[test]
fn holes_and_further_names_count_as_what_they_may_become() {
    let limited = |tar: &[u8], bytes, entries| {
        let (dir, _, b) = folders();
        let wish = Wish { pick: &|p| Pick::As(p.to_vec()), faithful: false, most: Most { bytes, entries } };
        let done = unpack(&mut &*tar, &b, &wish, &mut |_| true);
        // Whoever unpacked it can remove it, whatever modes it said.
        std::fs::remove_dir_all(dir.path()).unwrap();
        done.map_err(|e| e.to_string())
    };
    let (_dir, a, _) = folders();
    let holes = std::fs::File::create(a.join("holes")).unwrap();
    holes.set_len(1 << 40).unwrap();
    let tar = packed(&a);
    assert!(limited(&tar, 1 << 40, 10).is_ok());
    let e = limited(&tar, (1 << 40) - 1, 10).unwrap_err();
    assert!(e.contains("more than may be taken"), "{e}");

    let (_dir, a, _) = folders();
    std::fs::write(a.join("one"), vec![7; 1000]).unwrap();
    for n in 0..9 {
        std::fs::hard_link(a.join("one"), a.join(format!("other-{n}"))).unwrap();
    }
    std::fs::create_dir(a.join("closed")).unwrap();
    std::fs::write(a.join("closed/in"), "").unwrap();
    std::fs::set_permissions(a.join("closed"), PermissionsExt::from_mode(0o100)).unwrap();
    let tar = packed(&a);
    assert!(limited(&tar, 10_000, 12).is_ok());
    assert!(limited(&tar, 9_999, 12).is_err());
    assert!(limited(&tar, 10_000, 11).is_err());
    std::fs::set_permissions(a.join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
}

#[test]
fn headers_without_end_are_refused() {
    let (_dir, a, b) = folders();
    std::fs::write(a.join("f"), "").unwrap();
    let tar = packed(&a);
    // A record of a megabyte, again and again, before the first entry.
    let record = format!("1048588 a={}\n", "x".repeat(1_048_588 - 11));
    assert_eq!(record.len(), 1_048_588);
    let mut block = tar[..512].to_vec();
    block[156] = b'x';
    block[124..136].copy_from_slice(format!("{:011o}\0", record.len()).as_bytes());
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut hostile = Vec::new();
    for _ in 0..20 {
        hostile.extend(&block);
        hostile.extend(record.as_bytes());
        hostile.resize(hostile.len().next_multiple_of(512), 0);
    }
    hostile.extend(&tar);
    let e = unpacked(&hostile, &b).unwrap_err().to_string();
    assert!(e.contains("more headers than any could"), "{e}");
}
