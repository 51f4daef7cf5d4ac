//! A copy is the same in everything that can be seen of it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::os::unix::fs::{MetadataExt, symlink};

use codchi_files::{FilesError, copy};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_copy_is_the_same_in_all_that_can_be_seen(ops in common::ops()) {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        common::make(&a, &ops);
        let before = common::snapshot(&a);
        let report = copy(&a, &b, &|_| false, &mut |_| true).unwrap();
        prop_assert_eq!(report.named, Vec::<String>::new());
        prop_assert_eq!(&common::snapshot(&b), &before);
        prop_assert_eq!(report.tally.entries as usize, before.len() - 1);
        common::unlock(dir.path());
    }
}

#[test]
fn holes_stay_holes() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    let f = std::fs::File::create(a.join("f")).unwrap();
    f.set_len(1 << 40).unwrap();
    f.write_all_at(b"in the middle", 1 << 39).unwrap();
    let report = copy(&a, &b, &|_| false, &mut |_| true).unwrap();
    let meta = b.join("f").metadata().unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() * 512 < 1 << 20 && report.tally.bytes < 1 << 20, "{} blocks", meta.blocks());
    let mut got = [0; 13];
    std::fs::File::open(b.join("f")).unwrap().read_exact_at(&mut got, 1 << 39).unwrap();
    assert_eq!(&got, b"in the middle");
}

#[test]
fn depth_has_no_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    // Far more than a path may be long, and more than the descriptors that are held open.
    let script = "cd \"$0\" && i=0 && while [ $i -lt 300 ]; do mkdir deep-folder-name && cd -P deep-folder-name || exit 1; \
                  i=$((i+1)); done; echo bottom > f; ln f g";
    assert!(std::process::Command::new("sh").args(["-c", script]).arg(&a).status().unwrap().success());
    let report = copy(&a, &b, &|_| false, &mut |_| true).unwrap();
    assert_eq!((report.tally.entries, report.lost), (302, 0));
    let look = "cd \"$0\" && while [ -d deep-folder-name ]; do cd -P deep-folder-name || exit 1; done; cat g; stat -c %h f";
    let out = std::process::Command::new("sh").args(["-c", look]).arg(&b).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "bottom\n2\n");
}

#[test]
fn links_are_copied_and_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, outside) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("outside"));
    for d in [&a, &b, &outside] {
        std::fs::create_dir(d).unwrap();
    }
    std::fs::write(outside.join("secret"), "s").unwrap();
    symlink(&outside, a.join("dir")).unwrap();
    symlink(outside.join("secret"), a.join("file")).unwrap();
    copy(&a, &b, &|_| false, &mut |_| true).unwrap();
    assert_eq!(std::fs::read_link(b.join("dir")).unwrap(), outside);
    assert_eq!(std::fs::read_link(b.join("file")).unwrap(), outside.join("secret"));
    // The root itself may not be one.
    symlink(&a, dir.path().join("link")).unwrap();
    assert!(copy(&dir.path().join("link"), &b, &|_| false, &mut |_| true).is_err());
}

#[test]
fn a_copy_ends_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    for i in 0..100 {
        std::fs::write(a.join(i.to_string()), "x").unwrap();
    }
    let mut asked = 0;
    let end = copy(&a, &b, &|_| false, &mut |_| {
        asked += 1;
        asked < 5
    });
    assert!(matches!(end, Err(FilesError::Interrupted)));
    assert!(std::fs::read_dir(&b).unwrap().count() < 10);
}

#[test]
fn device_nodes_are_copied_where_they_can_be_made() {
    if !common::is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    let null = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::from_raw_mode(0o620);
    rustix::fs::mknodat(rustix::fs::CWD, a.join("null"), rustix::fs::FileType::CharacterDevice, mode, null)
        .unwrap();
    let report = copy(&a, &b, &|_| false, &mut |_| true).unwrap();
    assert_eq!(report.lost, 0, "{report:?}");
    assert_eq!(common::snapshot(&b), common::snapshot(&a));
}

#[test]
fn what_is_left_out_is_left_out_with_all_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir_all(a.join("x/y")).unwrap();
    std::fs::create_dir(&b).unwrap();
    std::fs::write(a.join("z"), "").unwrap();
    let report = copy(&a, &b, &|p| p == b"x", &mut |_| true).unwrap();
    assert_eq!((report.tally.entries, report.lost), (1, 0));
    assert!(b.join("z").exists() && !b.join("x").exists());
}
