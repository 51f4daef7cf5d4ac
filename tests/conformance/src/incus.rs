//! What only an engine can do to a machine: each is found out and said.

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::engine::Engine;
use crate::host::Host;

/// The cases. They use the machine `conf` and leave it running.
pub const ALL: &[Case] = &[
    ("incus_a_killed_attendant_is_replaced", killed_attendant),
    (
        "incus_a_machine_started_by_hand_is_connected",
        started_by_hand,
    ),
    (
        "incus_a_machine_that_a_killed_export_left_still_goes_on",
        left_still,
    ),
    (
        "incus_a_stopped_daemon_is_named_and_machines_go_on",
        daemon_stopped,
    ),
    ("incus_a_renamed_instance_is_found", renamed),
    ("incus_an_instance_of_another_is_left_alone", foreign),
    ("incus_a_missing_pool_is_named", no_pool),
    ("incus_what_a_person_configured_stays", configured),
    ("incus_a_limit_of_the_disk_holds", limited),
    ("incus_a_deleted_instance_is_said", deleted),
    ("incus_a_machine_moves_to_another_driver_and_back", moves),
];

/// Those with several daemons, which are seen on one of the engines.
pub const CLUSTERS: &[Case] = &[(
    "incus_members_of_a_cluster_have_their_own_machines",
    members,
)];

fn wants(what: &str, text: &str, wanted: &[&str]) -> Result<(), Failed> {
    for w in wanted {
        if !text.contains(w) {
            return Err(format!("{what}: `{w}` is not in\n{text}").into());
        }
    }
    Ok(())
}

fn killed_attendant(h: &Host) -> Result<(), Failed> {
    let file = h.home.join("run/codchi/machines/conf/supervisor.json");
    let told: serde_json::Value = serde_json::from_str(&codchi_fs::read_to_string(file)?)?;
    let pid = told["pid"]
        .as_i64()
        .and_then(|p| i32::try_from(p).ok())
        .ok_or("no attendant")?;
    let pid = rustix::process::Pid::from_raw(pid).ok_or("no attendant")?;
    kill(pid)?;
    let leader = h.sh("conf", "cat /proc/sys/kernel/random/boot_id")?;
    if h.status("conf")?["state"] != "running" {
        return Err("the machine went down with its attendant".into());
    }
    // Network and store are there again, in the same life of the machine.
    h.sh(
        "conf",
        "nix-store -q --references /run/current-system >/dev/null && getent hosts localhost",
    )?;
    if h.sh("conf", "cat /proc/sys/kernel/random/boot_id")? != leader {
        return Err("the machine was started anew".into());
    }
    h.codchi(&["restart", "conf"])?.ok()?;
    Ok(())
}

/// Kills a process, and waits until it has gone: what it held goes with its last breath.
pub fn kill(pid: rustix::process::Pid) -> Result<(), Failed> {
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while codchi_fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
        if std::time::Instant::now() > end {
            return Err("a killed process does not go".into());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

fn started_by_hand(h: &Host) -> Result<(), Failed> {
    h.codchi(&["stop", "conf"])?.ok()?;
    h.engine()?.command(&["start", "conf"])?;
    if h.status("conf")?["state"] != "running" {
        return Err("a machine that runs is not said to".into());
    }
    let done = h
        .codchi(&[
            "exec",
            "conf",
            "--",
            "nix-store",
            "-q",
            "--references",
            "/run/current-system",
        ])?
        .ok()?;
    wants("warning", &done.err, &["connected again"])?;
    h.codchi(&["stop", "conf"])?.ok()?;
    // One that nobody looks after is asked to go down as any other is.
    h.engine()?.command(&["start", "conf"])?;
    let systemctl = "/run/current-system/sw/bin/systemctl";
    let up = [
        "exec",
        "conf",
        "--",
        systemctl,
        "is-active",
        "sysinit.target",
    ];
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while h.engine()?.command(&up).is_err() {
        if std::time::Instant::now() > end {
            return Err("a machine started by hand does not come up".into());
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let done = h.codchi(&["stop", "conf"])?.ok()?;
    if done.err.contains("killed") {
        return Err(format!("it was not asked: {}", done.err).into());
    }
    h.codchi(&["start", "conf"])?.ok()?;
    Ok(())
}

/// As an export leaves it that is killed meanwhile.
fn left_still(h: &Host) -> Result<(), Failed> {
    let note = h.home.join("run/codchi/machines/conf/still");
    codchi_fs::write(&note, "process 0")?;
    h.engine()?.command(&["pause", "conf"])?;
    let said = h.sh("conf", "echo goes on")?;
    wants("exec", &said, &["goes on"])?;
    if note.exists() {
        return Err("it is still said to be still".into());
    }
    Ok(())
}

fn daemon_stopped(h: &Host) -> Result<(), Failed> {
    h.engine()?.pause(|engine| {
        // Not through `h`, which asks the engine where it is.
        let codchi = |args: &[&str]| {
            let mut c = h.plain_command(args);
            let (name, value) = engine.environment();
            c.env(name, value);
            crate::host::run(&mut c, b"")
        };
        let kind = engine.kind();
        let start = format!("systemctl start {}", kind.name);
        let done = codchi(&["exec", "conf", "--", "echo", "still here"])?.ok()?;
        wants("exec", &done.text(), &["still here"])?;
        wants(
            "status",
            &codchi(&["status"])?.ok()?.text(),
            &["conf", "running"],
        )?;
        let done = codchi(&["init", "late"])?.exits(3)?;
        wants("init", &done.err, &["does not run", &start])?;
        let done = codchi(&["doctor"])?;
        wants("doctor", &done.text(), &["does not run", &start])
    })
}

fn renamed(h: &Host) -> Result<(), Failed> {
    h.codchi(&["stop", "conf"])?.ok()?;
    h.engine()?.command(&["rename", "conf", "elsewhere"])?;
    let done = h.codchi(&["start", "conf"])?.exits(3)?;
    let client = h.engine()?.kind().client;
    wants(
        "start",
        &done.err,
        &["elsewhere", &format!("{client} rename elsewhere conf")],
    )?;
    if h.status("conf")?["state"] != "failed" {
        return Err("the state is not `failed`".into());
    }
    h.engine()?.command(&["rename", "elsewhere", "conf"])?;
    h.codchi(&["start", "conf"])?.ok()?;
    Ok(())
}

fn foreign(h: &Host) -> Result<(), Failed> {
    let create = h.engine()?.kind().create;
    h.engine()?
        .command(&[create, "--empty", "theirs", "-s", "default"])?;
    let done = h.codchi(&["init", "theirs"])?.exits(3)?;
    wants("init", &done.err, &["theirs", "left alone"])?;
    wants(
        "list",
        &h.engine()?
            .command(&["list", "--format", "csv", "-c", "n"])?,
        &["theirs"],
    )?;
    h.codchi(&["status", "theirs"])?.exits(5)?;
    h.engine()?.command(&["delete", "theirs"])?;
    Ok(())
}

fn no_pool(h: &Host) -> Result<(), Failed> {
    // A second engine, with nothing in it at all.
    let second = h.engine()?.another(Engine::place(&h.home, "empty"))?;
    second.command(&["storage", "delete", "default"])?;
    let mut c = h.plain_command(&["init", "nowhere"]);
    let (name, value) = second.environment();
    let done = crate::host::run(c.env(name, value), b"")?.exits(3)?;
    wants(
        "init",
        &done.err,
        &["storage pool", "storage create default dir"],
    )?;
    Ok(())
}

fn configured(h: &Host) -> Result<(), Failed> {
    h.engine()?
        .command(&["config", "set", "conf", "user.note=mine"])?;
    h.codchi(&["restart", "conf"])?.ok()?;
    let note = h
        .engine()?
        .command(&["config", "get", "conf", "user.note"])?;
    if note != "mine" {
        return Err(format!("the person's own key became `{note}`").into());
    }
    // A device stays, too, when the files of a machine that is off are read.
    h.engine()?
        .command(&["config", "device", "add", "conf", "theirs", "none"])?;
    h.codchi(&["stop", "conf"])?.ok()?;
    let file = h.home.join("configured.tar");
    h.codchi(&["tar", "conf", &file.to_string_lossy(), "--yes"])?
        .ok()?;
    codchi_fs::remove_file(&file)?;
    h.codchi(&["start", "conf"])?.ok()?;
    let devices = h.engine()?.command(&["config", "device", "list", "conf"])?;
    wants("devices", &devices, &["theirs"])?;
    h.engine()?
        .command(&["config", "device", "remove", "conf", "theirs"])?;
    Ok(())
}

/// On a pool of btrfs, of which the engine limits what an instance takes.
fn limited(h: &Host) -> Result<(), Failed> {
    let image = h.home.join("btrfs");
    let tried = format!(
        "truncate -s 256M {0} && mkfs.btrfs -q {0} && mkdir {0}.d && mount -o loop {0} {0}.d && umount {0}.d && rm -r {0} {0}.d",
        image.display()
    );
    let tried = crate::host::run(
        std::process::Command::new("unshare").args(["--mount", "sh", "-c", &tried]),
        b"",
    )?;
    if tried.status != 0 {
        println!("    left out: no btrfs can be mounted here: {}", tried.err);
        return Ok(());
    }
    let source = h.home.join("limited");
    codchi_fs::create_dir_all(&source)?;
    codchi_fs::write(
        source.join("flake.nix"),
        "{ outputs = { self }: { nixosModules.default.codchi.resources.disk = \"200M\"; }; }\n",
    )?;
    let source = source.to_string_lossy().into_owned();
    let engine = |args: &[&str]| h.engine()?.command(args);
    engine(&["storage", "create", "limited", "btrfs", "size=2GiB"])?;
    let device = [
        "profile", "device", "add", "default", "root", "disk", "path=/",
    ];
    engine(&[&device[..], &["pool=limited"]].concat())?;
    let done = h.codchi(&["init", "small", &source]);
    engine(&["profile", "device", "remove", "default", "root"])?;
    let done = done?.ok()?;
    if done.err.contains("may not hold") {
        return Err(format!("it is said not to hold: {}", done.err).into());
    }
    let fill = |mib: u32| {
        let script = format!("head -c {mib}M /dev/urandom > ~/large && sync ~/large");
        h.codchi(&["exec", "small", "--", "sh", "-c", &script])
    };
    fill(100)?.ok()?;
    let done = fill(300)?;
    if done.status == 0 || !done.err.contains("quota") && !done.err.contains("No space") {
        return Err(format!("300 MiB went where 200 may: {}", done.err).into());
    }
    h.sh("small", "rm ~/large && sync -f ~ && echo small > ~/left")?;
    // A folder is no such pool, and that is said.
    let done = h.codchi(&["init", "unlimited", &source])?.ok()?;
    wants("init", &done.err, &["may not hold", "`default`"])?;
    h.codchi(&["delete", "--yes", "small", "unlimited"])?.ok()?;
    engine(&["storage", "delete", "limited"])?;
    Ok(())
}

fn deleted(h: &Host) -> Result<(), Failed> {
    h.codchi(&["init", "doomed"])?.ok()?;
    h.engine()?.command(&["delete", "--force", "doomed"])?;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while h.status("doomed")?["state"] != "failed" {
        if std::time::Instant::now() > end {
            return Err("a machine without an instance is not said to have failed".into());
        }
    }
    let done = h.codchi(&["start", "doomed"])?.exits(3)?;
    let gone = format!("gone from {}", h.engine()?.kind().title);
    wants("start", &done.err, &[&gone, "codchi delete doomed"])?;
    h.codchi(&["delete", "--yes", "doomed"])?.ok()?;
    Ok(())
}

/// There and back: files of every kind, owners, attributes, what runs, and nothing left behind.
fn moves(h: &Host) -> Result<(), Failed> {
    // Under a name of its own: on the native driver it must not meet a machine of another suite.
    let name = format!("moves-{}", h.driver);
    h.codchi(&["duplicate", "conf", &name, "--start"])?.ok()?;
    let before = crate::copies::make(h, &name)?;
    // What only another instance could have is named first.
    h.engine()?
        .command(&["config", "set", &name, "user.note=mine"])?;
    let done = h.codchi(&["move", &name, "--driver", "native"])?.exits(4)?;
    wants("move", &done.err, &["`user.note`", "--leave-extras"])?;
    h.engine()?
        .command(&["config", "unset", &name, "user.note"])?;
    let done = h
        .codchi(&["--dry-run", "move", &name, "--driver", "native"])?
        .ok()?;
    wants("plan", &done.text(), &["move the files from"])?;
    let socket = |text: &str| {
        let lines = text
            .lines()
            .filter(|l| !l.contains("copies/socket|") && !l.starts_with("var/lib/copies|"));
        lines.collect::<Vec<_>>().join("\n")
    };
    for driver in ["native", "qemu", h.driver] {
        if driver == "qemu" && h.driver != "incus" {
            // The way is the same from any engine.
            continue;
        }
        if driver == "qemu" {
            // A boot takes a minute where processors are emulated: its files are looked at when they come from there.
            h.codchi(&["stop", &name])?.ok()?;
            h.codchi(&["move", &name, "--driver", driver])?.ok()?;
            continue;
        }
        h.codchi(&["move", &name, "--driver", driver])?.ok()?;
        h.codchi(&["start", &name])?.ok()?;
        let status = h.status(&name)?;
        if status["driver"] != driver || status["state"] != "running" {
            return Err(format!("it is not running on {driver}: {status}").into());
        }
        if status["config"] == "modified" {
            return Err("a move is no change of the machine".into());
        }
        let after = crate::copies::look(h, &name)?;
        if socket(&after) != socket(&before) {
            return Err(format!("on {driver} the files are\n{after}\nand were\n{before}").into());
        }
        let there = h
            .engine()?
            .command(&["list", "--format", "csv", "-c", "n"])?;
        if there.lines().any(|l| l == name) != (driver == h.driver) {
            return Err(format!("on {driver} the engine has: {there}").into());
        }
    }
    h.codchi(&["delete", "--yes", &name])?.ok()?;
    Ok(())
}

/// Three hosts whose engines are one cluster; Codchi is used on two of them.
fn members(h: &Host) -> Result<(), Failed> {
    let dirs: Vec<_> = (1..=3)
        .map(|n| Engine::place(&h.home, &format!("m{n}")))
        .collect();
    let members = h.engine()?.cluster(&dirs)?;
    let [first, second, _] = &members[..] else {
        return Err("there are not three members".into());
    };
    let on = |member: &Engine, home: &std::path::Path, args: &[&str]| {
        let mut c = h.plain_command(args);
        let (name, value) = member.environment();
        c.env(name, value)
            .env("HOME", home)
            .env("XDG_RUNTIME_DIR", home.join("run"));
        crate::host::run(&mut c, b"")
    };
    let (home, other) = (h.home.clone(), h.home.join("second"));
    codchi_fs::create_private_dir(other.join("run"))?;
    let place = |name: &str| {
        let all = first.command(&["list", "--format", "csv", "-c", "nL"])?;
        let line = all
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{name},")));
        line.map(String::from)
            .ok_or_else(|| Failed::from(format!("`{name}` is not in {all}")))
    };
    // The engine itself would put the second where there is least.
    for name in ["here", "too"] {
        on(first, &home, &["init", name])?.ok()?;
        if place(name)? != "m1" {
            return Err(format!("`{name}` is on {}", place(name)?).into());
        }
    }
    on(first, &home, &["duplicate", "here", "copy"])?.ok()?;
    if place("copy")? != "m1" {
        return Err("a copy is on another member".into());
    }
    // The names of instances are the cluster's, and that of another host's machine is not touched.
    let done = on(second, &other, &["init", "here"])?.exits(3)?;
    wants("init", &done.err, &["here", "left alone"])?;
    on(second, &other, &["init", "there"])?.ok()?;
    if place("there")? != "m2" {
        return Err("a machine of the second host is on another member".into());
    }
    for (member, home, name) in [(first, &home, "here"), (second, &other, "there")] {
        let script = "readlink -f /run/current-system";
        let system = on(member, home, &["exec", name, "--", "sh", "-c", script])?
            .ok()?
            .text();
        let own = home
            .join(".local/share/codchi/store")
            .join(system.trim_start_matches('/'));
        if !own.join("init").exists() {
            return Err(format!("`{name}` does not run from {}", own.display()).into());
        }
    }
    // Moved by hand: it is said, and how it comes back.
    on(second, &other, &["stop", "there"])?.ok()?;
    first.command(&["move", "there", "--target", "m3"])?;
    let done = on(second, &other, &["start", "there"])?.exits(3)?;
    let client = h.engine()?.kind().client;
    let mend = format!("{client} move there --target m2");
    wants("start", &done.err, &["member `m3`", &mend])?;
    let done = on(second, &other, &["status", "there"])?.ok()?;
    wants("status", &done.text(), &["failed", "member `m3`"])?;
    first.command(&["move", "there", "--target", "m2"])?;
    on(second, &other, &["exec", "there", "--", "true"])?.ok()?;
    let done = on(second, &other, &["doctor"])?;
    wants("doctor", &done.text(), &["the member `m2` of a cluster"])?;
    on(second, &other, &["delete", "--yes", "there"])?.ok()?;
    on(first, &home, &["delete", "--yes", "here", "too", "copy"])?.ok()?;
    on(second, &other, &["store", "remove", "--all", "--yes"])?.ok()?;
    codchi_fs::remove_dir_all(&other)?;
    Ok(())
}
