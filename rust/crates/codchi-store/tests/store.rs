//! A store of Codchi's own, with the real Nix.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

mod common;

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
    assert_eq!(said, "uid 1000 of 30001, hostname no, network no\n");
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
