//! Errors that need no machine to be made: each with its exit status and its hints, and nothing is changed.

#![allow(clippy::unwrap_used)]

mod agent;
mod built;
#[path = "../common/mod.rs"]
mod common;
mod mirror;
mod nix;
mod surroundings;
mod terminal;

use common::{HOST, Home, refused, refused_with};

const FLAKE: &str = r#"{
  inputs.codchi.url = "github:codchi/codchi/v0.1.0";
  inputs.nixpkgs.follows = "codchi/nixpkgs";
  inputs.app.url = "git+https://one.example.org/app";
  inputs.lib.url = "git+https://two.example.org/lib";
  outputs =
    { codchi, ... }@inputs:
    codchi.lib.codeMachine {
      inherit inputs;
      system = "x86_64-linux";
      stateVersion = "26.05";
      modules = [
        inputs.app.nixosModules.default
        inputs.lib.nixosModules.default
        { environment.etc.lib.source = inputs.lib; }
      ];
    };
}
"#;

/// A home with a machine that was never built, one that the host declares, and one without a flake.
fn home() -> Home {
    let home = Home::new();
    codchi_fs::write(home.machine("hello", HOST).join("flake.nix"), FLAKE).unwrap();
    let taken = format!("{HOST}[checkouts]\napp = \"/home/codchi/app\"\n");
    codchi_fs::write(home.machine("taken", &taken).join("flake.nix"), FLAKE).unwrap();
    home.machine("declared", &format!("{HOST}declared = true\n"));
    home.machine("bare", HOST);
    codchi_fs::create_dir_all(home.path().join("plain")).unwrap();
    for (file, text) in [("x.tar", "no tar"), ("empty", ""), ("lines", "a\nb\n")] {
        codchi_fs::write(home.path().join(file), text).unwrap();
    }
    home
}

#[track_caller]
fn all(home: &Home, table: &[(&[&str], i32)]) -> String {
    table.iter().map(|(args, status)| refused(home, args, *status)).collect::<Vec<_>>().join("\n")
}

/// Which drivers there are is no matter of these.
fn without_drivers(said: &str) -> String {
    let one = |line: &str| match line.split_once("there is: `native`") {
        Some((before, others)) if others.starts_with(", `") => format!("{before}there is: DRIVERS"),
        _ => line.to_owned(),
    };
    said.lines().map(one).collect::<Vec<_>>().join("\n")
}

#[test]
fn errors_of_making_a_machine() {
    let home = home();
    let said = all(
        &home,
        &[
            (&["clone", "x"], 2),
            (&["clone", "x", "./plain"], 2),
            (&["clone", "x", "https://a.example.org/r", "--no-start"], 2),
            (&["init", "x", "--driver", "none"], 2),
            (&["init", "x", "github:a/b?ref=x", "--branch", "y"], 2),
            (&["init", "x", "https://u:p@a.example.org/r"], 2),
            (&["init", "x", "https://a.example.org/r r"], 2),
            (&["init", "x", "--secret", "k=-", "--secret", "l=-"], 2),
            (&["init", "x", "--secret", "k=@empty", "--secret", "k=@empty"], 2),
            (&["init", "x", "--secret-env", "k"], 2),
            (&["init", "x", "https://a.example.org/r", "--auth-from", "frob"], 2),
            (&["init", "x", "https://a.example.org/r", "--auth-from", "env:NOPE"], 4),
            (&["init", "x", "https://a.example.org/r", "--auth-from", "file:lines"], 1),
            (&["init", "x", "https://a.example.org/r", "--auth-from", "netrc:empty"], 1),
            (&["init", "x", "ssh://a.example.org/r", "--auth-from", "env:NOPE"], 2),
            (&["import", "x.tar", "y"], 1),
            (&["import", "missing.tar", "y"], 1),
            (&["plumbing", "frob"], 2),
        ],
    );
    insta::assert_snapshot!(without_drivers(&said));
    let said = [
        refused_with(&home, &["init", "x"], &[("CODCHI_BASE", "frob")], 2),
        refused_with(&home, &["init", "x"], &[("CODCHI_DRIVER", "frob")], 2),
        refused_with(
            &home,
            &["init", "x", "https://a.example.org/r", "--auth-from", "env:TOKEN"],
            &[("TOKEN", "")],
            1,
        ),
    ];
    insta::assert_snapshot!("variables", without_drivers(&said.join("\n")));
}

#[test]
fn errors_of_a_machine_that_was_never_built() {
    let home = home();
    let said = all(
        &home,
        &[
            (&["rename", "hello", "hello"], 2),
            (&["duplicate", "hello", "b"], 1),
            (&["install", "x", "--toplevel", "/tmp"], 3),
            (&["tar", "hello", "x.rar"], 2),
            (&["tar", "hello", "-", "--json"], 2),
            (&["tar", "hello", "new.tar"], 1),
            (&["tar", "bare", "new.tar"], 1),
            (&["move", "hello", "--driver", "frob"], 2),
            (&["rebuild", "declared"], 1),
            (&["rebuild", "bare"], 1),
            (&["update", "hello"], 3),
            (&["update", "bare"], 1),
            (&["rollback", "hello", "--to", "4"], 1),
            (&["diff", "hello"], 1),
            (&["option", "hello", "a.b"], 3),
            (&["logs", "hello"], 1),
            (&["logs", "hello", "--unit", "x"], 1),
            (&["du", "frob"], 5),
            (&["gc"], 5),
            (&["start", "hello"], 1),
            (&["gc", "--older-than", "frob"], 2),
            (&["store", "remove", "--yes"], 1),
            (&["secrets", "get", "hello", "k"], 5),
            (&["secrets", "edit", "hello", "k"], 5),
            (&["secrets", "set", "hello", "k", "file"], 5),
        ],
    );
    insta::assert_snapshot!(without_drivers(&said));
}

#[test]
fn errors_of_modules_folders_and_ports() {
    let home = home();
    insta::assert_snapshot!(all(
        &home,
        &[
            (&["module", "remove", "hello", "frob"], 5),
            (&["module", "remove", "hello", "app.nixosModules.frob"], 1),
            (&["module", "remove", "hello", "lib"], 1),
            (&["module", "set", "hello", "app"], 2),
            (&["module", "set", "hello", "app", "--nixpkgs-from", "lib"], 2),
            (&["module", "set", "hello", "--nixpkgs-from", "frob"], 5),
            (&["module", "set", "hello", "--nixpkgs-from", "lib"], 1),
            (&["module", "set", "taken", "app", "https://a.example.org/r"], 1),
            (&["module", "set", "hello", "app", "./plain#x"], 2),
            (&["module", "rename", "hello", "app", "codchi"], 2),
            (&["module", "rename", "hello", "app", "lib"], 1),
            (&["module", "add", "hello", "./plain"], 1),
            (&["module", "add", "declared", "./plain"], 1),
            (&["mount", "add", "hello", "./frob:/x"], 5),
            (&["mount", "add", "hello", "./plain:x"], 2),
            (&["mount", "add", "hello", "./plain:/etc"], 2),
            (&["mount", "add", "hello", "frob"], 2),
            (&["mount", "remove", "hello", "/x"], 5),
            (&["port", "add", "hello", "99999"], 2),
            (&["port", "remove", "hello", "8080"], 5),
        ],
    ));
}
