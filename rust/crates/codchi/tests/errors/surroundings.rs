//! Errors of what is around the program: folders, variables, files of others, and who else is at work.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;

use super::common::{HOST, Home, PROGRAM, refused, refused_by, refused_with};
use super::{all, home};

#[test]
fn errors_of_variables_and_folders() {
    let home = home();
    let mut said = Vec::new();
    // Root has a home in any case.
    let mut relative = match rustix::process::geteuid().is_root() {
        true => home.command("unshare"),
        false => home.command("env"),
    };
    if rustix::process::geteuid().is_root() {
        relative.arg("--user");
    }
    relative.args([PROGRAM, "list"]).env("HOME", "somewhere");
    said.push(refused_by(&home, "list", &mut relative, 3));
    let none = home.path().join("none").display().to_string();
    let private = ["init", "x", "https://a.example.org/r", "--auth-from", "git"];
    said.push(refused_with(&home, &private, &[("PATH", &none)], 3));
    // A proxy where nobody listens.
    let done = home.run_with(&["init", "x"], &[("https_proxy", "http://127.0.0.1:1")]);
    assert_eq!(done.status, 3, "{}", done.err);
    said.push(done.err);
    for line in ["clone x https://a.example.org/r", "module set hello app https://a.example.org/r"] {
        let mut gone = home.command("sh");
        gone.arg("-c").arg(format!("mkdir gone; cd gone; rmdir ../gone; exec \"$0\" {line}")).arg(PROGRAM);
        said.push(refused_by(&home, line, &mut gone, 1));
    }
    let folder = OsStr::from_bytes(b"not-\xff-text");
    codchi_fs::create_dir_all(home.path().join(folder)).unwrap();
    std::os::unix::fs::symlink(folder, home.path().join("link")).unwrap();
    said.push(refused(&home, &["mount", "add", "hello", "./link:/x"], 2));
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn an_error_of_a_data_folder_that_is_not_ones_own() {
    let home = home();
    codchi_fs::create_dir_all(home.path().join(".local/share")).unwrap();
    // The kernel's: nobody may change its mode.
    std::os::unix::fs::symlink("/proc/self", home.path().join(".local/share/codchi")).unwrap();
    let done = home.run(&["doctor", "--fix"]);
    assert_eq!(done.status, 1, "{}", done.err);
    insta::assert_snapshot!(done.err);
}

#[test]
fn an_error_of_several_hosts() {
    let home = home();
    home.write(
        ".config/codchi/config.toml",
        "version = 1\n[defaults]\nmodules = [\"https://b.example.org/r\"]\n",
    );
    insta::assert_snapshot!(all(
        &home,
        &[(&["init", "x", "https://a.example.org/r", "--auth-from", "env:TOKEN"], 2)]
    ));
}

#[test]
fn errors_of_files_that_a_person_or_another_codchi_wrote() {
    let home = home();
    let flake = "{\n  inputs.app.url = \"git+https://one.example.org/app\"\n}\n";
    codchi_fs::write(home.machine("unparsed", HOST).join("flake.nix"), flake).unwrap();
    codchi_fs::write(home.machine("odd", HOST).join("flake.nix"), "{\n  outputs = inputs: { };\n}\n")
        .unwrap();
    home.machine("ported", &format!("{HOST}[ports]\n80 = 8080\n"));
    let record = |version: u32, base: &str| {
        format!(
            r#"{{"version":{version},"codchi":"9.0.0","name":"x","driver":"native","base":"{base}","exported":1,"toplevel":"/nix/store/x"}}"#
        )
    };
    for (file, name, text) in [
        ("newer.tar", "etc/nixos/codchi.json", record(99, "debian")),
        ("newer-form.tar", "etc/nixos/codchi.json", record(1, "gentoo")),
        ("silent.tar", "etc/nixos/flake.nix", "{ }".into()),
        ("foreign.tar", "etc/passwd", "root".into()),
    ] {
        tar(&home, file, name, &text);
    }
    insta::assert_snapshot!(all(
        &home,
        &[
            (&["module", "list", "unparsed"], 1),
            (&["module", "add", "unparsed", "https://a.example.org/r"], 1),
            (&["module", "set", "odd", "--nixpkgs-from", "codchi"], 1),
            (&["port", "add", "ported", "8080:81"], 1),
            (&["import", "newer.tar"], 1),
            (&["import", "newer-form.tar"], 1),
            (&["import", "silent.tar"], 1),
            (&["import", "foreign.tar"], 1),
        ],
    ));
}

/// A tar with one file, in a folder.
fn tar(home: &Home, file: &str, name: &str, text: &str) {
    let (folder, name) = name.rsplit_once('/').unwrap();
    tar_of(home, file, folder, &[(name, text)]);
}

/// A tar with a folder and files in it.
fn tar_of(home: &Home, file: &str, folder: &str, files: &[(&str, &str)]) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    builder.append_data(&mut header, folder, std::io::empty()).unwrap();
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, format!("{folder}/{name}"), text.as_bytes()).unwrap();
    }
    home.write(file, builder.into_inner().unwrap());
}

#[test]
fn errors_of_a_machine_flake_that_is_anothers() {
    let home = super::built::built();
    let record = r#"{"version":1,"codchi":"0.1.0","name":"x","driver":"native","base":"debian","exported":1,"toplevel":"/nix/store/x"}"#;
    let plain = "{ outputs = inputs: { }; }";
    let of_the_host = "{ inputs.a = { type = \"path\"; path = \"/etc\"; }; outputs = inputs: { }; }";
    let files: [&[(&str, &str)]; 5] = [
        &[],
        &[("flake.nix", "{\n  outputs = 1\n}")],
        &[("flake.nix", of_the_host)],
        &[("flake.nix", plain), ("flake.lock", "{\n  no")],
        &[("flake.nix", plain), ("flake.lock", "{}")],
    ];
    let mut said = Vec::new();
    for files in files {
        tar_of(&home, "x.tar", "etc/nixos", &[&[("codchi.json", record)], files].concat());
        said.push(refused(&home, &["import", "x.tar"], 1));
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn an_error_of_a_host_on_which_no_machine_runs() {
    let home = home();
    // Whoever has no name here, and no ids.
    let mut nobody = home.command("unshare");
    nobody.args(["--user", PROGRAM, "doctor"]);
    let done = home.done(&mut nobody);
    assert_eq!(done.status, 3, "{}{}", done.out, done.err);
    assert!(done.out.contains("MISSING"), "{}", done.out);
    assert!(
        done.err.contains("missing for machines to run\n  hint: above is what mends each"),
        "{}",
        done.err
    );
}

#[test]
fn an_error_of_a_move_that_somebody_meddled_with() {
    let home = super::built::built();
    let plan = serde_json::json!({
        "version": 1, "command": "move", "machine": "hello", "steps": [
            { "kind": "write-host", "summary": "", "path": "/none", "text": "", "change": "" },
            { "kind": "remove-root-on", "summary": "", "driver": "native" },
        ],
    });
    let journal = serde_json::json!({ "version": 1, "codchi": "0.1.0", "plan": plan, "begun": 2 });
    home.write(".local/state/codchi/journal/hello.json", journal.to_string());
    let done = home.run(&["rename", "hello", "other"]);
    assert_eq!(done.status, 1, "{}", done.err);
    insta::assert_snapshot!(done.err);
}

#[test]
fn errors_of_reading_a_tar() {
    let home = home();
    // As a tar has it whose writer wants to be unpacked elsewhere.
    let mut header = tar::Header::new_gnu();
    let name = b"etc/nixos/../../../escape";
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    home.write("out.tar", [header.as_bytes().as_slice(), &[0; 1024]].concat());
    home.write("cut.tar", &header.as_bytes()[..100]);
    insta::assert_snapshot!(all(
        &home,
        &[
            (&["import", "plain", "y"], 1),
            (&["import", "out.tar", "y"], 1),
            (&["import", "cut.tar", "y"], 1),
            (
                &[
                    "plumbing",
                    "pack-tree",
                    "plain",
                    "--head",
                    "plain",
                    "--at",
                    "etc/nixos",
                    "--compression",
                    "frob",
                ],
                2,
            ),
        ],
    ));
    assert!(!home.path().join("escape").exists());
}

#[test]
fn an_error_of_an_answer_that_nobody_takes() {
    let home = home();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut secrets = home.command(PROGRAM);
    secrets.args(["plumbing", "secrets", "hello"]).stdout(full);
    insta::assert_snapshot!(refused_by(&home, "plumbing secrets hello > /dev/full", &mut secrets, 1));
}

#[test]
fn an_error_while_another_is_at_work() {
    let home = Home::new();
    let lock = home.write(".config/codchi/.store.lock", "");
    let held = codchi_fs::Lock::try_take(lock, "process 1").unwrap();
    let said = refused(&home, &["store", "remove", "--yes"], 6);
    drop(held);
    insta::assert_snapshot!(said);
}

#[test]
fn errors_of_an_engine_that_is_not_there_or_says_something_else() {
    let home = Home::new();
    home.machine("box", &HOST.replace("native", "incus"));
    let socket = home.path().join("socket").display().to_string();
    let at = [("INCUS_SOCKET", socket.as_str())];
    let stop = |status| {
        let done = home.run_with(&["stop", "box"], &at);
        assert_eq!(done.status, status, "{}", done.err);
        done.err
    };
    // Where there is none at all, it matters whether the engine is installed.
    drop(UnixListener::bind(&socket).unwrap());
    let mut said = vec![stop(3)];
    codchi_fs::remove_file(&socket).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut peer in listener.incoming().flatten() {
            let _ = peer.read(&mut [0; 4096]);
            let _ = peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
        }
    });
    said.push(stop(3));
    insta::assert_snapshot!(said.join("\n"));
}
