//! Errors of a Nix that says something else than Nix does: a person may have put anything in its place.

use std::os::unix::fs::symlink;

use super::built::{built, say_as_nix};
use super::common::{Home, refused};

/// `hello`, with a store whose programs are that.
fn with(nix: &str) -> Home {
    let home = built();
    say_as_nix(&home, nix);
    home
}

#[test]
fn errors_of_a_nix_that_says_something_else() {
    let said: Vec<String> = [
        "echo no list",
        "echo '[]'; printf '\\377'",
        "echo 1",
        "echo '{\"/nix/store/x\":{}}'",
        "echo it breaks >&2; exit 1",
    ]
    .map(|nix| refused(&with(nix), &["diff", "hello"], 1))
    .into();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn an_error_of_a_collection_while_something_is_made() {
    let home = with("");
    home.write(".config/codchi/.staging/kept", "");
    let lock = home.path().join(".config/codchi/.staging/other-1.lock");
    let held = codchi_fs::Lock::try_take(lock, "other-1").unwrap();
    let done = home.run(&["gc"]);
    drop(held);
    assert_eq!((done.status, done.out.as_str()), (6, ""), "{}", done.err);
    insta::assert_snapshot!(done.err);
}

#[test]
fn an_error_of_the_first_generation() {
    let home = built();
    let generations = home.path().join(".local/state/codchi/generations/hello");
    codchi_fs::remove_file(generations.join("current")).unwrap();
    symlink("1", generations.join("current")).unwrap();
    insta::assert_snapshot!(refused(&home, &["rollback", "hello"], 5));
}
