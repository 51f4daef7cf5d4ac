//! The client and the real agent, the agent in process and mount namespaces of its own. Needs root; the client here is the
//! example program `agent`, which is `agent::exec` and nothing more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use codchi_core::protocol::{self, Decoder, Failure, FrameType};
use codchi_drivers::agent::{self, AgentError, CaptureLimits, ExecRequest};
use codchi_sys::signal::kill_process;
use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

const PATIENCE: Duration = Duration::from_secs(20);

fn target() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().to_owned()
}

/// The agent of this workspace, and the client; cargo says nothing when they are built already.
fn agent_program() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    // As everything is built for the tests: by themselves they would be built with other features, and all they need, too.
    build.args(["build", "--quiet", "--workspace", "--all-targets", "--manifest-path"]);
    build.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    if target().ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success());
    target().join("codchi-agent")
}

/// Waits for what another process brings about.
fn eventually(what: &str, mut seen: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !seen() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Namespaces with an agent in them, and an account `alice` with a home.
struct Machine {
    dir: tempfile::TempDir,
    program: PathBuf,
    process: Child,
    cgroup: PathBuf,
}

impl Machine {
    fn start() -> Machine {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make namespaces and switch users: run them as root"
        );
        let program = agent_program();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        rustix::fs::chmod(dir.path(), 0o755.into()).unwrap();
        for name in ["agent", "home", "bin"] {
            codchi_fs::create_dir_all(at(name)).unwrap();
        }
        // Where every user may run it.
        std::fs::copy(&program, at("bin/codchi-agent")).unwrap();
        let home = at("home").display().to_string();
        codchi_fs::write(
            at("passwd"),
            format!("root:x:0:0::/root:/bin/bash\nalice:x:1000:1000::{home}:/bin/bash\nbob:x:1001:1001::/nonexistent:/bin/sh\n"),
        )
        .unwrap();
        codchi_fs::write(at("group"), "root:x:0:\nalice:x:1000:\nwheel:x:10:bob,alice\n").unwrap();
        std::os::unix::fs::chown(at("home"), Some(1000), Some(1000)).unwrap();
        let mounts = codchi_fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|l| l.contains(" - cgroup2 ")).expect("a cgroup2 file system");
        let cgroup = Path::new(line.split(' ').nth(4).unwrap())
            .join(format!("codchi-agent-test-{}", std::process::id()));
        codchi_fs::create_dir_all(&cgroup).unwrap();
        let script = r#"
            set -e
            echo 0 > "$C/cgroup.procs"
            mount -t tmpfs tmpfs /run
            mkdir "$D/one" "$D/two" && ln -s "$D/one" /run/current-system
            mount --bind "$D/passwd" /etc/passwd
            mount --bind "$D/group" /etc/group
            set +e
            while :; do "$D/bin/codchi-agent" "$D/agent"; done
        "#;
        let process = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c", script])
            .env("D", dir.path())
            .env("C", &cgroup)
            .env("CODCHI_USER", "alice")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Machine { dir, program, process, cgroup };
        eventually("the agent's start", || agent::ping(&machine.agent_dir()).is_ok());
        machine
    }

    fn agent_dir(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn client(&self, options: &[&str]) -> Command {
        let mut command = Command::new(target().join("examples/agent"));
        command.arg(self.agent_dir()).args(options).arg("--");
        command
    }

    fn run(&self, options: &[&str], argv: &[impl AsRef<OsStr>]) -> Output {
        self.client(options).args(argv).stdin(Stdio::null()).output().unwrap()
    }

    /// Standard output of a command that succeeds.
    fn text(&self, argv: &[&str]) -> String {
        let out = self.run(&[], argv);
        assert!(out.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// The host's id of the namespaces' first process.
    fn leader(&self) -> String {
        let id = self.process.id();
        codchi_fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap().trim().to_owned()
    }

    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.leader(), "-a"]);
        command
    }

    /// Whether nothing runs any more; what outlived its command is swept at the next connection's end.
    fn swept(&self) -> bool {
        agent::ping(&self.agent_dir()).is_ok() && self.groups() == 0
    }

    /// The groups of commands that run, or have left something running.
    fn groups(&self) -> usize {
        let entries = codchi_fs::read_dir(&self.cgroup).unwrap();
        entries.iter().filter(|e| e.file_name().to_string_lossy().starts_with("exec-")).count()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = codchi_fs::write(self.cgroup.join("cgroup.kill"), "1");
        let begin = Instant::now();
        while self.cgroup.exists() && begin.elapsed() < PATIENCE {
            for entry in codchi_fs::read_dir(&self.cgroup).unwrap_or_default() {
                let _ = std::fs::remove_dir(entry.path());
            }
            let _ = std::fs::remove_dir(&self.cgroup);
        }
    }
}

fn words(argv: &[&[u8]]) -> Vec<OsString> {
    argv.iter().map(|a| OsString::from_vec(a.to_vec())).collect()
}

#[test]
fn arguments_variables_and_directories_arrive_byte_for_byte() {
    let m = Machine::start();
    let out = m.run(
        &[],
        &words(&[b"printf", b"[%s]", b"", b"a b", b"new\nline", b"\xff\xfe", b"-n", b"$HOME", b"'\""]),
    );
    assert_eq!(out.stdout, b"[][a b][new\nline][\xff\xfe][-n][$HOME]['\"]");
    let odd = m.home().join(OsString::from_vec(b"d\xffr \n".to_vec()));
    codchi_fs::create_dir_all(&odd).unwrap();
    let mut client = Command::new(target().join("examples/agent"));
    client.arg(m.agent_dir()).arg("-C").arg(&odd).arg("-e").arg(OsString::from_vec(b"V=\xff=\n".to_vec()));
    let out = client.args(["--", "sh", "-c", "/bin/pwd; printf %s \"$V\""]).output().unwrap();
    let mut expected = odd.into_os_string().into_vec();
    expected.extend_from_slice(b"\n\xff=\n");
    assert_eq!(out.stdout, expected);
}

#[test]
fn a_list_of_arguments_longer_than_a_frame_arrives() {
    let m = Machine::start();
    let long = "x".repeat(100_000);
    let argv: Vec<&str> =
        ["sh", "-c", "echo $# ${#1}", "sh"].into_iter().chain(std::iter::repeat_n(&long[..], 15)).collect();
    assert_eq!(m.text(&argv), "15 100000\n");
}

#[test]
fn every_exit_code_comes_back() {
    let m = Machine::start();
    for code in 0..=255u8 {
        let got = agent::capture(
            &m.agent_dir(),
            ExecRequest::command(["sh", "-c", &format!("exit {code}")]),
            b"",
            CaptureLimits::default(),
        );
        assert_eq!(got.unwrap().status, code);
    }
    assert_eq!(m.run(&[], &["sh", "-c", "exit 255"]).status.code(), Some(255));
    assert_eq!(m.run(&[], &["sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(m.run(&[], &["sh", "-c", "kill -TERM $$"]).status.code(), Some(143));
}

#[test]
fn what_cannot_be_run_is_126_what_is_not_there_127_and_the_rest_125() {
    let m = Machine::start();
    let script = |name: &str, text: &str, mode: u32| {
        let path = m.home().join(name);
        codchi_fs::write(&path, text).unwrap();
        rustix::fs::chmod(&path, mode.into()).unwrap();
        path.display().to_string()
    };
    let status = |options: &[&str], argv: &[&str]| {
        let out = m.run(options, argv);
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, said) = status(&[], &["no-such-program"]);
    assert_eq!((code, said.as_str()), (Some(127), "error: no-such-program: command not found\n"));
    assert_eq!(status(&[], &["/no/such"]).0, Some(127));
    assert_eq!(status(&[], &[""]).0, Some(127));
    assert_eq!(status(&[], &["/etc"]).0, Some(126));
    assert_eq!(status(&[], &[&script("plain", "echo hi", 0o644)]).0, Some(126));
    assert_eq!(status(&[], &[&script("odd", "#!/no/interpreter\n", 0o755)]).0, Some(126));
    assert_eq!(m.text(&[&script("bare", "echo $1", 0o755), "as a shell would"]), "as a shell would\n");
    let (code, said) = status(&["-C", "/no/such"], &["true"]);
    assert_eq!(code, Some(125));
    assert!(said.contains("`/no/such`: No such file"), "{said}");
    let (code, said) = status(&["-u", "carol"], &["true"]);
    assert_eq!((code, said.as_str()), (Some(125), "error: there is no user `carol` in this machine\n"));
    assert_eq!(status(&["-u", "--help"], &["true"]).0, Some(125));
    assert_eq!(status(&["-e", "=x"], &["true"]).0, Some(125));
}

#[test]
fn the_user_is_switched_with_all_groups_and_a_missing_home_is_the_root_directory() {
    let m = Machine::start();
    let id = "id -u; id -g; id -G; pwd; echo $HOME $USER";
    let home = m.home().display().to_string();
    assert_eq!(m.text(&["sh", "-c", id]), format!("1000\n1000\n1000 10\n{home}\n{home} alice\n"));
    let bob = m.run(&["-u", "bob"], &["sh", "-c", id]);
    assert_eq!(String::from_utf8(bob.stdout).unwrap(), "1001\n1001\n1001 10\n/\n/nonexistent bob\n");
    assert_eq!(m.run(&["-u", "0"], &["id", "-un"]).stdout, b"root\n");
    // Nothing of the agent's is left in the command's hands.
    let state = m.text(&[
        "sh",
        "-c",
        "grep -E '^(SigBlk|SigIgn|CapEff)' /proc/self/status; ls /proc/self/fd | wc -l",
    ]);
    assert_eq!(state, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nCapEff:\t0000000000000000\n4\n");
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        out.extend_from_slice(&seed.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

#[test]
fn much_data_goes_both_ways_at_once_unchanged() {
    let m = Machine::start();
    let data = noise(64 << 20);
    for options in [&[][..], &["--stream"]] {
        let mut client =
            m.client(options).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let got = std::thread::scope(|s| {
            s.spawn(|| {
                stdin.write_all(&data).unwrap();
                drop(stdin);
            });
            let mut got = Vec::new();
            stdout.read_to_end(&mut got).unwrap();
            got
        });
        assert!(client.wait().unwrap().success());
        assert!(got == data, "{options:?}: {} bytes came back, or others", got.len());
    }
    let got = agent::capture(
        &m.agent_dir(),
        ExecRequest::command(["cat"]),
        &data[..9 << 20],
        CaptureLimits::default(),
    )
    .unwrap();
    assert!(got.stdout == data[..9 << 20]);
}

#[test]
fn streams_are_the_commands_own_and_open_by_name() {
    let m = Machine::start();
    for options in [&[][..], &["--stream"]] {
        let out = m
            .run(options, &["sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin; cat"]);
        assert_eq!((&out.stdout[..], &out.stderr[..]), (&b"out\n"[..], &b"err\n"[..]), "{options:?}");
        // The end of standard input arrives, and a command that closes it early is not in the way.
        let mut client = m
            .client(options)
            .args(["sh", "-c", "exec <&-; echo closed"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = client.stdin.take().unwrap();
        let mut said = String::new();
        client.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "closed\n");
        assert!(client.wait().unwrap().success(), "it waited for an input that nobody reads");
        let _ = stdin.write_all(b"late");
    }
}

#[test]
fn a_reader_that_goes_away_is_sigpipe_for_the_command() {
    let m = Machine::start();
    for options in [&[][..], &["--stream"]] {
        let mut client =
            m.client(options).args(["yes"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut one = [0; 2];
        client.stdout.take().unwrap().read_exact(&mut one).unwrap();
        assert_eq!(client.wait().unwrap().code(), Some(141), "{options:?}");
    }
}

#[test]
fn output_of_a_background_child_is_waited_for_as_ssh_does() {
    let m = Machine::start();
    let out = m.run(&[], &["sh", "-c", "{ sleep 0.3; echo late; } & echo early; exit 3"]);
    assert_eq!((out.status.code(), &out.stdout[..]), (Some(3), &b"early\nlate\n"[..]));
    let begin = Instant::now();
    assert!(m.run(&[], &["sh", "-c", "sleep 600 >/dev/null 2>&1 &"]).status.success());
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "it waited for a child that holds none of the streams"
    );
    // The child keeps its group; when it has gone, so does the group.
    eventually("the first command's group to go", || m.groups() == 1);
    m.inside().args(["pkill", "-x", "sleep"]).status().unwrap();
    eventually("the sweep", || m.swept());
}

/// A client whose command has said `ready`.
fn ready(mut client: Command) -> (Child, std::process::ChildStdout) {
    let mut child = client.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut word = [0; 6];
    stdout.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ready\n");
    (child, stdout)
}

fn signal(child: &Child, number: i32) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), number).unwrap();
}

#[test]
fn signals_reach_the_command_and_its_children() {
    let m = Machine::start();
    for (number, name) in [(1, "HUP"), (2, "INT"), (3, "QUIT"), (10, "USR1"), (15, "TERM")] {
        let script = format!("trap 'echo {name}; exit 9' {name}; echo ready; while :; do sleep 0.01; done");
        let mut client = m.client(&[]);
        client.args(["bash", "-c", &script]);
        let (mut child, mut stdout) = ready(client);
        signal(&child, number);
        let mut said = String::new();
        stdout.read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap().code();
        // A hang-up ends the client itself; the command gets it all the same.
        let expected = if name == "HUP" { (Some(129), "") } else { (Some(9), name) };
        assert_eq!((status, if name == "HUP" { "" } else { said.trim() }), expected);
    }
    let mut client = m.client(&[]);
    client.args(["sh", "-c", "echo ready; sleep 600; echo not here"]);
    let (mut child, _stdout) = ready(client);
    signal(&child, 15);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    eventually("the end of its child", || m.swept());
}

#[test]
fn a_stopped_client_stops_its_command_and_both_go_on() {
    let m = Machine::start();
    let mut client = m.client(&[]);
    client.args(["sh", "-c", "echo $$ > pid; echo ready; read x < fifo; echo $x"]);
    assert!(m.run(&[], &["mkfifo", "fifo"]).status.success());
    let (mut child, mut stdout) = ready(client);
    let state = |pid: &str| {
        let text = m.inside().args(["cat", &format!("/proc/{pid}/stat")]).output().unwrap().stdout;
        String::from_utf8(text).unwrap().rsplit(") ").next().unwrap().chars().next().unwrap()
    };
    let inside = codchi_fs::read_to_string(m.home().join("pid")).unwrap().trim().to_owned();
    signal(&child, 20);
    eventually("the command's stop", || state(&inside) == 'T');
    let own = |c: char| {
        codchi_fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains(&format!(") {c} "))
    };
    eventually("the client's stop", || own('T'));
    signal(&child, 18);
    eventually("the command's continuation", || state(&inside) != 'T');
    assert!(m.run(&[], &["sh", "-c", "echo on > fifo"]).status.success());
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), "on\n"));
}

#[test]
fn a_lost_client_is_a_hang_up_for_the_whole_session() {
    let m = Machine::start();
    for options in [&["-T"][..], &["-t"], &["--stream"]] {
        let mut client = m.client(options);
        // Two process groups: the shell's, and that of a job. Errors go nowhere, for a shell tells of its children there.
        client.args(["bash", "-c", "exec 2>/dev/null; set -m; trap 'echo hung >> hung; exit' HUP; (trap 'echo job >> hung; exit' HUP; : > set; while :; do sleep 0.01; done) & until test -e set; do sleep 0.01; done; rm set; echo ready; while :; do sleep 0.01; done"]);
        let mut child = client.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut stdout = child.stdout.take().unwrap();
        while !said.contains("ready") {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            said.push(byte[0].into());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let hung = m.home().join("hung");
        eventually(&format!("the hang-up {options:?}"), || {
            codchi_fs::read_to_string(&hung).is_ok_and(|t| t.contains("hung") && t.contains("job"))
        });
        codchi_fs::remove_file(&hung).unwrap();
        eventually(&format!("the end of the session {options:?}"), || m.swept());
    }
}

/// A client on a terminal of its own, which a person would sit at.
struct Terminal {
    screen: OwnedFd,
    keyboard: OwnedFd,
    line: OwnedFd,
    child: Child,
    seen: Vec<u8>,
}

impl Terminal {
    fn start(m: &Machine, argv: &[&str]) -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let screen = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&screen).unwrap();
        let line = rustix::pty::ioctl_tiocgptpeer(&screen, flags).unwrap();
        tcsetwinsize(&screen, Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let stdio = || Stdio::from(line.try_clone().unwrap());
        let client = m.client(&[]);
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(client.get_program())
            .args(client.get_args())
            .args(argv)
            .env("TERM", "vt100")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        Terminal { keyboard: screen.try_clone().unwrap(), screen, line, child, seen: Vec::new() }
    }

    fn until(&mut self, text: &str) {
        let begin = Instant::now();
        let at = loop {
            if let Some(at) = self.seen.windows(text.len()).position(|w| w == text.as_bytes()) {
                break at + text.len();
            }
            assert!(begin.elapsed() < PATIENCE, "no {text:?} in {:?}", String::from_utf8_lossy(&self.seen));
            let mut watched = [rustix::event::PollFd::new(&self.screen, rustix::event::PollFlags::IN)];
            let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            if rustix::event::poll(&mut watched, Some(&wait)).unwrap() > 0 {
                let mut buffer = [0; 4096];
                let n = rustix::io::read(&self.screen, &mut buffer).unwrap();
                self.seen.extend_from_slice(&buffer[..n]);
            }
        };
        self.seen.drain(..at);
    }

    fn type_in(&self, keys: &[u8]) {
        assert_eq!(rustix::io::write(&self.keyboard, keys).unwrap(), keys.len());
    }

    fn cooked(&self) -> bool {
        tcgetattr(self.line.as_fd())
            .unwrap()
            .local_modes
            .contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn end(mut self) -> Option<i32> {
        let begin = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if begin.elapsed() > PATIENCE {
                self.until("a sight of the end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.child.wait().unwrap().code();
        assert!(self.cooked(), "the terminal was left raw");
        status
    }
}

#[test]
fn a_terminal_has_its_size_type_and_owner_and_follows_resizes() {
    let m = Machine::start();
    let mut t = Terminal::start(
        &m,
        &[
            "bash",
            "-c",
            "stty size; stat -c %U:%a $(tty); echo $TERM; : >/dev/tty && test -t 2 && trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.01; done",
        ],
    );
    t.until("33 101\r\nalice:620\r\nvt100\r\nready");
    assert!(!t.cooked(), "the keys would not pass through");
    tcsetwinsize(&t.screen, Winsize { ws_row: 44, ws_col: 55, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    t.until("44 55");
    assert_eq!(t.end(), Some(4));
}

#[test]
fn keys_pass_through_a_terminal() {
    let m = Machine::start();
    let mut t = Terminal::start(&m, &["sh", "-c", "echo ready; sleep 600"]);
    t.until("ready");
    t.type_in(b"\x03");
    assert_eq!(t.end(), Some(130));

    // A key that comes before the job has the terminal is the shell's.
    let in_front = || {
        eventually("the job", || {
            let out = m.inside().args(["ps", "-o", "stat=", "-C", "sleep"]).output().unwrap();
            String::from_utf8_lossy(&out.stdout).contains("S+")
        });
    };
    let mut t = Terminal::start(&m, &["bash", "--norc", "-i"]);
    t.until("$ ");
    t.type_in(b"PS1=prompt:; stty -echo\r");
    t.until("\r\n");
    t.until("prompt:");
    t.type_in(b"sleep 600\r");
    in_front();
    t.type_in(b"\x1a");
    t.until("Stopped");
    t.until("prompt:");
    t.type_in(b"fg\r");
    t.until("sleep 600\r\n");
    in_front();
    t.type_in(b"\x03");
    t.until("prompt:");
    t.type_in(b"exit 6\r");
    assert_eq!(t.end(), Some(6));

    let mut t = Terminal::start(&m, &["cat"]);
    t.type_in(b"line\r");
    t.until("line\r\nline\r\n");
    t.type_in(b"\x04");
    assert_eq!(t.end(), Some(0));
}

#[test]
fn the_terminal_is_restored_when_the_client_is_terminated() {
    let m = Machine::start();
    let mut t = Terminal::start(&m, &["sh", "-c", "echo ready; sleep 600"]);
    t.until("ready");
    signal(&t.child, 15);
    assert_eq!(t.end(), Some(143));
}

#[test]
fn a_terminals_last_words_are_shown_and_its_background_is_not_waited_for() {
    let m = Machine::start();
    for _ in 0..20 {
        let out = m.run(&["-t"], &["bash", "-c", "(trap '' HUP; sleep 60) & seq 1 2000; echo last"]);
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.ends_with("2000\r\nlast\r\n"), "{:?}", &text[text.len().saturating_sub(40)..]);
    }
    let out =
        m.client(&["-t"]).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map(|mut c| {
            c.stdin.take().unwrap().write_all(b"piped").unwrap();
            c.wait_with_output().unwrap()
        });
    let text = String::from_utf8(out.unwrap().stdout).unwrap();
    assert!(text.ends_with("piped"), "a pipe's end is the terminal's end of file: {text:?}");
}

#[test]
fn the_login_environment_is_computed_once_until_something_changes() {
    let m = Machine::start();
    let set = |text: &str| codchi_fs::write(m.home().join(".bash_profile"), text).unwrap();
    let counted = |value: &str| {
        format!("echo x >> ~/count; export V={value}; echo noise; cd /; export SECOND=\"a\nb\"")
    };
    let runs = || codchi_fs::read_to_string(m.home().join("count")).unwrap_or_default().len() / 2;
    set(&counted("one"));
    for _ in 0..3 {
        assert_eq!(
            m.text(&["sh", "-c", "echo \"$V$SECOND\"; pwd"]),
            format!("onea\nb\n{}\n", m.home().display())
        );
    }
    assert_eq!(runs(), 1);
    set(&counted("three"));
    assert_eq!(m.text(&["sh", "-c", "echo $V"]), "three\n");
    assert_eq!(runs(), 2);
    // A new generation.
    let two = m.dir.path().join("two");
    m.inside().args(["ln", "-sfn"]).arg(two).arg("/run/current-system").status().unwrap();
    m.text(&["true"]);
    m.text(&["true"]);
    assert_eq!(runs(), 3);
    // Laid over, per call, and not kept.
    let out = m.run(&["-e", "V=mine"], &["sh", "-c", "echo $V"]);
    assert_eq!(out.stdout, b"mine\n");
    assert_eq!(m.text(&["sh", "-c", "echo $V"]), "three\n");
    // A login shell that fails costs its environment, not the command.
    set("exit 3");
    let out = m.run(&[], &["sh", "-c", "echo $USER"]);
    assert_eq!(out.stdout, b"alice\n");
    assert!(String::from_utf8_lossy(&out.stderr).contains("gave no environment"));
}

#[test]
fn without_a_command_it_is_the_users_login_shell() {
    let m = Machine::start();
    codchi_fs::write(m.home().join(".bash_profile"), "export LOGIN=yes").unwrap();
    let mut client = m.client(&[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    client.stdin.take().unwrap().write_all(b"echo $0 $LOGIN; shopt -q login_shell && exit 5\n").unwrap();
    let out = client.wait_with_output().unwrap();
    assert_eq!((out.status.code(), &out.stdout[..]), (Some(5), &b"-bash yes\n"[..]));
}

#[test]
fn fifty_commands_at_once_keep_their_own_streams() {
    let m = Machine::start();
    std::thread::scope(|s| {
        let all: Vec<_> = (0..50u8)
            .map(|i| {
                let dir = m.agent_dir();
                s.spawn(move || {
                    let request = ExecRequest::command(["sh", "-c", &format!("cat; echo {i} >&2; exit {i}")]);
                    agent::capture(&dir, request, &vec![i; 100_000], CaptureLimits::default()).unwrap()
                })
            })
            .collect();
        for (i, one) in all.into_iter().enumerate() {
            let got = one.join().unwrap();
            assert_eq!((got.status as usize, got.stderr), (i, format!("{i}\n").into_bytes()));
            assert!(got.stdout == vec![i as u8; 100_000]);
        }
    });
    eventually("the end of all groups", || m.swept());
}

#[test]
fn a_captured_command_is_held_to_its_limits() {
    let m = Machine::start();
    let limits = CaptureLimits { bytes: 1000, timeout: Duration::from_millis(300) };
    let run = |script: &str| {
        agent::capture(&m.agent_dir(), ExecRequest::command(["sh", "-c", script]), b"", limits)
    };
    m.text(&["true"]);
    assert!(matches!(run("yes"), Err(AgentError::Limit(_))));
    assert!(matches!(run("sleep 600"), Err(AgentError::Limit(_))));
    eventually("their hang-up", || m.swept());
}

#[test]
fn peers_of_its_own_machine_are_refused() {
    let m = Machine::start();
    let out = m
        .inside()
        .arg(target().join("examples/agent"))
        .arg(m.agent_dir())
        .args(["--", "id"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(125));
    assert!(out.stdout.is_empty());
    assert_eq!(m.text(&["id", "-un"]), "alice\n");
}

#[test]
fn hostile_frames_end_their_connection_and_nothing_else() {
    let m = Machine::start();
    let say = |bytes: &[u8]| {
        let mut s = UnixStream::connect(m.agent_dir().join("socket")).unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = s.write_all(bytes);
        let _ = s.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        s.read_to_end(&mut answer).unwrap();
        let mut decoder = Decoder::new(1 << 20);
        decoder.push(&answer);
        let mut failure = None;
        while let Some(frame) = decoder.next_frame().unwrap() {
            assert!(matches!(frame.kind, FrameType::Hello | FrameType::Failure), "{frame:?}");
            if frame.kind == FrameType::Failure {
                failure = Some(frame.json::<Failure>("failure").unwrap());
            }
        }
        failure
    };
    let frame = |kind: FrameType, payload: &str| {
        let mut out = Vec::new();
        protocol::put(&mut out, kind, payload.as_bytes());
        out
    };
    let hello = frame(FrameType::Hello, r#"{"proto":1}"#);
    assert_eq!(say(b""), None);
    assert!(say(&[0xff; 5]).unwrap().message.contains("unknown frame type"));
    assert!(say(&[0xff, 0xff, 0xff, 0x7f, 2]).unwrap().message.contains("too long"));
    assert!(say(&frame(FrameType::Exec, "{}")).unwrap().message.contains("unexpected frame"));
    assert!(say(&frame(FrameType::Hello, r#"{"proto":99}"#)).unwrap().message.contains("version 99"));
    assert!(
        say(&[hello.clone(), frame(FrameType::Exec, r#"{"argv":7}"#)].concat())
            .unwrap()
            .message
            .contains("malformed request")
    );
    assert!(
        say(&[hello.clone(), frame(FrameType::Exec, r#"{"argv":["a\u0000b"]}"#)].concat())
            .unwrap()
            .message
            .contains("NUL")
    );
    // While a command runs: data that has no place on a connection with descriptors.
    let exec = frame(FrameType::Exec, r#"{"argv":["sleep","600"]}"#);
    let mut s = UnixStream::connect(m.agent_dir().join("socket")).unwrap();
    s.write_all(&[hello, exec, frame(FrameType::Stdin, "x")].concat()).unwrap();
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    s.read_to_end(&mut Vec::new()).unwrap();
    eventually("the hang-up", || m.swept());
    assert_eq!(m.text(&["echo", "still here"]), "still here\n");
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    let m = Machine::start();
    let silent: Vec<_> =
        (0..100).map(|_| UnixStream::connect(m.agent_dir().join("socket")).unwrap()).collect();
    assert_eq!(m.text(&["echo", "served"]), "served\n");
    drop(silent);
}

#[test]
fn running_commands_survive_a_restart_of_the_agent() {
    let m = Machine::start();
    let mut client = m.client(&[]);
    client.args(["sh", "-c", "echo ready; read x < go; echo $x; exit 8"]);
    assert!(m.run(&[], &["mkfifo", "go"]).status.success());
    let (mut child, mut stdout) = ready(client);
    // As KillMode=process does: the first process of the unit alone.
    assert!(m.inside().args(["pkill", "-o", "-x", "codchi-agent"]).status().unwrap().success());
    eventually("the new agent", || agent::ping(&m.agent_dir()).is_ok());
    assert_eq!(m.text(&["sh", "-c", "echo went on > go; echo told"]), "told\n");
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(8), "went on\n"));
}

#[test]
fn the_resident_memory_of_the_listener_is_small() {
    let m = Machine::start();
    m.text(&["true"]);
    let out = m.inside().args(["sh", "-c", "cat /proc/$(pgrep -o -x codchi-agent)/status"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let anonymous: u32 = text
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    // What it allocates; the static program's own pages are below 2 MB (bench/).
    assert!(anonymous < 1024, "{anonymous} kB");
    assert!(m.program.exists());
}

/// A machine's idea of an agent: answers one connection with these bytes and descriptors, and waits for its end.
fn with_impostor<T>(bytes: &[u8], fds: &[OwnedFd], call: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    std::thread::scope(|s| {
        s.spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            if !fds.is_empty() {
                assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
            }
            let slices = [std::io::IoSlice::new(bytes)];
            let _ = rustix::net::sendmsg(&socket, &slices, &mut control, rustix::net::SendFlags::NOSIGNAL);
            let _ = (&socket).read_to_end(&mut Vec::new());
        });
        call(dir.path())
    })
}

#[test]
fn a_machine_that_lies_as_an_agent_gets_an_error_and_nothing_else() {
    let limits = CaptureLimits { bytes: 1000, timeout: Duration::from_millis(500) };
    let call = |dir: &Path| agent::capture(dir, ExecRequest::command(["true"]), b"", limits).unwrap_err();
    let frames = |list: &[(FrameType, &str)]| {
        let mut out = Vec::new();
        for (kind, payload) in list {
            protocol::put(&mut out, *kind, payload.as_bytes());
        }
        out
    };
    let hello = (FrameType::Hello, r#"{"proto":1}"#);
    let started = frames(&[hello, (FrameType::Started, r#"{"pid":1}"#)]);
    let files =
        |n: usize| (0..n).map(|_| codchi_fs::open("/etc/passwd").unwrap().into()).collect::<Vec<OwnedFd>>();
    let pipes = || {
        let ends: Vec<_> = (0..3).map(|_| rustix::pipe::pipe().unwrap()).collect();
        ends.into_iter().flat_map(|(r, w)| [r, w]).collect::<Vec<OwnedFd>>()
    };
    let protocol = |e: AgentError| matches!(e, AgentError::Protocol(_));
    assert!(protocol(with_impostor(&started, &[], call)), "no streams");
    assert!(protocol(with_impostor(&started, &files(3), call)), "files of its own choice");
    assert!(protocol(with_impostor(&started, &pipes()[..4], call)), "too many descriptors");
    assert!(protocol(with_impostor(&[0xff; 9], &[], call)), "rubbish");
    assert!(protocol(with_impostor(&frames(&[hello, hello]), &[], call)), "a second greeting");
    assert!(matches!(with_impostor(b"", &[], call), AgentError::Limit(_)), "silence");
    let said = frames(&[hello, (FrameType::Failure, r#"{"code":200,"message":"a\u001b[2Jb\nc"}"#)]);
    let error = with_impostor(&said, &[], call);
    assert_eq!(error.to_string(), "a\u{fffd}[2Jb\u{fffd}c");
    assert_eq!(error.exit_status(), 125, "only 126 and 127 are a machine's to choose");
    // Streams that stay open and say nothing end with the caller's patience.
    assert!(matches!(with_impostor(&started, &pipes()[..3], call), AgentError::Limit(_)));
}
