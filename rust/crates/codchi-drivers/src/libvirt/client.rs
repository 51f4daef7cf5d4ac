//! `virsh`, run by a process that stays in the host's namespaces: whoever looks after a machine leaves them, and a daemon that was
//! started from there would be there, too.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use codchi_runtime::{Error, Result, outer};
use codchi_sys::process::{self, Child};
use serde::{Deserialize, Serialize};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Serialize, Deserialize)]
struct Asked {
    args: Vec<String>,
    input: String,
}

/// What `virsh` said.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Its exit status; none: it could not be run, or a signal ended it.
    pub status: Option<i32>,
    /// What it printed.
    pub text: String,
    /// What it complained of.
    pub error: String,
}

impl Answer {
    /// What it printed; an error where it failed.
    pub fn ok(self) -> Result<String> {
        if self.status == Some(0) {
            return Ok(self.text);
        }
        // The first line says what, the second why.
        let said: Vec<&str> = self.error.lines().map(|l| l.trim().trim_start_matches("error: ")).collect();
        let said = said.into_iter().filter(|l| !l.is_empty()).collect::<Vec<_>>().join(": ");
        if self.is_unreachable() {
            return Err(Error::Host {
                what: format!("libvirt does not answer at `{}`: {said}", uri().display()),
                hints: vec!["`codchi doctor` says what mends that".into()],
            });
        }
        Err(Error::Told(format!("libvirt refuses: {said}")))
    }

    /// Whether no daemon was reached.
    pub fn is_unreachable(&self) -> bool {
        self.status.is_none() || self.error.contains("failed to connect to the hypervisor")
    }
}

/// Which libvirt is used: that which a person named as `virsh` takes it, else the caller's own.
pub fn uri() -> OsString {
    let named = std::env::var_os("LIBVIRT_DEFAULT_URI").filter(|u| !u.is_empty());
    let own = if outer::is_privileged() { "qemu:///system" } else { "qemu:///session" };
    named.unwrap_or_else(|| own.into())
}

/// Runs `virsh` here.
pub fn virsh(args: &[String], input: &str) -> Answer {
    let run = || -> std::io::Result<Answer> {
        let mut c = Command::new("virsh");
        c.arg("--quiet").arg("--connect").arg(uri()).args(args).env("LC_ALL", "C");
        let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut to) = child.stdin.take() {
            // It is short, and read before anything is printed; one that does not read says why.
            let _ = to.write_all(input.as_bytes());
        }
        let out = child.wait_with_output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer { status: out.status.code(), text: text(out.stdout), error: text(out.stderr) })
    };
    run().unwrap_or_else(|e| Answer {
        status: None,
        text: String::new(),
        error: format!("cannot run `virsh`: {e}"),
    })
}

/// The process.
pub struct Client {
    stream: UnixStream,
    child: Child,
}

impl Client {
    /// Starts it. This process must have one thread.
    pub fn start() -> std::io::Result<Client> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = process::fork(|| {
            let kill = Some(rustix::process::Signal::KILL);
            if rustix::process::set_parent_process_death_signal(kill).is_err() {
                return 1;
            }
            match serve(&theirs) {
                Ok(()) => 0,
                Err(_) => 1,
            }
        })?;
        ours.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { stream: ours, child })
    }

    /// Asks something; [`Client::answer`] waits for what comes of it.
    pub fn ask(&mut self, args: &[&str], input: &str) -> Result<()> {
        let asked = Asked { args: args.iter().map(ToString::to_string).collect(), input: input.into() };
        let line = serde_json::to_string(&asked).map_err(std::io::Error::other).and_then(|mut line| {
            line.push('\n');
            self.stream.write_all(line.as_bytes())
        });
        line.map_err(lost)
    }

    /// The answer.
    pub fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        // One answer is there at a time.
        BufReader::new(&self.stream).read_line(&mut line).map_err(lost)?;
        serde_json::from_str(&line).map_err(|e| lost(e.into()))
    }

    /// Asks, and waits for the answer.
    pub fn run(&mut self, args: &[&str], input: &str) -> Result<Answer> {
        self.ask(args, input)?;
        self.answer()
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn lost(e: std::io::Error) -> Error {
    Error::Told(format!("nothing was heard of libvirt: {e}"))
}

fn serve(stream: &UnixStream) -> std::io::Result<()> {
    let mut to = stream;
    for line in BufReader::new(stream).lines() {
        let asked: Asked = serde_json::from_str(&line?)?;
        let mut answer = serde_json::to_string(&virsh(&asked.args, &asked.input))?;
        answer.push('\n');
        to.write_all(answer.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: Option<i32>, error: &str) -> String {
        let answer = Answer { status, text: "out".into(), error: error.into() };
        answer.ok().unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn what_libvirt_refuses_is_one_line() {
        assert_eq!(told(Some(0), ""), "out");
        let said = "error: Failed to create domain from /dev/stdin\nerror: internal error: no memory\n\n";
        assert_eq!(
            told(Some(1), said),
            "libvirt refuses: Failed to create domain from /dev/stdin: internal error: no memory"
        );
        let said = "error: failed to connect to the hypervisor\nerror: no such socket\n";
        assert!(told(Some(1), said).starts_with("libvirt does not answer at `qemu:///"));
    }
}
