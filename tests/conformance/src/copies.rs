//! Copies of a machine, and other names for it: nothing is lost.

use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::cases::{build, collect, same};
use crate::host::Host;

/// Files of every kind, in a home and in /var/lib; what is meant to be hard to copy.
const MAKE: &str = r#"
d=/var/lib/copies; mkdir -p $d; cd $d
printf data > plain; chown 1234:2345 plain; chmod 6711 plain; ln plain hard; touch -d @123456789.123456789 plain
ln -s /nowhere/at/all dangling; mkfifo pipe; mkdir -m 1777 sticky; mkdir -m 2750 setgid; mkdir lib etc bin; echo 1 > lib/etc
truncate -s 3G sparse; printf end >> sparse
touch "$(printf 'new\nline')" "$(printf '\377\376')" "$(printf '%0255d' 7)" -- -rf
i=0; while [ $i -lt 60 ]; do mkdir deep; cd deep; i=$((i+1)); done; echo bottom > file; cd $d
chown -h 4711:4712 dangling
perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un("socket"))' 2>/dev/null || true
setcap cap_net_raw+ep lib/etc
mkdir -p /home/codchi/work; echo mine > /home/codchi/work/file; chown -R codchi: /home/codchi/work
"#;

/// Everything that can be seen of them from inside.
const LOOK: &str = r#"
cd /; find var/lib/copies home/codchi/work -printf '%p|%y|%m|%U|%G|%T@|%s|%l|' \( -type d -printf '\n' -o -printf '%n\n' \) | LC_ALL=C sort
find var/lib/copies home/codchi/work -type f -not -name sparse -exec sha256sum {} + | LC_ALL=C sort
cd var/lib/copies; test plain -ef hard && echo linked; getcap lib/etc; tail -c 3 sparse; test $(stat -c %b sparse) -lt 1000 && echo holes
"#;

pub(crate) fn make(h: &Host, machine: &str) -> Result<String, Failed> {
    h.root_sh(machine, MAKE)?;
    let seen = look(h, machine)?;
    for wanted in [
        "linked",
        "endholes",
        "cap_net_raw",
        "|6711|1234|2345|123456789.1234567890|",
    ] {
        if !seen.contains(wanted) {
            return Err(format!("`{wanted}` is not to be seen in\n{seen}").into());
        }
    }
    Ok(seen)
}

pub(crate) fn look(h: &Host, machine: &str) -> Result<String, Failed> {
    h.root_sh(machine, LOOK)
}

/// Every name below the folders of Codchi in which a word occurs as a part of its own.
fn named(h: &Host, word: &str) -> Result<String, Failed> {
    let script = r#"find "$HOME" -path "$HOME/*/codchi/store/nix/store" -prune -o -path '*/root/*' -prune -o \
        -path '*/codchi/*' \( -name "$0" -o -name "$0.*" \) -print"#;
    Ok(
        crate::host::run(h.command("sh").args(["-c", script, word]), b"")?
            .ok()?
            .text(),
    )
}

/// The machine answers at once: it is not held still any more.
pub(crate) fn answers(h: &Host, machine: &str) -> Result<(), Failed> {
    let mut child = h.codchi_command(&["exec", machine, "--", "true"]).spawn()?;
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return same("a command in it", status.code(), Some(0));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()?;
    Err(format!("`{machine}` does not answer").into())
}

/// Whoever holds the machine still for a copy of it is killed.
pub(crate) fn holder_killed(h: &Host) -> Result<(), Failed> {
    let script = r#"
        cd "$HOME"; mkfifo held-by; trap 'rm -f held-by held' EXIT
        "$0" plumbing hold "$XDG_RUNTIME_DIR/codchi/machines/conf" <held-by >held & exec 3>held-by
        until grep -q held held; do kill -0 $!; sleep 0.02; done; kill -9 $!"#;
    let program = h.program().to_owned();
    crate::host::run(h.command("sh").args(["-euc", script]).arg(program), b"")?
        .ok()
        .map(drop)
}

pub fn duplicate(h: &Host) -> Result<(), Failed> {
    let before = make(h, "conf")?;
    h.sh(
        "conf",
        &format!("nix-build -o ~/work/result -E {}", build("copied")),
    )?;
    let done = h.codchi(&["duplicate", "conf", "twin"])?.ok()?;
    if !done.err.contains("held still") {
        return Err(format!(
            "it was not said that the machine is held still: {}",
            done.err
        )
        .into());
    }
    answers(h, "conf")?;
    if !h.has_engine() {
        holder_killed(h)?;
        answers(h, "conf")?;
    }
    let status = h.status("twin")?;
    same(
        "state of the copy",
        status["state"].as_str(),
        Some("stopped"),
    )?;
    same(
        "its config",
        status["config"].clone(),
        h.status("conf")?["config"].clone(),
    )?;
    same(
        "its system",
        status["toplevel"].clone(),
        h.status("conf")?["toplevel"].clone(),
    )?;
    let got = look(h, "twin")?;
    let rest = |text: &str| {
        text.lines()
            .filter(|l| !l.contains("/work|") && !l.contains("work/result"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    same("its files", rest(&got), rest(&before))?;
    let id = |m| h.sh(m, "cat /etc/machine-id");
    if id("conf")? == id("twin")? {
        return Err("both have the same machine id".into());
    }
    same("host name", h.sh("twin", "hostname")?, "twin".to_string())?;
    let version = |m: &str| -> Result<String, Failed> {
        let flake = h
            .home
            .join(".config/codchi/machines")
            .join(m)
            .join("flake.nix");
        Ok(codchi_fs::read_to_string(flake)?)
    };
    same("flake.nix", version("twin")?, version("conf")?)?;
    // What the copy's result link points to is the copy's, too.
    let result = h.sh("twin", "readlink ~/work/result")?;
    h.sh("conf", "rm ~/work/result")?;
    h.codchi(&["stop", "twin"])?.ok()?;
    crate::cases::eventually("the root of the first link goes", || {
        collect(h)?;
        Ok(h.codchi(&["exec", "twin", "--", "test", "-e", &result])?
            .status
            == 0)
    })?;
    // A taken name changes nothing.
    h.codchi(&["duplicate", "conf", "twin"])?.exits(1)?;
    h.codchi(&["duplicate", "conf", "Bad"])?.exits(2)?;
    h.codchi(&["duplicate", "nothing", "other"])?.exits(5)?;
    same("the copy", h.sh("twin", "cat ~/work/file")?, "mine".into())
}

pub fn rename(h: &Host) -> Result<(), Failed> {
    let before = look(h, "twin")?;
    let config = h.status("twin")?["config"].clone();
    let id = h.sh("twin", "cat /etc/machine-id")?;
    h.codchi(&["rename", "twin", "other"])?.ok()?;
    let status = h.status("other")?;
    same("state", status["state"].as_str(), Some("running"))?;
    same("config", status["config"].clone(), config)?;
    same("files", look(h, "other")?, before.clone())?;
    same("machine id", h.sh("other", "cat /etc/machine-id")?, id)?;
    same("host name", h.sh("other", "hostname")?, "other".to_string())?;
    h.codchi(&["status", "twin"])?.exits(5)?;
    same("what has the old name", named(h, "twin")?, String::new())?;
    h.codchi(&["generations", "other"])?.ok()?;
    // Roots made inside hold under the new name.
    collect(h)?;
    h.sh("other", "test -e ~/work/result")?;
    // The same while it is off.
    h.codchi(&["stop", "other"])?.ok()?;
    h.codchi(&["rename", "other", "twin"])?.ok()?;
    same(
        "state",
        h.status("twin")?["state"].as_str(),
        Some("stopped"),
    )?;
    same("files", look(h, "twin")?, before)?;
    h.codchi(&["rename", "twin", "conf"])?.exits(1)?;
    h.codchi(&["rename", "twin", "twin"])?.exits(2)?;
    h.codchi(&["rename", "nothing", "other"])?.exits(5)?;
    h.codchi(&["delete", "--yes", "twin"])?.ok()?;
    same(
        "what is left of it",
        named(h, "twin")? + &named(h, "other")?,
        String::new(),
    )
}

/// Exported, imported under another name, and the same; the flake of the export builds the system without a driver.
pub fn export(h: &Host) -> Result<(), Failed> {
    make(h, "conf")?;
    // What no tar can hold; and what a person's own tools would have to put right.
    let seen = |m: &str| -> Result<String, Failed> {
        let all = look(h, m)?;
        Ok(all
            .lines()
            .filter(|l| !l.contains("copies/socket|") && !l.starts_with("var/lib/copies|"))
            .collect::<Vec<_>>()
            .join("\n"))
    };
    let before = seen("conf")?;
    let file = h.home.join("conf.tar.zst");
    let file = file.to_string_lossy();
    let out = h.codchi(&["tar", "conf", &file, "--json", "--yes"])?.ok()?;
    answers(h, "conf")?;
    let told: serde_json::Value = serde_json::from_str(&out.text())?;
    same(
        "what could not be exported",
        told["lost"].clone(),
        serde_json::json!([]),
    )?;
    h.codchi(&["import", &file])?.exits(1)?;
    h.codchi(&["import", &file, "back", "--start"])?.ok()?;
    same("files", seen("back")?, before)?;
    same("host name", h.sh("back", "hostname")?, "back".to_string())?;
    same(
        "the command of the module",
        h.sh("back", "hello")?,
        "Hello, world!".to_string(),
    )?;
    same(
        "system",
        h.status("back")?["toplevel"].clone(),
        h.status("conf")?["toplevel"].clone(),
    )?;
    same(
        "config",
        h.status("back")?["config"].as_str(),
        Some("up-to-date"),
    )?;
    let flake = |m: &str| {
        codchi_fs::read_to_string(
            h.home
                .join(".config/codchi/machines")
                .join(m)
                .join("flake.nix"),
        )
    };
    same("flake.nix", flake("back")?, flake("conf")?)?;
    h.codchi(&["delete", "--yes", "back"])?.ok()?;
    same("what is left of it", named(h, "back")?, String::new())?;

    // The flake: evaluated and built where it was unpacked.
    let plain = h.home.join("conf.tar");
    h.codchi(&["tar", "conf", &plain.to_string_lossy(), "--yes"])?
        .ok()?;
    let script = r#"rm -rf plain; mkdir plain; tar -xf conf.tar -C plain etc/nixos; cd plain/etc/nixos
        cp codchi.json /dev/stderr; "$0" store shell -- nix build --offline --no-link --print-out-paths \
        --extra-experimental-features 'nix-command flakes' --option substitute false \
        "path:$PWD#nixosConfigurations.nixos.config.system.build.toplevel""#;
    let built =
        crate::host::run(h.command("sh").args(["-c", script]).arg(h.program()), b"")?.ok()?;
    let system = built.text();
    let read = |what: &str| -> Result<String, Failed> {
        Ok(
            h.codchi(&["store", "shell", "--", "cat", &format!("{system}/{what}")])?
                .ok()?
                .text(),
        )
    };
    same(
        "the name of the plain system",
        read("etc/hostname")?,
        "conf".to_string(),
    )?;
    h.codchi(&[
        "store",
        "shell",
        "--",
        "test",
        "-e",
        &format!("{system}/codchi/manifest.json"),
    ])?
    .exits(1)?;

    // What is no export changes nothing.
    let script = "rm -rf plain; printf 'not a tar' > bad.tar; head -c 100000 conf.tar > cut.tar; tar -cf other.tar conf.tar";
    crate::host::run(h.command("sh").args(["-c", script]), b"")?.ok()?;
    for bad in ["bad.tar", "cut.tar", "other.tar", "missing.tar"] {
        let done = h
            .codchi(&["import", &h.home.join(bad).to_string_lossy(), "bad"])?
            .exits(1)?;
        if !done.err.contains(bad) {
            return Err(format!("`{bad}` is not named: {}", done.err).into());
        }
        same("what is left of it", named(h, "bad")?, String::new())?;
    }
    h.codchi(&["tar", "conf", "x.zip"])?.exits(2)?;
    h.codchi(&["tar", "conf", "/nonexistent/x.tar"])?.exits(1)?;
    crate::host::run(
        h.command("sh").args([
            "-c",
            "rm -f conf.tar conf.tar.zst bad.tar cut.tar other.tar",
        ]),
        b"",
    )?
    .ok()?;
    Ok(())
}
