//! Secrets: asked for, kept, delivered, changed, removed. The first case creates the machine `sec`, the last deletes it.

use std::io::{Read, Write};
use std::process::Stdio;

use libtest_mimic::Failed;

use crate::cases::{Case, eventually, same, script_words};
use crate::host::{Done, Host, Kind, run};
use crate::require;

/// Every case, in the order in which they run.
pub const ALL: &[Case] = &[
    ("secrets_that_are_missing_name_their_flag", missing),
    ("a_secret_is_never_taken_from_the_command_line", no_argument),
    ("secrets_are_delivered_by_kind", delivered),
    ("secrets_are_read_by_their_owners_only", owners),
    ("secrets_cannot_be_unmounted", locked),
    ("secrets_outlive_a_reboot_of_the_machine", reboot),
    (
        "a_changed_secret_restarts_what_uses_it_and_nothing_else",
        changed,
    ),
    ("a_secret_is_checked_and_its_name_is_looked_up", checked),
    ("secrets_are_listed_without_values", listed),
    ("a_secret_is_typed_unseen", typed),
    ("a_rebuild_brings_and_takes_secrets", rebuilt),
    ("a_machine_without_its_secrets_waits_for_a_person", waits),
    ("secrets_lie_nowhere_they_should_not", leaks),
    ("secrets_go_with_the_machine", removed),
    ("the_keyring_of_a_desktop_session_keeps_secrets", keyring),
];

const TOKEN: &str = "c0ffee42";
const PASSWORD: &str = "a 'quoted' $pass\\word";

fn missing(h: &Host) -> Result<(), Failed> {
    let repo = h.checkout("tests/fixtures/secrets", "secrets-project")?;
    let done = h
        .codchi(&["init", "sec", &repo.to_string_lossy()])?
        .exits(4)?;
    for wanted in [
        "--secret API_TOKEN=@FILE",
        "--secret db-password=@FILE",
        "Token of the API",
    ] {
        require!(done.err.contains(wanted), "no {wanted:?} in {}", done.err);
    }
    require!(
        !done.err.contains("npmrc"),
        "one that is not required was asked for: {}",
        done.err
    );
    h.codchi(&["status", "sec"])?.exits(5)?;
    h.file("token", &format!("{TOKEN}\n"))?;
    h.file("bad-token", "not hexadecimal")?;
    let repo = repo.to_string_lossy().into_owned();
    let done = h
        .codchi(&[
            "init",
            "sec",
            &repo,
            "--secret",
            "API_TOKEN=@bad-token",
            "--secret",
            "db-password=@token",
        ])?
        .exits(1)?;
    require!(
        done.err.contains("[a-f0-9]{8,}") && !done.err.contains("not hexadecimal"),
        "the check is not told, or the value is: {}",
        done.err
    );
    h.codchi(&["status", "sec"])?.exits(5)?;
    if h.driver == "native" {
        // What a person puts there meanwhile, here by a command that gives a secret, is left alone.
        let command = "API_TOKEN=mkdir \"$HOME/.config/codchi/machines/sec\"; cat token";
        let words = ["init", "sec", &repo, "--secret-command", command];
        let done = h
            .codchi(&[&words[..], &["--secret", "db-password=@token"]].concat())?
            .exits(1)?;
        require!(
            done.err.contains("there is a machine `sec` already"),
            "{}",
            done.err
        );
        run(h.command("rmdir").arg(".config/codchi/machines/sec"), b"")?.ok()?;
        h.codchi(&["status", "sec"])?.exits(5)?;
    }
    let init = [
        "init",
        "sec",
        &repo,
        "--secret",
        "API_TOKEN=@token",
        "--secret",
        "db-password=-",
        "--secret-command",
        "npmrc=printf 'a\\nb\\n'",
    ];
    h.codchi_with(&init, format!("{PASSWORD}\n").as_bytes())?
        .ok()?;
    Ok(())
}

fn no_argument(h: &Host) -> Result<(), Failed> {
    for args in [
        &["secrets", "set", "sec", "API_TOKEN", "hunter2"][..],
        &["start", "sec", "--secret", "API_TOKEN=hunter2"],
        &["rebuild", "sec", "--secret", "API_TOKEN=hunter2"],
    ] {
        let done = h.codchi(args)?.exits(2)?;
        require!(
            !done.err.contains("hunter2"),
            "the value is repeated: {}",
            done.err
        );
    }
    Ok(())
}

fn delivered(h: &Host) -> Result<(), Failed> {
    same(
        "variable",
        h.sh("sec", "printf %s \"$API_TOKEN\"")?,
        TOKEN.into(),
    )?;
    same(
        "default",
        h.sh("sec", "printf %s \"$GREETING\"")?,
        "hello".into(),
    )?;
    same(
        "log-in by another way",
        h.root_sh("sec", "su - codchi -c 'printf %s \"$API_TOKEN\"'")?,
        TOKEN.into(),
    )?;
    same(
        "file",
        h.sh(
            "sec",
            "cat ~/.config/npm/npmrc; stat -L -c '%U %a' ~/.config/npm/npmrc; stat -c %U ~/.config",
        )?,
        "a\nb\ncodchi 600\ncodchi".into(),
    )?;
    same(
        "credential",
        h.root_sh("sec", "cat /run/reader-got")?,
        PASSWORD.into(),
    )?;
    same(
        "one that was left out is an empty line",
        h.root_sh("sec", "cat /run/reader-extra")?,
        "1".into(),
    )?;
    eventually("the user's own service has it", || {
        let got = h.codchi(&[
            "exec",
            "sec",
            "--",
            "sh",
            "-c",
            "cat $XDG_RUNTIME_DIR/user-reader-got",
        ])?;
        Ok(got.text() == PASSWORD)
    })?;
    same(
        "state",
        h.root_sh("sec", "systemctl is-system-running")?,
        "running".into(),
    )
}

fn owners(h: &Host) -> Result<(), Failed> {
    for path in [
        "/run/codchi/credentials/API_TOKEN",
        "/run/codchi/credentials/db-password",
    ] {
        let done = h.codchi(&["exec", "sec", "--", "cat", path])?;
        require!(done.status != 0, "the user reads {path}");
    }
    h.root_sh("sec", "useradd -m other 2>/dev/null || id other")?;
    let script = "id -un; env | grep -c -e API_TOKEN -e GREETING; cat ~codchi/.config/npm/npmrc /run/codchi/secrets/npmrc /run/codchi/environment";
    let done = h.codchi(&["exec", "-u", "other", "sec", "--", "sh", "-c", script])?;
    same("another user", done.text(), "other\n0".into())?;
    // Memory that is never written to a disk.
    let kind = h.root_sh(
        "sec",
        "stat -f -c %T /run/codchi/credentials /run/codchi/secrets",
    )?;
    same("file systems", kind, "ramfs\ntmpfs".into())
}

fn locked(h: &Host) -> Result<(), Failed> {
    let done = h.codchi(&[
        "exec",
        "-u",
        "root",
        "sec",
        "--",
        "umount",
        "/run/codchi/credentials",
    ])?;
    require!(
        done.status != 0,
        "root of the machine unmounted the credentials"
    );
    Ok(())
}

fn reboot(h: &Host) -> Result<(), Failed> {
    let before = h.root_sh("sec", "cut -d' ' -f22 /proc/1/stat")?;
    h.codchi_with(&["secrets", "set", "sec", "npmrc", "-"], b"after")?
        .ok()?;
    h.codchi(&["exec", "-u", "root", "sec", "--", "systemctl", "reboot"])?;
    eventually("it is up again", || {
        let now = h.codchi(&[
            "exec",
            "-u",
            "root",
            "sec",
            "--",
            "sh",
            "-c",
            "systemctl is-system-running --wait; cut -d' ' -f22 /proc/1/stat",
        ])?;
        Ok(now.text().starts_with("running") && !now.text().contains(&before))
    })?;
    same(
        "variable",
        h.sh("sec", "printf %s \"$API_TOKEN\"")?,
        TOKEN.into(),
    )?;
    same(
        "credential",
        h.root_sh("sec", "cat /run/reader-got")?,
        PASSWORD.into(),
    )?;
    same(
        "what was set meanwhile",
        h.sh("sec", "cat ~/.config/npm/npmrc")?,
        "after".into(),
    )
}

fn changed(h: &Host) -> Result<(), Failed> {
    let pids = |h: &Host| -> Result<Vec<String>, Failed> {
        let script = "for u in reader bystander; do systemctl show -P MainPID $u; done";
        Ok(h.root_sh("sec", script)?
            .lines()
            .map(String::from)
            .collect())
    };
    let before = pids(h)?;
    let done = h
        .codchi_with(&["secrets", "set", "sec", "db-password"], b"changed\n")?
        .ok()?;
    require!(
        done.err.contains("restarted reader.service")
            && done.err.contains("restarted user-reader.service"),
        "what was restarted is not told: {}",
        done.err
    );
    eventually("the service has the new value", || {
        Ok(h.root_sh("sec", "cat /run/reader-got")? == "changed")
    })?;
    let after = pids(h)?;
    require!(before[0] != after[0], "the service was not restarted");
    same("a service that does not use it", &after[1], &before[1])?;
    let again = h
        .codchi_with(&["secrets", "set", "sec", "db-password"], b"changed\n")?
        .ok()?;
    require!(
        !again.err.contains("restarted"),
        "the same value restarted something: {}",
        again.err
    );
    h.codchi_with(&["secrets", "set", "sec", "API_TOKEN"], b"00000000")?
        .ok()?;
    same(
        "variable",
        h.sh("sec", "printf %s \"$API_TOKEN\"")?,
        "00000000".into(),
    )?;
    h.codchi(&["secrets", "unset", "sec", "npmrc"])?.ok()?;
    same(
        "a file that was taken away",
        h.sh("sec", "ls -A ~/.config/npm")?,
        String::new(),
    )?;
    // A file of the person's own is left alone, and said.
    h.sh("sec", "echo mine > ~/.config/npm/npmrc")?;
    let done = h
        .codchi_with(&["secrets", "set", "sec", "npmrc"], b"theirs")?
        .ok()?;
    require!(
        done.err.contains("left alone"),
        "nothing is said: {}",
        done.err
    );
    same(
        "own file",
        h.sh("sec", "cat ~/.config/npm/npmrc; rm ~/.config/npm/npmrc")?,
        "mine".into(),
    )?;
    h.codchi_with(&["secrets", "set", "sec", "API_TOKEN"], TOKEN.as_bytes())?
        .ok()?;
    Ok(())
}

fn checked(h: &Host) -> Result<(), Failed> {
    let done = h
        .codchi_with(&["secrets", "set", "sec", "API_TOKEN"], b"no")?
        .exits(1)?;
    require!(
        done.err.contains("[a-f0-9]{8,}"),
        "the check is not told: {}",
        done.err
    );
    let done = h
        .codchi_with(&["secrets", "set", "sec", "API_TOKE"], b"no")?
        .exits(5)?;
    require!(
        done.err.contains("`API_TOKEN`"),
        "no suggestion: {}",
        done.err
    );
    h.codchi(&["secrets", "get", "sec", "extra"])?.exits(5)?;
    same(
        "value",
        h.codchi(&["secrets", "get", "sec", "API_TOKEN"])?.ok()?.out,
        TOKEN.into(),
    )
}

fn listed(h: &Host) -> Result<(), Failed> {
    let text = h
        .codchi(&["secrets", "list", "sec", "--json"])?
        .ok()?
        .text();
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let state = |name: &str| {
        let secrets = all["secrets"].as_array().cloned().unwrap_or_default();
        secrets
            .iter()
            .find(|s| s["name"] == name)
            .map(|s| s["state"].as_str().unwrap_or("").to_string())
    };
    same("set", state("API_TOKEN").as_deref(), Some("set"))?;
    same("default", state("GREETING").as_deref(), Some("default"))?;
    same("unset", state("extra").as_deref(), Some("unset"))?;
    for text in [text, h.codchi(&["secrets", "list", "sec"])?.ok()?.text()] {
        require!(
            text.contains("db-password") && !text.contains("changed") && !text.contains(TOKEN),
            "{text}"
        );
    }
    Ok(())
}

/// Runs codchi on a terminal, and types each answer when its question is there.
fn at_a_terminal(h: &Host, args: &[&str], answers: &[(&str, &str)]) -> Result<Done, Failed> {
    let (line, env) = script_words(h, args);
    let mut child = std::process::Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .env_clear()
        .envs(env)
        .env("TERM", "xterm")
        .current_dir(&h.home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut stdin, mut stdout) = (
        child.stdin.take().ok_or("no stdin")?,
        child.stdout.take().ok_or("no stdout")?,
    );
    let mut seen = Vec::new();
    let mut from = 0;
    for (question, answer) in answers {
        while !String::from_utf8_lossy(&seen[from..]).contains(question) {
            let mut some = [0; 4096];
            let n = stdout.read(&mut some)?;
            require!(
                n > 0,
                "{question:?} was not asked: {}",
                String::from_utf8_lossy(&seen)
            );
            seen.extend_from_slice(&some[..n]);
        }
        from = seen.len();
        stdin.write_all(answer.as_bytes())?;
        stdin.flush()?;
    }
    stdout.read_to_end(&mut seen)?;
    let status = child.wait()?.code().unwrap_or(-1);
    Ok(Done {
        status,
        out: seen,
        err: String::new(),
    })
}

fn typed(h: &Host) -> Result<(), Failed> {
    let wrong = "wrong-one";
    let done = at_a_terminal(
        h,
        &["secrets", "set", "sec", "API_TOKEN"],
        &[
            ("keep the one it has):", "wrong-one\r"),
            ("keep the one it has):", "12345679\u{7f}8\r"),
        ],
    )?
    .ok()?;
    let shown = done.text();
    require!(
        shown.contains("Token of the API")
            && shown.contains("********")
            && shown.contains("does not look"),
        "description, stars or check are missing: {shown}"
    );
    require!(
        !shown.contains(wrong) && !shown.contains("1234567"),
        "what was typed is shown: {shown}"
    );
    same(
        "value",
        h.codchi(&["secrets", "get", "sec", "API_TOKEN"])?
            .ok()?
            .text(),
        "12345678".into(),
    )?;
    at_a_terminal(
        h,
        &["secrets", "set", "sec", "API_TOKEN"],
        &[("has):", "\r")],
    )?
    .ok()?;
    same(
        "kept",
        h.codchi(&["secrets", "get", "sec", "API_TOKEN"])?
            .ok()?
            .text(),
        "12345678".into(),
    )?;
    at_a_terminal(
        h,
        &["secrets", "set", "sec", "npmrc"],
        &[("ends it):", "one\rtwo\r\u{4}")],
    )?
    .ok()?;
    same(
        "lines",
        h.codchi(&["secrets", "get", "sec", "npmrc"])?.ok()?.out,
        b"one\ntwo\n".to_vec(),
    )?;
    h.codchi_with(&["secrets", "set", "sec", "API_TOKEN"], TOKEN.as_bytes())?
        .ok()?;
    Ok(())
}

fn rebuilt(h: &Host) -> Result<(), Failed> {
    let file = h.home.join("secrets-project/module.nix");
    let text = codchi_fs::read_to_string(&file)?;
    let more = text.replace(
        "    extra = {",
        "    later = {\n      description = \"Came later\";\n    };\n    extra = {",
    );
    require!(more != text, "the fixture has changed");
    codchi_fs::write(
        &file,
        more.replace("check = \"[a-f0-9]{8,}\"", "check = \"[a-f0-9]+\""),
    )?;
    h.commit(&h.home.join("secrets-project"))?;
    let done = h.codchi(&["rebuild", "sec"])?.exits(4)?;
    require!(
        done.err.contains("--secret later=@FILE"),
        "the new one is not asked for: {}",
        done.err
    );
    require!(
        !done.err.contains("API_TOKEN"),
        "one that is there is asked for: {}",
        done.err
    );
    let mut c = h.codchi_command(&["rebuild", "sec", "--secret-env", "later=LATER"]);
    c.env("LATER", "in time");
    run(&mut c, b"")?.ok()?;
    same(
        "new variable",
        h.sh("sec", "printf %s \"$later-$API_TOKEN\"")?,
        format!("in time-{TOKEN}"),
    )?;
    codchi_fs::write(&file, &text)?;
    h.commit(&h.home.join("secrets-project"))?;
    h.codchi(&["rebuild", "sec"])?.ok()?;
    same(
        "taken away",
        h.sh("sec", "printf %s \"$later\"")?,
        String::new(),
    )?;
    same(
        "credentials",
        h.root_sh("sec", "ls /run/codchi/credentials | grep -c later || true")?,
        "0".into(),
    )?;
    let list = h.codchi(&["secrets", "list", "sec"])?.ok()?.text();
    require!(
        list.contains("unused"),
        "the value that is kept is not told: {list}"
    );
    h.codchi(&["secrets", "unset", "sec", "later"])?.ok()?;
    Ok(())
}

fn waits(h: &Host) -> Result<(), Failed> {
    h.codchi(&["stop", "sec"])?.ok()?;
    h.codchi(&["secrets", "unset", "sec", "API_TOKEN"])?.ok()?;
    let done = h.codchi(&["start", "sec"])?.exits(4)?;
    require!(
        done.err.contains("--secret API_TOKEN=@FILE"),
        "no way out is told: {}",
        done.err
    );
    h.codchi(&["exec", "sec", "--", "true"])?.exits(125)?;
    // What the service manager of the host runs when the computer starts.
    h.codchi(&["supervise", "sec"])?.ok()?;
    same(
        "state",
        h.status("sec")?["state"].as_str(),
        Some("needs-secrets"),
    )?;
    h.codchi_with(
        &["start", "sec", "--secret", "API_TOKEN=-"],
        TOKEN.as_bytes(),
    )?
    .ok()?;
    same("state", h.status("sec")?["state"].as_str(), Some("running"))?;
    same(
        "variable",
        h.sh("sec", "printf %s \"$API_TOKEN\"")?,
        TOKEN.into(),
    )?;
    // With its secrets it comes up without a person.
    h.codchi(&["stop", "sec"])?.ok()?;
    let mut supervisor = h
        .codchi_command(&["supervise", "sec"])
        .stdin(Stdio::null())
        .spawn()?;
    eventually("it is running", || {
        Ok(h.status("sec")?["state"] == "running")
    })?;
    eventually("the variable is there", || {
        Ok(
            h.codchi(&["exec", "sec", "--", "sh", "-c", "printf %s \"$API_TOKEN\""])?
                .text()
                == TOKEN,
        )
    })?;
    h.codchi(&["stop", "sec"])?.ok()?;
    supervisor.wait()?;
    h.codchi(&["start", "sec"])?.ok()?;
    Ok(())
}

fn leaks(h: &Host) -> Result<(), Failed> {
    // A value that nothing else holds, no other run of this suite either; the store has every file of this machine by now.
    let value = &format!("5ec2e7d0{:08x}", std::process::id());
    h.codchi_with(&["secrets", "set", "sec", "API_TOKEN"], value.as_bytes())?
        .ok()?;
    h.codchi_with(&["secrets", "set", "sec", "db-password"], value.as_bytes())?
        .ok()?;
    h.codchi(&["restart", "sec"])?.ok()?;
    same(
        "control",
        h.sh("sec", "printf %s \"$API_TOKEN\"")?,
        value.into(),
    )?;
    let found = run(
        std::process::Command::new("grep")
            // By NUL: what has no line ends, as holes have none, would be held in memory whole.
            .args(["-rlazF", "-e", value, "--"])
            .arg(&h.home),
        b"",
    )?;
    same("files of the person", found.text(), String::new())?;
    same(
        "the journal",
        h.root_sh(
            "sec",
            &format!("journalctl --no-pager | grep -c {value} || true"),
        )?,
        "0".into(),
    )?;
    // Command lines and environments of the host: those of what runs inside are the machine's own.
    let mut seen = 0;
    for entry in codchi_fs::read_dir("/proc")? {
        let at = entry.path();
        let Ok(line) = codchi_fs::read(at.join("cmdline")) else {
            continue;
        };
        seen += 1;
        let line = String::from_utf8_lossy(&line).into_owned();
        require!(!line.contains(value), "a command line shows it: {line}");
        if line.contains("supervise") {
            let env = codchi_fs::read(at.join("environ")).unwrap_or_default();
            require!(
                !String::from_utf8_lossy(&env).contains(value),
                "the supervisor's environment has it"
            );
        }
    }
    require!(seen > 5, "no command lines were seen");
    Ok(())
}

fn removed(h: &Host) -> Result<(), Failed> {
    h.codchi(&["delete", "--yes", "sec"])?.ok()?;
    let left = run(
        std::process::Command::new("find").arg(&h.home).args([
            "-path",
            "*secrets*",
            "-not",
            "-path",
            "*/store/*",
            "-not",
            "-path",
            "*/secrets-project*",
            "-not",
            "-path",
            // Codchi's own modules, in an export that another case unpacked.
            "*/codchi/modules/*",
        ]),
        b"",
    )?;
    same("what is left", left.text(), String::new())
}

/// A real keyring on a bus of its own. The person is logged in to it first, then it is locked.
fn keyring(h: &Host) -> Result<(), Failed> {
    let script = r#"
set -e
printf pw | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1
repo=$1 codchi=$2
mkdir -p "$XDG_RUNTIME_DIR"
"$codchi" init ring "$repo" --no-start --secret API_TOKEN=@token --secret db-password=@token
"$codchi" secrets list ring --json | grep -q keyring
test "$(secret-tool lookup application codchi machine ring secret API_TOKEN)" = "$(cat token)"
"$codchi" exec ring -- sh -c 'test -n "$API_TOKEN"'
test ! -e "$HOME/.local/share/codchi/secrets/ring.age"
"$codchi" stop ring
gdbus call --session --dest org.freedesktop.secrets --object-path /org/freedesktop/secrets \
  --method org.freedesktop.Secret.Service.Lock "['/org/freedesktop/secrets/collection/login']" >/dev/null
status=0; "$codchi" --no-input start ring 2>locked || status=$?
test "$status" = 4; grep -q locked locked
"$codchi" supervise ring
"$codchi" status ring --json | grep -q needs-secrets
printf pw | gnome-keyring-daemon --unlock --replace --components=secrets >/dev/null 2>&1
"$codchi" start ring
"$codchi" delete --yes ring
test -z "$(secret-tool search --all application codchi machine ring 2>/dev/null)"
gnome-keyring-daemon --version >/dev/null
"#;
    let repo = h.home.join("secrets-project");
    let program = h.codchi_command(&["x"]);
    let program = match h.kind {
        Kind::Root => program.get_program().to_owned(),
        // Behind the script that gives the person a session.
        Kind::Rootless => program.get_args().nth(1).ok_or("no program")?.to_owned(),
    };
    let mut c = h.command("dbus-run-session");
    c.args(["--", "bash", "-xc", script, "keyring"])
        .arg(repo)
        .arg(program);
    let done = run(&mut c, b"")?;
    require!(
        done.status == 0,
        "status {}: {}\n{}",
        done.status,
        done.text(),
        done.err
    );
    Ok(())
}
