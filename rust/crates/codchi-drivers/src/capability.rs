//! What this host has that a machine may be given: looked for before anything is built, and found again at each start.

use std::path::Path;

use codchi_core::consent;
use codchi_core::manifest::Needs;
use codchi_core::session::Session;
use codchi_core::status::{Finding, Level};
use rustix::fs::Access;

/// The caller's session, as its variables and files say now.
pub fn session() -> Session {
    Session::of(&|name| std::env::var_os(name), &|path| path.symlink_metadata().is_ok())
}

/// Whether this host has a capability, and how to get it. Those of no meaning here are the drivers' own.
pub fn probe(name: &str, needs: &Needs, session: &Session) -> Finding {
    let socket = |path: &Option<std::path::PathBuf>| path.as_ref().is_some_and(|p| p.exists());
    let device = |name: &str| usable(&Path::new("/dev").join(name));
    let (problem, fix): (Option<String>, &str) = match name {
        "display" => {
            let wanted = |p: &str| needs.displays.is_empty() || needs.displays.iter().any(|d| d == p);
            let x11 = wanted("x11") && session.x_server().is_some();
            let wayland = wanted("wayland") && socket(&session.wayland);
            let missing =
                if needs.displays.is_empty() { "X11 or Wayland".into() } else { needs.displays.join(" or ") };
            (
                (!x11 && !wayland).then(|| format!("this session has no display ({missing})")),
                "run codchi in a graphical session, where `DISPLAY` or `WAYLAND_DISPLAY` is set",
            )
        }
        "sound" => (
            (!socket(&session.pulse) && !socket(&session.pipewire))
                .then(|| "no sound server runs in this session".into()),
            "run PipeWire or PulseAudio in your session: `systemctl --user start pipewire pipewire-pulse`",
        ),
        "ssh-agent" => (
            (!socket(&session.ssh_agent)).then(|| "no ssh agent runs in this session".into()),
            "start an agent: `eval $(ssh-agent)`",
        ),
        "gpu" => {
            let nodes = gpu();
            let reason = match nodes.iter().map(|n| device(n)).find(Result::is_ok) {
                Some(_) => None,
                None if nodes.is_empty() => Some("there is no graphics device below `/dev/dri`".into()),
                None => nodes.first().and_then(|n| device(n).err()),
            };
            (reason, "install the driver of the graphics card; for NVIDIA also `nvidia-container-toolkit`")
        }
        "kvm" => (
            device("kvm").err(),
            "enable virtualisation in the firmware; without root: `sudo setfacl -m u:$USER:rw /dev/kvm`",
        ),
        "fuse" => (device("fuse").err(), "`sudo modprobe fuse`"),
        "tun" => (device("net/tun").err(), "`sudo modprobe tun`"),
        "usb" => {
            let missing: Vec<&str> = needs
                .usb_devices
                .iter()
                .map(String::as_str)
                .filter(|d| usb(std::slice::from_ref(&d.to_string())).is_empty())
                .collect();
            let problem = if !Path::new("/dev/bus/usb").exists() {
                Some("there is no USB here (`/dev/bus/usb`)".into())
            } else {
                (!missing.is_empty()).then(|| format!("{} is not plugged in", missing.join(", ")))
            };
            (problem, "plug it in; `lsusb` lists what there is")
        }
        "certificates" => (
            codchi_store::certificates()
                .is_none()
                .then(|| "there is no bundle of certificate authorities".into()),
            "install `ca-certificates`",
        ),
        "git-credentials" => ((!on_path("git")).then(|| "there is no git".into()), "install `git`"),
        "netrc" => {
            let home = std::env::var_os("HOME").unwrap_or_default();
            let there = Path::new(&home).join(".netrc").exists();
            (
                (!there).then(|| "you have no `~/.netrc`".into()),
                "put logins into `~/.netrc`, with `chmod 600`",
            )
        }
        _ => (None, ""),
    };
    Finding {
        what: name.into(),
        level: if problem.is_some() { Level::Missing } else { Level::Good },
        fix: problem.is_some().then(|| fix.to_owned()),
        detail: problem.unwrap_or_else(|| "there".into()),
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|d| d.join(program).exists())
}

/// The devices of this host, below /dev, that a machine with these needs, and this said of them, shall have.
pub fn devices(needs: &Needs, granted: &[String]) -> Vec<String> {
    let has = |name| consent::has_capability(needs, granted, name);
    let mut all = Vec::new();
    all.extend(has("kvm").then(|| "kvm".into()));
    if has("gpu") {
        all.extend(gpu());
    }
    if has("usb") {
        all.extend(usb(&needs.usb_devices));
    }
    all
}

/// Nodes of graphics processors: those of the kernel's DRM, and NVIDIA's own.
fn gpu() -> Vec<String> {
    let names = |folder: &str| -> Vec<String> {
        let entries = codchi_fs::read_dir(folder).unwrap_or_default();
        entries.iter().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    };
    let drm = names("/dev/dri").into_iter().filter(|n| n.starts_with("card") || n.starts_with("renderD"));
    let mut all: Vec<String> = drm.map(|n| format!("dri/{n}")).collect();
    all.extend(names("/dev").into_iter().filter(|n| n.starts_with("nvidia") && n != "nvidia-caps"));
    all.sort();
    all
}

/// Nodes of USB devices that are plugged in, by `vendor:product`.
fn usb(wanted: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for entry in codchi_fs::read_dir("/sys/bus/usb/devices").unwrap_or_default() {
        let read = |name: &str| {
            let text = codchi_fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        let id = format!("{}:{}", read("idVendor"), read("idProduct"));
        let (bus, device) = (read("busnum").parse::<u16>(), read("devnum").parse::<u16>());
        if let (true, Ok(bus), Ok(device)) = (wanted.contains(&id), bus, device) {
            all.push(format!("bus/usb/{bus:03}/{device:03}"));
        }
    }
    all
}

/// Whether a machine of the caller could use a device: groups of the caller's do not go along into a user namespace.
fn usable(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let shown = path.display();
    let Ok(node) = path.metadata() else { return Err(format!("there is no `{shown}`")) };
    let caller = rustix::process::geteuid();
    let read_and_write = |bits: u32| bits & 6 == 6;
    if caller.is_root()
        || read_and_write(node.mode())
        || node.uid() == caller.as_raw() && read_and_write(node.mode() >> 6)
    {
        return Ok(());
    }
    let mut list = [0; 1024];
    let length = rustix::fs::getxattr(path, "system.posix_acl_access", &mut list[..]).unwrap_or(0);
    if named_in(list.get(..length).unwrap_or_default(), caller.as_raw()) {
        return Ok(());
    }
    Err(if rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).is_ok() {
        format!(
            "you may use `{shown}` as a member of its group, and groups do not go along into a machine without root"
        )
    } else {
        format!("you may not use `{shown}`")
    })
}

/// Whether an access control list, as the kernel stores it (acl(5), posix_acl_xattr.h), lets a user read and write.
fn named_in(list: &[u8], user: u32) -> bool {
    const USER: u16 = 2;
    let entries = list.get(4..).unwrap_or_default();
    entries.as_chunks::<8>().0.iter().any(|e| {
        let number = |at: usize| u16::from_le_bytes([e[at], e[at + 1]]);
        number(0) == USER && number(2) & 6 == 6 && u32::from_le_bytes([e[4], e[5], e[6], e[7]]) == user
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_in_the_access_control_list_is_found() {
        let mut list = 2u32.to_le_bytes().to_vec();
        for (tag, bits, id) in [(1u16, 6u16, u32::MAX), (2, 4, 7), (2, 6, 1000), (4, 6, u32::MAX)] {
            list.extend_from_slice(&tag.to_le_bytes());
            list.extend_from_slice(&bits.to_le_bytes());
            list.extend_from_slice(&id.to_le_bytes());
        }
        assert!(named_in(&list, 1000));
        assert!(!named_in(&list, 7) && !named_in(&list, u32::MAX) && !named_in(&[], 1000));
    }

    #[test]
    fn what_is_missing_is_told_with_a_way_to_get_it() {
        let needs = Needs { displays: vec!["wayland".into()], ..Needs::default() };
        let session = Session { display: Some(":0".into()), ..Session::default() };
        let found = probe("display", &needs, &session);
        assert_eq!(found.level, Level::Missing);
        assert!(found.detail.contains("wayland") && found.fix.is_some());
        assert_eq!(probe("display", &Needs::default(), &session).level, Level::Good);
        assert_eq!(probe("ssh-agent", &needs, &session).level, Level::Missing);
        assert_eq!(probe("nested-containers", &needs, &session).level, Level::Good);
    }
}
