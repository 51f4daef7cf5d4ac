//! What is typed unseen: passphrases, and an editor's draft. The machine `term` is of these cases alone and never runs.

use std::io::{Read, Write};
use std::process::Stdio;

use libtest_mimic::Failed;

use crate::cases::{Case, quote, same, script_words};
use crate::host::{Done, Host, run};
use crate::require;

/// Every case, in the order in which they run.
pub const ALL: &[Case] = &[
    ("typed_passphrases_are_unseen", passphrase),
    ("typed_interrupts_change_nothing", interrupted),
    ("typed_drafts_are_in_memory_and_go", edited),
    ("typed_drafts_of_a_failed_editor_go", unedited),
];

const PASSPHRASE: &str = "correct horse";
const TOKEN: &str = "c0ffee42";

/// Runs codchi on a terminal and types each answer when its question is there. The terminal must be left as it was.
pub(crate) fn on_terminal(
    h: &Host,
    args: &[&str],
    editor: &str,
    answers: &[(&str, &str)],
) -> Result<Done, Failed> {
    let (line, env) = script_words(h, args);
    let (before, after) = (h.home.join("stty-before"), h.home.join("stty-after"));
    let paths = [&before, &after].map(|p| quote(&p.to_string_lossy()));
    // What interrupts codchi leaves the shell to look at the terminal.
    let whole = format!(
        "trap : INT; stty -g > {}; env EDITOR={} VISUAL= {line}; s=$?; stty -g > {}; exit $s",
        paths[0],
        quote(editor),
        paths[1]
    );
    let mut child = std::process::Command::new("timeout")
        .args([
            "--foreground",
            "180",
            "script",
            "-qefc",
            &whole,
            "/dev/null",
        ])
        .env_clear()
        .envs(env)
        .env("TERM", "xterm")
        .current_dir(&h.home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let (mut seen, mut from) = (Vec::new(), 0);
    for (question, answer) in answers {
        while !String::from_utf8_lossy(&seen[from..]).contains(question) {
            let mut some = [0; 4096];
            let n = stdout.read(&mut some)?;
            let said = String::from_utf8_lossy(&seen);
            require!(n > 0, "{question:?} was not asked: {said}");
            seen.extend_from_slice(&some[..n]);
        }
        from = seen.len();
        stdin.write_all(answer.as_bytes())?;
        stdin.flush()?;
    }
    stdout.read_to_end(&mut seen)?;
    let status = child.wait()?.code().unwrap_or(-1);
    same(
        "the terminal",
        codchi_fs::read_to_string(&after)?,
        codchi_fs::read_to_string(&before)?,
    )?;
    Ok(Done {
        status,
        out: seen,
        err: String::new(),
    })
}

/// The file with the machine's secrets.
fn kept(h: &Host) -> Result<Vec<u8>, Failed> {
    Ok(codchi_fs::read(
        h.home.join(".local/share/codchi/secrets/term.age"),
    )?)
}

const ASKED: (&str, &str) = ("passphrase of your secrets:", "correct horse\r");

fn value(h: &Host) -> Result<String, Failed> {
    let done = on_terminal(h, &["secrets", "get", "term", "API_TOKEN"], "", &[ASKED])?.ok()?;
    let text = done.text();
    Ok(text.lines().last().unwrap_or_default().trim().to_string())
}

fn passphrase(h: &Host) -> Result<(), Failed> {
    h.checkout("tests/fixtures/secrets", "term-project")?;
    let repo = h.home.join("term-project").to_string_lossy().into_owned();
    h.file("term-token", TOKEN)?;
    run(
        h.command("mkdir")
            .args(["-p", "-m", "700"])
            .arg(h.home.join(".config/codchi")),
        b"",
    )?
    .ok()?;
    h.file(
        ".config/codchi/config.toml",
        "[secrets]\nplace = \"file\"\nkey = \"passphrase\"\n",
    )?;
    let mut words = vec!["init", "term", &repo, "--no-start"];
    words.extend([
        "--secret",
        "API_TOKEN=@term-token",
        "--secret",
        "db-password=@term-token",
    ]);
    let answers = [
        ("(empty: none)", "\r"),
        ("ends it)", "\u{4}"),
        ("a new passphrase", "correct horse\r"),
        ("the same again", "correct horse\r"),
    ];
    let done = on_terminal(h, &words, "", &answers)?.ok()?;
    require!(
        !done.text().contains(PASSPHRASE),
        "it is shown: {}",
        done.text()
    );
    require!(
        done.text().contains("*************"),
        "no stars: {}",
        done.text()
    );
    let before = kept(h)?;
    let typed = "another horse";
    let answers = [("passphrase of your secrets:", "another horse\r")];
    let done = on_terminal(h, &["secrets", "get", "term", "API_TOKEN"], "", &answers)?;
    let text = done.text();
    require!(
        done.status != 0 && text.contains("passphrase"),
        "{}: {text}",
        done.status
    );
    require!(
        !text.contains(TOKEN) && !text.contains(typed),
        "it is shown: {text}"
    );
    same("what is kept", kept(h)? == before, true)?;
    same("value", value(h)?, TOKEN.into())
}

fn interrupted(h: &Host) -> Result<(), Failed> {
    let before = kept(h)?;
    let set = ["secrets", "set", "term", "API_TOKEN"];
    let keys = "dead\u{3}";
    let done = on_terminal(
        h,
        &["secrets", "get", "term", "API_TOKEN"],
        "",
        &[(ASKED.0, keys)],
    )?;
    same("status at the passphrase", done.status, 130)?;
    let done = on_terminal(h, &set, "", &[("has):", keys)])?;
    same("status at the value", done.status, 130)?;
    require!(
        !done.text().contains("dead"),
        "it is shown: {}",
        done.text()
    );
    same("what is kept", kept(h)? == before, true)
}

/// An editor that says where its file is and what is there, then does something.
fn editor(h: &Host, then: &str) -> Result<String, Failed> {
    let looked = h.home.join("looked");
    codchi_fs::remove_if_exists(&looked)?;
    let looked = quote(&looked.to_string_lossy());
    let text = format!(
        "#!/bin/sh\n{{ echo \"$1\"; stat -f -c %T \"$1\"; stat -c %a \"$1\" \"${{1%/*}}\"; cat \"$1\"; }} > {looked}\n{then}\n"
    );
    h.file("editor", &text)?;
    codchi_fs::set_mode(h.home.join("editor"), 0o700)?;
    Ok(h.home.join("editor").to_string_lossy().into_owned())
}

/// The draft was where only its person can read it, in memory, and is gone.
fn was_in_memory(h: &Host) -> Result<(), Failed> {
    let looked = codchi_fs::read_to_string(h.home.join("looked"))?;
    let lines: Vec<&str> = looked.lines().collect();
    same(
        "its file system, modes and text",
        lines[1..].to_vec(),
        vec!["tmpfs", "600", "700", TOKEN],
    )?;
    let folder = std::path::Path::new(lines[0]).parent().ok_or("no folder")?;
    require!(!folder.exists(), "`{}` is left", folder.display());
    Ok(())
}

fn edited(h: &Host) -> Result<(), Failed> {
    let editor = editor(h, "printf deadbeef > \"$1\"; cp \"$1\" \"$1~\"")?;
    let before = value(h)?;
    same("before", before, TOKEN.into())?;
    let edit = ["secrets", "edit", "term", "API_TOKEN"];
    // To read them, and to keep them.
    let done = on_terminal(h, &edit, &editor, &[ASKED, ASKED])?.ok()?;
    require!(
        !done.text().contains("deadbeef") && !done.text().contains(TOKEN),
        "{}",
        done.text()
    );
    was_in_memory(h)?;
    same("value", value(h)?, "deadbeef".into())?;
    h.file("term-token", TOKEN)?;
    on_terminal(
        h,
        &["secrets", "set", "term", "API_TOKEN", "@term-token"],
        "",
        &[ASKED],
    )?
    .ok()?;
    Ok(())
}

fn unedited(h: &Host) -> Result<(), Failed> {
    let before = kept(h)?;
    let edit = ["secrets", "edit", "term", "API_TOKEN"];
    let fails = editor(h, "printf deadbeef > \"$1\"; exit 1")?;
    let done = on_terminal(h, &edit, &fails, &[ASKED])?.exits(4)?;
    require!(
        done.text().contains("nothing was changed"),
        "{}",
        done.text()
    );
    was_in_memory(h)?;
    same("what is kept", kept(h)? == before, true)?;
    let waits = editor(
        h,
        "printf deadbeef > \"$1\"; echo edits; read x; exec sleep 60",
    )?;
    let done = on_terminal(h, &edit, &waits, &[ASKED, ("edits", "\u{3}")])?;
    require!(done.status != 0, "it was taken: {}", done.text());
    was_in_memory(h)?;
    same("what is kept", kept(h)? == before, true)?;
    h.codchi(&["delete", "--yes", "term"])?.ok()?;
    codchi_fs::remove_file(h.home.join(".config/codchi/config.toml"))?;
    Ok(())
}
