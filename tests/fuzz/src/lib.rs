//! What is done with foreign input, and what must hold whatever it is. Each function is a target of its own; its corpus is
//! the folder of the same name in `corpus`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use codchi_core::attr::AttrPath;
use codchi_core::credentials::{Credentials, server};
use codchi_core::export::Export;
use codchi_core::flake::Flake;
use codchi_core::machine::{Host, HostEdit};
use codchi_core::manifest::{Manifest, Needs};
use codchi_core::name::{InputName, MachineName};
use codchi_core::progress::Silent;
use codchi_core::protocol::{self, Decoder, Delivery, Exec, FrameType, Hello};
use codchi_core::settings::Settings;
use codchi_core::source::{Look, Source};
use codchi_core::{document, text};
use codchi_debian::openpgp::Keyring;
use codchi_debian::packages::{Archive, Packages};
use codchi_debian::release::Release;
use codchi_debian::{depends, unpack, version};
use codchi_files::{Most, Pick, Wish};
use codchi_nix::{aterm, drv, lock, log, refusal, trace, updates};
use tempfile::TempDir;

/// A folder for files, in memory where that is possible.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        TempDir::new_in(memory)
    } else {
        TempDir::new()
    }
    .expect("a folder")
}

fn file() -> &'static Path {
    Path::new("/given")
}

/// Edits of a machine flake: what one writes, it reads; what it takes back is as it was.
pub fn flake_edit(data: &[u8]) {
    let Ok(given) = std::str::from_utf8(data) else {
        return;
    };
    // Other people's flakes are read, too, and never written.
    let _ = codchi_nix::flake::parse(given);
    let Ok(flake) = Flake::parse(given) else {
        return;
    };
    assert_eq!(flake.text(), given);
    let _ = (
        flake.inputs(),
        flake.modules(),
        flake.nixpkgs_from(),
        flake.argument("system"),
    );
    let name: InputName = "fuzzed".parse().expect("a name");
    let other: InputName = "renamed".parse().expect("a name");
    let attr: AttrPath = "nixosModules.default".parse().expect("an attribute path");
    let known = |f: &Flake| {
        f.inputs()
            .iter()
            .any(|(n, _)| n == "fuzzed" || n == "renamed")
    };
    if known(&flake) {
        return;
    }
    if let Ok(added) = flake.add_input(&name, "git+https://example.org/a") {
        assert!(
            Flake::parse(added.text()).is_ok(),
            "an input makes a flake that does not parse"
        );
        assert!(known(&added));
        if let Ok(moved) = added.rename_input(&name, &other) {
            assert!(moved.inputs().iter().any(|(n, _)| n == "renamed"));
        }
        if let Ok(set) = added.set_input(&name, "path:/b") {
            assert!(
                set.inputs()
                    .iter()
                    .any(|(n, u)| n == "fuzzed" && u.as_deref() == Some("path:/b"))
            );
        }
        if let Ok(module) = added.add_module(&name, &attr) {
            assert!(
                Flake::parse(module.text()).is_ok(),
                "a module makes a flake that does not parse"
            );
            let _ = module
                .remove_module(&name, Some(&attr))
                .map(|f| f.remove_input(&name));
        }
        if let Ok(removed) = added.remove_input(&name) {
            assert!(!known(&removed));
        }
    }
    let _ = flake.set_nixpkgs(Some(&name));
}

/// Lock files of other people's flakes.
pub fn flake_lock(data: &[u8]) {
    let Ok(given) = std::str::from_utf8(data) else {
        return;
    };
    let _ = (
        lock::labels(given),
        lock::revision(given, "a"),
        lock::has_input(given, &["a", "b"]),
    );
    let _ = lock::renamed(given, "a", "b");
    for remote in updates::remotes(given) {
        let _ = updates::newest(&remote, given);
    }
}

/// What Nix writes while it builds, other programs' lines among it.
pub fn nix_log(data: &[u8]) {
    let given = String::from_utf8_lossy(data);
    let mut parser = log::Parser::new();
    for line in given.lines() {
        parser.line(line, &Silent);
    }
    let _ = (parser.errors(), parser.failed_build());
}

/// What Nix writes when an evaluation fails.
pub fn nix_trace(data: &[u8]) {
    let given = String::from_utf8_lossy(data);
    let _ = (
        trace::shorten(&given, &[]),
        trace::is_network(&given),
        refusal::read(&given),
    );
    let plain = trace::strip_escapes(&given);
    assert!(!plain.contains('\u{1b}'), "an escape is left");
    let shown = text::printable(&given);
    assert!(
        shown
            .chars()
            .all(|c| c == '\n' || c == '\t' || !c.is_control()),
        "a control character is left"
    );
}

/// The manifest of a machine and what comes with an export.
pub fn manifest(data: &[u8]) {
    let Ok(given) = std::str::from_utf8(data) else {
        return;
    };
    let _ = document::parse_json::<Manifest>(file(), given, &[]);
    let _ = Export::parse(file(), given);
    if let Ok(needs) = serde_json::from_str::<Needs>(given) {
        let _ = serde_json::to_string(&needs).expect("needs are JSON");
    }
}

/// The files that people edit.
pub fn host_toml(data: &[u8]) {
    let Ok(given) = std::str::from_utf8(data) else {
        return;
    };
    let _ = Settings::parse(file(), given);
    if let Ok(host) = Host::parse(file(), given) {
        assert!(
            Host::parse(file(), &host.render()).is_ok(),
            "what was written is not read"
        );
    }
    if let Ok(mut edit) = HostEdit::new(file(), given) {
        edit.granted(&["a".into()]);
        edit.mount(Path::new("/there"), None);
        let _ = edit.text();
    }
}

/// What a machine's agent sends, or who poses as it; cut into pieces at will.
pub fn agent_protocol(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else {
        return;
    };
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = Decoder::new(1 << 20);
        let mut frames = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(e) => return (frames, Some(e.to_string())),
                }
            }
        }
        (frames, None)
    };
    let whole = read(&mut std::iter::once(data));
    let pieces = read(&mut data.chunks(usize::from(*cut).max(1)));
    assert_eq!(whole, pieces, "how bytes arrive makes a difference");
    for frame in &whole.0 {
        let _ = (frame.json::<Hello>("hello"), frame.json::<Exec>("exec"));
        let mut again = Vec::new();
        protocol::put(&mut again, frame.kind, &frame.payload);
        if frame.kind != FrameType::Part {
            assert_eq!(
                read(&mut std::iter::once(&again[..])).0,
                std::slice::from_ref(frame)
            );
        }
        let _ = protocol::Credit::parse(&frame.payload);
    }
    if let Ok(delivery) = Delivery::parse(data) {
        let mut again = Vec::new();
        delivery.encode(&mut |piece| again.extend_from_slice(piece));
        assert_eq!(again, data);
    }
    let _ = codchi_secrets::Bundle::decode(data);
}

/// Indexes of packages, and what stands in their fields.
pub fn packages(data: &[u8]) {
    let mut all = Packages::default();
    if all.read(Cursor::new(data), Archive::Main).is_err() {
        return;
    }
    let mut versions: Vec<&str> = Vec::new();
    for id in all.ids() {
        for clause in all.depends(id).chain(depends::split(all.provides(id))) {
            let _ = depends::alternatives(clause);
        }
        // The path is put together again from what was kept of it.
        let file = all.file(id);
        assert!(
            !file.starts_with('/') && file.split('/').all(|part| !matches!(part, "" | "." | ".."))
        );
        assert_eq!(all.find(all.name(id)), Some(id));
        versions.push(all.version(id));
    }
    for pair in versions.windows(2) {
        assert_eq!(
            version::compare(pair[0], pair[1]),
            version::compare(pair[1], pair[0]).reverse()
        );
    }
}

/// Release files, signed or not.
pub fn release(data: &[u8]) {
    let Ok(given) = std::str::from_utf8(data) else {
        return;
    };
    let _ = Release::parse(given, Archive::Main, "bookworm", "amd64");
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    if let Ok(keys) = Keyring::read(data) {
        let _ = keys.clear_text(data, now);
    }
    thread_local! {
        static DEBIAN: Option<Keyring> = Keyring::debian().ok();
    }
    DEBIAN.with(|keys| {
        if let Some(keys) = keys {
            let _ = keys.detached(data, data, now);
            assert!(
                keys.clear_text(data, now).is_err(),
                "a signature was forged"
            );
        }
    });
}

/// A package: nothing of it lands outside of its folder.
pub fn deb(data: &[u8]) {
    let outside = folder();
    let package = outside.path().join("p.deb");
    codchi_fs::write(&package, data).expect("written");
    let _ = unpack::control(&package);
    let _ = unpack::extract(
        &package,
        &outside.path().join("inside"),
        &unpack::Options::default(),
    );
    only(outside.path(), &["p.deb", "inside"]);
}

/// A tar that is imported: nothing of it lands outside of its folder.
pub fn tar(data: &[u8]) {
    let outside = folder();
    let inside = outside.path().join("inside");
    codchi_fs::create_dir_all(&inside).expect("a folder");
    let Ok(mut input) = codchi_files::decompress(Cursor::new(data)) else {
        return;
    };
    let mut left = 64_u32;
    let wish = Wish {
        pick: &|path| Pick::As(path.to_vec()),
        faithful: data.len().is_multiple_of(2),
        most: Most::ALL,
    };
    // A tar of holes may name a size that no disk has; what ends here is the patience, not the work.
    let _ = codchi_files::unpack(&mut input, &inside, &wish, &mut |_| {
        left = left.saturating_sub(1);
        left > 0
    });
    only(outside.path(), &["inside"]);
}

fn only(folder: &Path, expected: &[&str]) {
    let found: BTreeSet<String> = codchi_fs::read_dir(folder)
        .expect("read")
        .iter()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        found.iter().all(|f| expected.contains(&f.as_str())),
        "outside: {found:?}"
    );
}

struct Anything;

impl Look for Anything {
    fn folder(&self, path: &Path) -> Option<PathBuf> {
        path.is_absolute().then(|| path.to_owned())
    }
    fn git_root(&self, folder: &Path) -> Option<PathBuf> {
        folder.parent().map(Path::to_owned)
    }
}

/// What people type and paste: sources, names, attribute paths, answers of credential helpers.
pub fn source(data: &[u8]) {
    let Ok(given) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(source) = Source::parse(given, Path::new("/cwd"), Path::new("/home"), &Anything) {
        assert!(
            !source.url.chars().any(char::is_control),
            "a control character in a reference"
        );
        let _ = (
            source.input_name(),
            Source::unpinned(&source.url),
            Source::is_local(&source.url),
        );
    }
    // Nix has no way to write some control characters, and sources with any are refused.
    if !given.chars().any(char::is_control)
        && let Ok(attr) = given.parse::<AttrPath>()
    {
        assert_eq!(
            attr.to_string().parse::<AttrPath>().ok(),
            Some(attr),
            "a path is not read as written"
        );
    }
    if let Ok(name) = given.parse::<MachineName>() {
        assert_eq!(name.as_str(), given);
    }
    let _ = (
        server(given),
        Credentials::of_git(given),
        Credentials::of_netrc(given, "example.org"),
    );
}

/// Derivations, as an evaluation leaves them in the store.
pub fn derivation(data: &[u8]) {
    let _ = aterm::parse(data);
    if let Ok(given) = std::str::from_utf8(data)
        && let Some(hex) = drv::sha256_hex(given)
    {
        assert_eq!(hex.len(), 64);
    }
}
