//! What the native driver needs of a host, tried for real where that is cheap.

use std::os::fd::AsFd;
use std::path::Path;

use codchi_core::report::Diagnose;
use codchi_sys::mount::{Attributes, set_attributes};
use codchi_sys::process::{End, Namespaces};
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::manager::Manager;
use crate::network::find_program;
use crate::outer::{self, OWN_DIR, OuterConfig, Role};
use crate::{cgroup, ids, mounts};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What it is.
    pub what: String,
    /// Whether it is as needed.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// The command, or the NixOS option, that mends it.
    pub mend: Option<String>,
    /// Whether machines run without it, with less.
    pub optional: bool,
}

fn good(what: &str, detail: impl Into<String>) -> Finding {
    Finding { what: what.into(), ok: true, detail: detail.into(), mend: None, optional: false }
}

fn bad(what: &str, detail: impl Into<String>, mend: Option<String>) -> Finding {
    Finding { what: what.into(), ok: false, detail: detail.into(), mend, optional: false }
}

fn optional(f: Finding) -> Finding {
    Finding { optional: true, ..f }
}

/// Looks at this host. Nothing is changed. This process must have one thread: what is tried is tried in copies of it.
pub fn probe() -> Vec<Finding> {
    let (host, privileged) = (Host::look(), outer::is_privileged());
    let mut all = vec![namespaces()];
    if !privileged {
        all.extend(subordinate(&host));
    }
    all.push(control_groups(privileged));
    all.extend(linger(&host));
    all.extend(network(&host));
    if all[0].ok {
        all.extend(kernel(privileged));
    }
    all
}

fn namespaces() -> Finding {
    let what = "user namespaces";
    let tried = codchi_sys::process::fork(|| {
        match codchi_sys::process::unshare(Namespaces::USER)
            .and_then(|()| codchi_sys::process::unshare(Namespaces::MOUNT.and(Namespaces::NET)))
        {
            Ok(()) => 0,
            Err(e) => e.raw_os_error().unwrap_or(1),
        }
    })
    .and_then(|c| c.wait());
    match tried {
        Ok(End::Code(0)) => good(what, "can be made"),
        Ok(End::Code(errno)) => {
            let e = outer::user_namespace_refused(std::io::Error::from_raw_os_error(errno));
            bad(what, e.to_string(), first_command(&e))
        }
        other => bad(what, format!("could not be tried: {other:?}"), None),
    }
}

/// The first hint that is a command.
fn first_command(e: &Error) -> Option<String> {
    e.hints().into_iter().find(|h| h.contains('`'))
}

fn subordinate(host: &Host) -> Vec<Finding> {
    let mut all = Vec::new();
    let uid = rustix::process::getuid().as_raw();
    for (file, group) in [("/etc/subuid", false), ("/etc/subgid", true)] {
        let what = if group { "subordinate group ids" } else { "subordinate user ids" };
        all.push(match outer::subordinate(&host.user, uid, file, group) {
            Ok(e) => {
                let shown: Vec<String> = e.iter().map(|e| format!("{}+{}", e.outside, e.count)).collect();
                good(what, shown.join(", "))
            }
            Err(e) => bad(what, e.to_string(), first_command(&e)),
        });
    }
    let helpers = ["newuidmap", "newgidmap"].map(find_program);
    all.push(match helpers {
        [Some(u), Some(_)] => match outer::run(&OuterConfig::default(), Role::Maintainer, |_| Ok(Vec::new()))
        {
            Ok(_) => good("newuidmap", format!("`{}` works", u.display())),
            Err(e) if all.iter().all(|f| f.ok) => bad("newuidmap", e.to_string(), first_command(&e)),
            Err(e) => bad("newuidmap", e.to_string(), None),
        },
        _ => bad(
            "newuidmap",
            "not installed",
            Some(host.mend("security.shadow.enable = true;", "sudo apt install uidmap")),
        ),
    });
    all
}

fn control_groups(privileged: bool) -> Finding {
    let what = "control groups";
    if privileged {
        let known = codchi_fs::read_to_string("/proc/filesystems").unwrap_or_default();
        return if known.split_whitespace().any(|w| w == "cgroup2") {
            good(what, "cgroup2 can be mounted")
        } else {
            bad(what, "this kernel has no cgroup2", None)
        };
    }
    if Manager::is_present() {
        return good(what, "by systemd");
    }
    match cgroup::own_delegated() {
        Ok(Some(d)) => good(what, format!("`{}` is delegated", d.display())),
        Ok(None) => {
            let e = cgroup::missing();
            bad(what, e.to_string(), first_command(&e))
        }
        Err(e) => bad(what, e.to_string(), None),
    }
}

/// Whether machines of an ordinary user of a systemd host outlive the log-in; `None` where that is no question.
pub fn lingering() -> Option<Finding> {
    linger(&Host::look())
}

fn linger(host: &Host) -> Option<Finding> {
    let what = "machines outlive the login";
    Some(optional(match host.linger()? {
        Ok(()) => good(what, "lingering is on"),
        Err(mend) => bad(what, "machines end with your last login", Some(mend)),
    }))
}

fn network(host: &Host) -> Vec<Finding> {
    let programs: Vec<String> = ["pasta", "slirp4netns"]
        .into_iter()
        .filter_map(find_program)
        .map(|p| p.display().to_string())
        .collect();
    let way = if programs.is_empty() {
        bad(
            "a network for machines",
            "neither pasta nor slirp4netns is installed: machines reach only themselves",
            Some(host.mend("environment.systemPackages = [ pkgs.passt ];", "sudo apt install passt")),
        )
    } else {
        good("a network for machines", programs.join(", "))
    };
    let tun = Path::new("/dev/net/tun");
    let what = "/dev/net/tun";
    let node = if rustix::fs::stat(tun).is_err() {
        bad(what, "missing", Some(host.mend("boot.kernelModules = [ \"tun\" ];", "sudo modprobe tun")))
    } else if !host.root
        && rustix::fs::access(tun, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_err()
    {
        bad(what, "only root may open it", Some("`sudo chmod 666 /dev/net/tun`".into()))
    } else {
        good(what, "can be opened")
    };
    vec![optional(way), optional(node)]
}

fn kernel(privileged: bool) -> Vec<Finding> {
    let mut all = Vec::new();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = |r: &str| {
        let mut n = r.split(|c: char| !c.is_ascii_digit()).map(|w| w.parse::<u32>().unwrap_or(0));
        (n.next().unwrap_or(0), n.next().unwrap_or(0))
    };
    let is = version(&release);
    let needed = "5.12 or later is needed; distributions have had one since 2022";
    all.push(if is >= (5, 12) {
        good("the kernel", &release)
    } else {
        bad("the kernel", format!("{release}: {needed}"), None)
    });
    if privileged {
        let what = "idmapped mounts";
        let home = std::env::var_os("HOME").map_or_else(|| "/".into(), std::path::PathBuf::from);
        let done = outer::run(&OuterConfig::default(), Role::Maintainer, |_| {
            let space = mounts::mapping_namespace(0x4000_0000, ids::COUNT)?;
            let tree = outer::clone_tree(&home, false).doing("clone a mount")?;
            set_attributes(tree.as_fd(), &Attributes { idmap: Some(space.as_fd()), ..Attributes::default() })
                .doing(format!("map the owners of `{}`", home.display()))?;
            Ok(Vec::new())
        });
        all.push(report(
            what,
            done,
            "can be made",
            Some("keep Codchi's data on ext4, xfs, btrfs or f2fs".into()),
        ));
    }
    let done = outer::run(&OuterConfig::default(), Role::Maintainer, |_| overlay().map(|()| Vec::new()));
    all.push(optional(report("overlay mounts in namespaces", done, "can be made", None)));
    let what = "mounts beneath others";
    all.push(optional(if is >= (6, 5) {
        good(what, "since Linux 6.5")
    } else {
        bad(
            what,
            format!("Linux {release} cannot (6.5 can): what is mounted is exchanged at a restart"),
            None,
        )
    }));
    all
}

fn overlay() -> Result<()> {
    let dir = Path::new(OWN_DIR);
    for d in ["lower", "upper", "work", "merged"] {
        codchi_fs::create_dir_all(dir.join(d))?;
    }
    let p = |d: &str| dir.join(d).display().to_string();
    let data = format!("lowerdir={},upperdir={},workdir={},userxattr", p("lower"), p("upper"), p("work"));
    let data = std::ffi::CString::new(data).map_err(std::io::Error::other).doing("name the layers")?;
    rustix::mount::mount("overlay", dir.join("merged"), "overlay", MountFlags::empty(), data.as_c_str())
        .doing("mount an overlay")
}

fn report(what: &str, done: Result<Vec<u8>>, detail: &str, mend: Option<String>) -> Finding {
    match done {
        Ok(_) => good(what, detail),
        Err(e) => bad(what, e.to_string(), mend),
    }
}
