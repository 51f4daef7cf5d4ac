//! PID 1 by an OCI runtime: its command line is given a bundle (`bundle/config.json` in the machine's runtime directory) and a
//! folder for its state (`runtime`), where whoever may can look with it, too.
//!
//! The runtime finds the machine's root put together in the supervisor's namespace, as for a machine of our own, and makes the
//! namespaces below that. Between its `create` and its `start` the machine is connected and gets its folders.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use codchi_fs::Context;
use codchi_sys::process::{self, Child, End, Namespaces};
use codchi_sys::{identity, signal};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Gid, Uid};
use rustix::process::{Resource, getrlimit};
use rustix::pty::OpenptFlags;

use super::{Supervision, Teller};
use crate::bundle::{Config, Host};
use crate::cgroup;
use crate::error::{Doing, Error, Result};
use crate::ids::{self, Extent};
use crate::inside::hear;
use crate::outer::OWN_DIR;
use crate::{mounts, start};

/// Folders in a machine's runtime directory.
pub(super) const FOLDERS: [&str; 2] = ["bundle", "runtime"];
/// Where runtimes look for control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How long one call of the runtime may take.
const PATIENCE: Duration = Duration::from_secs(100);
/// Open files that programs expect at their start.
const FILES: u64 = 1024;

/// What one call of the runtime needs.
struct Call<'a> {
    program: &'a Path,
    state: PathBuf,
    log: PathBuf,
    /// Where control groups are mounted.
    cgroups: PathBuf,
    privileged: bool,
}

impl Call<'_> {
    /// Runs it, and answers with what it said where it fails.
    fn run(&self, args: &[&OsStr], tasks: Option<u64>) -> Result<()> {
        codchi_fs::write(&self.log, "")?;
        let child = cgroup::while_limited(tasks, || process::fork(|| self.become_runtime(args)))?
            .doing("start a process")?;
        let mut fds = [PollFd::new(&child, PollFlags::IN)];
        if start::wait(&mut fds, Instant::now() + PATIENCE)? == 0 {
            child.signal(signal::SIGKILL).doing("end the runtime")?;
        }
        match child.wait().doing("wait for the runtime")? {
            End::Code(0) => Ok(()),
            end => {
                let said = codchi_fs::read_to_string(&self.log).unwrap_or_default();
                let said: Vec<&str> = said.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
                let verb = args.first().map(|v| v.display().to_string()).unwrap_or_default();
                let why = if said.is_empty() { format!("{end:?}") } else { said.join("; ") };
                Err(Error::Told(format!("`{} {verb}` failed: {why}", self.program.display())))
            }
        }
    }

    /// In a copy of the supervisor: answers only when that failed.
    fn become_runtime(&self, args: &[&OsStr]) -> i32 {
        let go = || -> Result<std::convert::Infallible> {
            let kill = Some(rustix::process::Signal::KILL);
            rustix::process::set_parent_process_death_signal(kill)
                .doing("tie the runtime to its supervisor")?;
            let log = codchi_fs::create(&self.log)?;
            let nothing = codchi_fs::open("/dev/null")?;
            for (fd, target) in [(nothing.as_fd(), 0), (log.as_fd(), 1), (log.as_fd(), 2)] {
                process::stdio(fd, target).doing("redirect the runtime's output")?;
            }
            // A host with the old hierarchies, too, shows the runtime one hierarchy, as the machine will see it.
            if self.cgroups != Path::new(CGROUPS) {
                process::unshare(Namespaces::MOUNT).doing("make a mount namespace")?;
                rustix::mount::mount_bind(&self.cgroups, CGROUPS).doing("show control groups")?;
            }
            if !self.privileged {
                identity::set_groups(&[]).doing("drop groups")?;
                identity::set_gid(0).doing("become root of the namespace")?;
                identity::set_uid(0).doing("become root of the namespace")?;
            }
            signal::reset();
            let source = Command::new(self.program)
                .arg("--root")
                .arg(&self.state)
                .args(args)
                .env_clear()
                .env(
                    "PATH",
                    std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
                )
                .exec();
            Err(Error::Os { doing: format!("run `{}`", self.program.display()), source })
        };
        match go() {
            Ok(never) => match never {},
            Err(e) => {
                // Where it cannot be written, the status alone tells.
                let _ = codchi_fs::write(&self.log, e.to_string());
                1
            }
        }
    }
}

impl Supervision {
    fn call(&self) -> Result<Call<'_>> {
        let program = self.launch.runtime.as_deref();
        let program = program.ok_or_else(|| Error::Settings("no runtime was named".into()))?;
        let tree = self.tree.as_ref().ok_or_else(|| Error::Told("no cgroup".into()))?;
        Ok(Call {
            program,
            state: self.dir.join("runtime"),
            log: self.dir.join("bundle/log"),
            cgroups: tree.mounted()?.0,
            privileged: self.outer.privileged,
        })
    }

    /// The ids and groups of the machine, by those of the outer namespace.
    pub(super) fn maps(&self) -> (Vec<Extent>, Vec<Extent>) {
        if self.outer.privileged {
            let all = vec![Extent { inside: 0, outside: self.owner.uid, count: self.launch.uid_count }];
            return (all.clone(), all);
        }
        (
            ids::child_of(&self.outer.ids.uids, self.caller_is.map(|u| u.uid)),
            ids::child_of(&self.outer.ids.gids, self.caller_is.map(|u| u.gid)),
        )
    }

    /// Has the runtime make the machine and start PID 1.
    pub(super) fn create_leader(&mut self, config: &Config, teller: &mut Teller) -> Result<Child> {
        self.delete_container();
        for folder in FOLDERS {
            let folder = self.dir.join(folder);
            codchi_fs::remove_dir_all(&folder)?;
            codchi_fs::create_private_dir(&folder)?;
        }
        let done = self.try_create(config, teller);
        if done.is_err() {
            self.connection.part();
            self.delete_container();
        }
        done
    }

    fn try_create(&mut self, config: &Config, teller: &mut Teller) -> Result<Child> {
        let (config, tasks) = self.complete(config, teller)?;
        let bundle = self.dir.join("bundle");
        let text =
            serde_json::to_vec_pretty(&config).map_err(std::io::Error::other).doing("write the bundle")?;
        codchi_fs::write(bundle.join("config.json"), text)?;
        let (socket, pid) = (Path::new(OWN_DIR).join("terminal"), bundle.join("pid"));
        codchi_fs::remove_if_exists(&socket)?;
        let listener = UnixListener::bind(&socket).at("make", &socket)?;
        listener.set_nonblocking(true).at("use", &socket)?;
        let name = OsString::from(&self.launch.name);
        let args: [&OsStr; 8] = [
            "create".as_ref(),
            "--bundle".as_ref(),
            bundle.as_ref(),
            "--console-socket".as_ref(),
            socket.as_ref(),
            "--pid-file".as_ref(),
            pid.as_ref(),
            &name,
        ];
        self.call()?.run(&args, tasks)?;
        // It is sent before the runtime ends.
        let (terminal, _) = listener.accept().doing("get the console")?;
        let mut fds = [PollFd::new(&terminal, PollFlags::IN)];
        if start::wait(&mut fds, Instant::now() + PATIENCE)? == 0 {
            return Err(Error::Told("the runtime sent no console".into()));
        }
        let sent =
            hear(terminal.as_fd()).doing("get the console")?.and_then(|(_, fds)| fds.into_iter().next());
        let master = sent.ok_or_else(|| Error::Told("the runtime sent no console".into()))?;
        // A terminal that nobody has open hangs up, and this one is reopened all the time.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        self.console.other_end =
            Some(rustix::pty::ioctl_tiocgptpeer(&master, flags).doing("open the console")?);
        self.console.from = Some(master);
        let text = codchi_fs::read_to_string(&pid)?;
        let number = text
            .trim()
            .parse()
            .map_err(|_| Error::Told(format!("the runtime named the process `{text}`")))?;
        // Its parent has ended: the nearest reaper has it, which is this process.
        let leader = Child::adopt(number).doing("watch the machine")?;
        self.connect(leader.pid, teller)?;
        self.give_all(leader.pid)?;
        self.call()?.run(&["start".as_ref(), &name], None)?;
        if !self.outer.privileged {
            show_caller(&self.dir.join("runtime"))?;
        }
        Ok(leader)
    }

    /// The configuration with what this host has of it, and how many tasks the machine may have where no control group counts them.
    fn complete(&mut self, config: &Config, teller: &mut Teller) -> Result<(Config, Option<u64>)> {
        let mut config = config.clone();
        let tree = self.tree.as_ref().ok_or_else(|| Error::Told("no cgroup".into()))?;
        let (controllers, cgroup) = (tree.controllers(), tree.mounted()?.1);
        let has = |name: &str| controllers.iter().any(|c| c == name);
        let limits = &mut config.linux.resources;
        let mut unset = Vec::new();
        if !has("memory") && limits.memory.limit.take().is_some() {
            unset.push("memory.max");
        }
        if !has("cpu") && std::mem::take(&mut limits.cpu).quota.is_some() {
            unset.push("cpu.max");
        }
        let tasks = if has("pids") { None } else { limits.pids.limit.take() };
        let said = unset
            .into_iter()
            .map(|f| format!("this host does not let `{f}` be set: the machine runs without that limit"));
        self.warn_all(said.collect(), teller);
        let devices = self.spec.devices.iter().filter_map(|d| {
            let path = Path::new("/dev").join(d.trim_end_matches('?'));
            let kind = rustix::fs::stat(&path).map(|s| FileType::from_raw_mode(s.st_mode));
            let there = matches!(kind, Ok(FileType::CharacterDevice | FileType::BlockDevice));
            (there || !d.ends_with('?')).then_some(path)
        });
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
        let (uids, gids) = self.maps();
        let host = Host {
            root: &mounts::stage_dir(),
            uids: &uids,
            gids: &gids,
            cgroup,
            devices: devices.collect(),
            files: (most.min(FILES), most),
            tasks: tasks.map(|t| getrlimit(Resource::Nproc).maximum.map_or(t, |most| most.min(t))),
        };
        Ok((config.on(&host), tasks))
    }

    /// Has the runtime forget the machine, whatever became of it.
    pub(super) fn delete_container(&self) {
        let known = self.dir.join("runtime").join(&self.launch.name);
        if !known.exists() {
            return;
        }
        if let Ok(call) = self.call() {
            // What it does not take away, the end of the control group and of these folders does.
            let _ = call.run(&["delete".as_ref(), "--force".as_ref(), self.launch.name.as_ref()], None);
        }
    }
}

/// Rootless: what the runtime keeps is the caller's to read.
fn show_caller(dir: &Path) -> Result<()> {
    let caller = (Some(Uid::from_raw(ids::CALLER)), Some(Gid::from_raw(ids::CALLER)));
    for entry in codchi_fs::read_dir(dir)? {
        let path = entry.path();
        if entry.file_type().at("examine", &path)?.is_dir() {
            show_caller(&path)?;
        }
        rustix::fs::chown(&path, caller.0, caller.1).at("change the owner of", &path)?;
    }
    Ok(())
}
