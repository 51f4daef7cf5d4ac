//! What is shown of virtual machines with as few boots as can be.

use libtest_mimic::Failed;

use crate::cases::{Case, build};
use crate::copies;
use crate::host::Host;

/// The cases. They use the machine `conf` and leave it running.
pub const ALL: &[Case] = &[
    (
        "qemu_a_machine_is_rebuilt_and_rolled_back",
        rebuilt_and_rolled_back,
    ),
    ("qemu_a_machine_is_off_and_on_with_its_files", off_and_on),
    (
        "qemu_what_serves_a_machine_has_no_file_of_the_host_to_write",
        nothing_to_write,
    ),
    (
        "qemu_a_machine_goes_on_that_a_killed_copy_left_stopped",
        left_stopped,
    ),
    (
        "qemu_copies_and_moves_keep_every_file_of_a_running_machine",
        copies_and_moves,
    ),
];

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Result<(), Failed> {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{what}: {got:?} where {wanted:?} was expected").into())
}

fn rebuilt_and_rolled_back(h: &Host) -> Result<(), Failed> {
    let boot = h.sh("conf", "cat /proc/sys/kernel/random/boot_id")?;
    let project = h.home.join("project");
    codchi_fs::rename(project.join("module.nix"), project.join("module-one.nix"))?;
    codchi_fs::write(
        project.join("module.nix"),
        "{ imports = [ ./module-one.nix ]; environment.etc.second.text = \"two\"; }\n",
    )?;
    h.commit(&project)?;
    h.codchi(&["rebuild", "conf"])?.ok()?;
    expect("file", h.sh("conf", "cat /etc/second")?, "two".into())?;
    h.codchi(&["rollback", "conf"])?.ok()?;
    let gone = "test ! -e /etc/second && echo gone";
    expect("file", h.sh("conf", gone)?, "gone".into())?;
    expect(
        "boot",
        h.sh("conf", "cat /proc/sys/kernel/random/boot_id")?,
        boot,
    )
}

/// The mounts of a process that it may write to, and those that follow the host's; see proc_pid_mountinfo(5).
fn open_mounts(pid: i32) -> Result<(Vec<String>, Vec<String>), Failed> {
    // Its own root may be a part of what it could reach.
    let target = format!("--target={pid}");
    let list = std::process::Command::new("nsenter")
        .args([&target, "--mount", "--", "cat", "/proc/self/mountinfo"])
        .output()?;
    let table = String::from_utf8_lossy(&list.stdout);
    if table.is_empty() {
        return Err(String::from_utf8_lossy(&list.stderr).into_owned().into());
    }
    let fields = table
        .lines()
        .map(|l| l.split(' ').collect::<Vec<_>>())
        .filter(|f| f.len() > 6);
    let (mut written, mut following) = (Vec::new(), Vec::new());
    for f in fields {
        if f[5].split(',').any(|o| o == "rw") {
            written.push(f[4].to_owned());
        }
        if f[6] != "-" {
            following.push(f[4].to_owned());
        }
    }
    Ok((written, following))
}

fn nothing_to_write(h: &Host) -> Result<(), Failed> {
    let leader = h.status("conf")?["leader"].as_i64().ok_or("no leader")? as i32;
    let of = |pid: i32| -> Option<(String, i32)> {
        let stat = codchi_fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.rsplit_once(')')?;
        let name = name.split_once('(')?.1.to_owned();
        Some((name, rest.split_whitespace().nth(1)?.parse().ok()?))
    };
    let told = h.home.join("run/codchi/machines/conf/supervisor.json");
    let told: serde_json::Value = serde_json::from_str(&codchi_fs::read_to_string(told)?)?;
    let supervisor = told["pid"].as_i64().ok_or("nobody looks after it")? as i32;
    let (written, following) = open_mounts(leader)?;
    expect("what QEMU may write to", written, vec![])?;
    expect("what it sees of the host's mounts", following, vec![])?;
    let mut servers = 0;
    for entry in codchi_fs::read_dir("/proc")? {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
        else {
            continue;
        };
        if of(pid) != Some(("virtiofsd".into(), supervisor)) {
            continue;
        }
        servers += 1;
        let arguments = codchi_fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let (written, following) = open_mounts(pid)?;
        // Of the host's folders, those that the machine may write to.
        let share = |path: &String| {
            let shown = path.contains("/shares/folders/") && arguments.contains("/shares/folders");
            shown || (path.ends_with("/shares/root") && arguments.contains(path.as_str()))
        };
        if !written.iter().all(share) {
            return Err(format!("virtiofsd may write to {written:?}").into());
        }
        expect(
            "what virtiofsd sees of the host's mounts",
            following,
            vec![],
        )?;
    }
    expect("processes that share folders", servers, 5)
}

fn left_stopped(h: &Host) -> Result<(), Failed> {
    copies::holder_killed(h)?;
    expect("answer", h.sh("conf", "echo here")?, "here".into())
}

fn off_and_on(h: &Host) -> Result<(), Failed> {
    h.sh("conf", "echo kept > ~/kept && sudo chown 1234:99 ~/kept")?;
    h.sh(
        "conf",
        &format!("nix-build -o ~/result -E {}", build("linked")),
    )?;
    h.codchi(&["stop", "conf"])?.ok()?;
    h.codchi(&["gc"])?.ok()?;
    let status = h.status("conf")?;
    expect("state", status["state"].as_str(), Some("stopped"))?;
    expect("leader", status["leader"].as_u64(), None)?;
    h.codchi(&["stop", "conf"])?.ok()?;
    // exec starts a stopped machine.
    let file = h.sh("conf", "cat ~/kept; stat -c %u:%g ~/kept")?;
    expect("file", file, "kept\n1234:99".into())?;
    let held = h.sh("conf", "cat ~/result; rm ~/result")?;
    expect("what a result link holds", held, "sandboxed".into())
}

/// Copied while it runs; looked at where that takes no boot; and back, under other names.
fn copies_and_moves(h: &Host) -> Result<(), Failed> {
    let boot = h.sh("conf", "cat /proc/sys/kernel/random/boot_id")?;
    // A socket is made by who listens there, and no tar holds one.
    let socket = |text: String| -> String {
        let other = |l: &&str| !l.contains("copies/socket|") && !l.starts_with("var/lib/copies|");
        text.lines().filter(other).collect::<Vec<_>>().join("\n")
    };
    let before = socket(copies::make(h, "conf")?);
    let done = h.codchi(&["duplicate", "conf", "twin"])?.ok()?;
    if !done.err.contains("held still") {
        return Err(format!("not a word of the machine's being held still: {}", done.err).into());
    }
    copies::answers(h, "conf")?;
    let config = h.status("twin")?["config"].clone();
    for driver in ["native", "qemu"] {
        h.codchi(&["move", "twin", "--driver", driver])?.ok()?;
        let files = socket(copies::look(h, "twin")?);
        expect(&format!("files on {driver}"), files, before.clone())?;
        let status = h.status("twin")?;
        expect("driver", status["driver"].as_str(), Some(driver))?;
        expect("config", &status["config"], &config)?;
        let is_virtual = status["acceleration"].is_string();
        expect("acceleration is told", is_virtual, driver == "qemu")?;
    }
    if h.sh("twin", "cat /etc/machine-id")? == h.sh("conf", "cat /etc/machine-id")? {
        return Err("both have the same machine id".into());
    }
    let tar = h.home.join("twin.tar");
    let tar = tar.to_string_lossy();
    h.codchi(&["tar", "twin", &tar])?.ok()?;
    copies::answers(h, "twin")?;
    h.codchi(&["stop", "twin"])?.ok()?;
    h.codchi(&["rename", "twin", "other"])?.ok()?;
    h.codchi(&["status", "twin"])?.exits(5)?;
    h.codchi(&["import", &tar, "back"])?.ok()?;
    // Both are off, and their files are where another driver finds them.
    for name in ["other", "back"] {
        expect("driver", h.status(name)?["driver"].as_str(), Some("qemu"))?;
        h.codchi(&["move", name, "--driver", "native"])?.ok()?;
        let files = socket(copies::look(h, name)?);
        expect(&format!("files of {name}"), files, before.clone())?;
        expect("host name", h.sh(name, "hostname")?, name.into())?;
        h.codchi(&["delete", "--yes", name])?.ok()?;
    }
    codchi_fs::remove_file(h.home.join("twin.tar"))?;
    let same_boot = h.sh("conf", "cat /proc/sys/kernel/random/boot_id")?;
    expect("boot of the machine that was copied", same_boot, boot)
}
