//! Errors of a machine that was built, by the files that tell so: a store without anything but what the system says of itself.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::common::{HOST, Home, PROGRAM, refused, refused_with};
use super::{all, home};

pub const SYSTEM: &str = "/nix/store/00000000000000000000000000000000-system";

fn secret(kind: &str, required: bool, check: Option<&str>) -> Value {
    json!({
        "description": format!("a secret of kind {kind}"), "kind": kind, "path": null, "owner": "root", "mode": "0400",
        "required": required, "default": null, "check": check, "services": [],
    })
}

/// What the system of the machine says of itself.
pub fn manifest() -> Value {
    json!({
        "version": 1, "codchi": "0.1.0", "driver": "native", "system": "x86_64-linux",
        "base": { "name": "debian", "label": "Debian" }, "stateVersion": "26.05",
        "user": { "name": "codchi", "uid": 1000, "home": "/home/codchi" },
        "needs": {
            "secrets": {
                "TOKEN": secret("env", true, Some("[a-z]+")),
                "BAD": secret("env", false, Some("[")),
                "PLAIN": secret("file", false, None),
            },
            "requiredCapabilities": [], "optionalCapabilities": [], "hostSecrets": {}, "mounts": {}, "ports": {},
            "driverSettings": {},
        },
        "isolation": { "store": "shared" }, "resources": {}, "initScript": null, "engine": {},
    })
}

/// What a generation says of itself.
pub fn record(toplevel: &str, driver: &str) -> String {
    json!({
        "version": 1, "toplevel": toplevel, "drv": null, "driver": driver, "base": "debian", "baseLabel": "Debian",
        "codchi": "0.1.0", "nix": "2.26.3", "created": 1, "flakeNix": "", "flakeLock": "",
    })
    .to_string()
}

/// Makes `hello` a machine with two generations, the first of them on another driver.
pub fn built() -> Home {
    let home = home();
    let data = ".local/share/codchi/store";
    say(&home, &manifest());
    home.write(&format!("{data}/dist/nix-2.26.3/bin/none"), "");
    symlink("dist/nix-2.26.3", home.path().join(data).join("current")).unwrap();
    let generations = ".local/state/codchi/generations/hello";
    for (number, driver) in [(1, "qemu"), (2, "native")] {
        home.write(&format!("{generations}/{number}.json"), record(SYSTEM, driver));
        symlink(SYSTEM, home.path().join(generations).join(number.to_string())).unwrap();
    }
    symlink("2", home.path().join(generations).join("current")).unwrap();
    secrets(&home, "place = \"file\"\nkey = \"file\"");
    // What the first command writes is there for those that follow.
    assert_eq!(home.run(&["secrets", "list", "hello"]).status, 0);
    home
}

/// Changes what the system says of itself.
pub fn say(home: &Home, manifest: &Value) {
    let name = SYSTEM.rsplit('/').next().unwrap();
    home.write(
        &format!(".local/share/codchi/store/nix/store/{name}/codchi/manifest.json"),
        manifest.to_string(),
    );
}

/// Puts a line of the shell in the place of each program of Nix.
pub fn say_as_nix(home: &Home, line: &str) {
    for program in ["nix", "nix-store", "nix-daemon"] {
        let file = home.write(
            &format!(".local/share/codchi/store/dist/nix-2.26.3/bin/{program}"),
            format!("#!/bin/sh\n{line}\n"),
        );
        codchi_fs::set_mode(file, 0o755).unwrap();
    }
}

/// Changes the settings.
pub fn secrets(home: &Home, lines: &str) {
    home.write(".config/codchi/config.toml", format!("version = 1\n[secrets]\n{lines}\n"));
}

#[track_caller]
fn set(home: &Home, secret: &str, file: &str) {
    let done = home.run(&["secrets", "set", "hello", secret, file]);
    assert_eq!(done.status, 0, "{}", done.err);
}

#[test]
fn errors_of_values_for_secrets() {
    let home = built();
    home.write("nul", "a\0b");
    home.write("word", "word");
    home.write("digits", "123");
    home.write("big", vec![b'a'; (1 << 20) + 1]);
    insta::assert_snapshot!(all(
        &home,
        &[
            (&["secrets", "set", "hello", "TOKEN", "--from-env", "NOPE"], 2),
            (&["secrets", "set", "hello", "TOKEN", "--from-command", "exit 3"], 1),
            (&["secrets", "set", "hello", "TOKEN", "@nul"], 1),
            (&["secrets", "set", "hello", "TOKEN", "@digits"], 1),
            (&["secrets", "set", "hello", "BAD", "@word"], 1),
            (&["secrets", "set", "hello", "PLAIN", "@big"], 1),
            (&["secrets", "set", "hello", "PLAIN", "big"], 2),
            (&["secrets", "set", "hello", "PLAN", "@word"], 5),
            (&["secrets", "get", "hello", "PLAIN"], 5),
            (&["secrets", "edit", "hello", "TOKEN"], 4),
            (&["start", "hello"], 4),
        ],
    ));
}

#[test]
fn an_error_of_secrets_that_are_too_large_together() {
    let home = built();
    let mut manifest = manifest();
    for n in 0..8 {
        manifest["needs"]["secrets"][format!("S{n}")] = secret("file", false, None);
    }
    say(&home, &manifest);
    home.write("big", vec![b'a'; 1 << 20]);
    (0..7).for_each(|n| set(&home, &format!("S{n}"), "@big"));
    let done = home.run(&["secrets", "set", "hello", "S7", "@big"]);
    assert_eq!((done.status, done.out.as_str()), (1, ""));
    insta::assert_snapshot!(done.err);
    let list = home.run(&["secrets", "list", "hello"]).out;
    for row in [["S6", "file", "set"], ["S7", "file", "unset"]] {
        assert!(list.lines().any(|l| l.split_whitespace().take(3).eq(row)), "{list}");
    }
}

#[test]
fn errors_of_keys_of_secrets() {
    let home = built();
    home.write("word", "word");
    set(&home, "TOKEN", "@word");
    let (key, other) = (".local/state/codchi/secrets-key.age", home.path().join("kept"));
    let get = ["secrets", "get", "hello", "TOKEN"];
    codchi_fs::rename(home.path().join(key), &other).unwrap();
    let mut said = vec![refused(&home, &get, 3)];
    home.write(key, "no key");
    said.push(refused(&home, &get, 1));
    codchi_fs::rename(&other, home.path().join(key)).unwrap();
    let kept = codchi_fs::read(home.path().join(".local/share/codchi/secrets/hello.age")).unwrap();
    home.write(".local/share/codchi/secrets/hello.age", "no secrets");
    said.push(refused(&home, &get, 1));
    let index = |place: &str| {
        home.write(
            ".local/share/codchi/secrets/hello.json",
            format!(r#"{{"version":1,{place},"names":["TOKEN"]}}"#),
        );
    };
    index(r#""place":"secret-service""#);
    said.push(refused(&home, &get, 3));
    index(r#""place":"file","key":"systemd-creds""#);
    home.write(".local/share/codchi/secrets/hello.age", kept);
    home.write(".local/state/codchi/secrets-key.sealed", "sealed elsewhere");
    let none = home.path().join("none").display().to_string();
    said.push(refused_with(&home, &get, &[("PATH", &none)], 1));
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn errors_of_passphrases() {
    let home = built();
    home.write("word", "word");
    secrets(&home, "place = \"file\"\nkey = \"passphrase\"\npassphrase-command = \"echo right\"");
    set(&home, "TOKEN", "@word");
    let get = ["secrets", "get", "hello", "TOKEN"];
    let mut said = Vec::new();
    for (command, status) in
        [("passphrase-command = \"echo wrong\"", 1), ("passphrase-command = \"exit 1\"", 4), ("", 4)]
    {
        secrets(&home, command);
        said.push(refused(&home, &get, status));
    }
    // What asks for it is killed by what should answer: the process that waits for both is told.
    secrets(&home, "passphrase-command = \"kill -9 $PPID\"");
    said.push(refused(&home, &["start", "hello"], 1));
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn errors_of_a_keyring_that_refuses() {
    let home = built();
    home.write("word", "word");
    secrets(&home, "place = \"secret-service\"");
    // The bus of a session on which nobody may keep anything.
    let bus = r#"<busconfig><type>session</type><listen>unix:tmpdir=/tmp</listen><policy context="default">
        <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
        <deny send_interface="org.freedesktop.Secret.Collection" send_member="CreateItem"/>
        </policy></busconfig>"#;
    let bus = format!("--config-file={}", home.write("bus.conf", bus).display());
    let script = "printf pw | gnome-keyring-daemon --unlock --components=secrets >keyring.log 2>&1 || exit 99
        gdbus wait --session --timeout 60 org.freedesktop.secrets
        exec \"$0\" secrets set hello PLAIN @word";
    let mut command = home.command("dbus-run-session");
    let done = home.done(command.args([&bus, "--", "sh", "-c", script, PROGRAM]));
    assert_eq!((done.status, done.out.as_str()), (1, ""), "{}", done.err);
    // The bus tells in the middle which processes these are.
    for told in [
        "error: the Secret Service cannot keep a secret: ",
        "AccessDenied",
        "\n  hint: `place = \"file\"` under `[secrets]` in config.toml keeps new ones in an encrypted file instead",
    ] {
        assert!(done.err.contains(told), "{}", done.err);
    }
}

#[test]
fn an_error_of_secrets_that_are_none() {
    use std::io::Write;
    let home = built();
    home.write("word", "word");
    set(&home, "TOKEN", "@word");
    let text = codchi_fs::read_to_string(home.path().join(".local/state/codchi/secrets-key.age")).unwrap();
    let key: age::x25519::Identity = text.trim().parse().unwrap();
    let to = key.to_public();
    let seal = age::Encryptor::with_recipients(std::iter::once(&to as &dyn age::Recipient)).unwrap();
    let mut sealed = Vec::new();
    let mut writer = seal.wrap_output(&mut sealed).unwrap();
    writer.write_all(b"another's").unwrap();
    writer.finish().unwrap();
    home.write(".local/share/codchi/secrets/hello.age", sealed);
    insta::assert_snapshot!(all(&home, &[(&["secrets", "get", "hello", "TOKEN"], 1)]));
}

#[test]
fn errors_of_generations() {
    let home = built();
    home.machine("torn", HOST);
    home.machine("odd", HOST);
    for (name, text) in [("torn", "{\n\"version\": 1,".to_owned()), ("odd", record("/elsewhere", "native"))] {
        let folder = format!(".local/state/codchi/generations/{name}");
        home.write(&format!("{folder}/1.json"), text);
        symlink(SYSTEM, home.path().join(&folder).join("1")).unwrap();
        symlink("1", home.path().join(&folder).join("current")).unwrap();
    }
    insta::assert_snapshot!(all(
        &home,
        &[
            (&["rollback", "hello"], 1),
            (&["rollback", "hello", "--to", "7"], 5),
            (&["diff", "hello", "1", "7"], 5),
            (&["generations", "torn"], 1),
            (&["generations", "odd"], 1),
            (&["install", "x", "--toplevel", "/tmp"], 5),
        ],
    ));
}

#[test]
fn errors_of_a_tar_on_its_way() {
    let home = built();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let done = home.done(home.command(PROGRAM).args(["tar", "hello", "-"]).stdout(full));
    assert_eq!(done.status, 1, "{}", done.err);
    let mut said = vec![done.err];
    for folder in ["nixos", "nixos-codchi"] {
        home.write(&format!(".local/share/codchi/machines/hello/root/etc/{folder}/own"), "");
    }
    let done = home.run(&["tar", "hello", "hello.tar"]);
    assert_eq!(done.status, 1, "{}", done.err);
    said.push(done.err);
    insta::assert_snapshot!(said.join("\n"));
    assert!(!home.path().join("hello.tar").exists());
}

/// Starts `hello`, which asks for nothing but what `change` says.
fn start(home: &Home, change: impl Fn(&mut Value), variables: &[(&str, &str)], status: i32) -> String {
    let mut manifest = manifest();
    manifest["needs"]["secrets"] = json!({});
    change(&mut manifest);
    say(home, &manifest);
    let done = home.run_with(&["start", "hello"], variables);
    assert_eq!(done.status, status, "{}", done.err);
    done.err
}

#[test]
fn errors_of_what_a_system_asks_for() {
    let home = built();
    codchi_fs::write(
        home.machine("hello", &format!("{HOST}granted = [\"host-secret:certificates\"]\n")).join("flake.nix"),
        "{ }\n",
    )
    .unwrap();
    let engine =
        |name: &str, root: &str| json!({ "version": 1, "hostName": name, "root": root, "init": ["/init"] });
    let mut said =
        vec![start(&home, |_| {}, &[], 1), start(&home, |m| m["engine"] = engine("x", "/"), &[], 1)];
    if rustix::process::geteuid().is_root() {
        // Without the host's root it depends on what the host lets a person do, which is looked at first.
        for (name, told) in [
            ("@frob@", "not usable: `@frob@` is not a variable that has a value"),
            ("x", "not usable: the variable `@name@` is not used"),
        ] {
            let text = start(&home, |m| m["engine"] = engine(name, "@root@"), &[], 1);
            assert!(text.contains(told), "{text}");
        }
    }
    home.write("none.pem", "no certificate\n");
    home.write("many.pem", "-----BEGIN CERTIFICATE-----\n".repeat(1 << 16));
    let certificates = |m: &mut Value| {
        m["needs"]["optionalCapabilities"] = json!(["certificates"]);
        m["needs"]["hostSecrets"] = json!({ "certificates": true });
    };
    for file in ["none.pem", "many.pem"] {
        said.push(start(&home, certificates, &[("SSL_CERT_FILE", file)], 1));
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn an_error_of_a_machine_that_does_not_start_for_a_command() {
    let home = built();
    let done = home.run(&["module", "set", "hello", "app", "--checkout", "project"]);
    assert_eq!(done.status, 1, "{}", done.err);
    insta::assert_snapshot!(done.err);
}

#[test]
fn an_error_of_a_host_without_nix() {
    const SOCKET: &str = "/nix/var/nix/daemon-socket/socket";
    if std::path::Path::new(SOCKET).exists() {
        // What this is about is there.
        return;
    }
    let home = home();
    home.write(".config/codchi/config.toml", "version = 1\n[store]\nkind = \"host\"\n");
    insta::assert_snapshot!(all(&home, &[(&["update", "hello"], 3)]));
}

#[test]
fn errors_of_a_nix_that_is_too_old() {
    let home = built();
    let current = home.path().join(".local/share/codchi/store/current");
    codchi_fs::remove_file(&current).unwrap();
    home.write(".local/share/codchi/store/dist/nix-2.3.16/bin/none", "");
    symlink("dist/nix-2.3.16", current).unwrap();
    insta::assert_snapshot!(all(&home, &[(&["store", "status"], 3), (&["update", "hello"], 3)]));
}

/// Runs a line by a program that is removed as it begins, as by an update.
pub fn gone(home: &Home, line: &str, status: i32) -> String {
    // Beside the real one, since the link must be on its file system.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let notes = std::path::Path::new(PROGRAM).with_file_name("failures");
    symlink(notes, place.path().join("failures")).unwrap();
    let copy = place.path().join("codchi");
    std::fs::hard_link(PROGRAM, &copy).unwrap();
    let mut command = home.command("sh");
    command.arg("-c").arg(format!("exec 9<\"$0\"; rm \"$0\"; exec /proc/self/fd/9 {line}")).arg(&copy);
    let done = home.done(&mut command);
    assert_eq!((done.status, done.out.as_str()), (status, ""), "{line}: {}", done.err);
    format!("$ codchi {line}\n{}", done.err).replace(&*place.path().to_string_lossy(), "PLACE")
}

#[test]
fn errors_of_a_program_that_is_gone() {
    let home = built();
    home.write("word", "word");
    set(&home, "TOKEN", "@word");
    let said = ["module set hello app --checkout project", "start hello"].map(|line| gone(&home, line, 1));
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn errors_of_a_system_that_refuses() {
    let home = built();
    let said: Vec<String> = [
        ("tar hello -", "dup:error=EMFILE"),
        ("store repair", "clone,clone3,vfork:error=EAGAIN"),
        ("store shell -- true", "execve:error=ENOMEM"),
    ]
    .map(|(line, fault)| {
        let mut command = home.command("strace");
        command.args(["-qq", "-o", "/dev/null", "-e", &format!("inject={fault}"), PROGRAM]);
        let done = home.done(command.args(line.split(' ')));
        assert_eq!((done.status, done.out.as_str()), (1, ""), "{line}: {}", done.err);
        format!("$ codchi {line}\n{}", done.err).replace(PROGRAM, "codchi")
    })
    .into();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn an_error_of_a_store_that_cannot_be_mended() {
    let home = built();
    let done = home.run(&["store", "repair"]);
    assert_eq!(done.status, 1, "{}", done.err);
    assert!(done.err.contains("error: the store could not be mended whole"), "{}", done.err);
}
