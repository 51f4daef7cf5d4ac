//! The environment a command starts with: that of a login shell, computed once for as long as nothing it reads has changed.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_sys::spawn;
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::command::{Identity, become_user};
use crate::connection::wait;
use crate::error::Error;
use crate::secrets::WITHOUT;
use crate::server::Settings;
use crate::user::User;

/// The argument with which this program, run by a login shell, tells the environment it was given.
pub const FLAG: &str = "--environment";
/// How long a login shell may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes a login shell may say.
const LIMIT: usize = 4 << 20;
/// Where programs are when no login shell says so.
const PATH: &str = "/run/wrappers/bin:/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Files a login shell may read, and folders whose entries it may read.
const SYSTEM_FILES: &[&str] = &[
    "/etc/profile",
    "/etc/profile.d",
    "/etc/profile.local",
    "/etc/set-environment",
    "/etc/environment",
    "/etc/pam/environment",
    "/etc/bashrc",
    "/etc/bashrc.local",
    "/etc/bash.bashrc",
    "/etc/zshenv",
    "/etc/zprofile",
    "/etc/zshrc",
    "/etc/zlogin",
    "/etc/zsh/zshenv",
    "/etc/zsh/zprofile",
    "/etc/fish/config.fish",
    "/etc/fish/conf.d",
    "/etc/locale.conf",
];
/// The same below the user's home.
const HOME_FILES: &[&str] = &[
    ".profile",
    ".bash_profile",
    ".bash_login",
    ".bashrc",
    ".zshenv",
    ".zprofile",
    ".zshrc",
    ".zlogin",
    ".config/fish/config.fish",
    ".config/fish/conf.d",
    ".config/fish/fish_variables",
    ".config/environment.d",
    ".nix-profile",
    ".local/state/nix/profile",
    ".local/state/nix/profiles/profile",
];

/// Variables, in bytes.
pub type Environment = BTreeMap<Vec<u8>, Vec<u8>>;

/// Writes the environment of this process between two marks: start-up files may print before and after.
pub fn dump(mark: &OsStr) -> Result<(), Error> {
    let mut out = vec![0];
    out.extend_from_slice(mark.as_bytes());
    out.push(0);
    for (name, value) in std::env::vars_os() {
        out.extend_from_slice(&name.into_vec());
        out.push(b'=');
        out.extend_from_slice(&value.into_vec());
        out.push(0);
    }
    out.push(0);
    out.extend_from_slice(mark.as_bytes());
    out.push(0);
    std::io::stdout().write_all(&out).map_err(Error::system("write the environment"))
}

/// What a login shell itself starts with.
pub fn minimal(user: &User) -> Environment {
    let mut env = Environment::new();
    let mut set = |name: &str, value: &OsStr| env.insert(name.into(), value.as_bytes().into());
    set("HOME", user.home.as_os_str());
    set("USER", OsStr::new(&user.name));
    set("LOGNAME", OsStr::new(&user.name));
    set("SHELL", user.shell.as_os_str());
    set("PATH", OsStr::new(PATH));
    session(&mut env, user);
    env
}

/// Adds the standing user manager's folder and bus where they are, and takes them out where they are not.
fn session(env: &mut Environment, user: &User) {
    let folder = format!("/run/user/{}", user.uid.as_raw());
    let bus = format!("{folder}/bus");
    for (name, value, path) in [
        ("XDG_RUNTIME_DIR", folder.clone(), &folder),
        ("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={bus}"), &bus),
    ] {
        if rustix::fs::stat(path.as_str()).is_ok() {
            env.entry(name.into()).or_insert(value.into());
        } else if env.get(name.as_bytes()).is_some_and(|v| v == value.as_bytes()) {
            env.remove(name.as_bytes());
        }
    }
}

/// The login environment, from the cache when nothing it was made from has changed. The second value says what went wrong.
///
/// `computing` is called before a login shell is run.
pub fn login(
    user: &User,
    settings: &Settings,
    cgroup: Option<BorrowedFd<'_>>,
    computing: impl FnOnce(),
) -> (Environment, Option<String>) {
    let file = settings.cache.join(format!("environment-{}", user.uid.as_raw()));
    let key = key(user);
    let mut env = match cached(&file, &key) {
        Some(env) => env,
        None => {
            computing();
            match compute(user, settings, cgroup) {
                Ok(env) => {
                    let _ = store(&file, &key, &env);
                    env
                }
                Err(why) => {
                    let shell = user.shell.display();
                    return (
                        minimal(user),
                        Some(format!("the login shell `{shell}` gave no environment: {why}")),
                    );
                }
            }
        }
    };
    session(&mut env, user);
    (env, None)
}

/// All that the environment depends on, in the order looked at.
fn key(user: &User) -> Vec<u8> {
    let mut key = format!("1 {} ", user.uid.as_raw()).into_bytes();
    for part in [user.name.as_bytes(), user.home.as_os_str().as_bytes(), user.shell.as_os_str().as_bytes()] {
        key.extend_from_slice(part);
        key.push(0);
    }
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    if let Ok((system, _)) = rustix::fs::readlinkat_raw(rustix::fs::CWD, "/run/current-system", &mut buffer) {
        key.extend_from_slice(system);
    }
    let mut add = |path: &Path| {
        match rustix::fs::stat(path) {
            Ok(s) => {
                for n in [
                    s.st_dev,
                    s.st_ino,
                    s.st_size as u64,
                    s.st_mtime as u64,
                    s.st_mtime_nsec,
                    s.st_ctime_nsec,
                ] {
                    key.extend_from_slice(&n.to_le_bytes());
                }
            }
            Err(_) => key.push(0),
        };
    };
    add(&user.shell);
    SYSTEM_FILES.iter().for_each(|f| add(Path::new(f)));
    let mut path = PathBuf::new();
    for f in HOME_FILES {
        path.clear();
        path.push(&user.home);
        path.push(f);
        add(&path);
    }
    key
}

fn cached(file: &Path, key: &[u8]) -> Option<Environment> {
    let bytes = codchi_fs::read(file).ok()?;
    let (length, rest) = bytes.split_first_chunk()?;
    let (stored, vars) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    (stored == key).then(|| parse(vars))
}

fn store(file: &Path, key: &[u8], env: &Environment) -> Result<(), Error> {
    let mut bytes = (key.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(key);
    for (name, value) in env {
        bytes.extend_from_slice(name);
        bytes.push(b'=');
        bytes.extend_from_slice(value);
        bytes.push(0);
    }
    Ok(codchi_fs::write_atomic(file, bytes, 0o600)?)
}

/// Reads `NAME=VALUE` lists that NUL separates; leaves out what belongs to the shell that computed them.
fn parse(vars: &[u8]) -> Environment {
    let pairs = vars.split(|b| *b == 0).filter_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
        Some((pair[..at].to_vec(), pair[at + 1..].to_vec()))
    });
    pairs
        .filter(|(name, _)| {
            !matches!(&name[..], b"_" | b"SHLVL" | b"PWD" | b"OLDPWD") && name != WITHOUT.as_bytes()
        })
        .collect()
}

/// Runs the user's login shell as the user, and has it run this program.
fn compute(user: &User, settings: &Settings, cgroup: Option<BorrowedFd<'_>>) -> Result<Environment, String> {
    let text = |e: std::io::Error| e.to_string();
    let shell = match user.shell.file_name().and_then(OsStr::to_str) {
        // An account that nobody logs into still has the system's environment.
        Some("nologin" | "false" | "true") | None => Path::new("/bin/sh"),
        Some(_) => &user.shell,
    };
    let mark = format!("codchi-environment-{}", std::process::id());
    let command = format!("{} {FLAG} {mark}", quote(&settings.program)?);
    let name = shell.file_name().unwrap_or(OsStr::new("sh")).to_string_lossy().into_owned();
    let words = match name.as_str() {
        // csh takes -l only alone; the dash before its name says the same.
        "csh" | "tcsh" => vec![format!("-{name}"), "-c".into(), command],
        _ => vec![name, "-l".into(), "-c".into(), command],
    };
    let c = |s: &[u8]| CString::new(s).map_err(|e| e.to_string());
    let argv = words.iter().map(|w| c(w.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let mut env = minimal(user);
    env.insert(WITHOUT.into(), b"1".into());
    let env = list(&env).map_err(|e| e.to_string())?;
    let path = c(shell.as_os_str().as_bytes())?;
    let who = Identity::of(user);

    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| text(e.into()))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| text(e.into()))?;
    let child = spawn::fork(cgroup, || {
        codchi_sys::signal::reset();
        let prepared = (|| -> std::io::Result<()> {
            rustix::process::setsid()?;
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&write)?;
            rustix::stdio::dup2_stderr(&null)?;
            become_user(&who)?;
            rustix::process::chdir(&user.home).or_else(|_| rustix::process::chdir("/"))?;
            Ok(())
        })();
        if prepared.is_ok() {
            let _ = spawn::execve(&path, &argv, &env);
        }
        127
    })
    .map_err(text)?;
    drop(write);

    let result = read_marked(&read, mark.as_bytes());
    if result.is_err() {
        let _ = codchi_sys::signal::kill_group(child.pid, 9);
    }
    // What start-up files left running holds the pipe; only the shell itself is waited for.
    let deadline = Instant::now() + PATIENCE;
    if !wait(child.pidfd.as_fd(), PollFlags::IN, deadline) {
        let _ = codchi_sys::signal::kill_group(child.pid, 9);
    }
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    result
}

fn read_marked(from: &OwnedFd, mark: &[u8]) -> Result<Environment, String> {
    let deadline = Instant::now() + PATIENCE;
    let begin = [b"\0", mark, b"\0"].concat();
    let mut said = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        if !wait(from.as_fd(), PollFlags::IN, deadline) {
            return Err(format!("it did not finish in {} seconds", PATIENCE.as_secs()));
        }
        let n = match rustix::io::read(from, &mut buffer) {
            Ok(0) => return Err("it ended without running a command".into()),
            Ok(n) => n,
            Err(e) => return Err(e.to_string()),
        };
        said.extend_from_slice(&buffer[..n]);
        if let Some(start) = find(&said, &begin) {
            let rest = &said[start + begin.len()..];
            if let Some(end) = find(rest, &begin) {
                return Ok(parse(&rest[..end]));
            }
        }
        if said.len() > LIMIT {
            return Err("it says too much".into());
        }
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

/// The program's path as every shell reads it: most need no quotes, and some read a quoted word as text.
fn quote(path: &Path) -> Result<String, String> {
    let text = path.to_str().ok_or("the agent's own path is not UTF-8")?;
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b));
    match (plain, text.contains('\'')) {
        (true, _) => Ok(text.into()),
        (false, false) => Ok(format!("'{text}'")),
        (false, true) => Err("the agent's own path holds a quote".into()),
    }
}

/// As execve(2) takes it.
pub fn list(env: &Environment) -> Result<Vec<CString>, Error> {
    env.iter()
        .map(|(name, value)| {
            CString::new([&name[..], b"=", value].concat()).map_err(|_| Error::Nul("a variable"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_computing_shell_are_left_out() {
        let env = parse(b"A=1\0_=/bin/x\0SHLVL=1\0PWD=/\0EMPTY=\0=odd\0noequals\0M=a\nb=c\0");
        let names: Vec<_> = env.keys().map(|k| String::from_utf8_lossy(k).into_owned()).collect();
        assert_eq!(names, ["A", "EMPTY", "M"]);
        assert_eq!(env[&b"M"[..]], b"a\nb=c");
    }

    #[test]
    fn a_cache_entry_counts_only_for_its_key() {
        let dir = std::env::temp_dir().join(format!("codchi-agent-env-{}", std::process::id()));
        codchi_fs::create_private_dir(&dir).unwrap();
        let env: Environment = [(b"A".to_vec(), b"1".to_vec())].into();
        store(&dir.join("e"), b"key", &env).unwrap();
        assert_eq!(cached(&dir.join("e"), b"key"), Some(env));
        assert_eq!(cached(&dir.join("e"), b"kez"), None);
        codchi_fs::write(dir.join("e"), b"\xff\xff\xff\xff").unwrap();
        assert_eq!(cached(&dir.join("e"), b"key"), None);
        codchi_fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_program_is_quoted_only_where_it_must_be() {
        assert_eq!(quote(Path::new("/run/codchi/bin/codchi-agent")).unwrap(), "/run/codchi/bin/codchi-agent");
        assert_eq!(quote(Path::new("/a b/x")).unwrap(), "'/a b/x'");
        assert!(quote(Path::new("/a'b")).is_err());
    }
}
