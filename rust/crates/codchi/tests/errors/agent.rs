//! Errors of a machine that runs, whose agent says what no agent of ours says: a machine may put anything in its place. What
//! looks after the machine is a process that only sleeps.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;

use serde_json::json;

use super::built::{SYSTEM, built, gone, manifest, record, say, say_as_nix};
use super::common::{Home, PROGRAM, refused};

struct Running {
    home: Home,
    supervisor: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.supervisor.kill().unwrap();
        self.supervisor.wait().unwrap();
    }
}

const RUNTIME: &str = "run/codchi/machines/hello";

/// `hello`, as if it ran.
fn running() -> Running {
    let home = built();
    let supervisor = home.command("sleep").arg("600").spawn().unwrap();
    codchi_fs::create_dir_all(home.path().join(RUNTIME).join("agent")).unwrap();
    let machine = Running { home, supervisor };
    machine.says("running");
    machine
}

impl Running {
    /// What its supervisor says of it.
    fn says(&self, state: &str) {
        let pid = self.supervisor.id();
        let stat = codchi_fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let began: u64 =
            stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
        let said = json!({ "version": 1, "pid": pid, "startTime": began, "leader": pid, "state": state });
        self.home.write(&format!("{RUNTIME}/supervisor.json"), said.to_string());
    }

    fn listen(&self) -> UnixListener {
        UnixListener::bind(self.home.path().join(RUNTIME).join("agent/socket")).unwrap()
    }

    /// What it says on stderr, with the process left out that changes.
    fn told(&self, line: &str, status: i32) -> String {
        let done = self.home.done(self.home.command(PROGRAM).args(line.split(' ')));
        assert_eq!(done.status, status, "{line}: {}", done.err);
        format!("$ codchi {line}\n{}", done.err).replace(&format!("/proc/{}/root", self.supervisor.id()), "")
    }
}

/// A frame of the protocol.
fn frame(kind: u8, payload: &str) -> Vec<u8> {
    [&(payload.len() as u32).to_le_bytes()[..], &[kind], payload.as_bytes()].concat()
}

#[test]
fn errors_of_an_agent_that_says_something_else() {
    let machine = running();
    let hello = frame(1, r#"{"proto":1}"#);
    let after = |kind: u8, payload: &str| [hello.clone(), frame(kind, payload)].concat();
    let answers = [
        Vec::new(),
        [&u32::MAX.to_le_bytes()[..], &[1]].concat(),
        frame(200, ""),
        frame(1, "x"),
        frame(4, ""),
        after(14, ""),
        after(3, "{}"),
        after(3, r#"{"pid":1}"#),
        after(7, r#"{"code":127,"message":"there is no such thing here"}"#),
    ];
    let count = answers.len();
    let listener = machine.listen();
    let serving = std::thread::spawn(move || {
        for answer in answers {
            let (mut peer, _) = listener.accept().unwrap();
            let _ = peer.read(&mut [0; 1 << 16]).unwrap();
            peer.write_all(&answer).unwrap();
        }
    });
    let statuses = (0..count).map(|n| if n + 1 < count { 125 } else { 127 });
    let said: Vec<String> = statuses.map(|status| machine.told("exec hello true", status)).collect();
    serving.join().unwrap();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn an_error_of_an_agent_that_says_nothing() {
    let machine = running();
    let listener = machine.listen();
    let serving = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        // Until the other side gives up.
        std::io::copy(&mut peer, &mut std::io::sink()).unwrap();
    });
    insta::assert_snapshot!(machine.told("exec hello true", 125));
    serving.join().unwrap();
}

#[test]
fn errors_of_an_agent_that_is_not_there() {
    let machine = running();
    machine.home.write("word", "word");
    let mut said = vec![machine.told("secrets set hello PLAIN @word", 1)];
    drop(machine.listen());
    said.push(machine.told("secrets set hello PLAIN @word", 1));
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn errors_of_what_runs_and_what_does_not() {
    let machine = running();
    let lock = codchi_fs::Lock::try_take(machine.home.path().join(RUNTIME).join("lock"), "another").unwrap();
    let mut manifest = manifest();
    manifest["engine"] = json!({ "version": 1, "hostName": "x", "root": "@root@", "init": ["/init"] });
    manifest["needs"]["secrets"] = json!({});
    say(&machine.home, &manifest);
    let mut said = vec![gone(&machine.home, "logs hello", 1)];
    said.push(machine.told("supervise hello", 6));
    drop(lock);
    drop(machine.listen());
    let stopped = built();
    said.push(refused(&stopped, &["exec", "--only-running", "hello", "true"], 125));
    insta::assert_snapshot!(said.join("\n"));
}

/// Answers each connection in turn, hears it to its end, and tells how many asked for something.
fn answer_all(listener: UnixListener, answers: Vec<Vec<u8>>) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let asked = answers.into_iter().filter(|answer| {
            let (mut peer, _) = listener.accept().unwrap();
            let asked = peer.read(&mut [0; 1 << 16]).unwrap() > 0;
            // Whoever has heard enough hangs up.
            let _ = peer.write_all(answer);
            let _ = std::io::copy(&mut peer, &mut std::io::sink());
            asked
        });
        asked.count()
    })
}

/// A command that says this and ends so.
fn command(said: &str, status: u8) -> Vec<u8> {
    let text = if said.is_empty() { Vec::new() } else { frame(9, said) };
    let end = frame(4, &json!({ "code": status }).to_string());
    [frame(1, r#"{"proto":1}"#), frame(3, r#"{"pid":1}"#), text, end].concat()
}

impl Running {
    /// What a line says while the machine, to which no descriptors can be handed, answers the commands that it runs there like that.
    fn answered(&self, line: &str, answers: Vec<Vec<u8>>, status: i32) -> String {
        let (socket, count) = (self.home.path().join(RUNTIME).join("agent/stream"), answers.len());
        let serving = answer_all(UnixListener::bind(&socket).unwrap(), answers);
        let said = self.told(line, status);
        // In place of those that did not come.
        (0..count).for_each(|_| drop(UnixStream::connect(&socket)));
        assert_eq!(serving.join().unwrap(), count, "{said}");
        codchi_fs::remove_file(socket).unwrap();
        said
    }

    /// Has it ask for nothing.
    fn without_secrets(&self) {
        let mut manifest = manifest();
        manifest["needs"]["secrets"] = json!({});
        say(&self.home, &manifest);
    }
}

#[test]
fn errors_of_folders_in_a_machine() {
    let machine = running();
    let line = "module set hello app --checkout project";
    let found = || command("/home/codchi/project\n", 0);
    let said: Vec<String> = [
        (vec![command("", 91)], 5),
        (vec![command("", 3)], 1),
        (vec![found(), command("", 92)], 1),
        (vec![found(), command("", 3)], 1),
        (vec![found(), command("", 0), command("", 91)], 5),
        (vec![found(), command("", 0), command("", 92)], 1),
        (vec![found(), command("", 0), command("no tar", 0)], 1),
        (vec![found(), command("", 0), command("", 3)], 1),
    ]
    .map(|(answers, status)| machine.answered(line, answers, status))
    .into();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn an_error_of_a_command_whose_end_nobody_tells() {
    let machine = running();
    // As under a parent that lets the system reap.
    let mut command = machine.home.command("strace");
    let line = "module set hello app --checkout project";
    command.args(["-qq", "-o", "/dev/null", "-e", "inject=wait4,waitid:error=ECHILD", PROGRAM]);
    let socket = machine.home.path().join(RUNTIME).join("agent/stream");
    let serving = answer_all(UnixListener::bind(socket).unwrap(), vec![self::command("/x", 0)]);
    let done = machine.home.done(command.args(line.split(' ')));
    assert_eq!((done.status, done.out.as_str()), (1, ""), "{}", done.err);
    assert_eq!(serving.join().unwrap(), 1);
    insta::assert_snapshot!(done.err);
}

#[test]
fn errors_of_an_agent_that_does_not_keep_to_its_protocol() {
    let machine = running();
    let begun = [frame(1, r#"{"proto":1}"#), frame(3, r#"{"pid":1}"#)].concat();
    let after = |more: &[u8]| vec![[&begun, more].concat()];
    let said = [
        machine.answered("exec hello true", after(&frame(14, "{}")), 125),
        // More than it was told that it may.
        machine.answered("exec hello true", after(&frame(9, &"x".repeat(300 << 10))), 125),
        machine.answered("exec hello true", after(&frame(12, "x")), 125),
    ];
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn an_error_of_a_machine_that_says_too_much() {
    let machine = running();
    machine.without_secrets();
    let record = record(SYSTEM, "native");
    machine.home.write(".local/state/codchi/generations/hello/1.json", record);
    say_as_nix(&machine.home, "echo '{}'");
    let much = frame(9, &"x".repeat(1 << 20)).repeat(17);
    let answer = [frame(1, r#"{"proto":1}"#), frame(3, r#"{"pid":1}"#), much].concat();
    insta::assert_snapshot!(machine.answered("rollback hello", vec![answer], 1));
}

#[test]
fn an_error_of_a_machine_that_does_not_become_ready() {
    let machine = running();
    machine.without_secrets();
    machine.says("starting");
    let spec = json!({
        "version": 1, "name": "hello", "engine": {}, "root": "/none", "store": "/none", "toplevel": "/none",
        "bin": "/none", "consoleLog": "/none", "patience": 1,
    });
    machine.home.write(&format!("{RUNTIME}/spec.json"), spec.to_string());
    insta::assert_snapshot!(machine.told("exec hello true", 125));
}
