//! Starting a command: its streams, its identity, its program.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use codchi_core::protocol::{Exec, WindowSize};
use codchi_sys::spawn::{self, Child};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::environment::{self, Environment};
use crate::error::Error;
use crate::user::User;

/// Longest path search, in bytes of a program's name: NAME_MAX.
const NAME_MAX: usize = 255;

/// The command's ends of its streams, and the host's.
pub struct Streams {
    /// Standard input, output and error of the command; the same terminal three times.
    child: [OwnedFd; 3],
    /// Whether the first is a terminal to control the session.
    terminal: bool,
    /// For the host: stdin, stdout, stderr; or the terminal, and stderr where it is apart.
    host: Vec<OwnedFd>,
}

impl Streams {
    /// Pipes or a terminal, owned by `user`, so that `/dev/stderr` and `/dev/tty` open.
    pub fn make(user: &User, tty: Option<WindowSize>, stderr_apart: bool) -> Result<Streams, Error> {
        let give = |fd: &OwnedFd| {
            fchown(fd, Some(user.uid), Some(user.gid)).map_err(Error::system("give the command its streams"))
        };
        let pipe = || -> Result<(OwnedFd, OwnedFd), Error> {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::system("make a pipe"))?;
            give(&read)?;
            Ok((read, write))
        };
        let Some(size) = tty else {
            let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) =
                (pipe()?, pipe()?, pipe()?);
            return Ok(Streams {
                child: [in_read, out_write, err_write],
                terminal: false,
                host: vec![in_write, out_read, err_read],
            });
        };
        let what = Error::system::<rustix::io::Errno>;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let host = rustix::pty::openpt(flags).map_err(what("open a terminal"))?;
        rustix::pty::unlockpt(&host).map_err(what("unlock the terminal"))?;
        let peer =
            rustix::pty::ioctl_tiocgptpeer(&host, flags).map_err(what("open the terminal's other end"))?;
        resize(host.as_fd(), size)?;
        fchown(&peer, Some(user.uid), None).map_err(what("give the terminal to the user"))?;
        fchmod(&peer, Mode::from(0o620)).map_err(what("give the terminal to the user"))?;
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(Error::system("copy a descriptor"));
        let mut streams =
            Streams { child: [copy(&peer)?, copy(&peer)?, peer], terminal: true, host: vec![host] };
        if stderr_apart {
            let (read, write) = pipe()?;
            streams.child[2] = write;
            streams.host.push(read);
        }
        Ok(streams)
    }
}

impl Streams {
    /// Closes the command's ends and keeps the host's.
    pub fn into_host(self) -> Vec<OwnedFd> {
        self.host
    }
}

/// Sets the size of a terminal, which tells its foreground process group.
pub fn resize(terminal: BorrowedFd<'_>, size: WindowSize) -> Result<(), Error> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).map_err(Error::system("set the terminal's size"))
}

/// Who a process becomes.
pub struct Identity {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Identity {
    /// The identity of an account.
    pub fn of(user: &User) -> Self {
        Identity { uid: user.uid, gid: user.gid, groups: user.groups.clone() }
    }
}

/// Takes on an identity for good.
pub fn become_user(who: &Identity) -> io::Result<()> {
    rustix::thread::set_thread_groups(&who.groups)?;
    rustix::thread::set_thread_res_gid(who.gid, who.gid, who.gid)?;
    rustix::thread::set_thread_res_uid(who.uid, who.uid, who.uid)?;
    Ok(())
}

/// A command ready to be started.
pub struct Command {
    name: String,
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    who: Identity,
    dir: CString,
    /// Whether the directory is only the user's home, which may be missing.
    dir_optional: bool,
}

/// What a child tells of its failure: the step, and the error number.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Step {
    Prepare = 1,
    Directory = 2,
    Program = 3,
    Interpreter = 4,
}

impl Command {
    /// Puts together what the host asked for, in `env` as far as it was computed.
    pub fn new(exec: &Exec, user: &User, mut env: Environment) -> Result<Self, Error> {
        for (name, value) in &exec.env {
            let name = name.as_bytes();
            if name.is_empty() || name.contains(&b'=') {
                return Err(Error::VariableName(String::from_utf8_lossy(name).into_owned()));
            }
            env.insert(name.into(), value.as_bytes().into());
        }
        let dir = exec.cwd.as_ref().map_or(user.home.as_os_str().as_bytes(), |d| d.as_bytes());
        if dir.starts_with(b"/") {
            env.insert(b"PWD".into(), dir.into());
        }
        let text = |what, bytes: &[u8]| CString::new(bytes).map_err(|_| Error::Nul(what));
        let (candidates, argv) = match exec.argv.first() {
            // A login shell is told so by a dash before its name.
            None => {
                let shell = user.shell.as_os_str();
                let name = Path::new(shell).file_name().unwrap_or(OsStr::new("sh")).as_bytes();
                (vec![text("the shell", shell.as_bytes())?], vec![text("the shell", &[b"-", name].concat())?])
            }
            Some(program) => (
                candidates(program.as_bytes(), env.get(&b"PATH"[..]).map_or(&b""[..], |p| p))?,
                exec.argv.iter().map(|a| text("an argument", a.as_bytes())).collect::<Result<_, _>>()?,
            ),
        };
        let name = exec.argv.first().map_or(user.shell.as_os_str().as_bytes(), |p| p.as_bytes());
        Ok(Command {
            name: String::from_utf8_lossy(name).into_owned(),
            candidates,
            argv,
            env: environment::list(&env)?,
            who: Identity::of(user),
            dir: text("the directory", dir)?,
            dir_optional: exec.cwd.is_none(),
        })
    }

    /// Starts it as the leader of a session of its own, without waiting for its program to run: that it could not is known
    /// when the child has ended.
    pub fn start(self, streams: &Streams, cgroup: Option<BorrowedFd<'_>>) -> Result<Starting, Error> {
        let (told, tell) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(Error::system("make a pipe"))?;
        let child = spawn::fork(cgroup, || {
            let (step, error) = self.run(streams);
            let errno = error.raw_os_error().unwrap_or(0).to_le_bytes();
            let _ = rustix::io::write(&tell, &[step as u8, errno[0], errno[1], errno[2], errno[3]]);
            127
        })
        .map_err(Error::system("fork"))?;
        Ok(Starting { child, told, name: self.name, dir: self.dir })
    }

    /// In the child. Comes back only with a failure.
    fn run(&self, streams: &Streams) -> (Step, io::Error) {
        codchi_sys::signal::reset();
        let prepare = || -> io::Result<()> {
            rustix::process::setsid()?;
            if streams.terminal {
                rustix::process::ioctl_tiocsctty(&streams.child[0])?;
            }
            rustix::stdio::dup2_stdin(&streams.child[0])?;
            rustix::stdio::dup2_stdout(&streams.child[1])?;
            rustix::stdio::dup2_stderr(&streams.child[2])?;
            rustix::process::umask(Mode::from(0o022));
            become_user(&self.who)
        };
        if let Err(e) = prepare() {
            return (Step::Prepare, e);
        }
        let entered = rustix::process::chdir(&self.dir)
            .or_else(|e| if self.dir_optional { rustix::process::chdir("/") } else { Err(e) });
        if let Err(e) = entered {
            return (Step::Directory, e.into());
        }
        let mut worst = (Step::Program, io::Error::from(io::ErrorKind::NotFound));
        worst.1 = io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error());
        for path in &self.candidates {
            let Err(mut e) = spawn::execve(path, &self.argv, &self.env);
            // A file without a magic number is a script of the shell, as execvp(3) has it.
            if e.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) {
                let mut argv = vec![c"sh".to_owned(), path.clone()];
                argv.extend(self.argv.iter().skip(1).cloned());
                let Err(again) = spawn::execve(c"/bin/sh", &argv, &self.env);
                e = again;
            }
            match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
                io::ErrorKind::PermissionDenied => worst.1 = e,
                _ => return (Step::Program, e),
            }
        }
        // A file that is there and was not found is one whose interpreter is missing.
        if worst.1.kind() == io::ErrorKind::NotFound
            && self.candidates.iter().any(|p| rustix::fs::stat(p).is_ok())
        {
            worst.0 = Step::Interpreter;
        }
        worst
    }
}

/// A child that runs its program, or is about to.
pub struct Starting {
    /// The process.
    pub child: Child,
    told: OwnedFd,
    name: String,
    dir: CString,
}

impl Starting {
    /// Why the child that has ended never ran its program; none: it did.
    pub fn failure(&self) -> Option<Error> {
        let mut message = [0; 5];
        if !matches!(rustix::io::read(&self.told, &mut message), Ok(5)) {
            return None;
        }
        let source = io::Error::from_raw_os_error(i32::from_le_bytes([
            message[1], message[2], message[3], message[4],
        ]));
        let name = self.name.clone();
        Some(match message[0] {
            s if s == Step::Directory as u8 => {
                Error::Directory { dir: self.dir.to_string_lossy().into_owned(), source }
            }
            s if s == Step::Interpreter as u8 => {
                Error::NotExecutable { name, why: "its interpreter is missing".into() }
            }
            s if s == Step::Program as u8 => match source.kind() {
                io::ErrorKind::NotFound => Error::NotFound(name),
                _ => Error::NotExecutable { name, why: source.to_string() },
            },
            _ => Error::System { what: "prepare the command", source },
        })
    }
}

/// Where a program may be: itself when it names a path, else in each folder of the search path.
fn candidates(program: &[u8], search: &[u8]) -> Result<Vec<CString>, Error> {
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Error::Nul("the program's name"));
    if program.contains(&b'/') {
        return Ok(vec![text(program.into())?]);
    }
    if program.is_empty() || program.len() > NAME_MAX {
        return Ok(Vec::new());
    }
    search
        .split(|b| *b == b':')
        .map(|dir| match dir {
            // An empty entry is the current directory (POSIX, Environment Variables).
            b"" => text([b"./", program].concat()),
            dir => text([dir, b"/", program].concat()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_searched_for_unless_it_names_a_path() {
        let at = |p: &str, s: &str| {
            let found = candidates(p.as_bytes(), s.as_bytes()).unwrap();
            found.into_iter().map(|c| c.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(at("x", "/a::/b"), ["/a/x", "./x", "/b/x"]);
        assert_eq!(at("./x", "/a"), ["./x"]);
        assert!(at("", "/a").is_empty());
        assert!(at(&"x".repeat(256), "/a").is_empty());
        assert!(candidates(b"a\0b", b"/a").is_err());
    }
}
