//! The driver of libvirt: its daemon starts QEMU, and its tools show the machine. QEMU is what it is by the driver without a daemon:
//! the program that libvirt runs for it joins namespaces that whoever looks after the machine has made, and gets its files from
//! there.

mod client;
mod domain;

use std::ffi::OsString;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::name::MachineName;
use codchi_core::status::{Finding, Level};
use codchi_runtime::guest::{self, Guest};
use codchi_runtime::{Error, Result, lent, outer};
use codchi_sys::process::{self, Child};
use codchi_sys::signal;

use crate::vm::Vm;
use crate::vm::attendant::{Runner, Wanted, qemu};
use crate::{DriverError, Flavour, Host, Info};
use client::{Client, uri, virsh};
use domain::Domain;

/// The driver.
pub(crate) static LIBVIRT: Vm = Vm {
    info: &Info { name: "libvirt", kind: Flavour::Vm },
    probe,
    usable,
    runner: |host, machine| Ok(Box::new(Daemon::new(host, machine)?)),
};

const INSTALL: &str = "Debian, Ubuntu: `sudo apt install libvirt-daemon-system libvirt-clients`";
/// The variable that names the program that becomes QEMU.
const PROGRAM: &str = "CODCHI_EMULATOR";
/// Where root keeps what libvirt runs as QEMU: libvirt asks it what it can do as a user that sees no folder of root's.
const SHOWN: &str = "/run/codchi-libvirt";
/// How long libvirt may take to run it.
const PATIENCE: Duration = Duration::from_secs(100);

fn usable(_: &Host) -> crate::Result<()> {
    match guest::program_path("virsh") {
        Some(_) => Ok(()),
        None => Err(DriverError::Host {
            what: "libvirt is not installed: there is no `virsh`".into(),
            hints: vec![INSTALL.into()],
        }),
    }
}

/// What doctor says. A person's own daemon starts when it is asked for, and is not asked for this.
fn probe(_: &Host) -> Vec<Finding> {
    let finding = |level, detail: String, fix: Option<String>| {
        vec![Finding { what: "libvirt".into(), level, detail, fix }]
    };
    let Some(client) = guest::program_path("virsh") else {
        return finding(Level::Missing, "not installed".into(), Some(INSTALL.into()));
    };
    let (own, uri) = (!outer::is_privileged(), uri());
    if own && uri == "qemu:///session" {
        let found = ["virtqemud", "libvirtd"].iter().find_map(|p| guest::program_path(p));
        return match found {
            Some(daemon) => finding(Level::Good, format!("`{}`, yours alone", daemon.display()), None),
            None => finding(Level::Missing, "its daemon is not installed".into(), Some(INSTALL.into())),
        };
    }
    let answer = virsh(&["version".into()], "");
    if answer.status == Some(0) {
        let line = answer.text.lines().find(|l| l.starts_with("Using library")).unwrap_or_default();
        let version = line.rsplit(' ').next().unwrap_or_default().to_owned();
        return finding(
            Level::Good,
            format!("{version} at `{}`, by `{}`", uri.display(), client.display()),
            None,
        );
    }
    let why = answer.error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let fix = "`sudo systemctl start libvirtd`, or `virtqemud` where there is that".to_owned();
    finding(Level::Missing, format!("`{}` does not answer: {why}", uri.display()), Some(fix))
}

/// The daemon, for one machine.
struct Daemon {
    client: Client,
    /// The machine's runtime directory.
    dir: PathBuf,
    /// The folder with its files.
    owner: PathBuf,
    program: PathBuf,
    /// Where a person keeps what libvirt runs as QEMU.
    shown: PathBuf,
    /// Keeps the machine's namespaces.
    holder: Option<Child>,
    /// Ends QEMU when this process ends.
    guard: Option<Child>,
}

impl Daemon {
    fn new(host: &Host, machine: &MachineName) -> crate::Result<Daemon> {
        let client = Client::start()
            .map_err(|e| DriverError::Helper { what: "speak to libvirt".into(), reason: e.to_string() })?;
        let shown = match outer::is_privileged() {
            true => SHOWN.into(),
            false => host.dirs.runtime.join("libvirt"),
        };
        Ok(Daemon {
            client,
            dir: host.dirs.machine_runtime(machine),
            owner: host.dirs.machine_data(machine),
            program: host.program.into(),
            shown,
            holder: None,
            guard: None,
        })
    }

    /// What libvirt runs as QEMU: QEMU itself where it asks what that can do.
    fn emulator(&self) -> Result<PathBuf> {
        let qemu = qemu()?;
        let name = qemu.file_name().unwrap_or_default();
        let text = format!(
            "#!/bin/sh\n# Made by Codchi: what libvirt runs for machines of the driver `libvirt`.\n\
             [ -z \"${{{socket}:-}}\" ] || exec \"${PROGRAM}\" plumbing emulator '{qemu}' \"$@\"\nexec '{qemu}' \"$@\"\n",
            socket = lent::VARIABLE,
            qemu = qemu.display(),
        );
        let file = self.shown.join(name);
        if codchi_fs::read_if_exists(&file)?.as_deref() != Some(text.as_str()) {
            codchi_fs::create_dir_all(&self.shown)?;
            codchi_fs::write_atomic(&file, text, 0o755)?;
            // Whatever the caller's mask is.
            codchi_fs::set_mode(&self.shown, 0o755)?;
            codchi_fs::set_mode(&file, 0o755)?;
        }
        Ok(file)
    }

    /// Ends what an earlier life left, and refuses a name that another's domain has.
    fn make_way(&mut self, name: &str) -> Result<()> {
        let there = self.client.run(&["dumpxml", name], "")?;
        if there.status != Some(0) {
            return if there.is_unreachable() { there.ok().map(drop) } else { Ok(()) };
        }
        if !there.text.contains(&domain::mark(&self.owner).replace('"', "'"))
            && !there.text.contains(&domain::mark(&self.owner))
        {
            return Err(Error::Host {
                what: format!("libvirt has a domain `{name}` that is none of this machine"),
                hints: vec![
                    format!("`codchi rename {name} NEW` gives this machine another name"),
                    format!("`virsh --connect {} undefine {name}` removes that domain", uri().display()),
                ],
            });
        }
        self.client.run(&["destroy", name], "")?.ok().map(drop)
    }

    /// A process that ends QEMU when this one has ended: it is nobody's child here, and the machine does not go on without.
    fn watch(&self, machine: &Child) -> Result<Child> {
        let told = |e: std::io::Error| Error::Told(format!("cannot watch QEMU: {e}"));
        let me = process::pidfd_open(rustix::process::getpid().as_raw_nonzero().get()).map_err(told)?;
        process::fork(|| {
            use rustix::event::{PollFd, PollFlags, poll};
            loop {
                let mut both = [PollFd::new(&me, PollFlags::IN), PollFd::new(machine, PollFlags::IN)];
                match poll(&mut both, None) {
                    Ok(_) if !both[1].revents().is_empty() => return 0,
                    Ok(_) if !both[0].revents().is_empty() => {
                        let _ = machine.signal(signal::SIGKILL);
                        return 0;
                    }
                    _ => {}
                }
            }
        })
        .map_err(told)
    }
}

impl Runner for Daemon {
    fn first(&self) -> i32 {
        lent::FIRST_FD
    }

    fn start(&mut self, guest: &mut Guest, wanted: Wanted<'_>) -> Result<Child> {
        let name = wanted.launch.name.as_str();
        self.make_way(name)?;
        let models = domain::models(&self.client.run(&["capabilities"], "")?.ok()?);
        let emulator = self.emulator()?;
        let holder = self.holder.insert(guest.hold()?);
        let mut fds = wanted.fds;
        fds.push(guest.console_end()?);
        guest.surround(holder, wanted.launch, wanted.served, wanted.port, &mut |m| wanted.said.push(m))?;
        let socket = self.dir.join("emulator.socket");
        codchi_fs::remove_if_exists(&socket)?;
        let listener = UnixListener::bind(&socket)
            .map_err(|e| Error::Told(format!("cannot listen on `{}`: {e}", socket.display())))?;
        let domain = Domain {
            name,
            owner: &self.owner,
            settings: wanted.settings,
            processor: wanted.processor,
            image: &wanted.image,
            memory: wanted.memory,
            emulator: &emulator,
            devices: &wanted.devices,
            variables: &[
                (lent::VARIABLE, socket.display().to_string()),
                (PROGRAM, self.program.display().to_string()),
            ],
            models: &models,
        };
        self.client.ask(&["create", "/dev/stdin"], &domain.xml())?;
        let until = Instant::now() + PATIENCE;
        let lent = lent::lend(&listener, holder, &fds, std::os::fd::AsFd::as_fd(&self.client), until);
        let _ = codchi_fs::remove_if_exists(&socket);
        let Some(machine) = lent? else {
            self.client.answer()?.ok()?;
            return Err(Error::Told("libvirt did not run the machine".into()));
        };
        if let Err(e) = self.client.answer().and_then(client::Answer::ok) {
            let _ = machine.signal(signal::SIGKILL);
            return Err(e);
        }
        self.guard = Some(self.watch(&machine)?);
        Ok(machine)
    }

    fn part(&mut self) {
        for own in [self.holder.take(), self.guard.take()].into_iter().flatten() {
            let _ = own.signal(signal::SIGKILL);
            let _ = own.wait();
        }
    }

    fn children(&self) -> Vec<i32> {
        let own = self.holder.iter().chain(&self.guard).map(|c| c.pid);
        own.chain([self.client.pid()]).collect()
    }
}

/// What the program becomes that libvirt runs as a machine's QEMU; `args` are what libvirt tells QEMU. This process must have one
/// thread.
pub fn become_emulator(qemu: &Path, args: &[OsString]) -> crate::Result<std::convert::Infallible> {
    Ok(lent::become_program(qemu, |count| arguments(args, count))?)
}

/// The arguments of a QEMU with this many descriptors, of which the last is the machine's console.
fn arguments(given: &[OsString], descriptors: usize) -> Vec<OsString> {
    let console = guest::descriptor(lent::FIRST_FD + descriptors as i32 - 1);
    let mut out: Vec<OsString> = Vec::with_capacity(given.len());
    let mut rest = given.iter().peekable();
    while let Some(arg) = rest.next() {
        let next = rest.peek().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if arg == "-object" && next.contains("\"masterKey0\"") {
            // A key for secrets of disks, of which there are none, in a file that it cannot read any more.
            rest.next();
        } else if arg == "-chardev" && next.starts_with("pty,id=charserial0") {
            out.push(arg.clone());
            out.push(format!("{next},logfile={console},logappend=on").into());
            rest.next();
        } else {
            out.push(arg.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_says_is_heard_and_no_key_is_read() {
        let given = ["-S", "-object", "{\"qom-type\":\"secret\",\"id\":\"masterKey0\"}", "-object", "x"];
        let given =
            given.iter().chain(&["-chardev", "pty,id=charserial0"]).map(OsString::from).collect::<Vec<_>>();
        let got = arguments(&given, 8);
        let wanted =
            ["-S", "-object", "x", "-chardev", "pty,id=charserial0,logfile=/proc/self/fd/207,logappend=on"];
        assert_eq!(got, wanted.map(OsString::from));
    }
}
