//! Machines on other hosts, by way of an engine's own remotes: the members of a cluster, which know the person by a certificate.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::engine::Engine;
use crate::host::{Done, Host, run};

/// The cases.
pub const ALL: &[Case] = &[
    ("remote_members_of_a_cluster_run_machines", members),
    (
        "remote_a_person_without_root_has_machines_there",
        without_root,
    ),
    ("remote_the_engine_s_network_is_the_machine_s", network),
];

/// A cluster, and what a person's client knows of it.
struct Lab<'a> {
    h: &'a Host,
    members: Vec<Engine>,
    client: PathBuf,
}

impl<'a> Lab<'a> {
    fn new(h: &'a Host) -> Result<Lab<'a>, Failed> {
        let dirs: Vec<_> = (1..=3)
            .map(|n| Engine::place(&h.home, &format!("lab{n}")))
            .collect();
        let members = h.engine()?.cluster(&dirs)?;
        let client = h.home.join("client");
        codchi_fs::remove_dir_all(&client)?;
        codchi_fs::create_private_dir(&client)?;
        let lab = Lab { h, members, client };
        let token = lab
            .engine()?
            .command(&["config", "trust", "add", "laptop", "--quiet"])?;
        let token = token.lines().last().ok_or("there is no token")?;
        let mut c = Command::new(lab.engine()?.kind().client);
        c.args(["remote", "add", "lab", token])
            .env(lab.engine()?.client_variable(), &lab.client);
        run(&mut c, b"")?.ok()?;
        Ok(lab)
    }

    fn engine(&self) -> Result<&Engine, Failed> {
        Ok(self.members.first().ok_or("there is no member")?)
    }

    /// `codchi ARGS`, as one who is on no member.
    fn command(&self, args: &[&str]) -> Result<Command, Failed> {
        let mut c = self.h.plain_command(args);
        c.env(self.engine()?.client_variable(), &self.client);
        Ok(c)
    }

    fn codchi(&self, args: &[&str]) -> Result<Done, Failed> {
        run(&mut self.command(args)?, b"")
    }

    fn sh(&self, machine: &str, script: &str) -> Result<String, Failed> {
        Ok(self
            .codchi(&["exec", machine, "--", "sh", "-c", script])?
            .ok()?
            .text())
    }

    fn root_sh(&self, machine: &str, script: &str) -> Result<Done, Failed> {
        self.codchi(&["exec", "-u", "root", machine, "--", "sh", "-c", script])
    }

    /// What the engine has: a line for each instance and volume, with its member.
    fn things(&self) -> Result<String, Failed> {
        let instances = self
            .engine()?
            .command(&["list", "--format", "csv", "-c", "nL"])?;
        let volumes = ["storage", "volume", "list", "default", "--format", "csv"];
        Ok(instances + "\n" + &self.engine()?.command(&volumes)?)
    }

    /// The folder of the store of a member, on this computer.
    fn store(&self, member: usize) -> Result<PathBuf, Failed> {
        let dir = Engine::place(&self.h.home, &format!("lab{member}"));
        let all = codchi_fs::read_dir(dir.join("storage-pools/default/custom"))?;
        let path = all
            .first()
            .ok_or("there is no store on that member")?
            .path();
        Ok(path)
    }
}

fn wants(what: &str, text: &str, wanted: &[&str]) -> Result<(), Failed> {
    for w in wanted {
        if !text.contains(w) {
            return Err(format!("{what}: `{w}` is not in\n{text}").into());
        }
    }
    Ok(())
}

fn same(what: &str, is: &str, should: &str) -> Result<(), Failed> {
    if is != should {
        return Err(format!("{what}: `{is}`, and not `{should}`").into());
    }
    Ok(())
}

/// Tries until it is so.
fn until(what: &str, is_so: impl Fn() -> Result<bool, Failed>) -> Result<(), Failed> {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so()? {
        if Instant::now() > end {
            return Err(format!("{what} does not come about").into());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

const MODULE: &str = r#"{ outputs = { self }: { nixosModules.default = { pkgs, ... }: {
  environment.systemPackages = [ pkgs.hello pkgs.python3 pkgs.openssh ];
  codchi.ports."8080".host = PORT;
  codchi.secrets.TOKEN = { description = "a token"; kind = "env"; };
  codchi.optionalCapabilities = [ "ssh-agent" ];
}; }; }
"#;

/// A port that nobody listens on.
fn free_port() -> Result<u16, Failed> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

fn members(h: &Host) -> Result<(), Failed> {
    let mut lab = Lab::new(h)?;
    // What cannot be is said before anything is built.
    for (remote, why) in [
        ("nowhere", "knows no remote `nowhere`"),
        ("lab:m9", "no member `m9`"),
        ("images", "has images only"),
    ] {
        let done = lab.codchi(&["init", "far", "--remote", remote])?.exits(3)?;
        wants("init", &done.err, &[why])?;
    }
    lab.codchi(&["init", "far", "--remote", "a/b"])?.exits(2)?;
    let done = lab.codchi(&["init", "far", "--remote", "lab", "--driver", "native"])?;
    wants("init", &done.exits(2)?.err, &["other hosts"])?;
    stranger(&lab)?;
    let port = free_port()?;
    let source = h.home.join("far-module");
    codchi_fs::create_dir_all(&source)?;
    codchi_fs::write(
        source.join("flake.nix"),
        MODULE.replace("PORT", &port.to_string()),
    )?;
    h.commit(&source)?;
    let source = source.to_string_lossy().into_owned();
    let accept = format!("port:{port}");
    let secret = "remote-value-1".to_string() + &std::process::id().to_string();
    h.file("token", &secret)?;
    let token = format!("TOKEN=@{}", h.home.join("token").display());
    let init = [
        "init",
        "far",
        &source,
        "--remote",
        "lab:m2",
        "--accept",
        &accept,
        "--accept",
        "capability:ssh-agent",
        "--secret",
        &token,
    ];
    let done = lab.codchi(&init)?.ok()?;
    wants("init", &done.err, &["has no network"])?;
    let things = lab.things()?;
    wants("the engine", &things, &["far,m2", "codchi-"])?;
    if things.contains("codchi-store-") {
        return Err(format!("what filled the store is still there: {things}").into());
    }
    // As everywhere: streams, exit status, arguments.
    let mut c = lab.command(&[
        "exec",
        "far",
        "--",
        "sh",
        "-c",
        "cat; echo \"$1\" >&2; exit 7",
        "-",
        "a  b",
    ])?;
    let done = run(&mut c, b"what is\0sent")?.exits(7)?;
    same("exec", &done.text(), "what is\0sent")?;
    same("exec", done.err.trim(), "a  b")?;
    same("hello", &lab.sh("far", "hello")?, "Hello, world!")?;
    let big = lab.sh(
        "far",
        "head -c 20000000 /dev/zero | sha256sum; systemctl is-system-running",
    )?;
    let sum = run(
        Command::new("sh").args(["-c", "head -c 20000000 /dev/zero | sha256sum"]),
        b"",
    )?;
    same("a big output", &big, &format!("{}\nrunning", sum.text()))?;
    let mut c = lab.command(&["exec", "far", "--", "sha256sum"])?;
    same(
        "a big input",
        &run(&mut c, &vec![0; 20_000_000])?.ok()?.text(),
        &sum.text(),
    )?;
    // The store is all machines', and nobody's to change.
    let done = lab.root_sh(
        "far",
        "touch /nix/store/x; mount -o remount,rw /nix/store; touch /nix/store/y",
    )?;
    wants("root", &done.err, &["Read-only file system"])?;
    if lab.store(2)?.join("x").exists() || lab.store(2)?.join("y").exists() {
        return Err("root of a machine wrote to the store".into());
    }
    same(
        "the store",
        &lab.sh(
            "far",
            "stat -c %U:%a /nix/store; ls /nix/store | grep -c . > /dev/null && echo seen",
        )?,
        "root:755\nseen",
    )?;
    let status = lab.codchi(&["status", "far", "--json"])?.ok()?.text();
    wants("status", &status, &["\"remote\":\"lab:m2\"", "\"running\""]).or_else(|_| {
        wants(
            "status",
            &status,
            &["\"remote\": \"lab:m2\"", "\"running\""],
        )
    })?;
    secrets(&lab, &secret)?;
    ports(&lab, port)?;
    agent(&lab)?;
    broken(&mut lab)?;
    life(&lab)?;
    // Nothing is left behind, anywhere, also of one whose instance somebody removed.
    lab.engine()?.command(&["delete", "--force", "near"])?;
    lab.codchi(&["delete", "--yes", "far", "near"])?.ok()?;
    let things = lab.things()?;
    if !things.trim().is_empty() {
        return Err(format!("the engine still has: {things}").into());
    }
    for name in ["far", "near"] {
        let data = h.home.join(".local/share/codchi/machines").join(name);
        if data.exists() {
            return Err(format!("`{}` is still there", data.display()).into());
        }
    }
    Ok(())
}

/// What the client knows of a remote is wrong, or who answers there is another.
fn stranger(lab: &Lab) -> Result<(), Failed> {
    let with = |file: &str, text: &dyn Fn(&str) -> Option<String>, why: &[&str], status| {
        let file = lab.client.join(file);
        let whole = codchi_fs::read_to_string(&file)?;
        match text(&whole) {
            Some(text) => codchi_fs::write(&file, text)?,
            None => codchi_fs::remove_file(&file)?,
        }
        let done = lab.codchi(&["init", "far", "--remote", "lab"]);
        codchi_fs::write(&file, whole)?;
        wants("init", &done?.exits(status)?.err, why)
    };
    let config = |from: &'static str, to: &'static str| {
        move |text: &str| {
            let changed = text.replacen(from, to, 1);
            (changed != text).then_some(changed)
        }
    };
    let yaml = "config.yml";
    let own = codchi_fs::read_to_string(lab.client.join("client.crt"))?;
    with(
        "servercerts/lab.crt",
        &|_| Some(own.clone()),
        &["is not who was accepted", "remote add"],
        3,
    )?;
    with(
        "client.crt",
        &|_| None,
        &["client.crt` is missing", "remote add lab"],
        3,
    )?;
    with(
        "client.key",
        &|_| Some("no key\n".into()),
        &["cannot use the certificates"],
        1,
    )?;
    with(
        yaml,
        &|_| Some("remotes: [".into()),
        &["cannot read", yaml],
        1,
    )?;
    with(
        yaml,
        &config("https://127", "http://127"),
        &["no https address", "set-url lab"],
        3,
    )?;
    with(
        yaml,
        &config(":8443", ":1"),
        &["cannot be reached", "Connection refused"],
        3,
    )?;
    let oidc = config(
        "addr: https://127",
        "auth_type: oidc\n    addr: https://127",
    );
    with(yaml, &oidc, &["a certificate only", "--auth-type tls"], 3)?;
    // One whom the engine does not know.
    let other = lab.h.home.join("unknown");
    codchi_fs::remove_dir_all(&other)?;
    run(
        Command::new("cp").arg("-a").arg(&lab.client).arg(&other),
        b"",
    )?
    .ok()?;
    let make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:secp384r1 -nodes -keyout client.key -out client.crt -days 2 -subj /CN=other";
    run(
        Command::new("sh").args(["-c", make]).current_dir(&other),
        b"",
    )?
    .ok()?;
    let mut c = lab.command(&["init", "far", "--remote", "lab"])?;
    c.env(lab.engine()?.client_variable(), &other);
    let done = run(&mut c, b"")?.exits(3)?;
    codchi_fs::remove_dir_all(&other)?;
    wants(
        "init",
        &done.err,
        &["does not trust your certificate", "config trust add"],
    )
}

/// They are there before the machine's services, and nowhere else; new ones outlive a restart of the machine.
fn secrets(lab: &Lab, secret: &str) -> Result<(), Failed> {
    same("the secret", &lab.sh("far", "echo $TOKEN")?, secret)?;
    let search = |text: &str| {
        let dirs = (1..=3).map(|n| Engine::place(&lab.h.home, &format!("lab{n}")));
        run(Command::new("grep").args(["-rlF", text]).args(dirs), b"")
    };
    // What is there is found.
    wants("a search", &search("Hello, world!")?.text(), &["hello"])?;
    let found = search(secret)?;
    if !found.text().is_empty() {
        return Err(format!("the secret is in {}", found.text()).into());
    }
    let mut c = lab.command(&["secrets", "set", "far", "TOKEN", "-"])?;
    run(&mut c, b"another value")?.ok()?;
    same(
        "a new secret",
        &lab.sh("far", "echo $TOKEN")?,
        "another value",
    )?;
    let life = lab.sh("far", "stat -c %Y /proc/1")?;
    let _ = lab.root_sh("far", "systemctl reboot")?;
    until("a reboot", || {
        let done = lab.codchi(&["exec", "far", "--", "stat", "-c", "%Y", "/proc/1"])?;
        Ok(done.status == 0 && done.text() != life)
    })?;
    same(
        "a new secret after a reboot",
        &lab.sh("far", "echo $TOKEN")?,
        "another value",
    )
}

/// The caller's ssh agent is the machine's user's, for as long as somebody calls with one.
fn agent(lab: &Lab) -> Result<(), Failed> {
    let socket = lab.h.home.join("lab-agent");
    let mut peer = Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn()?;
    let used = || -> Result<(), Failed> {
        let make = "ssh-keygen -q -t ed25519 -N '' -C far-key -f lab-key && ssh-add -q lab-key";
        until("an agent", || Ok(socket.exists()))?;
        let mut c = Command::new("sh");
        c.args(["-c", make]).current_dir(&lab.h.home);
        run(c.env("SSH_AUTH_SOCK", &socket), b"")?.ok()?;
        let script = "ssh-add -l | cut -d' ' -f3; stat -c %a:%U $SSH_AUTH_SOCK";
        let mut c = lab.command(&["exec", "far", "--", "sh", "-c", script])?;
        c.env("SSH_AUTH_SOCK", &socket);
        same(
            "the agent",
            &run(&mut c, b"")?.ok()?.text(),
            "far-key\n600:codchi",
        )
    };
    let used = used();
    let _ = peer.kill();
    let _ = peer.wait();
    codchi_fs::remove_if_exists(socket)?;
    used
}

fn ports(lab: &Lab, port: u16) -> Result<(), Failed> {
    let serve = "cd /tmp && echo served > page && setsid python3 -m http.server --bind 127.0.0.1 8080 >/dev/null 2>&1 </dev/null &";
    lab.sh("far", serve)?;
    let ask = || -> Result<String, Failed> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        Ok(text)
    };
    until("an answer by the port", || Ok(ask()?.contains("served")))?;
    let told = lab.codchi(&["port", "list", "far"])?.ok()?.text();
    wants("port list", &told, &[&port.to_string(), "given"])
}

/// Killed, out of reach, changed by hand: the machine goes on, and it is said.
fn broken(lab: &mut Lab) -> Result<(), Failed> {
    let life = lab.sh("far", "stat -c %Y /proc/1")?;
    let still = |lab: &Lab, what: &str| same(what, &lab.sh("far", "stat -c %Y /proc/1")?, &life);
    let file = lab.h.home.join("run/codchi/machines/far/supervisor.json");
    let told: serde_json::Value = serde_json::from_str(&codchi_fs::read_to_string(file)?)?;
    let pid = told["pid"].as_i64().and_then(|p| i32::try_from(p).ok());
    let pid = pid
        .and_then(rustix::process::Pid::from_raw)
        .ok_or("no supervisor")?;
    crate::incus::kill(pid)?;
    let status = lab.codchi(&["status", "far"])?.ok()?.text();
    wants("status", &status, &["running"])?;
    still(lab, "after the supervisor was killed")?;
    // The member that is talked to goes for a while; the machine is on another.
    let members = std::mem::take(&mut lab.members);
    let mut rest = members.into_iter();
    let mut first = rest.next().ok_or("there is no member")?;
    let (client, h) = (lab.client.clone(), lab.h);
    let paused = first.pause(|engine| {
        let mut c = h.plain_command(&["doctor"]);
        c.env(engine.client_variable(), &client);
        let told = run(&mut c, b"")?.text();
        wants("doctor", &told, &["Incus on `lab`", "cannot be reached"])
    });
    lab.members = std::iter::once(first).chain(rest).collect();
    paused?;
    until("the connection", || {
        Ok(lab.codchi(&["exec", "far", "--", "true"])?.status == 0)
    })?;
    still(lab, "after the engine was gone for a while")?;
    // What happens there by hand is seen without being asked for.
    let mut c = lab.command(&["status", "far", "--watch"])?;
    let mut watch = c.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut shown = watch.stdout.take().ok_or("no output")?;
    let (send, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = shown.read(&mut buffer)
            && n > 0
            && send
                .send(String::from_utf8_lossy(&buffer[..n]).into_owned())
                .is_ok()
        {}
    });
    let wait_for = |what: &str| -> Result<Duration, Failed> {
        let begun = Instant::now();
        while let Ok(text) = seen.recv_timeout(Duration::from_secs(60)) {
            if text.contains(what) {
                return Ok(begun.elapsed());
            }
        }
        Err(format!("`status --watch` does not show `{what}`").into())
    };
    let watched = wait_for("running").and_then(|_| {
        lab.engine()?.command(&["stop", "--force", "far"])?;
        wait_for("stopped")
    });
    let _ = watch.kill();
    let _ = watch.wait();
    watched?;
    lab.codchi(&["start", "far"])?.ok()?;
    Ok(())
}

/// Rebuilt, copied, renamed; its store has what is needed.
fn life(lab: &Lab) -> Result<(), Failed> {
    let source = lab.h.home.join("far-module");
    let change = |from: &str, to: &str| -> Result<(), Failed> {
        let text = codchi_fs::read_to_string(source.join("flake.nix"))?;
        codchi_fs::write(source.join("flake.nix"), text.replace(from, to))?;
        lab.h.commit(&source)?;
        lab.codchi(&["update", "far"])?.ok()?;
        lab.codchi(&["rebuild", "far", "--yes"])?.ok()?;
        Ok(())
    };
    change("pkgs.hello", "pkgs.jq")?;
    lab.sh("far", "jq --version")?;
    lab.codchi(&["rollback", "far"])?.ok()?;
    same("hello", &lab.sh("far", "hello")?, "Hello, world!")?;
    change("pkgs.jq", "pkgs.tree")?;
    lab.sh("far", "tree --version")?;
    for verb in [
        &["tar", "far", "far.tar", "--yes"][..],
        &["move", "far", "--driver", "native"],
    ] {
        let done = lab.codchi(verb)?.exits(3)?;
        wants("files", &done.err, &["neither exported nor imported"])?;
    }
    let folder = format!("{}:/mnt/folder:ro", source.display());
    let done = lab.codchi(&["mount", "add", "far", &folder])?.exits(1)?;
    wants(
        "mount",
        &done.err,
        &["folders of this computer cannot be there"],
    )?;
    lab.sh("far", "echo kept > ~/file")?;
    lab.codchi(&["duplicate", "far", "copy"])?.ok()?;
    lab.codchi(&["rename", "copy", "near"])?.ok()?;
    same("a copy's file", &lab.sh("near", "cat ~/file")?, "kept")?;
    wants("the engine", &lab.things()?, &["near,m2"])?;
    // With one generation each and nothing running, the store has just what these need.
    lab.codchi(&["stop", "far", "near"])?.ok()?;
    lab.codchi(&["gc", "--all", "--keep", "1", "--yes"])?.ok()?;
    lab.codchi(&["start", "far"])?.ok()?;
    let names = |dir: &Path| -> Result<Vec<String>, Failed> {
        let all = codchi_fs::read_dir(dir)?;
        Ok(all
            .iter()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect())
    };
    let there = names(&lab.store(2)?)?;
    if there
        .iter()
        .any(|n| n.ends_with("-jq-1.6") || n.contains("deb-jq"))
    {
        return Err("the store there still has what no generation needs".into());
    }
    Ok(())
}

fn without_root(h: &Host) -> Result<(), Failed> {
    let lab = Lab::new(h)?;
    let user = std::env::var("CODCHI_TEST_USER").unwrap_or_else(|_| "codchi-test".into());
    let home = Engine::place(&h.home, "person");
    codchi_fs::create_private_dir(home.join("run"))?;
    run(
        Command::new("cp")
            .arg("-a")
            .arg(&lab.client)
            .arg(home.join("client")),
        b"",
    )?
    .ok()?;
    run(
        Command::new("chown")
            .arg("-R")
            .arg(format!("{user}:"))
            .arg(&home),
        b"",
    )?
    .ok()?;
    let codchi = |args: &[&str]| -> Result<Done, Failed> {
        let plain = h.plain_command(args);
        let mut c = Command::new(h.repo.join("tests/rootless-host"));
        c.arg(&user).arg(h.program()).args(args).env_clear();
        c.envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
        c.env("HOME", &home)
            .env("XDG_RUNTIME_DIR", home.join("run"))
            .env(lab.engine()?.client_variable(), home.join("client"))
            .current_dir(&home);
        run(&mut c, b"")
    };
    // The engine chooses the member.
    codchi(&["init", "mine", "--remote", "lab"])?.ok()?;
    let done = codchi(&[
        "exec",
        "mine",
        "--",
        "sh",
        "-c",
        "echo here; systemctl is-system-running",
    ])?;
    same("exec", &done.ok()?.text(), "here\nrunning")?;
    codchi(&["restart", "mine"])?.ok()?;
    codchi(&["exec", "mine", "--", "true"])?.ok()?;
    codchi(&["delete", "--yes", "mine"])?.ok()?;
    let things = lab.things()?;
    if !things.trim().is_empty() {
        return Err(format!("the engine still has: {things}").into());
    }
    codchi(&["store", "remove", "--all", "--yes"])?.ok()?;
    codchi_fs::remove_dir_all(&home)?;
    Ok(())
}

/// On the engine of this host, so that a machine there and this computer share a bridge.
fn network(h: &Host) -> Result<(), Failed> {
    let tried = "ip link add name codchi-try type bridge && ip link del codchi-try";
    let tried = run(
        Command::new("unshare").args(["--net", "sh", "-c", tried]),
        b"",
    )?;
    if tried.status != 0 {
        println!("    left out: no bridge can be made here: {}", tried.err);
        return Ok(());
    }
    let net = std::process::id() % 250 + 1;
    let bridge = format!("cdt{}", std::process::id() % 100_000);
    let address = format!("10.177.{net}.1");
    let engine = |args: &[&str]| h.engine()?.command(args);
    engine(&[
        "network",
        "create",
        &bridge,
        &format!("ipv4.address={address}/24"),
        "ipv4.nat=false",
        "ipv6.address=none",
    ])?;
    let network = format!("network={bridge}");
    engine(&[
        "profile",
        "device",
        "add",
        "default",
        "eth0",
        "nic",
        &network,
        "name=eth0",
    ])?;
    let checked = on_bridge(h, &address);
    engine(&["profile", "device", "remove", "default", "eth0"])?;
    h.codchi(&["delete", "--yes", "bridged", "beside"])?;
    engine(&["network", "delete", &bridge])?;
    checked
}

fn on_bridge(h: &Host, gateway: &str) -> Result<(), Failed> {
    let done = h.codchi(&["init", "bridged", "--remote", "local"])?.ok()?;
    if done.err.contains("no network") {
        return Err(done.err.into());
    }
    let address = |name: &str| -> Result<String, Failed> {
        h.sh(
            name,
            "cat /run/codchi/host/network | sed -n 's/addr replace \\(.*\\) dev eth0/\\1/p'",
        )
    };
    let own = address("bridged")?;
    wants(
        "the device",
        &h.sh(
            "bridged",
            "cat /etc/resolv.conf; systemctl is-active codchi-network",
        )?,
        &[gateway, "active"],
    )?;
    // This computer is at the other end of the bridge.
    let listener = std::net::TcpListener::bind((gateway, 0))?;
    let port = listener.local_addr()?.port();
    let answers = std::thread::spawn(move || -> std::io::Result<String> {
        let (mut stream, from) = listener.accept()?;
        stream.write_all(b"from this computer")?;
        Ok(from.ip().to_string())
    });
    let heard = h.sh(
        "bridged",
        &format!("exec 3<>/dev/tcp/{gateway}/{port} && cat <&3"),
    );
    let heard = match heard {
        Err(_) => h.sh(
            "bridged",
            &format!("bash -c 'exec 3<>/dev/tcp/{gateway}/{port} && cat <&3'"),
        )?,
        heard => heard?,
    };
    same("what comes by the network", &heard, "from this computer")?;
    let from = answers.join().map_err(|_| "a thread ended")??;
    same(
        "who asked",
        &from,
        own.split('/').next().unwrap_or_default(),
    )?;
    // A copy has an address of its own, and keeps it.
    h.codchi(&["duplicate", "bridged", "beside", "--start"])?
        .ok()?;
    let copy = address("beside")?;
    if copy == own {
        return Err(format!("two machines have the address {own}").into());
    }
    h.codchi(&["restart", "beside"])?.ok()?;
    same("the address after a restart", &address("beside")?, &copy)
}
