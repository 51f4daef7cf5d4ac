//! Real machines: their programs are the host's /usr, their PID 1 is this program.
//!
//! As root, or as a user who has subordinate ids and a delegated control group; else all are shown as ignored.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stderr
)]

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use codchi_runtime::outer::{OuterConfig, Role};
use codchi_runtime::spec::Launch;
use codchi_runtime::state::{State, Status};
use codchi_runtime::{Error, ids, outer, start, state};
use codchi_secrets::Bundle;
use codchi_sys::signal;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("init") => init(&args[2..]),
        Some("supervise") => {
            let done = codchi_runtime::supervise::supervise(Path::new(&args[2]), |_| Ok(Default::default()));
            if let Err(e) = done {
                eprintln!("{e}");
                std::process::exit(1);
            }
        }
        Some("enter") => {
            let request = codchi_runtime::enter::Request {
                argv: args[3..].iter().map(OsString::from).collect(),
                user: "root".into(),
                ..Default::default()
            };
            match codchi_runtime::enter::enter(Path::new(&args[2]), &request) {
                Ok(status) => std::process::exit(status.into()),
                Err(e) => {
                    eprintln!("{e}");
                    std::process::exit(125);
                }
            }
        }
        _ => tests(),
    }
}

/// PID 1 of a test machine: ready at once; halts on SIGRTMIN+3, reboots on SIGUSR1, reaps.
fn init(how: &[String]) {
    if how.first().is_some_and(|h| h == "fail") {
        eprintln!("this system is broken on purpose");
        std::process::exit(3);
    }
    if how.first().is_some_and(|h| h == "slow") {
        // Deaf until the file is there.
        eventually("the permission to be ready", || Path::new("/mnt/go").exists());
    }
    let signals = signal::Signals::block(&[signal::SIGCHLD, signal::SIGUSR1, signal::real_time(3)]).unwrap();
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    socket.send_to(b"READY=1\nSTATUS=up", std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
    loop {
        let mut fds = [rustix::event::PollFd::new(&signals, rustix::event::PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, None);
        while let Some(n) = signals.next_pending() {
            if n == signal::SIGUSR1 {
                rustix::system::reboot(rustix::system::RebootCommand::Restart).unwrap();
            } else if n == signal::SIGCHLD {
                while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
            } else {
                rustix::system::reboot(rustix::system::RebootCommand::PowerOff).unwrap();
            }
        }
    }
}

struct Machine {
    name: String,
    dir: PathBuf,
    launch: Launch,
    /// 0700, as the runtime demands.
    _home: tempfile::TempDir,
}

/// What is left to say of a machine when a test ends early, too.
impl Drop for Machine {
    fn drop(&mut self) {
        let _ = start::stop(&self.dir, true, Duration::from_secs(20));
        let _ = outer::remove_tree(&self.launch.root);
        let _ = outer::remove_tree(&self.dir);
    }
}

fn engine() -> Value {
    let ro = json!(["ro", "nosuid", "nodev"]);
    json!({
        "version": 1,
        "hostName": "@name@",
        "root": "@root@",
        "init": ["/run/codchi/bin/init", "init"],
        "environment": { "NOTIFY_SOCKET": "/run/codchi/notify/socket", "TOPLEVEL": "@toplevel@" },
        "mounts": [
            { "kind": "bind", "source": "/usr", "target": "/usr", "options": ro },
            { "kind": "bind", "source": "@store@", "target": "/nix/store", "options": ro, "idmap": true },
            { "kind": "tmpfs", "target": "/run", "options": ["mode=0755"], "outer": true },
            { "kind": "bind", "source": "@bin@", "target": "/run/codchi/bin", "options": ro },
            { "kind": "bind", "source": "@agent@", "target": "/run/codchi/agent" },
            { "kind": "bind", "source": "@host@", "target": "/run/codchi/host", "options": ro },
            { "kind": "bind", "source": "@notify@", "target": "/run/codchi/notify", "options": ["nosuid"] },
            { "kind": "proc", "target": "/proc", "options": ["nosuid", "noexec", "nodev"] },
            { "kind": "tmpfs", "target": "/dev", "options": ["mode=0755", "nosuid"] },
            { "kind": "devpts", "target": "/dev/pts", "options": ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "kind": "sysfs", "target": "/sys", "options": ["ro", "nosuid", "nodev", "noexec"] },
            { "kind": "cgroup2", "target": "/sys/fs/cgroup", "options": ["nosuid", "nodev", "noexec"] },
        ],
        "devices": ["null", "zero", "full", "random", "urandom", "tty", "net/tun?"],
        "capabilities": { "drop": ["CAP_SYS_MODULE", "CAP_SYS_TIME"] },
        "seccomp": { "deny": ["request_key", "keyctl"], "errno": 1 },
        "network": { "mode": "none" },
        "stop": { "signal": "SIGRTMIN+3", "timeoutSeconds": 20 },
    })
}

impl Machine {
    fn new(name: &str) -> Machine {
        let home = tempfile::tempdir().unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let at = |d: &str| {
            let p = home.path().join(d);
            std::fs::create_dir_all(&p).unwrap();
            p
        };
        let root = at("root");
        for d in ["etc", "usr", "mnt"] {
            at(&format!("root/{d}"));
        }
        // Tests write here before and during a machine's life, rootless as somebody else.
        for d in [&root, &root.join("mnt")] {
            std::fs::set_permissions(d, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
        for l in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{l}"), root.join(l)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        let bin = at("bin");
        std::fs::copy(std::env::current_exe().unwrap(), bin.join("init")).unwrap();
        std::fs::write(at("store").join("kept"), "kept").unwrap();
        let launch = Launch {
            version: 1,
            name: name.into(),
            engine: engine(),
            root,
            uid_base: outer::is_root().then(|| ids::choose_base(&[]).unwrap()),
            uid_count: ids::NESTED,
            user: Default::default(),
            user_is_caller: false,
            outer: Default::default(),
            store: at("store"),
            toplevel: "/nix/store/none".into(),
            closure: vec![],
            bin,
            folders: vec![],
            ports: vec![],
            channels: vec![],
            git_hosts: vec![],
            devices: vec![],
            revision: 1,
            runtime: None,
            patience: None,
            console_log: home.path().join("console.log"),
        };
        Machine { name: name.into(), dir: at("run"), launch, _home: home }
    }

    /// Makes the root file system the machine's. Copies this process, so no other thread may run.
    fn hand_over(&self) -> Result<(), Error> {
        if !outer::is_root() {
            // The root belongs to the machine's root, as when a machine was made by the runtime.
            let root = self.launch.root.clone();
            outer::run(&OuterConfig::default(), Role::Maintainer, move |_| {
                let done = Command::new("chown").arg("-hR").arg("0:0").arg(root).status();
                assert!(done.unwrap().success());
                Ok(Vec::new())
            })?;
        }
        Ok(())
    }

    fn start(&self) -> Result<(), Error> {
        self.hand_over()?;
        self.start_as_it_is()
    }

    fn start_as_it_is(&self) -> Result<(), Error> {
        let program = [std::env::current_exe().unwrap().into(), "supervise".into(), self.dir.clone().into()];
        start::start(&self.dir, &self.launch, &program, &Bundle::new(), &mut |_| {})
    }

    fn started(name: &str) -> Machine {
        let m = Machine::new(name);
        m.start().unwrap();
        m
    }

    fn status(&self) -> Status {
        state::status(&self.dir).unwrap()
    }

    /// Runs a command inside: its status, and what it wrote.
    fn run(&self, argv: &[&str]) -> (i32, String) {
        let out = Command::new(std::env::current_exe().unwrap())
            .arg("enter")
            .arg(&self.dir)
            .args(argv)
            .output()
            .unwrap();
        let text = [out.stdout, out.stderr].concat();
        (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    fn succeeds(&self, argv: &[&str]) -> String {
        let (code, text) = self.run(argv);
        assert_eq!(code, 0, "{argv:?}: {text}");
        text
    }

    fn fails(&self, argv: &[&str]) {
        let (code, text) = self.run(argv);
        assert!(code != 0 && code != 125, "{argv:?} gave {code}: {text}");
    }

    /// Nothing of it is left in the runtime directory but what a later start reads.
    fn assert_nothing_left(&self) {
        let left: Vec<_> = std::fs::read_dir(&self.dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        for gone in ["agent", "daemon", "notify", "host", "events"] {
            assert!(!left.iter().any(|l| l == gone), "{left:?}");
        }
        assert!(!cgroup_exists(&self.name));
    }
}

/// Whether any cgroup of this host is named for the machine.
fn cgroup_exists(name: &str) -> bool {
    fn below(d: &Path, wanted: &str, depth: u32) -> bool {
        std::fs::read_dir(d).into_iter().flatten().flatten().any(|e| {
            e.file_type().is_ok_and(|t| t.is_dir())
                && (e.file_name() == wanted || (depth > 0 && below(&e.path(), wanted, depth - 1)))
        })
    }
    below(Path::new("/sys/fs/cgroup"), &format!("codchi-{name}"), 6)
}

/// Waits for something that another process does, and fails when it does not come.
fn eventually(what: &str, f: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !f() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn tests() {
    let mut args = Arguments::from_args();
    // Starting a machine copies this process, and that takes one thread.
    args.test_threads = Some(1);
    let root = outer::is_root();
    let able = root
        || codchi_runtime::probe::probe().iter().all(|f| f.ok || f.optional)
            && outer::run(&OuterConfig::default(), Role::Maintainer, |_| Ok(Vec::new())).is_ok();
    // What only root can do, or only root can look at.
    let of_root = ["ids on disk", "one range", "pid 1 has no"];
    let all: Vec<(&str, fn())> = vec![
        ("a machine starts, says so, stops, and leaves nothing", starts_and_stops),
        ("mounts made outside cannot be changed inside", mounts_are_locked),
        ("refused system calls are refused under every instruction set", calls_are_refused),
        ("capabilities leave the bounding set", capabilities_are_dropped),
        ("a reboot starts the machine again", reboots),
        ("a machine that is asked to stop while it starts stops when it can hear", stops_while_starting),
        ("nothing runs on without its supervisor", dies_with_supervisor),
        ("two machines run at once and do not see each other", two_at_once),
        ("ids on disk are the machine's, ids of processes those of its range", ids_are_mapped),
        ("one range is not used twice", range_is_locked),
        ("a failed start says why and leaves nothing", failed_start),
        ("links in the machine lead no mount out of it", links_stay_inside),
        ("a root that others can reach is refused", reachable_root),
        ("the host's loopback is closed", loopback_is_closed),
        ("the host's resolver is followed", resolver_is_written),
        ("pid 1 has no descriptors and no environment of the host", nothing_is_lent),
    ];
    let trials = all
        .into_iter()
        .map(|(name, f)| {
            let run = move || {
                f();
                Ok::<(), Failed>(())
            };
            let ignored = !able || !root && of_root.iter().any(|r| name.starts_with(r));
            Trial::test(name.replace(' ', "_").replace(',', ""), run).with_ignored_flag(ignored)
        })
        .collect();
    libtest_mimic::run(&args, trials).exit();
}

fn starts_and_stops() {
    let m = Machine::started("starts");
    let s = m.status();
    assert_eq!(s.state, State::Running);
    assert_eq!(s.text, "up");
    assert_eq!(m.succeeds(&["cat", "/proc/sys/kernel/hostname"]).trim(), "starts");
    assert!(matches!(m.start(), Err(Error::Running(_))));
    start::stop(&m.dir, false, Duration::from_secs(20)).unwrap();
    assert_eq!(m.status().state, State::Stopped);
    m.assert_nothing_left();
    assert!(matches!(start::stop(&m.dir, false, Duration::from_secs(1)), Err(Error::NotRunning(_))));
}

fn mounts_are_locked() {
    let m = Machine::started("locked");
    // What is the machine's own can be mounted and unmounted: the refusals below are no accident.
    m.succeeds(&["mount", "-t", "tmpfs", "x", "/mnt"]);
    m.succeeds(&["umount", "/mnt"]);
    for target in ["/nix/store", "/run/codchi/bin", "/run", "/usr"] {
        m.fails(&["umount", target]);
        m.fails(&["umount", "-l", target]);
    }
    for target in ["/nix/store", "/run/codchi/bin", "/run/codchi/host"] {
        m.fails(&["mount", "-o", "remount,bind,rw", target]);
        m.fails(&["touch", &format!("{target}/new")]);
    }
    // A copy of it is as locked as it is.
    m.succeeds(&["mount", "--rbind", "/nix", "/mnt"]);
    m.fails(&["mount", "-o", "remount,bind,rw", "/mnt/store"]);
    m.fails(&["umount", "/mnt/store"]);
    let owner = if outer::is_root() { "0" } else { "65534" };
    assert_eq!(m.succeeds(&["stat", "-c", "%u", "/nix/store/kept"]).trim(), owner);
}

/// A program that makes one system call without arguments and exits with its error.
fn calls(number: u32, instruction: [u8; 2]) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(number.to_le_bytes());
    // xor of ebx, ecx, edx, esi, edi, r10d, r8d; the call; neg eax; mov edi, eax; exit
    code.extend([
        0x31, 0xdb, 0x31, 0xc9, 0x31, 0xd2, 0x31, 0xf6, 0x31, 0xff, 0x45, 0x31, 0xd2, 0x45, 0x31, 0xc0,
    ]);
    code.extend(instruction);
    code.extend([0xf7, 0xd8, 0x89, 0xc7, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]);
    let (base, start) = (0x40_0000u64, 120u64);
    let size = start + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for v in [base + start, 64, 0] {
        elf.extend(v.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
    for v in [0, base, base, size, size, 0x1000] {
        elf.extend(v.to_le_bytes());
    }
    elf.extend(code);
    elf
}

fn calls_are_refused() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const INT_80: [u8; 2] = [0xcd, 0x80];
    let (eperm, efault) = (1, 14);
    let mut m = Machine::new("calls");
    for (name, program) in [
        // request_key, in the numbers of x86_64 and i386; getpid of the x32 ABI
        ("native", calls(249, SYSCALL)),
        ("compat", calls(287, INT_80)),
        ("x32", calls(0x4000_0000 | 39, SYSCALL)),
    ] {
        let file = m.launch.root.join(name);
        std::fs::write(&file, program).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    m.start().unwrap();
    let filters = std::fs::read_to_string(format!("/proc/{}/status", m.status().leader.unwrap())).unwrap();
    assert!(filters.contains("NoNewPrivs:\t0"), "sudo has to work");
    assert!(filters.contains("Seccomp:\t2"));
    assert_eq!(m.run(&["/native"]).0, eperm);
    assert_eq!(m.run(&["/compat"]).0, eperm);
    assert_eq!(m.run(&["/x32"]).0, eperm);
    start::stop(&m.dir, false, Duration::from_secs(20)).unwrap();
    // Without the list they are not refused: the programs tell the difference.
    m.launch.engine["seccomp"]["deny"] = json!([]);
    m.start().unwrap();
    assert_eq!(m.run(&["/native"]).0, efault);
    assert_eq!(m.run(&["/compat"]).0, efault);
}

fn capabilities_are_dropped() {
    let m = Machine::started("caps");
    let status = std::fs::read_to_string(format!("/proc/{}/status", m.status().leader.unwrap())).unwrap();
    let set = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let (module, admin, time) = (1 << 16, 1 << 21, 1 << 25);
    for name in ["CapBnd:", "CapEff:", "CapPrm:"] {
        assert_eq!(set(name) & (module | time), 0, "{status}");
        assert_eq!(set(name) & admin, admin, "{status}");
    }
}

fn reboots() {
    let m = Machine::started("reboots");
    let first = m.status().leader.unwrap();
    m.succeeds(&["sh", "-c", "echo old > /run/mark; echo kept > /mnt/mark"]);
    // The shell may end with the machine it reboots.
    let _ = m.run(&["sh", "-c", "kill -USR1 1"]);
    eventually("the reboot", || {
        let s = m.status();
        s.state == State::Running && s.leader.is_some_and(|l| l != first)
    });
    assert_eq!(m.succeeds(&["cat", "/mnt/mark"]).trim(), "kept");
    m.fails(&["cat", "/run/mark"]);
}

fn stops_while_starting() {
    let mut m = Machine::new("slow");
    m.launch.engine["init"] = json!(["/run/codchi/bin/init", "init", "slow"]);
    m.hand_over().unwrap();
    std::thread::scope(|s| {
        let starting = s.spawn(|| m.start_as_it_is());
        eventually("the first process", || m.status().leader.is_some());
        let stopping = s.spawn(|| start::stop(&m.dir, false, Duration::from_secs(60)));
        eventually("the request", || m.status().state == State::Stopping);
        std::fs::write(m.launch.root.join("mnt/go"), "").unwrap();
        stopping.join().unwrap().unwrap();
        assert!(starting.join().unwrap().is_err(), "a stopped machine is not a started one");
    });
    m.assert_nothing_left();
}

fn dies_with_supervisor() {
    let m = Machine::started("orphan");
    let s = m.status();
    let leader = codchi_sys::process::pidfd_open(s.leader.unwrap()).unwrap();
    let supervisor = codchi_sys::process::pidfd_open(s.supervisor.unwrap()).unwrap();
    codchi_sys::process::pidfd_signal(std::os::fd::AsFd::as_fd(&supervisor), signal::SIGKILL).unwrap();
    let mut fds = [rustix::event::PollFd::new(&leader, rustix::event::PollFlags::IN)];
    let patience = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&patience)).unwrap(), 1, "PID 1 lives on");
    eventually("the end of the supervisor", || m.status().state == State::Failed);
    m.start().unwrap();
    assert_eq!(m.status().state, State::Running);
    start::stop(&m.dir, false, Duration::from_secs(20)).unwrap();
    m.assert_nothing_left();
}

fn two_at_once() {
    let (a, b) = (Machine::started("first"), Machine::started("second"));
    if outer::is_root() {
        assert_ne!(a.launch.uid_base, b.launch.uid_base);
    }
    assert_eq!(a.succeeds(&["cat", "/proc/sys/kernel/hostname"]).trim(), "first");
    assert_eq!(b.succeeds(&["cat", "/proc/sys/kernel/hostname"]).trim(), "second");
    let processes = a.succeeds(&["sh", "-c", "cat /proc/[0-9]*/comm | grep -c '^init$'"]);
    assert_eq!(processes.trim(), "1", "the other's PID 1 is in sight");
    start::stop(&a.dir, false, Duration::from_secs(20)).unwrap();
    assert_eq!(b.status().state, State::Running);
}

fn ids_are_mapped() {
    let m = Machine::started("mapped");
    m.succeeds(&["sh", "-c", "touch /mnt/root; touch /mnt/user; chown 1000:1000 /mnt/user"]);
    let on_disk = |f: &str| std::fs::metadata(m.launch.root.join("mnt").join(f)).unwrap().uid();
    assert_eq!((on_disk("root"), on_disk("user")), (0, 1000));
    let leader = std::fs::metadata(format!("/proc/{}", m.status().leader.unwrap())).unwrap().uid();
    assert_eq!(Some(leader), m.launch.uid_base);
}

fn range_is_locked() {
    let a = Machine::started("range-a");
    let mut b = Machine::new("range-b");
    b.launch.uid_base = a.launch.uid_base;
    let e = b.start().unwrap_err();
    assert!(matches!(&e, Error::Host { what, .. } if what.contains("range-a")), "{e}");
    b.assert_nothing_left();
}

fn failed_start() {
    let mut m = Machine::new("fails");
    m.launch.engine["init"] = json!(["/run/codchi/bin/init", "init", "fail"]);
    let Err(Error::Start { why, console, .. }) = m.start() else { panic!("it started") };
    assert!(why.contains("ended with 3"), "{why}");
    assert!(console.iter().any(|l| l.contains("broken on purpose")), "{console:?}");
    assert_eq!(m.status().state, State::Failed);
    m.assert_nothing_left();
    m.launch.engine["init"] = json!(["/proc/self/exe"]);
    let Err(Error::Start { why, .. }) = m.start() else { panic!("a program of the host became PID 1") };
    assert!(why.contains("/proc/self/exe"), "{why}");
}

fn links_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let m = Machine::new("links");
    std::os::unix::fs::symlink(outside.path(), m.launch.root.join("nix")).unwrap();
    let e = m.start().unwrap_err();
    assert!(e.to_string().contains("/nix/store"), "{e}");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "something was made outside");
    // A link within the machine is followed there.
    std::fs::remove_file(m.launch.root.join("nix")).unwrap();
    std::fs::create_dir(m.launch.root.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("/elsewhere", m.launch.root.join("nix")).unwrap();
    m.start().unwrap();
    assert_eq!(m.succeeds(&["cat", "/elsewhere/store/kept"]), "kept");
}

fn reachable_root() {
    let m = Machine::new("reachable");
    let home = m.launch.root.parent().unwrap();
    std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(m.start(), Err(Error::Host { .. })));
    m.assert_nothing_left();
}

fn loopback_is_closed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    for mode in ["none", "private"] {
        let mut m = Machine::new("loopback");
        m.launch.engine["network"]["mode"] = json!(mode);
        m.start().unwrap();
        let gateway = m.succeeds(&["sh", "-c", "ip -4 route show default | cut -d ' ' -f 3"]);
        let others = ["127.0.0.1", "169.254.1.53", "10.0.2.2"];
        for to in others.into_iter().chain(gateway.split_whitespace()) {
            m.fails(&["timeout", "2", "bash", "-c", &format!("exec 3<>/dev/tcp/{to}/{port}")]);
        }
        // Its own loopback works.
        m.succeeds(&["bash", "-c", "ip addr show lo | grep -q 'inet 127.0.0.1'"]);
        start::stop(&m.dir, false, Duration::from_secs(20)).unwrap();
    }
}

fn resolver_is_written() {
    let m = Machine::started("resolver");
    let shown = m.succeeds(&["cat", "/run/codchi/host/resolv.conf"]);
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for l in host.lines().filter(|l| l.starts_with("nameserver") && !l.contains(" 127.") && !l.contains('%'))
    {
        assert!(shown.contains(l.trim()), "{shown}");
    }
    assert!(!shown.contains(" 127."), "{shown}");
}

fn nothing_is_lent() {
    let m = Machine::started("lent");
    let leader = m.status().leader.unwrap();
    for e in std::fs::read_dir(format!("/proc/{leader}/fd")).unwrap() {
        let to = std::fs::read_link(e.unwrap().path()).unwrap();
        let own = to.starts_with("/dev/pts") || to.starts_with("/dev/console") || {
            let t = to.to_string_lossy();
            t.starts_with("anon_inode:[signalfd]") || t.starts_with("socket:")
        };
        assert!(own, "{}", to.display());
    }
    let env = std::fs::read(format!("/proc/{leader}/environ")).unwrap();
    let env = String::from_utf8_lossy(&env).into_owned();
    let names: Vec<&str> =
        env.split('\0').filter_map(|v| v.split('=').next()).filter(|n| !n.is_empty()).collect();
    assert_eq!(names, ["NOTIFY_SOCKET", "TOPLEVEL"]);
}
