//! Secrets of the machine: from the memory that the runtime fills, or from a delivery of the host, to where each is used.
//!
//! `/run/codchi/credentials/NAME` holds every value, for root alone: what LoadCredential reads. Beside it are made: files with
//! their owner and mode, the variables of log-ins, and the credentials of the user's own services. All of it is memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use codchi_core::protocol::{Delivered, Delivery, is_secret_name};
use codchi_fs::Context as _;
use codchi_sys::identity::with_file_ids;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use crate::environment::Environment;
use crate::error::Error;
use crate::user::User;

/// The argument with which this program puts secrets in place when the machine starts or is switched.
pub const FLAG: &str = "--secrets";
/// What the machine's modules declare.
const DECLARED: &str = "/etc/codchi/secrets.json";
/// Values, for root alone.
const CREDENTIALS: &str = "/run/codchi/credentials";
/// Values as files of their owners.
const FILES: &str = "/run/codchi/secrets";
/// Values for the user's own services.
const USER_CREDENTIALS: &str = "/run/codchi/user-credentials";
/// Variables for login shells, as a script.
const SCRIPT: &str = "/run/codchi/environment";
/// The same for commands of the host, as execve(2) takes them.
const VARIABLES: &str = "/run/codchi/credentials/.environment";
/// Held while anything of this is changed.
const LOCK: &str = "/run/codchi/credentials/.lock";
/// Set while a login environment is computed, which is kept: secrets do not belong in it.
pub const WITHOUT: &str = "__CODCHI_WITHOUT_SECRETS";

/// What the machine's modules declare.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Declared {
    user: String,
    secrets: BTreeMap<String, Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secret {
    kind: String,
    path: Option<PathBuf>,
    owner: String,
    mode: String,
    services: Vec<String>,
    user_services: Vec<String>,
}

fn declared() -> Result<Declared, Error> {
    match codchi_fs::read_if_exists(DECLARED)? {
        None => Ok(Declared::default()),
        Some(text) => serde_json::from_str(&text)
            .map_err(|e| Error::Declared(format!("`{DECLARED}` is not what this agent reads: {e}"))),
    }
}

/// Waits for its turn: a delivery and a switch may come at once.
fn turn() -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::open(LOCK, flags, Mode::from(0o600)).at("open", LOCK)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).at("lock", LOCK)?;
    Ok(file)
}

/// Replaces a file with one of this owner and mode; who sees it sees all of it. It is in memory: nothing to wait for.
fn put(path: &Path, value: &[u8], owner: Option<&User>, mode: u32) -> Result<(), Error> {
    let name = path.file_name().unwrap_or(OsStr::new("x")).to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    codchi_fs::remove_if_exists(&temporary)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&temporary, flags, Mode::from(0o600)).at("create", &temporary)?;
    let mut file = std::fs::File::from(file);
    file.write_all(value).at("write", &temporary)?;
    if let Some(user) = owner {
        rustix::fs::fchown(&file, Some(user.uid), Some(user.gid)).at("change the owner of", &temporary)?;
    }
    rustix::fs::fchmod(&file, Mode::from(mode)).at("change the mode of", &temporary)?;
    Ok(codchi_fs::rename(&temporary, path)?)
}

fn value(name: &str) -> Result<Option<Vec<u8>>, Error> {
    match codchi_fs::read(Path::new(CREDENTIALS).join(name)) {
        Ok(v) => Ok(Some(v)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn names_in(folder: &str) -> Vec<String> {
    let entries = codchi_fs::read_dir(folder).unwrap_or_default();
    let names = entries.iter().map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|n| is_secret_name(n)).collect()
}

/// Takes a delivery of the host, puts everything in place, and restarts the services whose secret changed.
pub fn deliver(delivery: &Delivery<'_>) -> Result<Delivered, Error> {
    let mut changed = BTreeSet::new();
    let turn = turn()?;
    for (name, new) in &delivery.secrets {
        if value(name)?.as_deref() != Some(*new) {
            put(&Path::new(CREDENTIALS).join(name), new, None, 0o400)?;
            changed.insert((*name).to_owned());
        }
    }
    if !delivery.keep_others {
        for name in names_in(CREDENTIALS) {
            if !delivery.secrets.iter().any(|(n, _)| *n == name) {
                codchi_fs::remove_if_exists(Path::new(CREDENTIALS).join(&name))?;
                changed.insert(name);
            }
        }
    }
    let declared = declared()?;
    let mut told = Delivered { restarted: Vec::new(), warnings: place(&declared)? };
    drop(turn);
    let users = |of: fn(&Secret) -> &Vec<String>| -> BTreeSet<&str> {
        let touched = declared.secrets.iter().filter(|(name, _)| changed.contains(*name));
        touched.flat_map(|(_, s)| of(s)).map(String::as_str).collect()
    };
    restart(None, &users(|s| &s.services), &mut told);
    if let Ok(user) = User::find(&declared.user) {
        restart(Some(&user), &users(|s| &s.user_services), &mut told);
    }
    Ok(told)
}

/// Puts everything in place, at the machine's start or after a switch. What does not go is told.
pub fn settle() -> Result<(), Error> {
    let _turn = turn()?;
    for warning in place(&declared()?)? {
        let _ = writeln!(std::io::stderr(), "{warning}");
    }
    Ok(())
}

/// Makes files, variables and user credentials what the values say; answers with what did not go.
fn place(declared: &Declared) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    let user = User::find(&declared.user).ok();
    codchi_fs::create_dir_all(FILES)?;
    let (mut variables, mut script) = (Vec::new(), Vec::new());
    let mut files = BTreeSet::new();
    let mut user_credentials = BTreeSet::new();
    for (name, secret) in &declared.secrets {
        let held = value(name)?;
        if let (Some(held), true) = (&held, secret.kind == "env") {
            variables.extend_from_slice(name.as_bytes());
            variables.push(b'=');
            variables.extend_from_slice(held);
            variables.push(0);
            export(&mut script, name, held);
        }
        if secret.kind == "file"
            && let Err(e) = place_file(name, secret, held.as_deref())
        {
            warnings.push(format!("the secret `{name}` is not at its place: {e}"));
        }
        if secret.kind == "file" && held.is_some() {
            files.insert(name.clone());
        }
        if let (Some(held), Some(user), false) = (&held, &user, secret.user_services.is_empty()) {
            folder_of(USER_CREDENTIALS, user)?;
            put(&Path::new(USER_CREDENTIALS).join(name), held, Some(user), 0o400)?;
            user_credentials.insert(name.clone());
        }
        if let Some(mut held) = held {
            codchi_sys::memory::wipe(&mut held);
        }
    }
    for (folder, wanted) in [(FILES, &files), (USER_CREDENTIALS, &user_credentials)] {
        for name in names_in(folder).into_iter().filter(|n| !wanted.contains(n)) {
            codchi_fs::remove_if_exists(Path::new(folder).join(name))?;
        }
    }
    if variables.is_empty() {
        codchi_fs::remove_if_exists(VARIABLES)?;
        codchi_fs::remove_if_exists(SCRIPT)?;
    } else {
        put(Path::new(VARIABLES), &variables, None, 0o400)?;
        put(Path::new(SCRIPT), &script, user.as_ref(), 0o400)?;
    }
    codchi_sys::memory::wipe(&mut variables);
    codchi_sys::memory::wipe(&mut script);
    Ok(warnings)
}

fn folder_of(path: &str, user: &User) -> Result<(), Error> {
    codchi_fs::create_dir_all(path)?;
    rustix::fs::chown(path, None, Some(user.gid)).at("change the group of", path)?;
    Ok(codchi_fs::set_mode(path, 0o750)?)
}

/// A line for any shell of the Bourne family.
fn export(script: &mut Vec<u8>, name: &str, value: &[u8]) {
    script.extend_from_slice(format!("export {name}='").as_bytes());
    for b in value {
        match b {
            b'\'' => script.extend_from_slice(b"'\\''"),
            b => script.push(*b),
        }
    }
    script.extend_from_slice(b"'\n");
}

/// The file itself is in memory; where it shall be elsewhere, a link there leads to it.
fn place_file(name: &str, secret: &Secret, value: Option<&[u8]>) -> Result<(), Error> {
    let file = Path::new(FILES).join(name);
    let link = secret.path.as_ref().filter(|p| **p != file);
    let Some(value) = value else {
        if let Some(link) = link
            && codchi_fs::read_link_if_exists(link).ok().flatten().as_ref() == Some(&file)
        {
            codchi_fs::remove_if_exists(link)?;
        }
        return Ok(());
    };
    let owner = User::find(&secret.owner)?;
    let mode = u32::from_str_radix(&secret.mode, 8).unwrap_or(0o400);
    put(&file, value, Some(&owner), mode)?;
    match link {
        Some(link) => link_to(link, &file, &owner),
        None => Ok(()),
    }
}

/// Lays the link. The folders that lead to it may belong to anyone in the machine: a link among them is followed with the
/// owner's rights only.
fn link_to(link: &Path, file: &Path, owner: &User) -> Result<(), Error> {
    let (Some(folder), Some(name)) = (link.parent(), link.file_name()) else {
        return Err(Error::Declared(format!("`{}` is no path of a file", link.display())));
    };
    let plain = || -> Result<(), Error> {
        let folder = walk(folder, owner)?;
        lay(&folder, name, link, file)?;
        // The link is the owner's, who may want to remove it.
        let _ =
            rustix::fs::chownat(&folder, name, Some(owner.uid), Some(owner.gid), AtFlags::SYMLINK_NOFOLLOW);
        Ok(())
    };
    match plain() {
        Err(Error::File(e)) if e.source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {}
        done => return done,
    }
    with_file_ids(owner.uid.as_raw(), owner.gid.as_raw(), || -> Result<(), Error> {
        codchi_fs::create_dir_all(folder)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(folder, flags, Mode::empty()).at("open", folder)?;
        lay(&opened, name, link, file)
    })
    .map_err(Error::system("act as the owner"))?
}

/// Opens a folder without following links, and makes what is missing of it for its owner.
fn walk(folder: &Path, owner: &User) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open("/", flags, Mode::empty()).at("open", "/")?;
    for part in folder.components().skip(1) {
        let part = part.as_os_str();
        let next = || {
            rustix::fs::openat2(
                &at,
                part,
                flags,
                Mode::empty(),
                ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH,
            )
        };
        let opened = match next() {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&at, part, Mode::from(0o700)).at("create directory", folder)?;
                let made = next().at("open", folder)?;
                let path = format!("/proc/self/fd/{}", made.as_raw_fd());
                rustix::fs::chown(path, Some(owner.uid), Some(owner.gid))
                    .at("change the owner of", folder)?;
                Ok(made)
            }
            other => other,
        };
        at = opened.at("open", folder)?;
    }
    Ok(at)
}

fn lay(folder: &OwnedFd, name: &OsStr, link: &Path, file: &Path) -> Result<(), Error> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(s) if FileType::from_raw_mode(s.st_mode) != FileType::Symlink => {
            return Err(Error::Declared(format!(
                "`{}` is there already and is left alone: move it away, then set the secret again",
                link.display()
            )));
        }
        _ => {}
    }
    let temporary = format!(".{}.codchi-new", name.to_string_lossy());
    let _ = rustix::fs::unlinkat(folder, temporary.as_str(), AtFlags::empty());
    rustix::fs::symlinkat(file, folder, temporary.as_str()).at("create link", link)?;
    rustix::fs::renameat(folder, temporary.as_str(), folder, name).at("create link", link)?;
    Ok(())
}

/// Restarts those of the units that run.
fn restart(user: Option<&User>, units: &BTreeSet<&str>, told: &mut Delivered) {
    let names: Vec<String> = units
        .iter()
        .map(|u| if u.contains('.') { (*u).to_owned() } else { format!("{u}.service") })
        .filter(|u| !u.starts_with('-'))
        .collect();
    if names.is_empty() {
        return;
    }
    let active: Vec<&String> =
        names.iter().filter(|u| systemctl(user, &["is-active", "--quiet", u]).is_ok()).collect();
    if active.is_empty() {
        return;
    }
    let mut args = vec!["try-restart"];
    args.extend(active.iter().map(|u| u.as_str()));
    if let Err(why) = systemctl(user, &args) {
        told.warnings.push(format!("not all services took their new secret: {why}"));
    }
    told.restarted.extend(active.into_iter().cloned());
}

/// Runs `systemctl`, for the user's own manager as the user.
fn systemctl(user: Option<&User>, args: &[&str]) -> Result<(), String> {
    let mut command = Command::new("systemctl");
    command.env_clear().env("PATH", "/run/current-system/sw/bin:/usr/bin:/bin").stdin(Stdio::null());
    if let Some(user) = user {
        use std::os::unix::process::CommandExt;
        command.arg("--user").uid(user.uid.as_raw()).gid(user.gid.as_raw());
        command.env("XDG_RUNTIME_DIR", format!("/run/user/{}", user.uid.as_raw()));
    }
    let out = command.args(args).output().map_err(|e| e.to_string())?;
    if out.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&out.stderr).trim().chars().take(500).collect())
}

/// Lays the variables over the environment of a command, for those who may have them: the machine's user, and root.
pub fn overlay(env: &mut Environment, user: &User, default_user: Option<&str>) {
    if !user.uid.is_root() && default_user != Some(user.name.as_str()) {
        return;
    }
    let Ok(mut variables) = codchi_fs::read(VARIABLES) else { return };
    for pair in variables.split(|b| *b == 0) {
        if let Some(at) = pair.iter().position(|b| *b == b'=') {
            env.insert(pair[..at].to_vec(), pair[at + 1..].to_vec());
        }
    }
    codchi_sys::memory::wipe(&mut variables);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_any_value() {
        let awkward = b"a'b \"c\" $HOME `id` \\ \nnew line ''";
        let mut script = Vec::new();
        export(&mut script, "X", awkward);
        script.extend_from_slice(b"printf %s \"$X\"\n");
        let mut child = Command::new("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&script).unwrap();
        assert_eq!(child.wait_with_output().unwrap().stdout, awkward);
    }

    #[test]
    fn a_file_of_the_user_is_never_replaced_by_a_link() {
        let dir = std::env::temp_dir().join(format!("codchi-agent-secrets-{}", std::process::id()));
        codchi_fs::create_private_dir(&dir).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&dir, flags, Mode::empty()).unwrap();
        let link = dir.join("token");
        codchi_fs::write(&link, "mine").unwrap();
        assert!(lay(&folder, OsStr::new("token"), &link, Path::new("/new")).is_err());
        assert_eq!(codchi_fs::read(&link).unwrap(), b"mine");
        codchi_fs::remove_file(&link).unwrap();
        for to in ["/old", "/new"] {
            lay(&folder, OsStr::new("token"), &link, Path::new(to)).unwrap();
            assert_eq!(codchi_fs::read_link_if_exists(&link).unwrap(), Some(to.into()));
        }
        codchi_fs::remove_dir_all(&dir).unwrap();
    }
}
