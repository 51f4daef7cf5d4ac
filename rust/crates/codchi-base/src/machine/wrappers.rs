//! Setuid programs: the store allows none, so each is a copy on a file system of its own.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use codchi_fs::Context as _;
use rustix::fs::XattrFlags;
use rustix::mount::{MountFlags, mount};
use serde::{Deserialize, Serialize};

use super::users::Accounts;
use super::{RUN, boot};
use crate::error::Tried;
use crate::{Error, Result};

const DIR: &str = "/run/wrappers";

/// A program that runs with more rights than its caller has.
#[derive(Debug, Deserialize, Serialize)]
pub struct Wrapper {
    name: String,
    source: PathBuf,
    owner: String,
    group: String,
    setuid: bool,
    setgid: bool,
    permissions: String,
    capabilities: String,
}

/// Makes the wrappers and swaps them in at once.
pub fn apply(wrappers: &[Wrapper]) -> Result<()> {
    let wanted =
        serde_json::to_string(wrappers).map_err(|source| Error::Parse { path: DIR.into(), source })?;
    let note = Path::new(RUN).join("wrappers");
    codchi_fs::create_dir_all(DIR)?;
    if boot::mounted(DIR)? {
        if codchi_fs::read_if_exists(&note)?.as_deref() == Some(&wanted) {
            return Ok(());
        }
    } else {
        mount("tmpfs", DIR, "tmpfs", MountFlags::NODEV, c"mode=0755,size=50%")
            .tried(|| format!("mount tmpfs on `{DIR}`"))?;
    }
    let accounts = Accounts::read()?;
    let bin = Path::new(DIR).join("bin");
    let old = codchi_fs::read_link_if_exists(&bin)?;
    let new = (0..)
        .map(|i| Path::new(DIR).join(format!("wrappers.{i}")))
        .find(|p| !p.exists())
        .unwrap_or_else(|| DIR.into());
    codchi_fs::create_dir_all(&new)?;
    for w in wrappers {
        put(w, &new.join(&w.name), &accounts)?;
    }
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).at("change mode of", &new)?;
    codchi_fs::symlink_atomic(&new, &bin)?;
    if let Some(old) = old.filter(|o| *o != new) {
        codchi_fs::remove_dir_all(old)?;
    }
    codchi_fs::write(&note, wanted)?;
    Ok(())
}

fn put(w: &Wrapper, to: &Path, accounts: &Accounts) -> Result<()> {
    // Without any right of others until owner and mode are right.
    codchi_fs::write(to, codchi_fs::read(&w.source)?)?;
    std::fs::set_permissions(to, PermissionsExt::from_mode(0o0)).at("change mode of", to)?;
    chown(to, accounts.uid(&w.owner), accounts.gid(&w.group)).at("change owner of", to)?;
    if !w.capabilities.is_empty() {
        let value = capabilities(&w.capabilities).ok_or_else(|| {
            Error::Machine(format!("`{}` are no capabilities (wrapper `{}`)", w.capabilities, w.name))
        })?;
        rustix::fs::setxattr(to, "security.capability", &value, XattrFlags::empty())
            .tried(|| format!("give `{}` its capabilities", to.display()))?;
    }
    let special = if w.setuid { 0o4000 } else { 0 } | if w.setgid { 0o2000 } else { 0 };
    let mode = permissions(&w.permissions).ok_or_else(|| {
        Error::Machine(format!("`{}` are no permissions (wrapper `{}`)", w.permissions, w.name))
    })?;
    std::fs::set_permissions(to, PermissionsExt::from_mode(mode | special)).at("change mode of", to)?;
    Ok(())
}

/// chmod's symbolic modes, from nothing: `u+rx,g+x,o+x`; or an octal number.
fn permissions(text: &str) -> Option<u32> {
    if let Ok(octal) = u32::from_str_radix(text, 8) {
        return Some(octal & 0o777);
    }
    let mut mode = 0;
    for clause in text.split(',') {
        let at = clause.find(['+', '='])?;
        let (who, what) = clause.split_at(at);
        let bits = what[1..].chars().try_fold(0, |b, c| match c {
            'r' => Some(b | 4),
            'w' => Some(b | 2),
            'x' => Some(b | 1),
            _ => None,
        })?;
        for w in if who.is_empty() { "a" } else { who }.chars() {
            mode |= match w {
                'u' => bits << 6,
                'g' => bits << 3,
                'o' => bits,
                'a' => bits << 6 | bits << 3 | bits,
                _ => return None,
            };
        }
    }
    Some(mode)
}

/// Names by number (capabilities(7)).
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// cap_from_text(3) to the value of `security.capability`, as far as wrappers use it: `cap_net_raw,cap_net_admin+ep`.
fn capabilities(text: &str) -> Option<Vec<u8>> {
    const VERSION_2: u32 = 0x0200_0000;
    let (mut permitted, mut inheritable, mut effective) = (0u64, 0u64, false);
    // Commas join both names and, in a list of options, clauses.
    let clauses = text.replace(' ', ",");
    let mut names: Vec<&str> = Vec::new();
    for part in clauses.split(',').filter(|p| !p.is_empty()) {
        let Some(at) = part.find(['+', '=']) else {
            names.push(part);
            continue;
        };
        let (name, flags) = part.split_at(at);
        names.push(name);
        let mut bits = 0;
        for name in names.drain(..) {
            let name = name.to_ascii_lowercase();
            let number = NAMES.iter().position(|n| Some(*n) == name.strip_prefix("cap_"))?;
            bits |= 1u64 << number;
        }
        for flag in flags[1..].chars() {
            match flag {
                'p' => permitted |= bits,
                'i' => inheritable |= bits,
                'e' => effective = true,
                _ => return None,
            }
        }
    }
    if !names.is_empty() {
        return None;
    }
    let half = |v: u64, high: bool| u32::try_from(if high { v >> 32 } else { v & 0xffff_ffff }).unwrap_or(0);
    let words = [
        VERSION_2 | u32::from(effective),
        half(permitted, false),
        half(inheritable, false),
        half(permitted, true),
        half(inheritable, true),
    ];
    Some(words.iter().flat_map(|w| w.to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_modes_are_understood() {
        assert_eq!(permissions("u+rx,g+x,o+x"), Some(0o511));
        assert_eq!(permissions("u+rx,g+x"), Some(0o510));
        assert_eq!(permissions("a+rx"), Some(0o555));
        assert_eq!(permissions("755"), Some(0o755));
        assert_eq!(permissions("u+s"), None);
    }

    #[test]
    fn capabilities_become_the_kernels_form() {
        let ping = capabilities("cap_net_raw+ep").unwrap();
        assert_eq!(&ping[..8], [1, 0, 0, 2, 0, 0x20, 0, 0]);
        assert_eq!(
            capabilities("cap_net_raw,cap_net_admin+p").unwrap()[4..8],
            (1u32 << 13 | 1 << 12).to_le_bytes()
        );
        assert_eq!(capabilities("cap_nonsense+ep"), None);
        assert_eq!(capabilities("cap_net_raw"), None);
    }
}
