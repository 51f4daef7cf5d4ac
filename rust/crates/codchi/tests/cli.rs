//! The real program in a throw-away home: what it says, what it exits with, and that bad input changes nothing.
//!
//! Nothing here makes a machine: that is for the conformance suite.
#![allow(clippy::unwrap_used)]

mod common;

use common::{HOST, Home, refused};

#[test]
fn bad_input_gets_a_clear_error_and_changes_nothing() {
    let home = Home::new();
    home.machine("hello", HOST);
    codchi_fs::create_dir_all(home.path().join("plain")).unwrap();
    let table: &[(&[&str], i32)] = &[
        (&["stauts"], 2),
        (&["frobnicate"], 2),
        (&["--frobnicate"], 2),
        (&["init"], 2),
        (&["init", "Bad_Name"], 2),
        (&["init", "-x"], 2),
        (&["init", "../x"], 2),
        (&["init", "hello"], 1),
        (&["init", "x", "./nowhere"], 5),
        (&["init", "x", "./plain"], 1),
        (&["init", "x", "team/repo"], 2),
        (&["init", "x", "svn+https://example.org/x"], 2),
        (&["init", "x", "github:a/b#c", "d"], 2),
        (&["init", "x", "github:a/b", "--commit", "abc"], 2),
        (&["init", "x", "./plain", "--branch", "b"], 2),
        (&["init", "x", "--branch", "b"], 2),
        (&["init", "x", "--driver", "nativ"], 2),
        (&["init", "x", "--base", "fedora"], 2),
        (&["init", "x", "--secret", "token=abc"], 2),
        (&["status", "helo"], 5),
        (&["start", "nothing"], 5),
        (&["delete", "hello"], 4),
        (&["rollback", "hello"], 1),
        (&["logs", "hello"], 1),
        (&["exec", "helo", "--", "true"], 125),
        (&["exec", "hello"], 125),
        (&["exec", "hello", "-e", "novalue", "true"], 125),
        (&["shell", "nothing"], 125),
        (&["option", "hello", "a..b"], 2),
        (&["completion", "nosuchshell"], 2),
    ];
    let said: Vec<String> = table.iter().map(|(args, status)| refused(&home, args, *status)).collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_file_that_does_not_parse_is_named_with_its_line_and_left_alone() {
    let home = Home::new();
    home.machine("hello", HOST);
    let settings = home.path().join(".config/codchi/config.toml");
    codchi_fs::write(&settings, "version = 1\n[base]\nsuite = 3\n").unwrap();
    let mut said =
        vec![refused(&home, &["status"], 1), refused(&home, &["exec", "hello", "--", "true"], 125)];
    codchi_fs::remove_file(&settings).unwrap();

    let dir = home.machine("broken", "version = 1\ndriver = native\n");
    said.push(refused(&home, &["start", "broken"], 1));
    codchi_fs::write(dir.join("host.toml"), HOST.replace("version = 1", "version = 99")).unwrap();
    said.push(refused(&home, &["start", "broken"], 1));
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn one_broken_machine_does_not_hide_the_others() {
    let home = Home::new();
    home.machine("broken", "nonsense");
    home.machine("good", HOST);
    let done = home.run(&["status"]);
    assert_eq!(done.status, 1, "{}", done.err);
    assert!(done.out.contains("good") && !done.out.contains("broken"), "{}", done.out);
    assert!(done.err.contains("machines/broken/host.toml` line 1"), "{}", done.err);
}

#[test]
fn a_machine_that_someone_changes_is_busy_and_says_who_has_it() {
    let home = Home::new();
    home.machine("hello", HOST);
    let locks = home.path().join(".local/state/codchi/locks");
    codchi_fs::create_dir_all(&locks).unwrap();
    let held =
        codchi_fs::Lock::try_take(locks.join("hello"), "`codchi rebuild hello` (process 4711)").unwrap();
    let done = home.run(&["delete", "--yes", "hello"]);
    assert_eq!(done.status, 6, "{}", done.err);
    assert!(
        done.err.contains("`hello` is being changed by `codchi rebuild hello` (process 4711)"),
        "{}",
        done.err
    );
    drop(held);
    let done = home.run(&["delete", "--yes", "hello"]);
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(home.files().iter().all(|(f, _)| !f.contains("hello")), "{:?}", home.files());
}

#[test]
fn status_is_one_json_document_that_fits_its_schema() {
    let home = Home::new();
    home.machine("hello", HOST);
    let done = home.run(&["status", "--json"]);
    assert_eq!(done.status, 0, "{}", done.err);
    insta::assert_snapshot!(done.out, @r#"
    {
      "version": 1,
      "machines": [
        {
          "name": "hello",
          "driver": "native",
          "base": "debian",
          "state": "stopped",
          "reason": null,
          "leader": null,
          "acceleration": null,
          "generation": null,
          "config": "modified",
          "addresses": [],
          "toplevel": null,
          "diskBytes": null,
          "inputs": []
        }
      ]
    }
    "#);
}

#[test]
fn a_deletion_that_is_only_planned_deletes_nothing() {
    let home = Home::new();
    home.machine("hello", HOST);
    let before = home.files();
    let done = home.run(&["delete", "--dry-run", "hello"]);
    assert_eq!((done.status, home.files()), (0, before));
    insta::assert_snapshot!(done.out, @"
    `codchi delete hello` would
      stop the machine
      remove `HOME/.local/share/codchi/machines/hello/root` with all files of the machine
      forget the generations in `HOME/.local/state/codchi/generations/hello`
      remove the values of its secrets
      remove `HOME/.local/state/codchi/logs/hello`
      remove `HOME/.config/codchi/machines/hello`
    ");
}

#[test]
fn the_program_says_who_it_is_and_how_it_is_used() {
    let home = Home::new();
    assert_eq!(home.run(&["--version"]).out, format!("codchi {}\n", env!("CARGO_PKG_VERSION")));
    let help = home.run(&["--help"]);
    assert_eq!((help.status, help.err.as_str()), (0, ""));
    insta::assert_snapshot!(help.out);
    for shell in ["bash", "zsh", "fish"] {
        let done = home.run(&["completion", shell]);
        assert!(done.status == 0 && done.out.contains("rebuild"), "{shell}");
    }
}

#[test]
fn man_pages_and_schemas_are_written() {
    let home = Home::new();
    assert_eq!(home.run(&["plumbing", "man", "man"]).status, 0);
    let page = codchi_fs::read_to_string(home.path().join("man/codchi-init.1")).unwrap();
    assert!(page.contains(".TH codchi-init 1") && page.contains("SOURCE"), "{page}");
    assert_eq!(home.run(&["plumbing", "schemas", "schemas"]).status, 0);
    let schema = codchi_fs::read_to_string(home.path().join("schemas/plan.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    assert!(schema["properties"]["steps"].is_object());
}

#[test]
fn nothing_that_a_name_holds_reaches_the_terminal_as_a_command() {
    let home = Home::new();
    let done = home.run(&["status", "a\u{1b}[31mb"]);
    assert_eq!(done.status, 2);
    assert!(done.err.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", done.err);
}
