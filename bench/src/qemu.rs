//! Virtual machines, beside ssh into them and a QEMU started by hand.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::host::Host;
use crate::measure::{Bound, Figure, Unit, in_turns, median, ms, timed};

const NAME: &str = "bench-vm";
/// What the machine writes to its console when its units have been started.
const UP: &str = "codchi-bench: up";
/// How long a machine may take for that.
const PATIENCE: Duration = Duration::from_secs(150);
/// Starts that count; a boot takes half a minute where processors are emulated.
const STARTS: usize = 3;

const MODULE: &str = r#"{ pkgs, ... }:
{
  services.openssh.enable = true;
  systemd.services.codchi-bench = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig.Type = "simple";
    script = ''
      systemctl is-system-running --wait || true
      echo "codchi-bench: up" >/dev/console
    '';
  };
}
"#;
const FLAKE: &str = "{ outputs = _: { nixosModules.default = ./module.nix; }; }\n";

/// The time of a command in a virtual machine, and of its start.
pub fn measure(host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    host.machine()?;
    let source = host.scratch("vm-source");
    codchi_fs::create_dir_all(&source)?;
    codchi_fs::write(source.join("flake.nix"), FLAKE)?;
    codchi_fs::write(source.join("module.nix"), MODULE)?;
    timed(host.init_of(NAME, &source, &["--driver", "qemu"])?)?;
    let mut figures = exec(host, runs)?;
    match start(host) {
        Ok(figure) => figures.push(figure),
        Err(e) => eprintln!("start: not measured: {e}"),
    }
    Ok(figures)
}

fn exec(host: &Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let key = host.scratch("vm-key");
    let mut keygen = host.command("ssh-keygen");
    keygen
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key);
    timed(keygen)?;
    let public = codchi_fs::read_to_string(key.with_extension("pub"))?;
    let script = format!(
        "mkdir -m 700 -p ~/.ssh && echo '{}' > ~/.ssh/authorized_keys",
        public.trim()
    );
    timed(host.codchi(&["exec", NAME, "--", "sh", "-c", &script]))?;
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let port = free.map_err(|e| Error::Not(format!("no port is free: {e}")))?;
    let port = port.port().to_string();
    timed(host.codchi(&["port", "add", NAME, &format!("{port}:22")]))?;
    let options = [
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ];
    let ours = || host.codchi(&["exec", NAME, "--", "true"]);
    let theirs = || {
        let mut ssh = host.command("ssh");
        ssh.args(options).arg("-i").arg(&key);
        ssh.args(["-p", &port, "codchi@127.0.0.1", "true"]);
        ssh
    };
    let times = in_turns(&[&ours, &theirs], runs.min(15))?;
    Ok(vec![Figure {
        name: format!("codchi exec {NAME} -- true, on QEMU"),
        ours: times[0],
        beside: Some(("ssh".into(), times[1])),
        unit: Unit::Ms,
        bound: Bound::Times(1.2),
    }])
}

fn start(host: &Host) -> Result<Figure, Error> {
    let bare = Bare::like(host, &host.leader(NAME)?)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        timed(host.codchi(&["stop", NAME]))?;
        theirs.push(ms(bare.boot()?));
        let began = Instant::now();
        timed(host.codchi(&["start", NAME]))?;
        ours.push(ms(began.elapsed()));
    }
    Ok(Figure {
        name: format!("codchi start {NAME}, on QEMU"),
        ours: median(ours),
        beside: Some(("QEMU by hand".into(), median(theirs))),
        unit: Unit::Ms,
        bound: Bound::Times(1.1),
    })
}

/// The same kernel, first memory, root and store, in a QEMU of the same settings that nobody looks after.
struct Bare {
    qemu: Vec<String>,
    servers: Vec<Vec<String>>,
}

impl Bare {
    /// As the machine that runs has them.
    fn like(host: &Host, leader: &str) -> Result<Bare, Error> {
        let mut bare = Bare {
            qemu: Vec::new(),
            servers: Vec::new(),
        };
        let root = host.data().join("machines").join(NAME).join("root");
        let own = host.data().join("store/nix/store");
        let store = if own.exists() {
            own
        } else {
            "/nix/store".into()
        };
        let runtime = host.scratch("run/codchi/machines").join(NAME);
        let mut last = String::new();
        for word in command_line(leader)? {
            // Descriptors are of that process: shares get sockets of ours, and what leads to Codchi leads nowhere.
            let fd = |from: &str| {
                word.strip_prefix(from)
                    .and_then(|w| w.split("fd=").nth(1))
                    .map(String::from)
            };
            let word = match (last.as_str(), &word) {
                ("-initrd", path) => {
                    let number = path.rsplit('/').next().unwrap_or_default();
                    let memory = host.scratch("vm-initrd");
                    let held = Path::new("/proc").join(leader).join("fd").join(number);
                    codchi_fs::write(&memory, codchi_fs::read(held)?)?;
                    memory.display().to_string()
                }
                ("-chardev", w)
                    if fd("socket,id=agent,").is_some() || fd("socket,id=control,").is_some() =>
                {
                    let id = w.split(',').nth(1).unwrap_or_default();
                    format!("null,{id}")
                }
                ("-chardev", w) => {
                    let tag = w.split(',').nth(1).and_then(|id| id.strip_prefix("id="));
                    let tag = tag.unwrap_or_default().to_owned();
                    let shown: PathBuf = match tag.as_str() {
                        "root" => root.clone(),
                        "store" => store.clone(),
                        "bin" => host.data().join("bin"),
                        _ => runtime.join(&tag),
                    };
                    let socket = host.scratch(&format!("vm-{tag}.sock"));
                    bare.servers.push(server(leader, &tag, &shown, &socket)?);
                    format!("socket,id={tag},path={}", socket.display())
                }
                ("-netdev", w) => w.split(",hostfwd=").next().unwrap_or_default().to_owned(),
                ("-mon", _) => {
                    bare.qemu.pop();
                    last = String::new();
                    continue;
                }
                _ => word,
            };
            last.clone_from(&word);
            bare.qemu.push(word);
        }
        Ok(bare)
    }

    /// From nothing to what the machine says when it is up.
    fn boot(&self) -> Result<Duration, Error> {
        let began = Instant::now();
        let mut all = Running(Vec::new());
        for server in &self.servers {
            let socket = server.iter().find_map(|w| w.strip_prefix("--socket-path="));
            let socket = PathBuf::from(socket.unwrap_or_default());
            codchi_fs::remove_if_exists(&socket)?;
            all.start(server, Stdio::null())?;
            while !socket.exists() && began.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let qemu = all.start(&self.qemu, Stdio::piped())?;
        let out = qemu
            .stdout
            .take()
            .ok_or_else(|| Error::Not("QEMU says nothing".into()))?;
        // It ends with the machine, which is killed when it takes too long.
        let (said, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if line.contains(UP) {
                    let _ = said.send(());
                }
            }
        });
        let up = heard.recv_timeout(PATIENCE);
        let took = began.elapsed();
        up.map(|()| took)
            .map_err(|_| Error::Not("the QEMU by hand does not come up".into()))
    }
}

/// Processes that end with this.
struct Running(Vec<Child>);

impl Running {
    fn start(&mut self, words: &[String], out: Stdio) -> Result<&mut Child, Error> {
        let program = words.first().cloned().unwrap_or_default();
        let child = Command::new(&program)
            .args(words.iter().skip(1))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        self.0
            .push(child.map_err(|source| Error::Run { program, source })?);
        self.0
            .last_mut()
            .ok_or_else(|| Error::Not("nothing was started".into()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.0.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn command_line(pid: &str) -> Result<Vec<String>, Error> {
    let text = codchi_fs::read(Path::new("/proc").join(pid).join("cmdline"))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(text
        .trim_end_matches('\0')
        .split('\0')
        .map(String::from)
        .collect())
}

/// The program that shares a folder as that of the running machine does, at a socket of ours.
fn server(leader: &str, tag: &str, shown: &Path, socket: &Path) -> Result<Vec<String>, Error> {
    let supervisor = field(leader, "PPid:")?;
    for entry in codchi_fs::read_dir("/proc")? {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let words = match command_line(&pid) {
            Ok(words) if words[0].ends_with("virtiofsd") => words,
            _ => continue,
        };
        let own = format!("/.codchi/shares/{tag}");
        let is_its = words
            .iter()
            .any(|w| w.split(['=', ',']).any(|part| part == own));
        if !is_its || field(&pid, "PPid:")? != supervisor {
            continue;
        }
        let to = |word: String| match word.starts_with("--fd=") {
            true => format!("--socket-path={}", socket.display()),
            false => word.replace(&own, &shown.display().to_string()),
        };
        return Ok(words.into_iter().map(to).collect());
    }
    Err(Error::Not(format!(
        "nothing shares `{tag}` with the machine"
    )))
}

fn field(pid: &str, name: &str) -> Result<String, Error> {
    let text = codchi_fs::read_to_string(Path::new("/proc").join(pid).join("status"))?;
    let value = text
        .lines()
        .find_map(|l| l.strip_prefix(name))
        .map(|v| v.trim().to_owned());
    value.ok_or_else(|| Error::Not(format!("process {pid} has no {name}")))
}
