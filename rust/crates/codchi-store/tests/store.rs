//! A store of Codchi's own, with the real Nix.

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
    c.env("NAME", &name).env("PLACE", home.store_dir()).env("SYSTEM", system());
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
