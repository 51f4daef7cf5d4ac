//! Errors of a person at a terminal.

use std::io::{Read, Write};
use std::process::Stdio;

use super::built::{built, secrets};
use super::common::{Done, Home, PROGRAM};

/// Runs a line of the shell, in which `$CODCHI` is the program, on a terminal of its own and types each answer when its question
/// is there.
fn typed(home: &Home, line: &str, answers: &[(&str, &str)]) -> Done {
    // One that waits for what nobody types is a failure, and not the end of all tests.
    let mut command = home.command("timeout");
    command.args(["--foreground", "180", "script", "-qefc", &format!("exec {line}"), "/dev/null"]);
    command.env("TERM", "xterm");
    command.env("EDITOR", home.path().join("editor")).env("CODCHI", PROGRAM);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut seen, mut from) = (Vec::new(), 0);
    for (question, answer) in answers {
        while !String::from_utf8_lossy(&seen[from..]).contains(question) {
            let mut some = [0; 4096];
            let n = stdout.read(&mut some).unwrap();
            assert!(n > 0, "{question:?} was not asked: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&some[..n]);
        }
        from = seen.len();
        stdin.write_all(answer.as_bytes()).unwrap();
    }
    stdout.read_to_end(&mut seen).unwrap();
    let status = child.wait().unwrap().code().unwrap();
    Done { status, out: String::new(), err: String::from_utf8_lossy(&seen).into_owned() }
}

/// Requires that it fails so, with this in what it says, and that nothing is changed.
#[track_caller]
fn refused(home: &Home, line: &str, answers: &[(&str, &str)], status: i32, said: &[&str]) {
    let before = home.files();
    let line = if line.contains("$CODCHI") { line } else { &format!("$CODCHI {line}") };
    let done = typed(home, line, answers);
    assert_eq!(done.status, status, "{line}: {}", done.err);
    for words in said {
        assert!(done.err.contains(words), "{line}: {}", done.err);
    }
    assert!(home.files() == before, "{line} changed something");
}

#[test]
fn what_is_not_confirmed_is_not_done() {
    let home = built();
    refused(&home, "delete hello", &[("[y/N]", "n\r")], 4, &["nothing was changed"]);
}

#[test]
fn data_for_programs_does_not_go_to_a_terminal() {
    let home = built();
    refused(&home, "tar hello -", &[], 2, &["a tar does not go to a terminal", "redirect it"]);
    refused(
        &home,
        "plumbing secrets hello",
        &[],
        2,
        &["this is for other programs", "`codchi secrets get` shows"],
    );
}

#[test]
fn a_secret_that_is_not_given_is_told() {
    let home = built();
    secrets(&home, "place = \"file\"\nkey = \"file\"");
    refused(&home, "secrets set hello TOKEN", &[("its value", "\x04")], 4, &["no value was given"]);
    refused(&home, "start hello", &[("its value", "\r")], 4, &["the machine needs the secret", "TOKEN"]);
}

#[test]
fn what_comes_of_an_editor_is_told() {
    let home = built();
    home.write("word", "word");
    let done = home.run(&["secrets", "set", "hello", "PLAIN", "@word"]);
    assert_eq!(done.status, 0, "{}", done.err);
    for (editor, status, said) in [
        ("false", 4, "the editor ended with exit status: 1; nothing was changed"),
        ("truncate -s 0", 4, "it is empty; nothing was changed"),
        ("truncate -s 2M", 1, "what was written cannot be read"),
    ] {
        home.write("editor", format!("#!/bin/sh\nexec {editor} \"$1\"\n"));
        codchi_fs::set_mode(home.path().join("editor"), 0o755).unwrap();
        refused(&home, "secrets edit hello PLAIN", &[], status, &[said]);
    }
    let none = home.path().join("none").display().to_string();
    let unrunnable = format!("env PATH={none} $CODCHI secrets edit hello PLAIN");
    refused(&home, &unrunnable, &[], 1, &["cannot run `", "/editor`: "]);
}

#[test]
fn a_draft_is_nowhere_but_in_memory() {
    const TMPFS: u64 = 0x0102_1994;
    let home = built();
    if rustix::fs::statfs(home.path()).unwrap().f_type as u64 == TMPFS {
        // What is the case here is what this test is about the lack of.
        return;
    }
    let line = "unshare --map-root-user --mount sh -c 'mount --bind plain /dev/shm && exec $CODCHI secrets edit hello PLAIN'";
    refused(
        &home,
        line,
        &[],
        3,
        &["there is no folder in memory for an editor", "takes a new value without one"],
    );
}
