//! Packages made here, good and hostile, are unpacked for real.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use codchi_debian::Error;
use codchi_debian::unpack::{self, Options};

/// One entry of a package's data.
enum E<'a> {
    File(&'a str, u32, &'a str),
    Dir(&'a str),
    Sym(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Device(&'a str),
}

fn tar(entries: &[E]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        let (name, kind, target, content) = match entry {
            E::File(n, mode, content) => {
                header.set_mode(*mode);
                (n, tar::EntryType::Regular, "", *content)
            }
            E::Dir(n) => (n, tar::EntryType::Directory, "", ""),
            E::Sym(n, t) => (n, tar::EntryType::Symlink, *t, ""),
            E::Hard(n, t) => (n, tar::EntryType::Link, *t, ""),
            E::Device(n) => (n, tar::EntryType::Char, "", ""),
        };
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        // Written as bytes: the tar crate rightly refuses to make hostile names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn ar(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, data) in members {
        writeln!(out, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, "100644", data.len()).unwrap();
        out.extend(data);
        if data.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

const CONTROL: &str =
    "Package: sample\nVersion: 1:2.0-3\nDepends: a,\n b (>= 1)\nDescription: one\n two\n .\n three\n";

fn xz(data: &[u8]) -> Vec<u8> {
    let mut w = liblzma::write::XzEncoder::new(Vec::new(), 1);
    w.write_all(data).unwrap();
    w.finish().unwrap()
}

fn gz(data: &[u8]) -> Vec<u8> {
    let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    w.write_all(data).unwrap();
    w.finish().unwrap()
}

fn zst(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

fn control_tar() -> Vec<u8> {
    tar(&[E::Dir("./"), E::File("./control", 0o644, CONTROL), E::File("./postinst", 0o755, "#!/bin/sh\n")])
}

fn deb(dir: &Path, entries: &[E]) -> PathBuf {
    let path = dir.join("sample.deb");
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.xz", xz(&control_tar())),
        ("data.tar.xz", xz(&tar(entries))),
    ];
    fs::write(&path, ar(&members)).unwrap();
    path
}

fn good() -> Vec<E<'static>> {
    vec![
        E::Dir("./"),
        E::Dir("./bin/"),
        E::File("./bin/tool", 0o755, "tool"),
        E::Hard("./bin/tool-again", "./bin/tool"),
        E::File("./sbin/admin", 0o755, "admin"),
        E::Sym("./usr/bin/admin", "../../sbin/admin"),
        E::Sym("./usr/sbin/other", "../bin/other"),
        E::File("./usr/sbin/suid", 0o4755, "suid"),
        E::Sym("./lib/x86_64-linux-gnu/libx.so", "libx.so.1"),
        E::File("./lib/x86_64-linux-gnu/libx.so.1", 0o644, "x"),
        E::Sym("./usr/lib/x86_64-linux-gnu/liby.so", "/lib/x86_64-linux-gnu/libx.so.1"),
        E::Sym("./usr/lib/x86_64-linux-gnu/libz.so", "../../../lib/x86_64-linux-gnu/libx.so.1"),
        E::Sym("./lib64", "usr/lib64"),
        E::File("./usr/games/play", 0o755, "play"),
        E::File("./usr/share/doc/sample/copyright", 0o644, "text"),
        E::File("./usr/share/man/man1/tool.1.gz", 0o644, "man"),
        E::File("./usr/share/documents/kept", 0o600, "kept"),
        E::File("./etc/sample.conf", 0o644, "conf"),
        E::Dir("./var/lib/sample/"),
    ]
}

fn listing(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let shown = path.strip_prefix(root).unwrap().display().to_string();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_symlink() {
                out.push(format!("{shown} -> {}", fs::read_link(&path).unwrap().display()));
            } else if meta.is_dir() {
                out.push(format!("{shown}/"));
                walk(root, &path, out);
            } else {
                out.push(format!("{shown} {:o}", meta.permissions().mode() & 0o7777));
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out.sort();
    out
}

#[test]
fn a_package_lands_in_a_merged_usr_without_documentation() {
    let temp = tempfile::tempdir().unwrap();
    let deb = deb(temp.path(), &good());
    let out = temp.path().join("out");
    let done = unpack::extract(&deb, &out, &Options::default()).unwrap();
    assert_eq!(
        listing(&out),
        [
            "etc/",
            "etc/sample.conf 644",
            "usr/",
            "usr/bin/",
            "usr/bin/admin 755",
            "usr/bin/play 755",
            "usr/bin/suid 755",
            "usr/bin/tool 755",
            "usr/bin/tool-again 755",
            "usr/lib/",
            "usr/lib/x86_64-linux-gnu/",
            "usr/lib/x86_64-linux-gnu/libx.so -> libx.so.1",
            "usr/lib/x86_64-linux-gnu/libx.so.1 644",
            "usr/lib/x86_64-linux-gnu/liby.so -> /lib/x86_64-linux-gnu/libx.so.1",
            "usr/lib/x86_64-linux-gnu/libz.so -> libx.so.1",
            "usr/share/",
            "usr/share/documents/",
            "usr/share/documents/kept 600",
            "var/",
            "var/lib/",
            "var/lib/sample/",
        ]
    );
    let meta = |p: &str| fs::symlink_metadata(out.join(p)).unwrap();
    assert_eq!(meta("usr/bin/tool").ino(), meta("usr/bin/tool-again").ino());
    for path in ["", "usr", "usr/bin/tool", "usr/lib/x86_64-linux-gnu/libx.so", "var/lib/sample"] {
        assert_eq!(meta(path).mtime(), 1, "{path}");
    }
    assert_eq!(done.privileged, [(PathBuf::from("usr/bin/suid"), 0o4755)]);
    assert_eq!(done.control.field("package"), Some("sample"));
    assert_eq!(done.control.field("Depends"), Some("a,\nb (>= 1)"));
    assert_eq!(done.control.members["postinst"], b"#!/bin/sh\n");
}

#[test]
fn every_compression_gives_the_same_tree() {
    let temp = tempfile::tempdir().unwrap();
    let data = tar(&good());
    let mut seen = Vec::new();
    for (suffix, compress) in
        [("", (|d: &[u8]| d.to_vec()) as fn(&[u8]) -> Vec<u8>), (".xz", xz), (".gz", gz), (".zst", zst)]
    {
        let path = temp.path().join(format!("p{suffix}.deb"));
        let members = [
            ("debian-binary", b"2.0\n".to_vec()),
            (&*format!("control.tar{suffix}"), compress(&control_tar())),
            (&*format!("data.tar{suffix}"), compress(&data)),
        ];
        fs::write(&path, ar(&members)).unwrap();
        let out = temp.path().join(format!("out{suffix}"));
        unpack::extract(&path, &out, &Options::default()).unwrap();
        seen.push(listing(&out));
    }
    assert!(seen.iter().all(|s| *s == seen[0] && s.len() > 10), "{seen:?}");
}

#[test]
fn nothing_is_written_outside_the_destination() {
    let cases: Vec<(&str, Vec<E>)> = vec![
        ("climbs", vec![E::File("./../escaped", 0o644, "x")]),
        ("climbs in the middle", vec![E::File("usr/../../escaped", 0o644, "x")]),
        (
            "through a link",
            vec![E::Sym("./usr/dir", "../../elsewhere"), E::File("./usr/dir/escaped", 0o644, "x")],
        ),
        (
            "through an absolute link",
            vec![E::Sym("./etc/dir", "/tmp"), E::File("./etc/dir/escaped", 0o644, "x")],
        ),
        ("a directory over a link", vec![E::Sym("./etc/dir", "/tmp"), E::Dir("./etc/dir/")]),
        ("a hard link out", vec![E::Hard("./usr/x", "../../secret")]),
        (
            "a hard link through a link",
            vec![E::Sym("./usr/d", "../.."), E::Hard("./usr/x", "./usr/d/secret")],
        ),
        ("a hard link to nothing", vec![E::Hard("./usr/x", "./etc/passwd")]),
        ("a device", vec![E::Device("./dev/null")]),
        ("below a file", vec![E::File("./usr/f", 0o644, ""), E::File("./usr/f/escaped", 0o644, "x")]),
    ];
    for (what, entries) in cases {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("elsewhere")).unwrap();
        fs::write(temp.path().join("secret"), "secret").unwrap();
        let deb = deb(temp.path(), &entries);
        let out = temp.path().join("a/out");
        let result = unpack::extract(&deb, &out, &Options::default());
        assert!(matches!(result, Err(Error::Hostile { .. })), "{what}: {result:?}");
        assert!(fs::read_dir(temp.path().join("elsewhere")).unwrap().next().is_none(), "{what}");
        assert!(
            !listing(temp.path()).iter().any(|l| l.contains("escaped")),
            "{what}: {:?}",
            listing(temp.path())
        );
        assert_eq!(fs::metadata(temp.path().join("secret")).unwrap().nlink(), 1, "{what}");
    }
    assert!(!Path::new("/tmp/escaped").exists());
}

#[test]
fn an_absolute_name_lands_below_the_destination() {
    let temp = tempfile::tempdir().unwrap();
    let deb = deb(temp.path(), &[E::File("/etc/sample.conf", 0o644, "x")]);
    let out = temp.path().join("out");
    unpack::extract(&deb, &out, &Options::default()).unwrap();
    assert_eq!(listing(&out), ["etc/", "etc/sample.conf 644"]);
}

#[test]
fn a_file_never_replaces_what_a_link_points_to() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("victim"), "kept").unwrap();
    let deb = deb(temp.path(), &[E::Sym("./etc/x", "../../victim"), E::File("./etc/x", 0o644, "changed")]);
    let out = temp.path().join("out");
    unpack::extract(&deb, &out, &Options::default()).unwrap();
    assert_eq!(fs::read_to_string(temp.path().join("victim")).unwrap(), "kept");
}

#[test]
fn damaged_packages_are_errors_that_say_what_is_wrong() {
    let temp = tempfile::tempdir().unwrap();
    let whole = fs::read(deb(temp.path(), &good())).unwrap();
    let no_data = ar(&[("debian-binary", b"2.0\n".to_vec()), ("control.tar.xz", xz(&control_tar()))]);
    let newer = ar(&[("debian-binary", b"3.0\n".to_vec())]);
    let odd = ar(&[
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.xz", xz(&control_tar())),
        ("data.tar.lz4", vec![1, 2, 3]),
    ]);
    let mut flipped = whole.clone();
    let middle = whole.len() - 40;
    flipped[middle] ^= 0xff;
    for (data, words) in [
        (&b""[..], "too short"),
        (b"<html>not a package</html>", "no `ar` archive"),
        (&whole[..whole.len() / 2], "cut off"),
        (&flipped, "its data"),
        (&no_data, "`data.tar` is missing"),
        (&newer, "newer than 2"),
        (&odd, "compressed in an unknown way"),
    ] {
        let path = temp.path().join("bad.deb");
        fs::write(&path, data).unwrap();
        let error = unpack::extract(&path, &temp.path().join("out"), &Options::default()).unwrap_err();
        assert!(error.to_string().contains(words), "{error} should say {words}");
    }
}

#[test]
fn links_read_right_at_their_merged_place() {
    for (link, target, want) in [
        ("bin/sh", "dash", Some("dash")),
        ("bin/x", "/usr/bin/x", None),
        ("bin/x", "../usr/bin/x", None),
        ("sbin", "usr/sbin", None),
        ("lib/a.so", "../usr/lib/b.so", Some("b.so")),
        ("usr/lib/a/b.so", "../../../lib/a/c.so", Some("c.so")),
        ("usr/sbin/a", "../bin/b", Some("b")),
        ("usr/sbin/a", "../share/b", Some("../share/b")),
        ("etc/a", "../lib/b", Some("../usr/lib/b")),
        ("usr/share/x", "../../var/lib/x", Some("../../var/lib/x")),
        ("etc/mtab", "../proc/self/mounts", Some("../proc/self/mounts")),
        ("usr/bin/x", "../../../../../../etc/passwd", Some("../../../../../../etc/passwd")),
        ("usr/bin/editor", "/etc/alternatives/editor", Some("/etc/alternatives/editor")),
    ] {
        let got = unpack::merged_link(Path::new(link), target.as_bytes());
        assert_eq!(got, want.map(PathBuf::from), "{link} -> {target}");
    }
}
