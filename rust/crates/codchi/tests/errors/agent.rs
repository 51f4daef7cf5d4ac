//! Errors of a machine that runs, whose agent says what no agent of ours says: a machine may put anything in its place. What
//! looks after the machine is a process that only sleeps.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Child;

use serde_json::json;

use super::built::{built, gone, manifest, say};
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
    let pid = supervisor.id();
    let stat = codchi_fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let began: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let said = json!({ "version": 1, "pid": pid, "startTime": began, "leader": pid, "state": "running" });
    home.write(&format!("{RUNTIME}/supervisor.json"), said.to_string());
    codchi_fs::create_dir_all(home.path().join(RUNTIME).join("agent")).unwrap();
    Running { home, supervisor }
}

impl Running {
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
