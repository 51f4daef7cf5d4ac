//! The cases, in the order in which they run.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::host::{Host, Kind, run};

/// A case: what it shows, and the function that shows it.
pub type Case = (&'static str, fn(&Host) -> Result<(), Failed>);

/// Every case. The first creates the machine `conf` that the others use, the last deletes it.
pub const ALL: &[Case] = &[
    ("create_from_a_repository", create),
    ("init_of_a_taken_name_changes_nothing", init_taken),
    ("init_script_ran_once_as_the_user", init_script),
    ("status_tells_what_runs", status),
    ("systemd_reaches_running", systemd_running),
    ("exec_keeps_arguments_exact", exec_arguments),
    ("exec_returns_the_exit_status", exec_status),
    ("exec_relays_input_and_output", exec_streams),
    ("exec_keeps_large_streams_whole", exec_large),
    ("exec_has_the_login_environment", exec_environment),
    ("exec_takes_user_and_directory", exec_user),
    ("exec_gives_a_terminal_when_asked", exec_terminal),
    ("exec_forwards_signals", exec_signals),
    ("exec_many_at_once", exec_parallel),
    ("a_lost_client_ends_its_command", exec_lost),
    ("entering_works_without_the_agent", exec_fallback),
    ("services_of_the_module_run", services),
    ("caches_of_the_packages_are_there", caches),
    ("users_and_groups_of_the_module_exist", users),
    ("sudo_works", sudo),
    ("files_keep_owner_mode_and_content", files),
    ("the_store_is_read_only", store_read_only),
    ("the_store_cannot_be_unmounted", store_locked),
    ("the_daemon_builds_for_the_machine", daemon_builds),
    ("a_current_nix_works_inside", current_nix),
    ("roots_made_inside_hold", roots_hold),
    ("ports_lead_into_the_machine", ports),
    ("folders_of_the_host_are_in_the_machine", mounts),
    ("the_network_reaches_out_but_not_the_host", network),
    ("forbidden_system_calls_are_refused", seccomp),
    ("two_machines_are_two", two_machines),
    ("a_machine_may_see_only_its_closure", closure),
    ("reboot_from_inside_comes_back", reboot),
    ("stop_and_start_keep_files", stop_start),
    ("a_full_disk_keeps_no_machine_running", full_disk),
    ("a_rebuild_without_changes_does_nothing", rebuild_noop),
    (
        "a_duplicate_has_every_file_and_an_identity_of_its_own",
        crate::copies::duplicate,
    ),
    (
        "a_renamed_machine_has_everything_under_its_new_name",
        crate::copies::rename,
    ),
    (
        "an_export_comes_back_whole_and_builds_without_a_driver",
        crate::copies::export,
    ),
    ("rebuild_applies_the_change", rebuild),
    ("rollback_returns_to_the_first_generation", rollback),
    ("a_broken_module_changes_nothing", rebuild_broken),
    (
        "a_generation_that_does_not_come_up_is_taken_back",
        rebuild_ill,
    ),
    (
        "several_machines_are_rebuilt_together_and_one_that_fails_stops_none",
        rebuild_several,
    ),
    (
        "old_generations_go_and_what_a_machine_uses_stays",
        collect_garbage,
    ),
    ("a_declared_machine_takes_the_systems_it_is_given", install),
    ("logs_show_console_and_units", logs),
    ("dry_run_changes_nothing", dry_run),
    ("bad_input_is_refused_with_a_reason", bad_input),
    ("a_held_lock_is_named", busy),
    ("init_runs_a_command_and_returns_its_status", init_command),
    ("delete_leaves_nothing", delete),
];

/// Fails the case, with these words, where something is not so.
#[macro_export]
macro_rules! require {
    ($cond:expr, $($what:tt)+) => {
        if !$cond {
            return Err(format!($($what)+).into());
        }
    };
}

pub(crate) fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    got: T,
    wanted: T,
) -> Result<(), Failed> {
    if got == wanted {
        Ok(())
    } else {
        Err(format!("{what}: got {got:?}, wanted {wanted:?}").into())
    }
}

/// Waits for something another process does, for at most a minute.
pub(crate) fn eventually(
    what: &str,
    mut check: impl FnMut() -> Result<bool, Failed>,
) -> Result<(), Failed> {
    let end = Instant::now() + Duration::from_secs(60);
    while !check()? {
        require!(
            Instant::now() < end,
            "did not happen within a minute: {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn create(h: &Host) -> Result<(), Failed> {
    let repo = h.checkout("tests/fixtures/conformance", "project")?;
    let done = h.codchi(&["init", "conf", &repo.to_string_lossy()])?.ok()?;
    require!(
        done.err.contains("init script runs as codchi"),
        "the init script was not streamed: {}",
        done.err
    );
    same("hello", h.sh("conf", "hello")?, "Hello, world!".to_string())?;
    same(
        "own command",
        h.sh("conf", "fixture-command a 'b  c'")?,
        "from the module: a b  c".into(),
    )
}

fn init_taken(h: &Host) -> Result<(), Failed> {
    h.sh("conf", "echo precious > ~/keep")?;
    let before = h.status("conf")?["generation"].clone();
    let done = h.codchi(&["init", "conf"])?;
    require!(
        done.status != 0 && done.err.contains("conf"),
        "a taken name was accepted: {done:?}"
    );
    same("file", h.sh("conf", "cat ~/keep")?, "precious".to_string())?;
    same(
        "generation",
        h.status("conf")?["generation"].clone(),
        before,
    )
}

fn init_script(h: &Host) -> Result<(), Failed> {
    same(
        "runs",
        h.sh("conf", "wc -l < ~/init-script-runs")?,
        "1".to_string(),
    )?;
    h.sh("conf", "codchi-init")?;
    same(
        "runs after codchi-init",
        h.sh("conf", "wc -l < ~/init-script-runs")?,
        "2".to_string(),
    )
}

fn status(h: &Host) -> Result<(), Failed> {
    let s = h.status("conf")?;
    same("state", s["state"].as_str(), Some("running"))?;
    same("driver", s["driver"].as_str(), Some(h.driver))?;
    same("base", s["base"].as_str(), Some("debian"))?;
    same("generation", s["generation"].as_u64(), Some(1))?;
    same("config", s["config"].as_str(), Some("up-to-date"))?;
    require!(
        s["leader"].as_u64().is_some_and(|p| p > 1),
        "no leader: {s}"
    );
    let table = h.codchi(&["status"])?.ok()?.text();
    require!(
        table.contains("conf") && table.contains("running"),
        "the table lacks the machine: {table}"
    );
    let list = h.codchi(&["list"])?.ok()?.text();
    require!(
        list.lines()
            .any(|l| l.split_whitespace().next() == Some("conf")),
        "the list lacks the machine: {list}"
    );
    h.codchi(&["status", "nosuch"])?.exits(5)?;
    Ok(())
}

fn systemd_running(h: &Host) -> Result<(), Failed> {
    let failed = h.root_sh("conf", "systemctl --failed --no-legend --plain --no-pager")?;
    same("failed units", failed, String::new())?;
    same(
        "state",
        h.root_sh("conf", "systemctl is-system-running")?,
        "running".to_string(),
    )?;
    same(
        "PID 1",
        h.root_sh("conf", "cat /proc/1/comm")?,
        "systemd".into(),
    )?;
    same(
        "user manager",
        h.sh("conf", "systemctl --user is-system-running")?,
        "running".to_string(),
    )
}

fn exec_arguments(h: &Host) -> Result<(), Failed> {
    let awkward = [
        "",
        " ",
        "a b",
        "'",
        "\"",
        "$HOME",
        "\\",
        "*",
        "new\nline",
        "ünï",
        "--",
        "-x",
        ";true",
    ];
    let mut args = vec![
        "exec",
        "conf",
        "--",
        "python3",
        "-c",
        "import sys,json;print(json.dumps(sys.argv[1:]))",
    ];
    args.extend(awkward);
    let out = h.codchi(&args)?.ok()?.text();
    let got: Vec<String> = serde_json::from_str(&out)?;
    same(
        "arguments",
        got,
        awkward.iter().map(|s| s.to_string()).collect(),
    )?;
    use std::os::unix::ffi::OsStrExt;
    let raw = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    let mut c = h.codchi_command(&["exec", "conf", "--", "printf", "%s"]);
    c.arg(raw);
    same("bytes", run(&mut c, b"")?.ok()?.out, b"\xff\xfe".to_vec())
}

fn exec_status(h: &Host) -> Result<(), Failed> {
    for code in ["0", "1", "2", "42", "125", "255"] {
        let wanted = code.parse()?;
        same(
            "status",
            h.codchi(&["exec", "conf", "--", "sh", "-c", &format!("exit {code}")])?
                .status,
            wanted,
        )?;
    }
    same(
        "signal",
        h.codchi(&["exec", "conf", "--", "sh", "-c", "kill -TERM $$"])?
            .status,
        143,
    )?;
    same(
        "not found",
        h.codchi(&["exec", "conf", "--", "no-such-command"])?.status,
        127,
    )?;
    same(
        "not executable",
        h.codchi(&["exec", "conf", "--", "/etc/passwd"])?.status,
        126,
    )?;
    same(
        "no such machine",
        h.codchi(&["exec", "nosuch", "--", "true"])?.status,
        125,
    )
}

fn exec_streams(h: &Host) -> Result<(), Failed> {
    let done = h
        .codchi_with(
            &["exec", "conf", "--", "sh", "-c", "cat; echo to-err >&2"],
            b"in\0put\n",
        )?
        .ok()?;
    same("stdout", done.out, b"in\0put\n".to_vec())?;
    same("stderr", done.err, "to-err\n".into())?;
    // A command that closes its input early is no failure, nor is one that never reads it.
    h.codchi_with(&["exec", "conf", "--", "true"], &vec![b'x'; 1 << 20])?
        .ok()?;
    same(
        "no terminal",
        h.codchi(&[
            "exec",
            "conf",
            "--",
            "sh",
            "-c",
            "test -t 0 || test -t 1 || test -t 2",
        ])?
        .status,
        1,
    )
}

fn exec_large(h: &Host) -> Result<(), Failed> {
    let data: Vec<u8> = (0..32u32 << 20)
        .map(|i| (i.wrapping_mul(2654435761) >> 24) as u8)
        .collect();
    let done = h.codchi_with(&["exec", "conf", "--", "cat"], &data)?.ok()?;
    require!(
        done.out == data,
        "32 MiB came back as {} bytes, or changed",
        done.out.len()
    );
    Ok(())
}

fn exec_environment(h: &Host) -> Result<(), Failed> {
    same(
        "module variable",
        h.sh("conf", "printf %s \"$FIXTURE_VARIABLE\"")?,
        "with 'quotes'  and blanks".to_string(),
    )?;
    same(
        "user",
        h.sh("conf", "id -un; echo $USER $HOME; pwd")?,
        "codchi\ncodchi /home/codchi\n/home/codchi".into(),
    )?;
    same(
        "runtime directory",
        h.sh("conf", "echo $XDG_RUNTIME_DIR")?,
        "/run/user/1000".into(),
    )?;
    require!(
        h.sh("conf", "echo $PATH")?
            .contains("/run/current-system/sw/bin"),
        "no system path"
    );
    same(
        "given",
        h.codchi(&[
            "exec",
            "-e",
            "A=b c",
            "conf",
            "--",
            "sh",
            "-c",
            "printf %s \"$A\"",
        ])?
        .ok()?
        .text(),
        "b c".into(),
    )?;
    let leaked = h.sh("conf", "env | grep -c CODCHI_BASE || true")?;
    same("the host's variables", leaked, "0".to_string())
}

fn exec_user(h: &Host) -> Result<(), Failed> {
    same(
        "user",
        h.codchi(&[
            "exec",
            "-u",
            "second",
            "conf",
            "--",
            "sh",
            "-c",
            "id -un; id -Gn; pwd",
        ])?
        .ok()?
        .text(),
        "second\nusers fixture\n/home/second".to_string(),
    )?;
    same("root", h.root_sh("conf", "id -u; pwd")?, "0\n/root".into())?;
    same(
        "directory",
        h.codchi(&["exec", "-C", "/etc", "conf", "--", "pwd"])?
            .ok()?
            .text(),
        "/etc".into(),
    )?;
    same(
        "no such user",
        h.codchi(&["exec", "-u", "nobody-here", "conf", "--", "true"])?
            .status,
        125,
    )?;
    same(
        "no such directory",
        h.codchi(&["exec", "-C", "/no/such", "conf", "--", "true"])?
            .status,
        125,
    )
}

/// `codchi ARGS` as a line for `script`, which gives it a terminal as a person's would, and its environment.
pub fn script_words(h: &Host, args: &[&str]) -> (String, Vec<(OsString, OsString)>) {
    let command = h.codchi_command(args);
    let mut words = vec![quote(&command.get_program().to_string_lossy())];
    words.extend(command.get_args().map(|a| quote(&a.to_string_lossy())));
    let env = command
        .get_envs()
        .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())))
        .collect();
    (words.join(" "), env)
}

fn exec_terminal(h: &Host) -> Result<(), Failed> {
    let (words, env) = script_words(
        h,
        &[
            "exec",
            "conf",
            "--",
            "sh",
            "-c",
            "test -t 0 && test -t 1 && stty size && exit 7",
        ],
    );
    let line = format!("stty rows 33 cols 77; {words}");
    let mut c = std::process::Command::new("script");
    c.args(["-qefc", &line, "/dev/null"])
        .env_clear()
        .envs(env)
        .env("TERM", "xterm")
        .current_dir(&h.home);
    let done = run(&mut c, b"")?;
    same("status", done.status, 7)?;
    require!(
        done.text().contains("33 77"),
        "no terminal of the caller's size: {:?}",
        done.text()
    );
    let forced = h
        .codchi(&[
            "exec",
            "-t",
            "conf",
            "--",
            "sh",
            "-c",
            "test -t 1 && echo yes",
        ])?
        .ok()?;
    require!(
        forced.text().contains("yes"),
        "-t gave no terminal: {forced:?}"
    );
    Ok(())
}

pub fn quote(s: &str) -> String {
    format!("'{}'", s.replace('\'', "'\\''"))
}

fn exec_signals(h: &Host) -> Result<(), Failed> {
    let script = "trap 'echo got-term; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = h
        .codchi_command(&["exec", "conf", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = child.stdout.take().ok_or("no stdout")?;
    let mut seen = [0u8; 6];
    out.read_exact(&mut seen)?;
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let mut rest = String::new();
    out.read_to_string(&mut rest)?;
    same("handler", rest.trim(), "got-term")?;
    same("status", child.wait()?.code(), Some(9))
}

fn exec_parallel(h: &Host) -> Result<(), Failed> {
    let children: Vec<_> = (0..30)
        .map(|i| {
            h.codchi_command(&[
                "exec",
                "conf",
                "--",
                "sh",
                "-c",
                &format!("echo {i}; exit {i}"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
        })
        .collect::<Result<_, _>>()?;
    for (i, child) in children.into_iter().enumerate() {
        let out = child.wait_with_output()?;
        same("status", out.status.code(), Some(i as i32))?;
        same(
            "output",
            String::from_utf8_lossy(&out.stdout).trim().to_string(),
            i.to_string(),
        )?;
    }
    Ok(())
}

fn exec_lost(h: &Host) -> Result<(), Failed> {
    let script = "trap 'echo hangup > /tmp/lost; exit' HUP; echo $$ > /tmp/lost-pid; echo ready; while :; do sleep 0.1; done";
    let mut child = h
        .codchi_command(&["exec", "-t", "conf", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = child.stdout.take().ok_or("no stdout")?;
    out.read_exact(&mut [0u8; 5])?;
    child.kill()?;
    child.wait()?;
    eventually("the command hears of its lost client", || {
        Ok(h.sh("conf", "cat /tmp/lost 2>/dev/null || true")? == "hangup")
    })
}

fn exec_fallback(h: &Host) -> Result<(), Failed> {
    h.root_sh(
        "conf",
        "systemd-run --quiet --collect systemctl stop codchi-agent.service",
    )?;
    eventually("the agent stops", || {
        let done = h.codchi(&[
            "exec",
            "-u",
            "root",
            "conf",
            "--",
            "systemctl",
            "is-active",
            "codchi-agent.service",
        ])?;
        Ok(done.text() == "inactive")
    })?;
    same(
        "status",
        h.codchi(&["exec", "conf", "--", "sh", "-c", "exit 33"])?
            .status,
        33,
    )?;
    same("user", h.sh("conf", "id -un")?, "codchi".to_string())?;
    let nobody = h.codchi(&["exec", "-u", "frob", "conf", "--", "true"])?;
    require!(
        nobody.status == 125 && nobody.err.contains("no user `frob`"),
        "{nobody:?}"
    );
    h.root_sh("conf", "systemctl start codchi-agent.service")?;
    same("again", h.sh("conf", "echo fine")?, "fine".to_string())
}

fn services(h: &Host) -> Result<(), Failed> {
    same(
        "service",
        h.root_sh("conf", "systemctl is-active fixture.service")?,
        "active".to_string(),
    )?;
    let journal = h.root_sh("conf", "journalctl -u fixture.service -o cat --no-pager")?;
    require!(
        journal.contains("hello from the unit") && journal.contains("git version"),
        "the unit's output: {journal}"
    );
    same(
        "User= and StateDirectory=",
        h.root_sh(
            "conf",
            "cat /var/lib/as-second/who; stat -c %U /var/lib/as-second",
        )?,
        "second\nsecond".into(),
    )?;
    same(
        "tmpfiles",
        h.root_sh("conf", "stat -c '%U %G %a' /var/lib/from-tmpfiles")?,
        "second fixture 751".into(),
    )?;
    eventually("the timer fires", || {
        Ok(h.root_sh("conf", "test -s /var/tmp/ticked && echo yes || true")? == "yes")
    })?;
    same(
        "etc",
        h.sh("conf", "cat /etc/fixture/file")?,
        "generation one".into(),
    )
}

/// What Debian's triggers would write: maintainer scripts do not run on the built-in base.
fn caches(h: &Host) -> Result<(), Failed> {
    let found = h.sh("conf", "LD_DEBUG=libs git --version 2>&1 >/dev/null")?;
    require!(
        found.contains("search cache=/etc/ld.so.cache") && !found.contains("(system search path)"),
        "libraries are looked for in folders:\n{found}"
    );
    same(
        "a setting of a compiled schema",
        h.sh(
            "conf",
            "gsettings get org.gnome.desktop.interface cursor-size",
        )?,
        "24".into(),
    )?;
    same(
        "what a file is",
        h.sh(
            "conf",
            "printf '\\211PNG\\r\\n\\032\\n' > ~/picture && gio info -a standard::content-type ~/picture | tail -n 1; rm ~/picture",
        )?
        .trim()
        .to_string(),
        "standard::content-type: image/png".into(),
    )
}

fn users(h: &Host) -> Result<(), Failed> {
    same(
        "ids",
        h.sh(
            "conf",
            "id -u codchi; id -u second; getent group fixture | cut -d: -f3",
        )?,
        "1000\n1001\n2000".to_string(),
    )?;
    same(
        "homes",
        h.root_sh("conf", "stat -c '%U %a' /home/codchi /home/second")?,
        "codchi 700\nsecond 700".into(),
    )
}

fn sudo(h: &Host) -> Result<(), Failed> {
    same("sudo", h.sh("conf", "sudo -n id -u")?, "0".to_string())?;
    same(
        "no sudo for others",
        h.codchi(&["exec", "-u", "second", "conf", "--", "sudo", "-n", "true"])?
            .status,
        1,
    )
}

fn files(h: &Host) -> Result<(), Failed> {
    h.root_sh("conf", "d=/var/lib/files; mkdir -p $d; cd $d; printf data > plain; chown 1234:2345 plain; chmod 4711 plain; ln plain hard; ln -s plain soft; mkfifo pipe; mkdir -m 1777 sticky")?;
    files_are_there(h)
}

fn files_are_there(h: &Host) -> Result<(), Failed> {
    let listing = h.root_sh("conf", "cd /var/lib/files; stat -c '%n %F %u %g %a %h' *")?;
    let wanted = "hard regular file 1234 2345 4711 2\npipe fifo 0 0 644 1\nplain regular file 1234 2345 4711 2\nsoft symbolic link 0 0 777 1\nsticky directory 0 0 1777 2";
    same("files", listing, wanted.to_string())
}

fn store_read_only(h: &Host) -> Result<(), Failed> {
    for attempt in [
        "touch /nix/store/x",
        "mount -o remount,rw /nix/store && touch /nix/store/x",
        "mount -o remount,bind,rw /nix/store && touch /nix/store/x",
    ] {
        let done = h.codchi(&["exec", "-u", "root", "conf", "--", "sh", "-c", attempt])?;
        require!(done.status != 0, "succeeded: {attempt}");
    }
    // LXD shows no mount with mapped owners.
    let owner = if h.driver == "lxd" { "nobody" } else { "root" };
    same(
        "owner",
        h.root_sh("conf", "stat -c %U /nix/store/.")?,
        owner.to_string(),
    )
}

fn store_locked(h: &Host) -> Result<(), Failed> {
    let done = h.codchi(&["exec", "-u", "root", "conf", "--", "umount", "/nix/store"])?;
    require!(done.status != 0, "the machine's root unmounted the store");
    same(
        "it is there",
        h.sh("conf", "hello")?,
        "Hello, world!".to_string(),
    )
}

const BUILD: &str = r#"derivation { name = "NAME"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "if [ -e /etc/hostname ]; then echo open; else echo sandboxed; fi > $out" ]; }"#;

pub(crate) fn build(name: &str) -> String {
    quote(&BUILD.replace("NAME", name))
}

fn daemon_builds(h: &Host) -> Result<(), Failed> {
    let out = h.sh(
        "conf",
        &format!("nix-build --no-out-link -E {}", build("inside")),
    )?;
    require!(out.starts_with("/nix/store/"), "no store path: {out}");
    same(
        "content",
        h.sh("conf", &format!("cat {out}"))?,
        "sandboxed".to_string(),
    )?;
    // Whoever connects is untrusted, the machine's root too: the daemon does not leave its sandbox for it.
    let out = h.root_sh(
        "conf",
        &format!(
            "nix-build --no-out-link --option sandbox false -E {}",
            build("as-root")
        ),
    )?;
    same(
        "content",
        h.sh("conf", &format!("cat {out}"))?,
        "sandboxed".to_string(),
    )?;
    // A build whose output is fixed has a network: the machine's, where the host's loopback is not.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let hash = "0".repeat(64);
    let fixed = format!(
        "'derivation {{ name = \"fixed\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         outputHashAlgo = \"sha256\"; outputHashMode = \"flat\"; outputHash = \"{hash}\"; \
         args = [ \"-c\" \"(: < /dev/tcp/127.0.0.1/{port}); echo > $out\" ]; }}'"
    );
    let script = format!("nix-build --no-out-link -E {fixed}");
    let done = h.codchi(&["exec", "conf", "--", "sh", "-c", &script])?;
    let said = done.err;
    require!(said.contains("hash mismatch"), "it was not built: {said}");
    listener.set_nonblocking(true)?;
    require!(
        listener.accept().is_err(),
        "a build for the machine reached the host's loopback"
    );
    same(
        "nixpkgs",
        h.sh("conf", "nix eval --raw nixpkgs#hello.pname")?,
        "hello".to_string(),
    )?;
    same(
        "<nixpkgs>",
        h.sh(
            "conf",
            "nix-instantiate --eval -E '(import <nixpkgs> { }).hello.pname'",
        )?,
        "\"hello\"".into(),
    )
}

const PROJECT: &str = r#"{
  outputs = { self, nixpkgs }:
    let pkgs = nixpkgs.legacyPackages.${builtins.head (builtins.attrNames nixpkgs.legacyPackages)}; in
    {
      packages.${pkgs.system}.default = pkgs.writeShellScriptBin "greet" "echo from the flake";
      devShells.${pkgs.system}.default = pkgs.mkShell {
        packages = [ pkgs.hello ];
        WORD = "of the shell";
        shellHook = "export HOOK=ran";
      };
    };
}
"#;

/// The commands that repositories of today are used with, by the machine's own registry.
/// Collects garbage by Nix's own hand. It gives up where a process of anybody is in a folder deeper than a path may be long, such
/// as a suite that runs beside this may have one.
pub fn collect(h: &Host) -> Result<(), Failed> {
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        let done = h.codchi(&["store", "shell", "--as-root", "--", "nix-store", "--gc"])?;
        if done.status == 0 || !done.err.contains("File name too long") || Instant::now() > end {
            return done.ok().map(drop);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn current_nix(h: &Host) -> Result<(), Failed> {
    let version = h.sh("conf", "nix --version")?;
    let number: Vec<u32> = version
        .rsplit(' ')
        .next()
        .unwrap_or_default()
        .split(['.', '+'])
        .map_while(|n| n.parse().ok())
        .collect();
    require!(number >= vec![2, 24], "an old Nix: {version}");
    // Its libraries are its own: none of them is another than /usr's in /usr.
    require!(
        h.sh("conf", "find /usr/lib -name 'libc.so.6' | wc -l")? == "1",
        "more than one C library in /usr"
    );
    same(
        "nix run",
        h.sh("conf", "nix run nixpkgs#hello")?,
        "Hello, world!".into(),
    )?;
    h.sh(
        "conf",
        &format!(
            "mkdir -p ~/flake && cd ~/flake && git init -q && printf %s {} > flake.nix && git add flake.nix",
            quote(PROJECT)
        ),
    )?;
    same(
        "a link to the result of a flake's package",
        h.sh("conf", "cd ~/flake && nix build && result/bin/greet")?,
        "from the flake".into(),
    )?;
    same(
        "nix develop",
        h.sh(
            "conf",
            "cd ~/flake && nix develop --command sh -c 'hello -g hi; echo $WORD, $HOOK'",
        )?,
        "hi\nof the shell, ran".into(),
    )?;
    same(
        "nix-shell",
        h.sh(
            "conf",
            "nix-shell -p hello --run 'hello -g shell; command -v hello'",
        )?
        .lines()
        .next()
        .unwrap_or_default()
        .to_string(),
        "shell".into(),
    )?;
    // What direnv's hook for flakes does: an environment kept by a root below the project.
    let kept = h.sh(
        "conf",
        "cd ~/flake && mkdir -p .direnv && nix print-dev-env --profile .direnv/flake-profile > .direnv/rc && \
         grep -q 'of the shell' .direnv/rc && readlink -f .direnv/flake-profile",
    )?;
    collect(h)?;
    same(
        "the environment",
        h.sh("conf", &format!("test -e {kept} && echo there"))?,
        "there".into(),
    )?;
    h.sh("conf", "rm -rf ~/flake").map(drop)
}

fn roots_hold(h: &Host) -> Result<(), Failed> {
    h.sh(
        "conf",
        &format!("nix-build -o ~/result -E {}", build("kept")),
    )?;
    let kept = h.sh("conf", "readlink ~/result")?;
    let loose = h.sh(
        "conf",
        &format!("nix-build --no-out-link -E {}", build("loose")),
    )?;
    let toplevel = h.status("conf")?["toplevel"]
        .as_str()
        .unwrap_or_default()
        .to_string();
    // What direnv does for a flake.
    let profile = "~/flake/.direnv/flake-profile";
    h.sh(
        "conf",
        &format!(
            "mkdir -p ~/flake/.direnv && cd ~/flake && printf %s {} > flake.nix && nix print-dev-env --profile {profile} > /dev/null",
            quote(PROJECT)
        ),
    )?;
    let entered = h.sh("conf", &format!("readlink -f {profile}"))?;
    let forecast = h.codchi(&["gc", "--dry-run", "--json"])?.ok()?.text();
    let forecast: serde_json::Value = serde_json::from_str(&forecast)?;
    require!(
        forecast["done"] == false && forecast["bytes"].as_u64() > Some(0),
        "the loose result is not foreseen: {forecast}"
    );
    same(
        "the loose result after a dry run",
        h.sh("conf", &format!("test -e {loose} && echo there"))?,
        "there".to_string(),
    )?;
    h.codchi(&["gc"])?.ok()?;
    for held in [&kept, &entered] {
        same(
            "a linked result",
            h.sh("conf", &format!("test -e {held} && echo there"))?,
            "there".to_string(),
        )?;
    }
    same(
        "the loose result",
        h.codchi(&["exec", "conf", "--", "test", "-e", &loose])?
            .status,
        1,
    )?;
    // A collection by the machine itself keeps what the host holds.
    h.sh("conf", "nix-store --gc")?;
    same(
        "the system",
        h.sh("conf", &format!("test -e {toplevel} && hello"))?,
        "Hello, world!".into(),
    )?;
    h.sh("conf", "rm -r ~/result ~/flake")?;
    eventually("a root goes with its link", || {
        h.codchi(&["gc"])?.ok()?;
        Ok(h.codchi(&["exec", "conf", "--", "test", "-e", &kept])?
            .status
            == 1)
    })
}

/// A port of this host that nobody has just now.
fn free_port() -> Result<u16, Failed> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

/// A server in the machine, on its loopback only, that answers each with its own name.
fn serve(h: &Host, kind: &str, port: u16) -> Result<(), Failed> {
    let script = format!(
        "import socket, threading\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_{kind})\n\
         s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
         s.bind(('127.0.0.1', {port}))\n\
         if '{kind}' == 'DGRAM':\n  while True: s.sendto(socket.gethostname().encode(), s.recvfrom(99)[1])\n\
         s.listen()\n\
         while True:\n  c = s.accept()[0]; c.sendall(socket.gethostname().encode()); c.close()\n"
    );
    h.codchi_with(
        &[
            "exec",
            "-u",
            "root",
            "conf",
            "--",
            "sh",
            "-c",
            &format!(
                "cat > /run/serve-{port}.py; systemd-run --quiet --collect --unit=serve-{port} python3 /run/serve-{port}.py"
            ),
        ],
        script.as_bytes(),
    )?
    .ok()?;
    Ok(())
}

/// What a server answers to a connection to this host.
fn answer(address: &str, port: u16) -> Result<String, Failed> {
    let to = format!("{address}:{port}").parse()?;
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn listed_ports(h: &Host, machine: &str) -> Result<Vec<(u64, u64, String)>, Failed> {
    let text = h.codchi(&["port", "list", machine, "--json"])?.ok()?.text();
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let mut ports: Vec<(u64, u64, String)> = all["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| {
            Some((
                p["host"].as_u64()?,
                p["guest"].as_u64()?,
                p["state"].as_str()?.into(),
            ))
        })
        .collect();
    ports.sort();
    Ok(ports)
}

fn ports(h: &Host) -> Result<(), Failed> {
    let leader = h.status("conf")?["leader"].clone();
    serve(h, "STREAM", 8421)?;
    let (tcp, udp) = (free_port()?, free_port()?);
    // Of the same number: early versions of pasta cannot do more.
    serve(h, "DGRAM", udp)?;
    h.codchi(&["port", "add", "conf", &format!("{tcp}:8421")])?
        .ok()?;
    h.codchi(&["port", "add", "conf", &format!("{udp}/udp")])?
        .ok()?;
    eventually("the server behind the port answers", || {
        Ok(answer("127.0.0.1", tcp).is_ok_and(|a| a == "conf"))
    })?;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut bytes = [0u8; 99];
    eventually("the datagram is answered", || {
        socket.send_to(b"?", ("127.0.0.1", udp))?;
        Ok(socket
            .recv(&mut bytes)
            .is_ok_and(|n| &bytes[..n] == b"conf"))
    })?;
    same(
        "the machine went on running",
        &h.status("conf")?["leader"],
        &leader,
    )?;

    // Only this computer reaches it.
    let own = std::net::UdpSocket::bind("0.0.0.0:0")?;
    own.connect("192.0.2.1:9")?;
    let own = own.local_addr()?.ip();
    require!(!own.is_loopback(), "this host has no address to try");
    require!(
        answer(&own.to_string(), tcp).is_err(),
        "the port is open at {own}, too"
    );

    // What somebody else has is refused by name, and costs nothing.
    let other = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = other.local_addr()?.port();
    let refused = h
        .codchi(&["port", "add", "conf", &format!("{taken}:8423")])?
        .exits(1)?;
    require!(
        refused.err.contains("it is taken by") && refused.err.contains("codchi port add conf "),
        "no way out is told: {}",
        refused.err
    );
    same(
        "tcp after a refusal",
        answer("127.0.0.1", tcp)?,
        "conf".into(),
    )?;
    let mut wanted = vec![
        (u64::from(tcp), 8421, "given".to_string()),
        (u64::from(udp), u64::from(udp), "given".to_string()),
        (u64::from(taken), 8423, "refused".to_string()),
    ];
    wanted.sort();
    same("ports", listed_ports(h, "conf")?, wanted)?;
    drop(other);
    h.codchi(&["port", "add", "conf", &format!("{taken}:8423")])?
        .ok()?;
    h.codchi(&["port", "remove", "conf", &taken.to_string()])?
        .ok()?;
    h.codchi(&["port", "remove", "conf", &format!("{udp}/udp")])?
        .ok()?;
    h.codchi(&["port", "remove", "conf", &taken.to_string()])?
        .exits(5)?;
    same(
        "one is left",
        listed_ports(h, "conf")?,
        vec![(u64::from(tcp), 8421, "given".to_string())],
    )?;
    same(
        "the one that is left",
        answer("127.0.0.1", tcp)?,
        "conf".into(),
    )?;
    for bad in ["0", "80:", "65536", "80/sctp", "a:b"] {
        h.codchi(&["port", "add", "conf", bad])?.exits(2)?;
    }
    Ok(())
}

fn mounts(h: &Host) -> Result<(), Failed> {
    let share = h.home.join("share folder");
    let on_host = |script: &str| -> Result<String, Failed> {
        Ok(
            run(h.command("sh").args(["-euc", script]).arg(&share), b"")?
                .ok()?
                .text(),
        )
    };
    on_host("mkdir \"$0\"; echo from the host > \"$0/file\"")?;
    let first = h.codchi(&[
        "mount",
        "add",
        "conf",
        "share folder:/home/codchi/new/share",
    ])?;
    if h.is_virtual() && h.kind == Kind::Rootless {
        first.ok()?;
    } else if h.kind == Kind::Rootless {
        // Its user is not the person yet: that takes a start.
        let first = first.exits(1)?;
        require!(
            first.err.contains("codchi restart conf"),
            "what to do is not told: {}",
            first.err
        );
        h.codchi(&["restart", "conf"])?.ok()?;
    } else {
        // Root's, and open to all: a set-user-id file in it would be anybody's.
        let first = first.exits(1)?;
        require!(
            first.err.contains("set-user-id"),
            "why is not told: {}",
            first.err
        );
        let recorded = codchi_fs::read_to_string(host_toml(h, "conf"))?;
        require!(
            !recorded.contains("new/share"),
            "what was refused is recorded: {recorded}"
        );
        on_host("chmod 700 \"$0\"")?;
        let again = "share folder:/home/codchi/new/share";
        h.codchi(&["mount", "add", "conf", again])?.ok()?;
    }
    same(
        "files from before",
        h.sh("conf", "cat ~/keep")?,
        "precious".into(),
    )?;
    same(
        "the folder inside",
        h.sh(
            "conf",
            "cd ~/new/share && cat file && echo from inside > made && stat -c '%U %G' . file made ..",
        )?,
        "from the host\ncodchi users\ncodchi users\ncodchi users\ncodchi users".to_string(),
    )?;
    let owner = std::fs::metadata(&h.home)?.uid();
    same(
        "owner on the host",
        std::fs::metadata(share.join("made"))?.uid(),
        owner,
    )?;
    same(
        "content on the host",
        on_host("cat \"$0/made\"; echo more >> \"$0/made\"")?,
        "from inside".into(),
    )?;
    same(
        "what the host adds",
        h.sh("conf", "tail -n 1 ~/new/share/made")?,
        "more".into(),
    )?;
    let options = h.sh(
        "conf",
        "grep ' /home/codchi/new/share ' /proc/self/mounts | cut -d' ' -f4",
    )?;
    require!(
        options.contains("nosuid") && options.contains("nodev"),
        "the folder is mounted {options}"
    );

    // A second one comes while the machine runs, and stays as it was given.
    let leader = h.status("conf")?["leader"].clone();
    h.codchi(&["mount", "add", "conf", "~/share folder:/read:ro"])?
        .ok()?;
    same("leader", &h.status("conf")?["leader"], &leader)?;
    same(
        "read",
        h.sh("conf", "cat /read/file")?,
        "from the host".into(),
    )?;
    for attempt in [
        "echo x > /read/file",
        "rm /read/file",
        "mount -o remount,rw /read",
        "mount -o remount,bind,rw /read",
        "mkdir -p /tmp/again && mount --bind /read /tmp/again && mount -o remount,bind,rw /tmp/again",
        "unshare --mount mount -o remount,bind,rw /read",
        "mount -o remount,bind,suid,dev /home/codchi/new/share",
    ] {
        // Mounts are a virtual machine's own; what counts there is that nothing can be written.
        let script = match h.is_virtual() {
            true => format!(
                "{attempt}; for f in /read /tmp/again; do echo x > $f/file && exit 0; done; exit 1"
            ),
            false => attempt.into(),
        };
        let done = h.codchi(&["exec", "-u", "root", "conf", "--", "sh", "-c", &script])?;
        require!(done.status != 0, "this was possible: {script}");
    }
    h.root_sh("conf", "umount /tmp/again")?;
    same(
        "still as it was",
        on_host("cat \"$0/file\"")?,
        "from the host".into(),
    )?;

    // Links of the machine lead nowhere on the host.
    let name = format!("codchi-conformance-{}", std::process::id());
    h.sh(
        "conf",
        "ln -s / /tmp/up; ln -s ../../../../../../../var/tmp /tmp/out",
    )?;
    for way in ["up/var/tmp", "out"] {
        h.codchi(&[
            "mount",
            "add",
            "conf",
            &format!("share folder:/tmp/{way}/{name}"),
        ])?
        .ok()?;
        h.sh("conf", &format!("test -e /var/tmp/{name}/file"))?;
        require!(
            !std::path::Path::new("/var/tmp").join(&name).exists(),
            "a link of the machine led to the host's /var/tmp"
        );
        h.codchi(&["mount", "remove", "conf", &format!("/tmp/{way}/{name}")])?
            .ok()?;
        h.sh("conf", &format!("! test -e /var/tmp/{name}/file"))?;
    }
    // Nor do the host's own.
    on_host("ln -s /etc \"$0/link\"")?;
    let host_toml = h.home.join(".config/codchi/machines/conf/host.toml");
    let kept = codchi_fs::read(&host_toml)?;
    h.codchi(&["mount", "add", "conf", "~/share folder/file:/opt/one file"])?
        .ok()?;
    same(
        "a file",
        h.sh("conf", "cat '/opt/one file'")?,
        "from the host".into(),
    )?;
    let text = codchi_fs::read_to_string(&host_toml)?;
    codchi_fs::write(
        &host_toml,
        text.replace("share folder/file\"", "share folder/link\""),
    )?;
    h.codchi(&["stop", "conf"])?.ok()?;
    let refused = h.codchi(&["start", "conf"])?.exits(3)?;
    require!(
        refused.err.contains("a link is on that way")
            && refused.err.contains("codchi mount remove conf"),
        "the link is not named: {}",
        refused.err
    );
    codchi_fs::write(&host_toml, kept)?;
    h.codchi(&["start", "conf"])?.ok()?;

    h.codchi(&["mount", "add", "conf", "missing:/missing"])?
        .exits(5)?;
    h.codchi(&["mount", "add", "conf", "missing:/missing", "--optional"])?
        .ok()?;
    let text = h.codchi(&["mount", "list", "conf", "--json"])?.ok()?.text();
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let states: Vec<(&str, &str)> = all["mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|m| Some((m["target"].as_str()?, m["state"].as_str()?)))
        .collect();
    same(
        "list",
        states,
        vec![
            ("/home/codchi/new/share", "given"),
            ("/missing", "refused"),
            ("/read", "given"),
        ],
    )?;
    for bad in [
        "share folder",
        "share folder:relative",
        "share folder:/nix/x",
        "share folder:/",
    ] {
        h.codchi(&["mount", "add", "conf", bad])?.exits(2)?;
    }
    for gone in ["/missing", "/read"] {
        h.codchi(&["mount", "remove", "conf", gone])?.ok()?;
    }
    h.codchi(&["mount", "remove", "conf", "/read"])?.exits(5)?;
    h.sh("conf", "! test -e /read/file && test -e ~/new/share/file")?;
    systemd_running(h)
}

fn network(h: &Host) -> Result<(), Failed> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let connect = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)";
    for address in ["127.0.0.1", "10.0.2.2"] {
        let done = h.codchi(&[
            "exec",
            "conf",
            "--",
            "python3",
            "-c",
            connect,
            address,
            &port.to_string(),
        ])?;
        require!(done.status != 0, "the host's loopback answers at {address}");
    }
    listener.set_nonblocking(true)?;
    require!(
        listener.accept().is_err(),
        "a connection from the machine reached the host's loopback"
    );
    same("loopback inside", h.sh("conf", "python3 -c 'import socket; s=socket.create_server((\"127.0.0.1\",0)); socket.create_connection(s.getsockname()); print(\"ok\")'")?, "ok".to_string())?;
    let (name, port) = mirror()?;
    h.codchi(&["exec", "conf", "--", "python3", "-c", connect, &name, &port])?
        .ok()?;
    same("host name", h.sh("conf", "uname -n")?, "conf".into())
}

/// Host and port of the Debian mirror that this host's apt uses.
fn mirror() -> Result<(String, String), Failed> {
    let mut texts = vec![codchi_fs::read_if_exists("/etc/apt/sources.list")?.unwrap_or_default()];
    for entry in codchi_fs::read_dir("/etc/apt/sources.list.d")? {
        texts.push(codchi_fs::read_to_string(entry.path())?);
    }
    for word in texts
        .iter()
        .flat_map(|t| t.lines())
        .filter(|l| !l.starts_with('#'))
        .flat_map(str::split_whitespace)
    {
        for (scheme, port) in [("http://", "80"), ("https://", "443")] {
            if let Some((host, path)) = word.strip_prefix(scheme).and_then(|r| r.split_once('/'))
                && path.trim_end_matches('/').ends_with("debian")
            {
                let (host, port) = host.split_once(':').unwrap_or((host, port));
                return Ok((host.into(), port.into()));
            }
        }
    }
    Err("apt's configuration names no Debian mirror".into())
}

fn seccomp(h: &Host) -> Result<(), Failed> {
    // name, number on x86_64, number on aarch64
    let table = [
        ("kexec_load", 246, 104),
        ("init_module", 175, 105),
        ("open_by_handle_at", 304, 265),
        ("bpf", 321, 280),
        ("perf_event_open", 298, 241),
        ("userfaultfd", 323, 282),
        ("keyctl", 250, 219),
        ("add_key", 248, 217),
        ("request_key", 249, 218),
        ("swapon", 167, 224),
        ("swapoff", 168, 225),
        ("acct", 163, 89),
        ("quotactl", 179, 60),
    ];
    let numbers: Vec<String> = table
        .iter()
        .map(|(_, x, a)| {
            if cfg!(target_arch = "x86_64") {
                x.to_string()
            } else {
                a.to_string()
            }
        })
        .collect();
    let script = format!(
        "import ctypes; c=ctypes.CDLL(None,use_errno=True)\nfor n in [{}]:\n  r=c.syscall(n,0,0,0,0,0); print(n, r, ctypes.get_errno())",
        numbers.join(",")
    );
    let out = h
        .codchi(&["exec", "-u", "root", "conf", "--", "python3", "-c", &script])?
        .ok()?
        .text();
    for (line, (name, ..)) in out.lines().zip(table) {
        // Keyrings are not refused but missing: container runtimes do without only then.
        let (answer, error) = if name.contains("key") {
            (" -1 38", "ENOSYS")
        } else {
            (" -1 1", "EPERM")
        };
        require!(
            line.ends_with(answer),
            "{name} was not refused with {error}: {line}"
        );
    }
    same("lines", out.lines().count(), table.len())
}

fn two_machines(h: &Host) -> Result<(), Failed> {
    h.codchi(&["init", "other"])?.ok()?;
    same(
        "name",
        h.sh("other", "uname -n; cat /etc/hostname 2>/dev/null || true")?
            .lines()
            .next()
            .unwrap_or_default()
            .to_string(),
        "other".to_string(),
    )?;
    h.sh("other", "echo mine > ~/mine")?;
    same(
        "files are apart",
        h.codchi(&["exec", "conf", "--", "test", "-e", "/home/codchi/mine"])?
            .status,
        1,
    )?;
    same(
        "machine ids differ",
        h.sh("conf", "cat /etc/machine-id")? != h.sh("other", "cat /etc/machine-id")?,
        true,
    )?;
    let (port, _, _) = listed_ports(h, "conf")?
        .first()
        .cloned()
        .ok_or("the case of ports left none")?;
    let refused = h
        .codchi(&["port", "add", "other", &format!("{port}:1")])?
        .exits(1)?;
    require!(
        refused.err.contains("the machine `conf`"),
        "who has the port is not told: {}",
        refused.err
    );
    h.codchi(&["delete", "--yes", "other"])?.ok()?;
    h.codchi(&["status", "other"])?.exits(5)?;
    same(
        "the first still runs",
        h.sh("conf", "echo yes")?,
        "yes".to_string(),
    )
}

fn reboot(h: &Host) -> Result<(), Failed> {
    let id = h.sh("conf", "cat /etc/machine-id")?;
    let boot = h.sh("conf", "cat /proc/sys/kernel/random/boot_id; systemctl show -p UserspaceTimestampMonotonic --value")?;
    let leader = h.status("conf")?["leader"].as_u64();
    h.codchi(&["exec", "-u", "root", "conf", "--", "systemctl", "reboot"])?;
    eventually("the machine is back", || {
        let s = h.status("conf")?;
        Ok(s["state"] == "running"
            && s["leader"].as_u64() != leader
            && s["leader"].as_u64().is_some())
    })?;
    let states: Vec<String> = listed_ports(h, "conf")?
        .into_iter()
        .map(|(_, _, state)| state)
        .collect();
    same("ports", states, vec!["given".to_string()])?;
    require!(boot != h.sh("conf", "cat /proc/sys/kernel/random/boot_id; systemctl show -p UserspaceTimestampMonotonic --value")?, "it did not boot anew");
    same("machine id", h.sh("conf", "cat /etc/machine-id")?, id)?;
    same("files", h.sh("conf", "cat ~/keep")?, "precious".to_string())
}

fn stop_start(h: &Host) -> Result<(), Failed> {
    h.codchi(&["stop", "conf"])?.ok()?;
    same(
        "state",
        h.status("conf")?["state"].as_str(),
        Some("stopped"),
    )?;
    same("leader", h.status("conf")?["leader"].as_u64(), None)?;
    h.codchi(&["stop", "conf"])?.ok()?;
    // exec starts a stopped machine.
    same("files", h.sh("conf", "cat ~/keep")?, "precious".to_string())?;
    files_are_there(h)?;
    // As after a start that was cut short before its init script, which fails now.
    if h.driver == "native" {
        h.codchi(&["stop", "conf"])?.ok()?;
        h.file(
            ".local/share/codchi/machines/conf/init-script",
            "/run/current-system/sw/bin/false\n",
        )?;
        let failed = h.codchi(&["start", "conf"])?.exits(1)?;
        require!(
            failed
                .err
                .contains("the init script of `conf` failed with status 1")
                && failed.err.contains("codchi-init"),
            "{}",
            failed.err
        );
    }
    h.codchi(&["start", "conf"])?.ok()?;
    h.codchi(&["restart", "conf"])?.ok()?;
    same(
        "state",
        h.status("conf")?["state"].as_str(),
        Some("running"),
    )
}

/// The folders of journals and locks on a disk of one page, which is full.
fn full_disk(h: &Host) -> Result<(), Failed> {
    let script = |verb: &str| {
        let text = r#"set -e
            for d in "$1/.local/state/codchi/journal" "$1/.local/state/codchi/locks"; do
                if [ "$2" = umount ]; then umount "$d"; continue; fi
                mkdir -p "$d"
                mount -t tmpfs -o size=4k full "$d"
                chown --reference="$1/.local/state/codchi" "$d"
                ! dd if=/dev/zero of="$d/filling" bs=4096 count=2 2>/dev/null
            done"#;
        let mut c = std::process::Command::new("sh");
        run(c.args(["-c", text, "-"]).arg(&h.home).arg(verb), b"")?.ok()
    };
    h.codchi(&["start", "conf"])?.ok()?;
    script("mount")?;
    let stopped = h.codchi(&["stop", "conf"]);
    let started = h.codchi(&["start", "conf"]);
    script("umount")?;
    let said = stopped?.ok()?.err;
    require!(
        said.contains("No space left"),
        "nothing is said of the full disk: {said}"
    );
    // What makes something is refused, with the reason.
    let started = started?.exits(1)?.err;
    require!(
        started.contains("free some space"),
        "no way out is told: {started}"
    );
    same(
        "state",
        h.status("conf")?["state"].as_str(),
        Some("stopped"),
    )?;
    h.codchi(&["start", "conf"])?.ok()?;
    Ok(())
}

fn closure(h: &Host) -> Result<(), Failed> {
    let folder = h.home.join("closed");
    codchi_fs::create_dir_all(&folder)?;
    let module = |packages: &str| {
        codchi_fs::write(
            folder.join("flake.nix"),
            format!(
                "{{ outputs = _: {{ nixosModules.default = {{ pkgs, ... }}: {{ codchi.isolation.store = \"closure\"; \
                 environment.systemPackages = [ {packages} ]; }}; }}; }}\n"
            ),
        )
    };
    module("pkgs.hello")?;
    h.codchi(&["init", "closed", &folder.to_string_lossy()])?
        .ok()?;
    same("hello", h.sh("closed", "hello")?, "Hello, world!".into())?;
    let seen = |what: &str| -> Result<Vec<String>, Failed> {
        let text = h.sh("closed", what)?;
        Ok(text.lines().map(String::from).collect())
    };
    let own = h.status("closed")?["toplevel"].to_string();
    let other = h.status("conf")?["toplevel"].to_string();
    let name = |path: &str| {
        path.trim_matches('"')
            .trim_start_matches("/nix/store/")
            .to_string()
    };
    let before = seen("ls /nix/store")?;
    require!(before.contains(&name(&own)), "its own system is not there");
    require!(
        !before.contains(&name(&other)),
        "another machine's system is there"
    );
    let all = codchi_fs::read_dir(h.home.join(".local/share/codchi/store/nix/store"))?.len();
    require!(
        before.len() > 20 && before.len() < all,
        "it sees {} of {all}",
        before.len()
    );
    for forbidden in [
        format!("cat /nix/store/{}/init", name(&other)),
        "command -v nix".into(),
        "ls /nix/var/nix/daemon-socket/socket".into(),
        "touch /nix/store/x".into(),
        format!("touch /nix/store/{}/x", name(&own)),
        format!("mount -o remount,bind,rw /nix/store/{}", name(&own)),
        format!("umount /nix/store/{}", name(&own)),
        "mount -o remount,bind,rw /nix/store".into(),
    ] {
        let done = h.codchi(&["exec", "-u", "root", "closed", "--", "sh", "-c", &forbidden])?;
        require!(done.status != 0, "this was possible: {forbidden}");
    }

    // What a rebuild brings is seen by the machine that runs.
    let leader = h.status("closed")?["leader"].clone();
    module("pkgs.hello pkgs.git")?;
    h.codchi(&["rebuild", "closed"])?.ok()?;
    same("leader", &h.status("closed")?["leader"], &leader)?;
    let version = h.sh("closed", "git --version")?;
    require!(version.starts_with("git version"), "git says {version}");
    for new in seen("ls /nix/store")?
        .iter()
        .filter(|n| !before.contains(n))
    {
        let attempt =
            format!("touch /nix/store/{new}/x || mount -o remount,bind,rw /nix/store/{new}");
        let done = h.codchi(&["exec", "-u", "root", "closed", "--", "sh", "-c", &attempt])?;
        require!(done.status != 0, "this was possible: {attempt}");
    }
    h.codchi(&["restart", "closed"])?.ok()?;
    same(
        "state",
        h.sh("closed", "git --version && systemctl is-system-running")?,
        format!("{version}\nrunning"),
    )?;
    h.codchi(&["delete", "--yes", "closed"])?.ok()?;
    Ok(())
}

fn host_toml(h: &Host, machine: &str) -> std::path::PathBuf {
    h.home
        .join(".config/codchi/machines")
        .join(machine)
        .join("host.toml")
}

fn rebuild_noop(h: &Host) -> Result<(), Failed> {
    let before = h.status("conf")?;
    let done = h.codchi(&["rebuild", "conf"])?.ok()?;
    let after = h.status("conf")?;
    same("generation", &after["generation"], &before["generation"])?;
    same("leader", &after["leader"], &before["leader"])?;
    let later = "applied at the next start";
    require!(
        !done.err.contains(later),
        "something is said to be pending: {}",
        done.err
    );
    // What a person writes where the machine is attached is no part of what is built.
    let file = host_toml(h, "conf");
    let text = codchi_fs::read_to_string(&file)?;
    let port = free_port()?;
    let edited = if text.contains("[ports]") {
        text.replace("[ports]", &format!("[ports]\n8425 = {port}"))
    } else {
        format!("{text}\n[ports]\n8425 = {port}\n")
    };
    codchi_fs::write(&file, edited)?;
    let told = h.codchi(&["rebuild", "conf"])?.ok()?;
    codchi_fs::write(&file, text)?;
    require!(
        told.err.contains("up to date") && told.err.contains(later),
        "that the port comes later is not told: {}",
        told.err
    );
    let still = h.codchi(&["rebuild", "conf"])?.ok()?;
    require!(
        !still.err.contains(later),
        "the port is gone again: {}",
        still.err
    );
    Ok(())
}

/// Nix, and with it everybody who reads the store, is given what a machine is made of and not where it is attached.
fn not_in_the_store(h: &Host) -> Result<(), Failed> {
    let store = h.home.join(".local/share/codchi/store/nix/store");
    let found = run(
        std::process::Command::new("find").arg(store).args([
            "-maxdepth",
            "2",
            "-name",
            "host.toml",
        ]),
        b"",
    )?
    .text();
    same("host.toml in the store", found, String::new())
}

fn rebuild(h: &Host) -> Result<(), Failed> {
    let project = h.home.join("project");
    codchi_fs::rename(project.join("module.nix"), project.join("module-one.nix"))?;
    let two =
        codchi_fs::read_to_string(h.repo.join("tests/fixtures/conformance/generation-two.nix"))?;
    let port = free_port()?;
    let two = two.replace("@port@", &port.to_string());
    codchi_fs::write(project.join("module.nix"), two)?;
    if h.kind == Kind::Rootless {
        run(
            std::process::Command::new("chown")
                .args(["-R", "--reference"])
                .arg(&h.home)
                .arg(&project),
            b"",
        )?
        .ok()?;
    }
    h.commit(&project)?;
    same(
        "status",
        h.status("conf")?["config"].as_str(),
        Some("modified"),
    )?;
    let steady = h.root_sh("conf", "systemctl show -p MainPID --value steady.service")?;
    let agent = h.root_sh(
        "conf",
        "systemctl show -p MainPID --value codchi-agent.service",
    )?;
    serve(h, "STREAM", 8424)?;
    let lacking = h.codchi(&["rebuild", "conf"])?.exits(3)?;
    require!(
        lacking.err.contains("mkdir -p") && lacking.err.contains("module-data"),
        "the folder that is missing is not named: {}",
        lacking.err
    );
    run(
        h.command("sh").args([
            "-c",
            "mkdir ~/module-data; echo theirs > ~/module-data/file",
        ]),
        b"",
    )?
    .ok()?;
    let asked = h.codchi(&["rebuild", "conf"])?.exits(4)?;
    h.codchi(&["option", "conf", "system.stateVersion"])?.ok()?;
    not_in_the_store(h)?;
    let item = format!("port:{port}");
    require!(
        asked.err.contains(&item),
        "what to grant is not told: {}",
        asked.err
    );
    let folder = "mount:~/module-data";
    require!(
        asked.err.contains(folder),
        "what to grant is not told: {}",
        asked.err
    );
    let done = h
        .codchi(&["rebuild", "conf", "--accept", &item, "--accept", folder])?
        .ok()?;
    let said = format!("{}{}", done.text(), done.err);
    require!(
        said.contains("tree"),
        "the difference does not name the package added: {said}"
    );
    require!(
        said.contains("fixture.service"),
        "the restarted unit is not named: {said}"
    );
    same(
        "generation",
        h.status("conf")?["generation"].as_u64(),
        Some(2),
    )?;
    same(
        "config",
        h.status("conf")?["config"].as_str(),
        Some("up-to-date"),
    )?;
    same(
        "etc",
        h.sh(
            "conf",
            "cat /etc/fixture/file; command -v tree >/dev/null && echo tree",
        )?,
        "generation two\ntree".to_string(),
    )?;
    same(
        "added",
        h.root_sh("conf", "systemctl is-active added.service")?,
        "active".into(),
    )?;
    eventually("the changed unit was restarted", || {
        Ok(
            h.root_sh("conf", "journalctl -u fixture.service -o cat --no-pager")?
                .contains("hello again"),
        )
    })?;
    same(
        "steady",
        h.root_sh("conf", "systemctl show -p MainPID --value steady.service")?,
        steady,
    )?;
    same(
        "agent",
        h.root_sh(
            "conf",
            "systemctl show -p MainPID --value codchi-agent.service",
        )?,
        agent,
    )?;
    same(
        "the new generation's folder",
        h.sh(
            "conf",
            "cat /srv/module-data/file; ! touch /srv/module-data/x 2>&1",
        )?
        .lines()
        .next()
        .map(String::from),
        Some("theirs".to_string()),
    )?;
    same(
        "the new generation's port",
        answer("127.0.0.1", port)?,
        "conf".into(),
    )?;
    let removed = h.codchi(&[
        "exec",
        "-u",
        "root",
        "conf",
        "--",
        "systemctl",
        "is-active",
        "--quiet",
        "as-second.service",
    ])?;
    require!(removed.status != 0, "a disabled unit still runs");
    let gens = h.codchi(&["generations", "conf"])?.ok()?.text();
    require!(gens.lines().count() >= 2, "generations: {gens}");
    let diff = h.codchi(&["diff", "conf", "1", "2"])?.ok()?.text();
    require!(diff.contains("tree"), "diff: {diff}");
    systemd_running(h)
}

fn rollback(h: &Host) -> Result<(), Failed> {
    h.codchi(&["rollback", "conf"])?.ok()?;
    same(
        "etc",
        h.sh(
            "conf",
            "cat /etc/fixture/file; command -v tree >/dev/null || echo no tree",
        )?,
        "generation one\nno tree".to_string(),
    )?;
    same(
        "config",
        h.status("conf")?["config"].as_str(),
        Some("rolled-back"),
    )?;
    same("ports", listed_ports(h, "conf")?.len(), 1)?;
    systemd_running(h)?;
    h.codchi(&["rollback", "conf", "--to", "2"])?.ok()?;
    same(
        "forth",
        h.sh("conf", "cat /etc/fixture/file")?,
        "generation two".into(),
    )?;
    h.codchi(&["rollback", "conf", "--to", "99"])?.exits(5)?;
    // It boots into the generation it was switched to.
    h.codchi(&["restart", "conf"])?.ok()?;
    same(
        "after a restart",
        h.sh("conf", "cat /etc/fixture/file")?,
        "generation two".into(),
    )
}

fn rebuild_broken(h: &Host) -> Result<(), Failed> {
    let module = h.home.join("project/module.nix");
    let good = codchi_fs::read_to_string(&module)?;
    let before = h.status("conf")?;
    for (text, wanted) in [
        (
            "{ pkgs, ... }: {\n  environment.systemPackages = [ pkgs.no-such-package ];\n}\n",
            "no-such-package",
        ),
        (
            "{ ... }: {\n  services.noSuchService.enable = true;\n}\n",
            "noSuchService",
        ),
        ("{ ... }: {\n  environment.etc.x = \n}\n", "module.nix"),
        (
            "{ ... }: {\n  environment.variables.X = throw \"the reason\";\n}\n",
            "the reason",
        ),
    ] {
        codchi_fs::write(&module, text)?;
        let done = h.codchi(&["rebuild", "conf"])?;
        require!(
            done.status == 1,
            "status {} for {text}: {}",
            done.status,
            done.err
        );
        require!(
            done.err.contains(wanted),
            "`{wanted}` is not named: {}",
            done.err
        );
        require!(
            done.err.contains("module.nix"),
            "the person's file is not named: {}",
            done.err
        );
        require!(
            done.err.lines().count() < 40,
            "the error is {} lines long:\n{}",
            done.err.lines().count(),
            done.err
        );
    }
    codchi_fs::write(&module, good)?;
    let after = h.status("conf")?;
    same("generation", &after["generation"], &before["generation"])?;
    same("leader", &after["leader"], &before["leader"])?;
    same("works", h.sh("conf", "hello")?, "Hello, world!".to_string())
}

/// Puts another module in the place of the project's for a while.
fn with_module(
    h: &Host,
    text: &str,
    check: impl FnOnce() -> Result<(), Failed>,
) -> Result<(), Failed> {
    let project = h.home.join("project");
    let module = project.join("module.nix");
    let good = codchi_fs::read_to_string(&module)?;
    h.file("project/module-good.nix", &good)?;
    h.file("project/module.nix", text)?;
    h.commit(&project)?;
    let checked = check();
    h.file("project/module.nix", &good)?;
    h.commit(&project)?;
    checked
}

/// A module with a further service.
fn with_service(service: &str) -> String {
    format!(
        "{{ pkgs, ... }}:\n{{\n  imports = [ ./module-good.nix ];\n  systemd.services.ill = {{\n    wantedBy = [ \"multi-user.target\" ];\n    {service}\n  }};\n}}\n"
    )
}

fn rebuild_ill(h: &Host) -> Result<(), Failed> {
    let before = h.status("conf")?;
    let unchanged = |same_boot: bool| -> Result<(), Failed> {
        let after = h.status("conf")?;
        same("generation", &after["generation"], &before["generation"])?;
        same("toplevel", &after["toplevel"], &before["toplevel"])?;
        if same_boot {
            same("leader", &after["leader"], &before["leader"])?;
        }
        same("config", after["config"].as_str(), Some("modified"))?;
        let current = h.sh("conf", "readlink -f /run/current-system")?;
        same(
            "system",
            Some(current.as_str()),
            before["toplevel"].as_str(),
        )?;
        systemd_running(h)
    };
    let oneshot = "serviceConfig.Type = \"oneshot\";\n    serviceConfig.ExecStart = \"${pkgs.coreutils}/bin/false\";";
    with_module(h, &with_service(oneshot), || {
        let declined = h.codchi(&["rebuild", "--ask", "conf"])?.exits(4)?;
        require!(
            declined.err.contains("--yes") && declined.err.contains("no package differs"),
            "the difference is not shown before the question: {}",
            declined.err
        );
        let done = h.codchi(&["rebuild", "conf"])?.exits(1)?;
        require!(
            done.err.contains("`ill.service` failed") && done.err.contains("back on generation"),
            "what failed, and what was done, is not told: {}",
            done.err
        );
        unchanged(true)?;
        // Unless the person says that it shall stay.
        h.codchi(&["rebuild", "--no-rollback", "conf"])?.exits(1)?;
        let stays = h.status("conf")?["generation"].as_u64();
        require!(
            stays > before["generation"].as_u64(),
            "it is on generation {stays:?}"
        );
        // A unit that had failed before is not the fault of what comes after.
        let other = oneshot.replace("oneshot", "oneshot\";\n    description = \"still ill");
        h.file("project/module.nix", &with_service(&other))?;
        h.commit(&h.home.join("project"))?;
        let done = h.codchi(&["rebuild", "conf"])?.exits(1)?;
        require!(
            !done.err.contains("back on generation"),
            "it went back for a unit that had failed before: {}",
            done.err
        );
        h.codchi(&[
            "rollback",
            "conf",
            "--to",
            &before["generation"].to_string(),
        ])?
        .ok()?;
        systemd_running(h)
    })?;
    // One whose activation fails.
    if h.driver == "native" {
        let failing = "{ ... }:\n{\n  imports = [ ./module-good.nix ];\n  system.activationScripts.ill = \"false\";\n}\n";
        with_module(h, failing, || {
            let done = h.codchi(&["rebuild", "--yes", "conf"])?.exits(1)?;
            require!(
                done.err.contains("the switch to generation")
                    && done.err.contains("failed with status"),
                "{}",
                done.err
            );
            same(
                "generation",
                &h.status("conf")?["generation"],
                &before["generation"],
            )?;
            systemd_running(h)
        })?;
    }
    // One that starts and ends at once, and is started again and again.
    let restarting = "serviceConfig.Restart = \"always\";\n    serviceConfig.RestartSec = \"5s\";\n    script = \"exit 3\";";
    with_module(h, &with_service(restarting), || {
        let done = h.codchi(&["rebuild", "--yes", "conf"])?.exits(1)?;
        require!(done.err.contains("`ill.service` failed"), "{}", done.err);
        Ok(())
    })?;
    // One with which the machine does not answer any more.
    let silent =
        "serviceConfig.Type = \"oneshot\";\n    script = \"systemctl stop codchi-agent.service\";";
    with_module(h, &with_service(silent), || {
        let done = h.codchi(&["rebuild", "--yes", "conf"])?.exits(1)?;
        require!(
            done.err.contains("started anew"),
            "it is not told that the machine was started again: {}",
            done.err
        );
        same("works", h.sh("conf", "hello")?, "Hello, world!".to_string())
    })?;
    h.codchi(&["rebuild", "--yes", "conf"])?.ok()?;
    systemd_running(h)
}

fn rebuild_several(h: &Host) -> Result<(), Failed> {
    let copies = ["several-a", "several-b", "several-c"];
    for copy in copies {
        h.codchi(&["duplicate", "conf", copy])?.ok()?;
    }
    let folder = h.home.join(".config/codchi/machines");
    let edit = |name: &str, line: &str| -> Result<(), Failed> {
        let file = folder.join(name).join("flake.nix");
        let text = codchi_fs::read_to_string(&file)?;
        let text = text.replacen(
            "modules = [",
            &format!("modules = [\n      {{ {line} }}"),
            1,
        );
        h.file(&format!(".config/codchi/machines/{name}/flake.nix"), &text)
    };
    edit("several-a", "environment.etc.several.text = \"a\";")?;
    edit(
        "several-b",
        "environment.etc.several.text = throw \"the reason\";",
    )?;
    edit("several-c", "environment.etc.several.text = \"c\";")?;
    let mut args = vec!["rebuild", "conf"];
    args.extend(copies);
    let done = h.codchi(&args)?.exits(1)?;
    for told in [
        "conf: up to date",
        "several-a: generation 2",
        "several-b: failed",
        "several-c: generation 2",
        "the reason",
    ] {
        require!(
            done.err.contains(told),
            "`{told}` is not told: {}",
            done.err
        );
    }
    same(
        "generation",
        h.status("several-b")?["generation"].as_u64(),
        Some(1),
    )?;
    // Together they are what each is by itself.
    edit("several-b", "environment.etc.several.text = \"b\";")?;
    let text = codchi_fs::read_to_string(folder.join("several-b/flake.nix"))?;
    let text: String = text
        .lines()
        .filter(|l| !l.contains("throw"))
        .map(|l| format!("{l}\n"))
        .collect();
    h.file(".config/codchi/machines/several-b/flake.nix", &text)?;
    edit("several-a", "environment.etc.again.text = \"a\";")?;
    let built = h
        .codchi(&["rebuild", "--build-only", "several-a", "several-b"])?
        .ok()?
        .text();
    let alone = ["several-a", "several-b"].map(|name| -> Result<String, Failed> {
        Ok(h.codchi(&["rebuild", "--build-only", name])?.ok()?.text())
    });
    let alone: Vec<String> = alone.into_iter().collect::<Result<_, _>>()?;
    same("systems", built, alone.join("\n"))?;
    h.codchi(&["delete", "--yes", "several-a", "several-b", "several-c"])?
        .ok()?;
    Ok(())
}

fn usage(h: &Host, machine: &str) -> Result<(serde_json::Value, u64), Failed> {
    let text = h.codchi(&["du", "--json"])?.ok()?.text();
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let one = all["machines"]
        .as_array()
        .and_then(|m| m.iter().find(|m| m["name"] == machine));
    let one = one
        .cloned()
        .ok_or_else(|| format!("`{machine}` is not in {text}"))?;
    Ok((one, all["freeBytes"].as_u64().unwrap_or(u64::MAX)))
}

pub(crate) fn numbers(h: &Host, machine: &str) -> Result<Vec<u64>, Failed> {
    let text = h.codchi(&["generations", machine, "--json"])?.ok()?.text();
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let all = all["generations"].as_array().cloned().unwrap_or_default();
    Ok(all.iter().filter_map(|g| g["number"].as_u64()).collect())
}

fn collect_garbage(h: &Host) -> Result<(), Failed> {
    let before = numbers(h, "conf")?;
    require!(
        before.len() > 2,
        "there are too few generations: {before:?}"
    );
    let (used, _) = usage(h, "conf")?;
    require!(
        used["aloneBytes"].as_u64() > Some(100_000),
        "aloneBytes of {used}"
    );
    same(
        "generations",
        used["generations"].as_u64(),
        Some(before.len() as u64),
    )?;
    h.sh("conf", "head -c 3000000 /dev/urandom > ~/three-megabytes")?;
    let (before_it, grown) = (
        used["filesBytes"].as_u64(),
        usage(h, "conf")?.0["filesBytes"].as_u64(),
    );
    if h.has_engine() {
        same("what an engine keeps", grown, None)?;
    } else {
        require!(before_it > Some(100_000), "filesBytes of {used}");
        require!(
            grown >= before_it.map(|b| b + 2_900_000),
            "a new file is not measured: {used}, then {grown:?}"
        );
    }
    h.sh("conf", "rm ~/three-megabytes")?;
    // Nothing goes unseen or unasked.
    for args in [
        &["gc", "--older-than", "0d", "--dry-run"][..],
        &["gc", "--older-than", "99w", "--keep", "1", "conf"],
        &["gc", "--keep", "999", "conf"],
    ] {
        h.codchi(args)?.ok()?;
    }
    h.codchi(&["gc", "--keep", "1"])?.exits(4)?;
    h.codchi(&["gc", "conf"])?.exits(2)?;
    same("generations", numbers(h, "conf")?, before.clone())?;
    let done = h
        .codchi(&["--yes", "gc", "--older-than", "0d", "--json"])?
        .ok()?
        .text();
    let done: serde_json::Value = serde_json::from_str(&done)?;
    require!(
        done["done"] == true && done["bytes"].as_u64() > Some(0),
        "nothing was given free: {done}"
    );
    // What a process has open stays: another host's on this computer may have a path of the same name until it ends.
    eventually("what nothing holds is gone", || {
        if usage(h, "conf")?.1 == 0 {
            return Ok(true);
        }
        h.codchi(&["--yes", "gc", "--older-than", "0d"])?.ok()?;
        Ok(false)
    })?;
    let left = numbers(h, "conf")?;
    let current = h.status("conf")?["generation"].as_u64();
    require!(
        left.len() == 2 && left.last().copied() == current,
        "left of {before:?}: {left:?}, in force: {current:?}"
    );
    // Both that are left are whole.
    for number in left {
        let file = h.home.join(format!(
            ".local/state/codchi/generations/conf/{number}.json"
        ));
        let record: serde_json::Value = serde_json::from_str(&codchi_fs::read_to_string(file)?)?;
        let system = record["toplevel"].as_str().unwrap_or_default();
        h.sh("conf", &format!("test -e {system}/init"))?;
    }
    h.codchi(&["restart", "conf"])?.ok()?;
    same("works", h.sh("conf", "hello")?, "Hello, world!".to_string())?;
    systemd_running(h)
}

fn install(h: &Host) -> Result<(), Failed> {
    let text = h.codchi(&["generations", "conf", "--json"])?.ok()?.text();
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let systems: Vec<String> = all["generations"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|g| g["toplevel"].as_str().map(String::from))
        .collect();
    let [one, .., two] = &systems[..] else {
        return Err("there are too few generations".into());
    };
    let runs = |system: &str| -> Result<(), Failed> {
        let current = h.sh(
            "declared",
            "hello >/dev/null && readlink -f /run/current-system",
        )?;
        same("the system", current.as_str(), system)
    };
    h.codchi(&["install", "declared", "--toplevel", one, "--start"])?
        .ok()?;
    runs(one)?;
    h.sh("declared", "echo precious > ~/keep")?;
    let leader = h.status("declared")?["leader"].clone();
    h.codchi(&["install", "declared", "--toplevel", two, "--start"])?
        .ok()?;
    runs(two)?;
    let status = h.status("declared")?;
    same("leader", &status["leader"], &leader)?;
    same("config", status["config"].as_str(), Some("up-to-date"))?;
    same("generation", status["generation"].as_u64(), Some(2))?;
    // The same once more, as at each start of the host.
    h.codchi(&["stop", "declared"])?.ok()?;
    h.codchi(&["install", "declared", "--toplevel", two, "--start"])?
        .ok()?;
    runs(two)?;
    same(
        "generation",
        h.status("declared")?["generation"].as_u64(),
        Some(2),
    )?;
    same(
        "files",
        h.sh("declared", "cat ~/keep")?,
        "precious".to_string(),
    )?;
    // What it is made of is not to be changed here, and what has a flake is not to be declared.
    for args in [
        &["rebuild", "declared"][..],
        &["update", "declared"],
        &["module", "list", "declared"],
        &["option", "declared", "system.stateVersion"],
        &["rename", "declared", "other"],
        &["tar", "declared", "declared.tar"],
        &["install", "conf", "--toplevel", one],
    ] {
        let done = h.codchi(args)?.exits(1)?;
        require!(
            done.err.contains("declared") || done.err.contains("left as it is"),
            "`{}`: {}",
            args.join(" "),
            done.err
        );
    }
    h.codchi(&["install", "x", "--toplevel", "/nix/store"])?
        .exits(5)?;
    // What is no system of a machine of this host, and of this driver.
    let other = if h.driver == "native" {
        "qemu"
    } else {
        "native"
    };
    for (edit, told) in [
        ("d", "is no system of a machine".to_string()),
        (
            "s/(\"system\": *)\"[^\"]*\"/\\1\"mips64-linux\"/",
            "the system is for `mips64-linux`, and this host is".into(),
        ),
        (
            &format!("s/(\"driver\": *)\"[^\"]*\"/\\1\"{other}\"/"),
            format!(
                "the system is for the driver `{other}`, and `declared` runs on `{}`",
                h.driver
            ),
        ),
    ] {
        let made = "set -e; mkdir -p odd-system/codchi; \"$0\" store shell -- cat \"$1/codchi/manifest.json\" | sed -E \"$2\" \
             > odd-system/codchi/manifest.json; exec \"$0\" store shell -- nix-store --add odd-system";
        let mut makes = h.command("sh");
        makes.arg("-c").arg(made).arg(h.program()).args([one, edit]);
        let path = run(&mut makes, b"")?.ok()?.text();
        let done = h
            .codchi(&["install", "declared", "--toplevel", &path])?
            .exits(1)?;
        require!(done.err.contains(&told), "`{edit}`: {}", done.err);
    }
    // A copy is a person's, who has to say what it is made of.
    h.codchi(&["duplicate", "declared", "copied"])?.ok()?;
    let done = h.codchi(&["rebuild", "copied"])?.exits(1)?;
    require!(
        done.err.contains("no machine flake"),
        "a copy: {}",
        done.err
    );
    let done = h.codchi(&["rebuild", "--all", "--dry-run"])?.exits(1)?;
    require!(
        done.err.contains("`declared` is left out"),
        "not left out of all: {}",
        done.err
    );
    h.codchi(&["delete", "--yes", "copied"])?.ok()?;
    h.codchi(&["delete", "--yes", "declared"])?.ok()?;
    Ok(())
}

fn logs(h: &Host) -> Result<(), Failed> {
    let unit = h
        .codchi(&["logs", "conf", "--unit", "fixture.service"])?
        .ok()?
        .text();
    require!(unit.contains("git version"), "unit log: {unit}");
    h.codchi(&["logs", "conf"])?.ok()?;
    Ok(())
}

fn dry_run(h: &Host) -> Result<(), Failed> {
    let project = h.home.join("project");
    let before = tree(h)?;
    let url = format!("git+file://{}#nixosModules.default", project.display());
    let done = h.codchi(&["init", "dry", &url, "--dry-run"])?.ok()?;
    require!(!done.text().is_empty(), "no plan on standard output");
    let json = h
        .codchi(&["init", "dry", &url, "--dry-run", "--json"])?
        .ok()?
        .text();
    let plan: serde_json::Value = serde_json::from_str(&json)?;
    same("command", plan["command"].as_str(), Some("init"))?;
    same("machine", plan["machine"].as_str(), Some("dry"))?;
    require!(
        plan["steps"].as_array().is_some_and(|s| s.len() > 2
            && s.iter()
                .all(|s| s["kind"].is_string() && s["summary"].is_string())),
        "steps: {plan}"
    );
    h.codchi(&["status", "dry"])?.exits(5)?;
    same("files", tree(h)?, before)
}

/// Codchi's files outside the caches, the store and the machines' own root file systems.
fn tree(h: &Host) -> Result<String, Failed> {
    let script = "cd \"$0\" && find .config/codchi .local/state/codchi .local/share/codchi run -path '*/store/*' -prune -o -path '*/root/*' -prune -o -path '*/logs/*' -prune -o -printf '%p %y\\n' 2>/dev/null | sort";
    Ok(run(
        std::process::Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(&h.home),
        b"",
    )?
    .text())
}

fn bad_input(h: &Host) -> Result<(), Failed> {
    let before = tree(h)?;
    let empty = h.home.join("empty-folder");
    codchi_fs::create_dir_all(&empty)?;
    let several = h.home.join("several");
    codchi_fs::create_dir_all(&several)?;
    codchi_fs::write(
        several.join("flake.nix"),
        "{ outputs = _: { nixosModules.one = { }; nixosModules.two = { }; }; }\n",
    )?;
    let none = h.home.join("none");
    codchi_fs::create_dir_all(&none)?;
    codchi_fs::write(none.join("flake.nix"), "{ outputs = _: { }; }\n")?;
    let p = |x: &std::path::Path| x.to_string_lossy().into_owned();
    let table: &[(&[&str], i32, &[&str])] = &[
        (&["init", "Bad_Name"], 2, &["Bad_Name"]),
        (&["init", "-x"], 2, &["-x"]),
        (&["init", "a", "/no/such/path"], 5, &["/no/such/path"]),
        (&["init", "a", &p(&empty)], 1, &["flake.nix"]),
        (&["init", "a", &p(&none)], 1, &["nixosModules"]),
        (&["init", "a", &p(&several)], 4, &["one", "two"]),
        (
            &["init", "a", &p(&several), "three"],
            1,
            &["three", "one", "two"],
        ),
        (
            &[
                "init",
                "a",
                &format!("{}#nixosModules.one", p(&several)),
                "two",
            ],
            2,
            &["one"],
        ),
        (
            &[
                "init",
                "a",
                &format!("{}#nixosModules.one", p(&several)),
                "--nixpkgs-from",
                "other",
            ],
            2,
            &["other", "`several`"],
        ),
        (&["frobnicate"], 2, &["frobnicate"]),
        (&["start", "nosuch"], 5, &["nosuch"]),
        (&["rebuild", "nosuch"], 5, &["nosuch"]),
        (&["delete", "conf"], 4, &["--yes"]),
    ];
    for (args, status, wanted) in table {
        let done = h.codchi(args)?;
        require!(
            done.status == *status,
            "`codchi {}`: status {} instead of {status}\n{}",
            args.join(" "),
            done.status,
            done.err
        );
        for w in *wanted {
            require!(
                done.err.contains(w),
                "`codchi {}`: `{w}` is not named in\n{}",
                args.join(" "),
                done.err
            );
        }
    }
    same("files", tree(h)?, before)?;
    if h.driver == "native" {
        no_code_machine(h)?;
    }
    // A person at a terminal chooses among the modules.
    for (answer, told) in [
        ("seven\r", "`seven` is none of them"),
        ("\r", "no module was chosen"),
    ] {
        let words = ["init", "a", &p(&several)];
        let done =
            crate::terminal::on_terminal(h, &words, "", &[("which ones?", answer)])?.exits(4)?;
        require!(done.text().contains(told), "{}", done.text());
    }
    Ok(())
}

/// A flake that is no code machine, or one of another Codchi and another processor.
fn no_code_machine(h: &Host) -> Result<(), Failed> {
    let machine = ".config/codchi/machines/odd";
    run(h.command("mkdir").arg(machine), b"")?.ok()?;
    let host = format!(
        "version = 1\ndriver = \"{}\"\nbase = \"nixpkgs\"\ncreated = 1\n",
        h.driver
    );
    h.file(&format!("{machine}/host.toml"), &host)?;
    let whole = "drvPath = \"/nix/store/00000000000000000000000000000000-x.drv\"; driver = \"none\"; system = \"mips64-linux\"; \
         base = { name = \"nixpkgs\"; label = \"NixOS\"; }; stateVersion = \"26.05\"; warnings = [ ]; needs = { secrets = { }; \
         requiredCapabilities = [ ]; optionalCapabilities = [ ]; hostSecrets = { }; mounts = { }; ports = { }; driverSettings = { }; };";
    // A file of the store that is no derivation.
    let damaged = whole
        .replace(
            "\"/nix/store/00000000000000000000000000000000-x.drv\"",
            "builtins.toFile \"x\" \"none\"",
        )
        .replace("\"none\"; system", &format!("\"{}\"; system", h.driver))
        .replace("mips64", std::env::consts::ARCH);
    for (version, fields, told) in [
        (
            9,
            "",
            "the evaluation of the machine gives something unexpected",
        ),
        (
            9,
            whole,
            "the machine is for `mips64-linux` (evaluation version 9)",
        ),
        (
            1,
            &damaged,
            "-x` is no derivation: expected `Derive(` at byte 0\n  hint: `codchi store repair`",
        ),
    ] {
        let flake = format!(
            "{{\n  inputs = {{ }};\n  outputs = _: {{\n    nixosConfigurations.{}.config.codchi.build.evaluation = {{ version = {version}; {fields} }};\n  }};\n}}\n",
            h.driver
        );
        h.file(&format!("{machine}/flake.nix"), &flake)?;
        let done = h.codchi(&["rebuild", "odd"])?.exits(1)?;
        require!(done.err.contains(told), "{}", done.err);
    }
    h.codchi(&["delete", "--yes", "odd"])?.ok().map(drop)
}

fn busy(h: &Host) -> Result<(), Failed> {
    let mut refused = None;
    // The second may be the first to have it: then this is another's turn.
    for _ in 0..20 {
        let mut first = h
            .codchi_command(&["restart", "conf"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        while refused.is_none() && first.try_wait()?.is_none() {
            let done = h.codchi(&["delete", "--yes", "conf", "--dry-run"])?;
            let done = if done.status == 6 {
                done
            } else {
                h.codchi(&["stop", "conf"])?
            };
            refused = (done.status == 6).then_some(done);
        }
        if first.wait()?.code() != Some(6) {
            break;
        }
    }
    let refused = refused
        .ok_or("two commands held the lock at once, or the first was too quick to be seen")?;
    require!(
        refused.err.contains("restart"),
        "the holder is not named: {}",
        refused.err
    );
    h.codchi(&["start", "conf"])?.ok()?;
    Ok(())
}

fn init_command(h: &Host) -> Result<(), Failed> {
    let words = [
        "init",
        "once",
        "--",
        "sh",
        "-c",
        "echo from-inside; exit 19",
    ];
    let mut first = h
        .codchi_command(&words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // Another one of that name is refused from the beginning on, not after all its work.
    let locks = h.home.join(".local/state/codchi/locks");
    eventually("the name is taken", || {
        Ok(locks.join("once.new").exists() || first.try_wait()?.is_some())
    })?;
    let second = h.codchi(&["init", "once"])?.exits(6)?;
    require!(
        second.err.contains("is being made by `codchi init once`"),
        "who is making it is not told: {}",
        second.err
    );
    let done = first.wait_with_output()?;
    same("status", done.status.code(), Some(19))?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    require!(said.contains("from-inside"), "output: {said}");
    // What killed commands leave goes.
    let left = ["gone", "gone.new", "once.new"].map(|n| locks.join(n));
    run(h.command("touch").args(&left[..2]), b"")?.ok()?;
    h.codchi(&["doctor", "--fix"])?;
    for file in &left {
        require!(!file.exists(), "`{}` is left", file.display());
    }
    require!(
        locks.join("conf").exists(),
        "the lock file of a machine is gone"
    );
    h.codchi(&["delete", "--yes", "once"])?.ok()?;
    Ok(())
}

fn delete(h: &Host) -> Result<(), Failed> {
    // There are more of this name, of suites that run beside this one. An engine's are its own, and a
    // virtual machine needs none.
    let own = if !["native", "oci"].contains(&h.driver) {
        None
    } else {
        let root = std::fs::metadata(h.home.join(".local/share/codchi/machines/conf/root"))?;
        Some(format!("codchi-conf-{:x}-{:x}", root.dev(), root.ino()))
    };
    let control_groups = || -> Result<String, Failed> {
        let Some(own) = &own else {
            return Ok(String::new());
        };
        let mut find = std::process::Command::new("find");
        find.args(["/sys/fs/cgroup", "-ignore_readdir_race", "-type", "d"]);
        Ok(run(find.args(["-name", own]), b"")?.text())
    };
    if own.is_some() {
        h.codchi(&["exec", "conf", "--", "true"])?.ok()?;
        require!(
            !control_groups()?.is_empty(),
            "no control group {own:?} while it runs"
        );
    }
    h.codchi(&["delete", "--yes", "conf"])?.ok()?;
    h.codchi(&["status", "conf"])?.exits(5)?;
    let left = tree(h)?;
    require!(
        !left.contains("conf\u{20}") && !left.contains("/conf/"),
        "left behind:\n{left}"
    );
    eventually("every process of the machine is gone", || {
        Ok(h.processes().is_empty())
    })
    .map_err(|_| format!("processes are left: {:#?}", h.processes()))?;
    let mounts = codchi_fs::read_to_string("/proc/self/mountinfo")?;
    let home = h.home.to_string_lossy().into_owned();
    require!(!mounts.contains(&home), "mounts are left under {home}");
    same("control groups", control_groups()?, String::new())?;
    if h.has_engine() {
        same(
            "instances",
            h.engine()?.command(&["list", "--format", "csv"])?,
            String::new(),
        )?;
    }
    h.codchi(&["store", "remove", "--yes"])?.ok()?;
    std::io::stderr().flush()?;
    Ok(())
}
