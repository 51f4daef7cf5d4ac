//! A store of Codchi's own, with the real Nix.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use common::{Home, Who, feed, system, text};

const SANDBOX: &str = r#"derivation {
  name = "sandbox"; builder = "/bin/sh"; salt = "SALT"; system = "SYSTEM";
  args = [ "-c" ''
    host=no; if (: < /etc/hostname) 2> /dev/null; then host=yes; fi
    net=no; if (: < /dev/tcp/127.0.0.1/PORT) 2> /dev/null; then net=yes; fi
    while read inside outside count; do map="$outside"; done < /proc/self/uid_map
    echo "uid $UID of $map, hostname $host, network $net" > $out
  '' ];
}"#;

fn builds_are_sandboxed(who: Who) {
    let Some(home) = Home::with_store(who) else { return };
    // Something that does answer, so that "no" means that it could not be reached.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let salt = format!("{}-{port}", std::process::id());
    let nix = SANDBOX.replace("SALT", &salt).replace("PORT", &port).replace("SYSTEM", &system());
    let file = home.path.join("sandbox.nix");
    std::fs::write(&file, nix).unwrap();
    let out = home.nix(&["nix", "build", "--no-link", "--print-out-paths", "-f", file.to_str().unwrap()]);
    let host = home.store_dir().join(out.strip_prefix("/").unwrap());
    let said = std::fs::read_to_string(host).unwrap();
    let (user, rest) = said.strip_prefix("uid 1000 of ").unwrap().split_once(", ").unwrap();
    let first = if matches!(who, Who::Root) { 0x7000_0000 } else { 30_000 };
    assert!(user.parse::<u32>().unwrap() > first, "not a build user: {said}");
    assert_eq!(rest, "hostname no, network no\n");
    assert!(std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok());
}

#[test]
fn builds_are_sandboxed_under_a_build_user_as_root() {
    builds_are_sandboxed(Who::Root);
}

#[test]
fn builds_are_sandboxed_under_a_build_user_rootless() {
    builds_are_sandboxed(Who::User);
}

fn machines_and_host_keep_each_others_roots(who: Who) {
    let Some(home) = Home::with_store(who) else { return };
    let name = format!("m{}", std::process::id());
    let mut c = home.plumbing(&["machine", &name]);
    let dist = home.store_dir().join("current").canonicalize().unwrap();
    c.env("NAME", &name).env("SYSTEM", system()).env("DIST", dist).env("CONF", home.store_dir().join("etc"));
    c.env("ROOTS", format!("/nix/var/nix/gcroots/codchi/machines/{name}")).env("REMOTE", "");
    c.env("INBOX", format!("/nix/var/nix/codchi/endpoints/{name}/auto"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    c.env("SECRET", "a token").env("PORT", listener.local_addr().unwrap().port().to_string());
    let out = feed(c, include_str!("scripts/machine.sh"));
    assert!(out.status.success() && out.stdout.ends_with(b"passed\n"), "{}", text(&out));
    let roots = home.store_dir().join("nix/var/nix/gcroots/codchi/machines").join(&name);
    assert!(roots.is_dir());
    let out = home.plumbing(&["forget", &name]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert!(!roots.exists());
}

#[test]
fn machines_and_host_keep_each_others_roots_as_root() {
    machines_and_host_keep_each_others_roots(Who::Root);
}

#[test]
fn machines_and_host_keep_each_others_roots_rootless() {
    machines_and_host_keep_each_others_roots(Who::User);
}

/// A host that has Nix: a folder at /nix in a namespace of its own, with a daemon that is running.
fn on_a_host_with_nix(who: Who) {
    let (Some(nix), Some(home)) = (Home::with_store(Who::Root), Home::new(who, "host")) else { return };
    home.settings("");
    // This host's Nix is the one of root's own store, which others must be able to run.
    for dir in [".local", ".local/share", ".local/share/codchi"] {
        codchi_fs::set_mode(nix.path.join(dir), 0o711).unwrap();
    }
    let folder = tempfile::Builder::new().prefix("host-nix").tempdir_in(&nix.path).unwrap();
    let mut c = nix.plumbing(&[
        "shell",
        "--as-root",
        "--init",
        "--nix",
        folder.path().to_str().unwrap(),
        "--",
        "bash",
    ]);
    let dist = nix.store_dir().join("current").canonicalize().unwrap();
    // As the person would say it, with the environment that `Home` gives.
    let person = home.plumbing(&[]);
    let words: Vec<_> = std::iter::once(person.get_program()).chain(person.get_args()).collect();
    let words: Vec<_> = words.iter().map(|w| w.to_str().unwrap()).collect();
    c.env("PERSON", words.join(" ")).env("PERSON_HOME", &home.path).env("DIST", dist).env("SYSTEM", system());
    c.env("SCRIPT", std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/machine.sh"));
    c.env("WHO", format!("{who:?}").to_lowercase());
    let out = feed(c, include_str!("scripts/host.sh"));
    assert!(out.status.success() && out.stdout.ends_with(b"passed\npassed\n"), "{}", text(&out));
}

#[test]
fn the_hosts_store_is_used_and_kept_as_root() {
    on_a_host_with_nix(Who::Root);
}

#[test]
fn the_hosts_store_is_used_and_kept_rootless() {
    on_a_host_with_nix(Who::User);
}

/// A tarball shaped like the official one, of the Nix in root's own store: a store path that holds the program, its
/// libraries and loader, and a script for each name.
fn make_tarball(nix: &Home, dir: &std::path::Path) -> std::path::PathBuf {
    let dist = nix.store_dir().join("current").canonicalize().unwrap();
    let version = dist.file_name().unwrap().to_str().unwrap().strip_prefix("nix-").unwrap().to_owned();
    let mut c = Command::new("bash");
    c.env("DIST", &dist)
        .env("VERSION", &version)
        .env("SYSTEM", system())
        .current_dir(dir)
        .env("STORE", nix.store_dir());
    let out = feed(c, include_str!("scripts/tarball.sh"));
    assert!(out.status.success(), "{}", text(&out));
    dir.join(format!("nix-{version}-{}.tar.xz", system()))
}

/// Serves the files of a folder, and what is not there is 404.
fn serve(dir: std::path::PathBuf) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let name = head.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
            let answer = match std::fs::read(dir.join(name)) {
                Ok(data) => [
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", data.len())
                        .into_bytes(),
                    data,
                ]
                .concat(),
                Err(_) => {
                    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
                }
            };
            let _ = stream.write_all(&answer);
        }
    });
    address
}

fn a_tarball_becomes_a_store(who: Who) {
    let (Some(nix), Some(home)) = (Home::with_store(Who::Root), Home::new(who, "tarball")) else { return };
    remove_store(&home);
    let dir = tempfile::tempdir().unwrap();
    let tarball = make_tarball(&nix, dir.path());
    let name = tarball.file_name().unwrap().to_str().unwrap().to_owned();
    let sum = codchi_debian::hash::to_hex(&codchi_debian::hash::sha256(&std::fs::read(&tarball).unwrap()));
    let sum_file = dir.path().join(format!("{name}.sha256"));
    let url = format!("{}/{name}", serve(dir.path().into()));
    let own = |url: &str| {
        home.settings(&format!("kind = \"own\"\nnix-conf = \"substituters =\"\nnix-tarball = \"{url}\"\n"))
    };

    // What is not what was published is not used, and nothing is made.
    own(&url);
    std::fs::write(&sum_file, format!("{}  {name}\n", "0".repeat(64))).unwrap();
    let out = home.plumbing(&["bootstrap"]).output().unwrap();
    assert!(!out.status.success() && !home.store_dir().join("current").exists(), "{}", text(&out));
    // Nor is what cannot be had.
    own(&format!("{url}.not-there"));
    let out = home.plumbing(&["bootstrap"]).output().unwrap();
    assert!(!out.status.success() && !home.store_dir().join("current").exists(), "{}", text(&out));

    own(&url);
    std::fs::write(&sum_file, format!("{sum}  {name}\n")).unwrap();
    let out = home.plumbing(&["bootstrap"]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let nix = home.nix(&["nix", "store", "info", "--json"]);
    assert!(nix.contains("\"version\":\"2."), "{nix}");
    // Its paths are registered and held.
    home.nix(&["--as-root", "nix-store", "--gc"]);
    home.nix(&["--as-root", "nix-store", "--verify", "--check-contents"]);
    let path = std::fs::read_link(home.store_dir().join("nix/var/nix/gcroots/codchi/nix")).unwrap();
    home.nix(&["nix-store", "--check-validity", path.to_str().unwrap()]);
    assert!(!home.store_dir().join("nix/store/.unpack").exists());
    remove_store(&home);
}

#[test]
fn the_binary_tarball_becomes_a_store_as_root() {
    a_tarball_becomes_a_store(Who::Root);
}

#[test]
fn the_binary_tarball_becomes_a_store_rootless() {
    a_tarball_becomes_a_store(Who::User);
}

fn remove_store(home: &Home) {
    let out = home.plumbing(&["remove"]).output().unwrap();
    assert!(out.status.success() && !home.store_dir().exists(), "{}", text(&out));
}

#[test]
fn a_bootstrap_that_is_killed_leaves_nothing_the_next_one_minds() {
    let (Some(_), Some(home)) = (Home::with_store(Who::Root), Home::new(Who::Root, "killed")) else { return };
    remove_store(&home);
    // The packages are at hand already, so that it is killed where it makes things.
    let cache = home.path.join(".cache/codchi");
    std::fs::create_dir_all(cache.parent().unwrap()).unwrap();
    let theirs = home.path.with_file_name("store-root").join(".cache/codchi");
    assert!(Command::new("cp").arg("-a").arg("-T").args([&theirs, &cache]).status().unwrap().success());
    let begun = std::time::Instant::now();
    assert!(home.plumbing(&["bootstrap"]).status().unwrap().success());
    let whole = begun.elapsed();
    for part in [1, 4, 6] {
        remove_store(&home);
        let mut child = home.plumbing(&["bootstrap"]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * part / 8);
        child.kill().unwrap();
        child.wait().unwrap();
        let out = home.plumbing(&["bootstrap"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        assert!(!home.store_dir().join("dist/staging").exists());
        assert!(home.nix(&["nix", "--version"]).starts_with("nix (Nix) 2."));
    }
    remove_store(&home);
}
