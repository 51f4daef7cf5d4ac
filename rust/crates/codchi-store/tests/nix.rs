//! What codchi-nix does, with the real Nix in a store of Codchi's own.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use codchi_core::progress::{Event, Progress, Silent};
use codchi_nix::generations::{Generations, RECORD_VERSION, Record};
use codchi_nix::lock::{LockRequest, Update};
use codchi_nix::sources::FixedFile;
use codchi_nix::trace::Label;
use codchi_nix::{Launch, Nix, NixError, Options, Role, StorePath, drv, flake};
use codchi_store::Store;
use common::{Home, Who, is_root, system};

struct Bench {
    _home: Home,
    store: Store,
    nix: Nix,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let home = Home::with_store(if is_root() { Who::Root } else { Who::User }).unwrap();
        let store = home.store();
        let options = Options {
            extra: vec!["--option".into(), "substitute".into(), "false".into()],
            ..Options::default()
        };
        let nix = Nix::new(Arc::new(store.clone()), options).unwrap();
        let dir = tempfile::Builder::new().prefix("bench").tempdir_in(&home.path).unwrap();
        Bench { _home: home, store, nix, dir }
    }

    fn path(&self, p: &str) -> PathBuf {
        self.dir.path().join(p)
    }

    fn put(&self, p: &str, text: &str) -> PathBuf {
        let path = self.path(p);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(
            &path,
            text.replace("SYSTEM", &system()).replace("DIR", self.dir.path().to_str().unwrap()),
        )
        .unwrap();
        path
    }

    fn git(&self, at: &str, args: &[&str]) {
        let mut c = Command::new("git");
        c.arg("-C").arg(self.path(at)).args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(args);
        let out = c.output().unwrap();
        assert!(out.status.success(), "{}", common::text(&out));
    }

    fn offline(&self) -> Nix {
        self.nix.with_options(Options { offline: true, ..self.nix.options().clone() })
    }

    /// A path that is different in each run, so that it has to be built.
    fn drv(&self, name: &str, script: &str) -> StorePath {
        let salt = self.dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let nix = format!(
            r#"(derivation {{ name = "{name}"; system = "{}"; builder = "/bin/sh"; salt = "{salt}"; args = [ "-c" ''{script}'' ]; }}).drvPath"#,
            system()
        );
        let v = self.nix.eval_expr(&nix).unwrap();
        v.as_str().unwrap().parse().unwrap()
    }
}

#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Progress for Seen {
    fn report(&self, event: Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

fn read(store: &Store, path: &StorePath) -> String {
    std::fs::read_to_string(store.host_path(path)).unwrap()
}

/// A base and a machine flake with one module, whose flake wants a nixpkgs that cannot be had.
fn machine(b: &Bench, url: &str) -> StorePath {
    b.put("base/flake.nix", r#"{ outputs = { self }: { lib.name = "base"; nixosModules.base = { }; }; }"#);
    b.put(
        "mod/flake.nix",
        r#"{
          inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-24.05";
          inputs.other.url = "github:someone/other";
          outputs = { self, nixpkgs, other }: { nixosModules.default = { }; names = [ nixpkgs.lib.name other.name ]; text = builtins.readFile ./text; };
        }"#,
    );
    b.put("mod/text", "one");
    b.put("other/flake.nix", r#"{ outputs = { self, nixpkgs }: { name = nixpkgs.lib.name; }; }"#);
    b.put(
        "machine/flake.nix",
        &format!(
            r#"{{
          inputs.mod.url = "{url}";
          inputs.mod.inputs.other.url = "path:DIR/other";
          inputs.nixpkgs.follows = "mod/nixpkgs";
          outputs = {{ mod, nixpkgs, ... }}: {{ all = mod.names ++ [ nixpkgs.lib.name mod.text ]; }};
        }}"#
        ),
    );
    b.nix.add_path("codchi-base", &b.path("base")).unwrap()
}

fn lock_stands_by_itself(b: &Bench, url: &str) {
    let base = machine(b, url);
    let dir = b.path("machine");
    let request = LockRequest { base: Some(base.clone()), ..LockRequest::default() };
    // Only the module's own inputs that are no nixpkgs may be fetched: here, a folder.
    let locked = b.offline().lock(&dir, &request, &Silent).unwrap();
    assert!(locked.changed && locked.roots.contains(&base));
    let all = b.offline().eval_json(&format!("path:{}#all", dir.display()), None, &Silent).unwrap();
    assert_eq!(all, serde_json::json!(["base", "base", "base", "one"]));
    let v: serde_json::Value = serde_json::from_str(&locked.text).unwrap();
    let original = &v["nodes"][v["nodes"]["mod"]["inputs"]["nixpkgs"].as_str().unwrap()]["original"];
    assert_eq!(original["repo"], "nixpkgs", "{}", locked.text);
    // The lock is final: locking again, or any other Nix that reads it, changes nothing.
    let again = b.offline().lock(&dir, &request, &Silent).unwrap();
    assert!(!again.changed, "{}\n{}", locked.text, again.text);
    let mut c = b.store.command("nix", Role::Caller);
    c.args([
        "flake",
        "lock",
        "--offline",
        "--no-update-lock-file",
        "--extra-experimental-features",
        "nix-command flakes",
    ]);
    let out = c.arg(format!("path:{}", dir.display())).output().unwrap();
    assert!(out.status.success(), "{}", common::text(&out));
    assert_eq!(std::fs::read_to_string(dir.join("flake.lock")).unwrap(), locked.text);
    // An edit is seen when it is asked for.
    b.put("mod/text", "two");
    let same = b.offline().lock(&dir, &request, &Silent).unwrap();
    assert!(!same.changed);
    let refreshed =
        b.offline().lock(&dir, &LockRequest { refresh_local: true, ..request.clone() }, &Silent).unwrap();
    assert!(refreshed.changed);
    let all = b.offline().eval_json(&format!("path:{}#all", dir.display()), None, &Silent).unwrap();
    assert_eq!(all[3], "two");
    // Another address is another source, whatever the lock says.
    std::fs::rename(b.path("mod"), b.path("moved")).unwrap();
    b.put("moved/text", "three");
    let flake = std::fs::read_to_string(dir.join("flake.nix")).unwrap();
    b.put("machine/flake.nix", &flake.replace("/mod\"", "/moved\""));
    assert!(b.offline().lock(&dir, &request, &Silent).unwrap().changed);
    let all = b.offline().eval_json(&format!("path:{}#all", dir.display()), None, &Silent).unwrap();
    assert_eq!(all, serde_json::json!(["base", "base", "base", "three"]));
    let updated = LockRequest { update: Update::Inputs(vec!["mod".into()]), ..request };
    b.offline().lock(&dir, &updated, &Silent).unwrap();
}

#[test]
fn a_lock_on_the_base_needs_neither_flags_nor_network() {
    let b = Bench::new();
    let url = format!("path:{}", b.path("mod").display());
    lock_stands_by_itself(&b, &url);
}

#[test]
fn a_source_takes_nothing_of_this_computer() {
    let b = Bench::new();
    let base = machine(&b, &format!("path:{}", b.path("mod").display()));
    let request = LockRequest { base: Some(base), ..LockRequest::default() };
    b.put("other/key", "unshared");
    let lock = || b.offline().lock(&b.path("machine"), &request, &Silent);
    let refused = || matches!(lock(), Err(NixError::HostPath { input, .. }) if input == "s");
    let modules = r#"outputs = inputs: { nixosModules.default = { }; names = [ ]; text = ""; };"#;
    b.put(
        "mod/flake.nix",
        &format!(r#"{{ inputs.s = {{ url = "path:DIR/other"; flake = false; }}; {modules} }}"#),
    );
    assert!(refused());
    // Nor by what it says of an input of an input, nor by a lock that it comes with.
    b.put("mod/flake.nix", &format!(r#"{{ inputs.a.inputs.s.url = "git+file://DIR/other"; {modules} }}"#));
    assert!(refused());
    b.put("mod/flake.nix", &format!(r#"{{ inputs.s.url = "github:o/r"; {modules} }}"#));
    b.put(
        "mod/flake.lock",
        r#"{ "nodes": { "root": { "inputs": { "s": "s" } }, "s": { "flake": false,
             "original": { "type": "github", "owner": "o", "repo": "r" },
             "locked": { "type": "path", "path": "DIR/other" } } }, "root": "root", "version": 7 }"#,
    );
    assert!(refused());
    let got = b.nix.prefetch(&format!("path:{}", b.path("mod").display()), &Silent).unwrap();
    assert!(b.nix.examine(&got.path, got.dir(), &[], &Silent).is_err());
}

#[test]
fn a_work_tree_with_changes_is_locked_as_it_is() {
    let b = Bench::new();
    std::fs::create_dir_all(b.path("mod")).unwrap();
    let url = format!("git+file://{}", b.path("mod").display());
    machine(&b, &url);
    b.git("mod", &["init", "-q"]);
    b.git("mod", &["add", "."]);
    b.git("mod", &["commit", "-qm", "x"]);
    b.put("mod/secret.env", "not tracked");
    lock_stands_by_itself(&b, &url);
    let text = std::fs::read_to_string(b.path("machine/flake.lock")).unwrap();
    let v: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(v["nodes"]["mod"]["original"]["type"], "git", "{text}");
    let copy: StorePath = v["nodes"]["mod"]["locked"]["path"].as_str().unwrap().parse().unwrap();
    let copy = b.store.host_path(&copy);
    assert!(copy.join("text").exists() && !copy.join("secret.env").exists() && !copy.join(".git").exists());
}

#[test]
fn a_source_is_fetched_and_its_modules_are_listed() {
    let b = Bench::new();
    machine(&b, "path:DIR/mod");
    let got = b.nix.prefetch(&format!("path:{}", b.path("mod").display()), &Silent).unwrap();
    assert!(got.nar_hash.starts_with("sha256-") && got.locked["narHash"] == got.nar_hash.as_str());
    let names = b.nix.module_names(&got.path, got.dir(), &[], &Silent).unwrap();
    assert_eq!(names, [flake::Module { set: "nixosModules".into(), name: "default".into() }]);
    // What cannot be read off the text is evaluated.
    b.put("computed/flake.nix", r#"{ outputs = { self }: builtins.listToAttrs [ { name = "nixosModules"; value = { b = 1; a = 2; }; } ]; }"#);
    let got = b.nix.prefetch(&format!("path:{}", b.path("computed").display()), &Silent).unwrap();
    let names = b.nix.module_names(&got.path, "", &[], &Silent).unwrap();
    assert_eq!(names.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let gone = b.nix.prefetch("path:/nowhere/at/all", &Silent).unwrap_err();
    assert!(gone.to_string().contains("/nowhere/at/all"), "{gone}");
}

#[test]
fn an_error_begins_with_the_persons_own_file_and_line() {
    let b = Bench::new();
    b.put("bad/flake.nix", r#"{ outputs = { self }: { x = import ./m.nix { f = v: v; }; }; }"#);
    b.put("bad/m.nix", "{ f }:\n{\n  a = f (f undefined-thing);\n}\n");
    let e = b.nix.eval_json(&format!("path:{}#x.a", b.path("bad").display()), None, &Silent).unwrap_err();
    let text = e.to_string();
    assert!(text.contains("m.nix:3:") && text.contains("undefined variable 'undefined-thing'"), "{text}");
    assert!(text.lines().count() <= 10, "{text}");
    let got = b.nix.prefetch(&format!("path:{}", b.path("bad").display()), &Silent).unwrap();
    let labels = vec![Label { prefix: got.path.to_string(), shown: Some("~/bad".into()) }];
    let nix = b.nix.with_options(Options { labels, ..b.nix.options().clone() });
    let e = nix.eval_json(&format!("path:{}#x.a", b.path("bad").display()), None, &Silent).unwrap_err();
    let NixError::Command { message, .. } = &e else { panic!("{e:?}") };
    assert!(message.starts_with("~/bad/m.nix:3:"), "{message}");
}

#[test]
fn a_build_tells_what_it_does_and_how_it_failed() {
    let b = Bench::new();
    let good = b.drv("good", "echo a line; echo content > $out");
    let seen = Seen::default();
    let out = b.nix.build(&good, &seen).unwrap();
    assert_eq!(read(&b.store, &out["out"]), "content\n");
    let seen = seen.0.into_inner().unwrap();
    assert!(
        seen.contains(&"Started(\"good\")".into()) && seen.contains(&"Log(\"a line\")".into()),
        "{seen:?}"
    );
    assert!(seen.iter().any(|e| e.starts_with("Items { what: \"builds\", done: 1")), "{seen:?}");
    let bad = b.drv("bad", "echo the reason; exit 3");
    let Err(NixError::Build { message, drv, log }) = b.nix.build(&bad, &Silent) else {
        panic!("it was built")
    };
    assert_eq!((message.as_str(), drv.as_deref()), ("the build of `bad` failed", Some(bad.as_str())));
    assert_eq!(log, ["the reason"]);
}

#[test]
fn files_added_by_hash_are_what_derivations_want() {
    let b = Bench::new();
    let content = format!("content of {}", b.dir.path().display());
    let file = b.put("some file", &content);
    let hash = codchi_debian_hash(content.as_bytes());
    let expr = format!(
        r#"let fetch = name: derivation {{ inherit name; system = "builtin"; builder = "builtin:fetchurl"; mirror = "mirror://debian/pool/x.deb"; url = "http://127.0.0.1:9/x.deb"; outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = "{hash}"; preferLocalBuild = true; unpack = false; executable = false; }};
        in (derivation {{ name = "top"; system = "{}"; builder = "/bin/sh"; args = [ "-c" "read a < ${{fetch "x_1.deb"}}; echo $a > $out" ]; }}).drvPath"#,
        system()
    );
    let top: StorePath = b.nix.eval_expr(&expr).unwrap().as_str().unwrap().parse().unwrap();
    let missing = drv::missing_sources(&b.store.root_dir(), &top, &mut |p| b.nix.invalid(p)).unwrap();
    assert_eq!(missing.len(), 1);
    assert_eq!(
        (missing[0].url.as_str(), missing[0].sha256.as_str()),
        ("mirror://debian/pool/x.deb", hash.as_str())
    );
    let files = vec![FixedFile { file, name: missing[0].name.clone() }];
    let added = b.nix.add_fixed(&files, &Silent).unwrap();
    assert_eq!(added, [missing[0].out.clone()]);
    assert!(drv::missing_sources(&b.store.root_dir(), &top, &mut |p| b.nix.invalid(p)).unwrap().is_empty());
    let out = b.nix.build(&top, &Silent).unwrap();
    assert_eq!(read(&b.store, &out["out"]).trim(), content);
}

fn codchi_debian_hash(data: &[u8]) -> String {
    codchi_debian::hash::to_hex(&codchi_debian::hash::sha256(data))
}

#[test]
fn generations_hold_what_they_are_made_of() {
    let b = Bench::new();
    let one = b.nix.build(&b.drv("top-1", "echo 1 > $out"), &Silent).unwrap()["out"].clone();
    let two =
        b.nix.build(&b.drv("top-2", &format!("echo 22222 {one} > $out")), &Silent).unwrap()["out"].clone();
    let g = Generations::at(b.path("generations"));
    let record = |toplevel: &StorePath| Record {
        version: RECORD_VERSION,
        toplevel: toplevel.clone(),
        drv: None,
        driver: "native".into(),
        base: "debian".into(),
        base_label: "Debian".into(),
        codchi: "0".into(),
        nix: b.nix.version().to_string(),
        created: 1,
        flake_nix: String::new(),
        flake_lock: String::new(),
    };
    let input = b.nix.add_path("input", &std::fs::canonicalize("Cargo.toml").unwrap()).unwrap();
    assert_eq!(g.add(&b.nix, &record(&one), &[]).unwrap(), 1);
    assert_eq!(g.add(&b.nix, &record(&two), std::slice::from_ref(&input)).unwrap(), 2);
    let gone: StorePath = format!("/nix/store/{}-gone", "0".repeat(32)).parse().unwrap();
    let refused = b.nix.add_roots(&[(b.path("here"), one.clone()), (b.path("gone"), gone.clone())]);
    let said = refused.unwrap_err().to_string();
    assert!(said.contains(&format!("`{gone}` is not in the store")), "{said}");
    assert!(b.path("here").is_symlink() && !b.path("gone").is_symlink());
    std::fs::remove_file(b.path("here")).unwrap();
    g.set_current(2).unwrap();
    let gc = |more: &[&str]| {
        let out = b.store.collector().args(more).output().unwrap();
        assert!(out.status.success(), "{}", common::text(&out));
    };
    gc(&["--print-dead"]);
    gc(&[]);
    assert!(b.nix.is_valid(&one) && b.nix.is_valid(&two) && b.nix.is_valid(&input));
    assert_eq!(std::fs::read_link(g.link(2)).unwrap(), two.as_path());
    let d = b.nix.diff(Some(&one), &two).unwrap();
    assert!(d.after > d.before && d.before > 0);
    g.remove_all().unwrap();
    gc(&[]);
    assert!(!b.nix.is_valid(&one) && !b.store.host_path(&two).exists() && !b.nix.is_valid(&input));
}

#[test]
fn a_collection_sees_no_process_and_keeps_what_they_use() {
    let b = Bench::new();
    // One whose folder is deeper than a path may be long would end it.
    let collector = b.store.collector();
    let mut list = Command::new(collector.get_program());
    list.args(collector.get_args().take_while(|word| *word != "--")).args(["--", "ls", "-A", "/proc"]);
    list.envs(collector.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let out = list.output().unwrap();
    let seen = String::from_utf8_lossy(&out.stdout).into_owned();
    let is_process = |name: &str| name.starts_with(|c: char| c.is_ascii_digit());
    assert!(seen.contains("self") && !seen.lines().any(is_process), "{}", common::text(&out));

    let build = |name: &str| b.nix.build(&b.drv(name, "echo x > $out"), &Silent).unwrap()["out"].clone();
    let (used, unused) = (build("used"), build("unused"));
    let mut process = Command::new("sleep").arg("1000").env("USED", used.as_path()).spawn().unwrap();
    let collect = || {
        let out = b.store.collector().output().unwrap();
        assert!(out.status.success(), "{}", common::text(&out));
    };
    collect();
    assert!(!b.store.host_path(&unused).exists());
    // Without the host's root a process of another namespace is not to be read, by Nix neither.
    assert_eq!(b.store.host_path(&used).exists(), is_root());
    process.kill().unwrap();
    process.wait().unwrap();
    collect();
    assert!(!b.store.host_path(&used).exists());
}

#[test]
fn an_unflagged_evaluation_of_the_other_nix_takes_the_lock() {
    // A second Nix, of another version, over the same folders: named by a variable, since it takes another download.
    let Some(other) = std::env::var_os("CODCHI_TEST_OTHER_NIX") else { return };
    let b = Bench::new();
    let base = machine(&b, &format!("path:{}", b.path("mod").display()));
    let dir = b.path("machine");
    let request = LockRequest { base: Some(base), ..LockRequest::default() };
    let locked = b.offline().lock(&dir, &request, &Silent).unwrap();
    let mut c = b.store.shell(Path::new(&other), Role::Maintainer);
    c.args(["eval", "--json", "--offline", "--extra-experimental-features", "nix-command flakes"]);
    let out = c.arg(format!("path:{}#all", dir.display())).output().unwrap();
    assert!(out.status.success(), "{}", common::text(&out));
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), r#"["base","base","base","one"]"#);
    assert_eq!(std::fs::read_to_string(dir.join("flake.lock")).unwrap(), locked.text);
}
