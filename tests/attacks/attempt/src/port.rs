//! The one port of a virtual machine, in hostile hands.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Outcome::{Absent, Done, Refused};
use crate::{Result, agent};

const PORTS: &str = "/sys/class/virtio-ports";
const NAME: &str = "codchi.agent";
/// Says to the suite that this one has the port.
const SERVING: &str = "/opt/.serving";
const BEGIN: &[u8; 16] = b"\0\0\0\0\0\0\x01\xc7codchi\r\n";
const MARK: u8 = 0xc7;
const OPEN: u8 = 2;
const DATA: u8 = 3;
const CREDIT: u8 = 4;
const CLOSE: u8 = 5;
/// What leads to the store, and to the caller's session; there, to the ssh agent.
const STORE: u8 = 2;
const SESSION: u8 = 3;
const AGENT: u8 = 3;
/// The socket of that in the machine.
const AGENT_SOCKET: &str = "/run/codchi/host/ssh-agent";
/// Says to the suite that streams are full.
const STALLED: &str = "/opt/.stalled";
const WINDOW: usize = 256 << 10;

fn device() -> std::result::Result<String, String> {
    let all = fs::read_dir(PORTS).map_err(|e| format!("{PORTS}: {e}"))?;
    let named = |p: &fs::DirEntry| {
        fs::read_to_string(p.path().join("name")).is_ok_and(|n| n.trim() == NAME)
    };
    let found = all.flatten().find(named).ok_or("no such port")?;
    Ok(format!("/dev/{}", found.file_name().to_string_lossy()))
}

/// Opens the port beside the agent.
pub fn open() -> Result {
    let Ok(device) = device() else {
        return Ok(Absent("there is no port".into()));
    };
    Ok(
        match fs::OpenOptions::new().read(true).write(true).open(device) {
            Ok(_) => Done("opened".into()),
            // One may, but not two.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Done("it is only in use".into()),
            Err(e) => Refused(e.to_string()),
        },
    )
}

fn frame(id: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = id.to_le_bytes().to_vec();
    out.extend_from_slice(&(payload.len() as u16).to_le_bytes());
    out.extend_from_slice(&[kind, MARK]);
    out.extend_from_slice(payload);
    out
}

fn systemctl(verb: &str) -> std::result::Result<(), String> {
    let done = Command::new("/run/current-system/sw/bin/systemctl")
        .args([verb, "codchi-agent"])
        .status();
    match done {
        Ok(s) if s.success() => Ok(()),
        other => Err(format!("systemctl {verb}: {other:?}")),
    }
}

/// Takes the port from the agent, is what `mode` says until the suite has seen enough, and gives it back.
pub fn serve(mode: &str) -> Result {
    systemctl("stop")?;
    let done = device().and_then(|device| {
        // Somebody of the agent's may not have gone yet.
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let port = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&device);
            match port {
                Ok(port) => return speak(mode, port),
                Err(e) if Instant::now() > until => return Err(format!("{device}: {e}")),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    });
    systemctl("start")?;
    let _ = fs::remove_file(SERVING);
    done
}

struct Port {
    file: fs::File,
    out: Vec<u8>,
    arrived: Vec<u8>,
}

impl Port {
    /// Moves what can be moved. Whether anything was.
    fn turn(&mut self, read: bool) -> std::result::Result<bool, String> {
        let mut moved = false;
        match self.file.write(&self.out) {
            Ok(n) => {
                self.out.drain(..n);
                moved |= n > 0;
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(format!("write: {e}")),
        }
        let mut buffer = [0; 65536];
        if read {
            match self.file.read(&mut buffer) {
                Ok(n) => {
                    self.arrived.extend_from_slice(&buffer[..n]);
                    moved |= n > 0;
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(format!("read: {e}")),
            }
        }
        Ok(moved)
    }

    /// The next frame of the host's.
    fn next(&mut self) -> Option<(u32, u8, Vec<u8>)> {
        while self.arrived.starts_with(BEGIN) {
            self.arrived.drain(..BEGIN.len());
        }
        let a = &self.arrived;
        if a.len() < 8 {
            return None;
        }
        let length = 8 + usize::from(u16::from_le_bytes([a[4], a[5]]));
        if a.len() < length || a[6] == BEGIN[6] {
            return None;
        }
        let (id, kind) = (u32::from_le_bytes([a[0], a[1], a[2], a[3]]), a[6]);
        let payload = a[8..length].to_vec();
        self.arrived.drain(..length);
        Some((id, kind, payload))
    }
}

/// Bytes that look like nothing, always the same.
fn noise(seed: &mut u64) -> [u8; 8] {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    seed.to_le_bytes()
}

fn speak(mode: &str, file: fs::File) -> Result {
    let mut port = Port {
        file,
        out: BEGIN.to_vec(),
        arrived: Vec::new(),
    };
    // Until the host is heard to begin.
    let until = Instant::now() + Duration::from_secs(120);
    while !port.arrived.windows(BEGIN.len()).any(|w| w == BEGIN) {
        if Instant::now() > until {
            return Err("the host does not begin".into());
        }
        if !port.turn(true)? {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    match mode {
        "noise" => {
            let mut seed = 0x2545_f491_4f6c_dd1d;
            for n in 0..20_000u32 {
                let r = noise(&mut seed);
                match n % 8 {
                    // All that a frame can be, of channels that are the host's, the machine's, or nobody's.
                    0..=5 => {
                        let payload = vec![r[4]; usize::from(r[5]) % 40];
                        port.out.extend(frame(u32::from(r[0]), r[1] % 8, &payload));
                    }
                    6 => port.out.extend(frame(u32::from(r[0]), CREDIT, &[0xff; 4])),
                    // What makes it look for the beginning.
                    _ if n % 4096 == 7 => {
                        port.out.extend_from_slice(&r);
                        port.out.extend_from_slice(BEGIN);
                    }
                    _ => port
                        .out
                        .extend(frame(u32::from(r[0]) | 1, OPEN, &[r[1] % 4])),
                }
                while port.out.len() > 65536 {
                    port.turn(true)?;
                    port.arrived.clear();
                }
            }
            println!("said");
        }
        "session" => {
            let kinds = (0..=255).filter(|k| *k != STORE).map(|k| vec![k]);
            let mut asked: Vec<Vec<u8>> = kinds.collect();
            asked.extend((0..=255).map(|n| vec![SESSION, n]));
            let names = [
                "ssh-agent",
                "../daemon/socket",
                "/run/dbus/system_bus_socket",
            ];
            for (kind, name) in [STORE, SESSION]
                .into_iter()
                .flat_map(|k| names.map(|n| (k, n)))
            {
                asked.push([&[kind], name.as_bytes()].concat());
            }
            asked.push(vec![SESSION, AGENT, AGENT]);
            let mut refused = Vec::new();
            for (n, what) in (0u32..).zip(&asked) {
                port.out.extend(frame(2 * n + 3, OPEN, what));
            }
            // It is answered in order, and the last leads nowhere.
            let last = 2 * asked.len() as u32 + 1;
            let until = Instant::now() + Duration::from_secs(120);
            while !refused.contains(&last) && Instant::now() < until {
                port.turn(true)?;
                while let Some((id, kind, _)) = port.next() {
                    refused.extend((kind == CLOSE).then_some(id));
                }
            }
            let reached: Vec<String> = (0u32..)
                .zip(&asked)
                .filter(|(n, _)| !refused.contains(&(2 * n + 3)))
                .map(|(_, what)| format!("{what:?}"))
                .collect();
            fs::write("/opt/.reached", reached.join(" ")).map_err(|e| e.to_string())?;
        }
        "channels" | "session-many" => {
            let mut refused = 0;
            let what: &[u8] = match mode {
                "channels" => &[STORE],
                _ => &[SESSION, AGENT],
            };
            for n in 0..5000u32 {
                port.out.extend(frame(2 * n + 3, OPEN, what));
            }
            let until = Instant::now() + Duration::from_secs(120);
            while refused < 4900 && Instant::now() < until {
                port.turn(true)?;
                while let Some((_, kind, _)) = port.next() {
                    refused += usize::from(kind == CLOSE);
                }
            }
            fs::write("/opt/.refused", refused.to_string()).map_err(|e| e.to_string())?;
        }
        "unread" => {
            fs::write(SERVING, "").map_err(|e| e.to_string())?;
            // Each is answered with a word that nobody takes.
            let many: Vec<u8> = (0..4096u32)
                .flat_map(|n| frame(2 * n + 3, OPEN, &[9]))
                .collect();
            loop {
                if port.out.is_empty() {
                    port.out.extend_from_slice(&many);
                }
                if !port.turn(false)? {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        _ => {}
    }
    fs::write(SERVING, "").map_err(|e| e.to_string())?;
    let mut channels: BTreeMap<u32, (UnixStream, usize)> = BTreeMap::new();
    loop {
        if agent::is_enough() {
            return Ok(Done("served".into()));
        }
        let mut moved = port.turn(true)?;
        while let Some((id, kind, payload)) = port.next() {
            match kind {
                OPEN => {
                    let (ours, mut theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
                    let _ = ours.set_nonblocking(true);
                    let mode = mode.to_owned();
                    std::thread::spawn(move || {
                        let mut heard = [0; 65536];
                        let _ = theirs.read(&mut heard);
                        let _ = agent::talk(&mode, &mut theirs);
                        // What goes on being said is heard by nobody.
                        while theirs.read(&mut heard).is_ok_and(|n| n > 0) {}
                    });
                    channels.insert(id, (ours, WINDOW));
                }
                DATA => {
                    if let Some((stream, _)) = channels.get_mut(&id) {
                        let _ = stream.write_all(&payload);
                        port.out
                            .extend(frame(id, CREDIT, &(payload.len() as u32).to_le_bytes()));
                    }
                }
                CREDIT => {
                    if let (Some((_, credit)), Ok(more)) =
                        (channels.get_mut(&id), <[u8; 4]>::try_from(&payload[..]))
                    {
                        *credit += u32::from_le_bytes(more) as usize;
                    }
                }
                CLOSE => drop(channels.remove(&id)),
                _ => {}
            }
        }
        let mut buffer = [0; 16384];
        for (id, (stream, credit)) in &mut channels {
            let most = buffer.len().min(*credit);
            if most == 0 || port.out.len() > 65536 {
                continue;
            }
            if let Ok(n @ 1..) = stream.read(&mut buffer[..most]) {
                *credit -= n;
                port.out.extend(frame(*id, DATA, &buffer[..n]));
                moved = true;
            }
        }
        if !moved {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Fills as many streams to the session as there can be, and holds them.
pub fn stall() -> Result {
    let mut streams = Vec::new();
    for _ in 0..150 {
        let stream =
            UnixStream::connect(AGENT_SOCKET).map_err(|e| format!("{AGENT_SOCKET}: {e}"))?;
        stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        streams.push((stream, 0));
    }
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(5) {
        for (stream, sent) in &mut streams {
            if let Ok(n @ 1..) = stream.write(&[7; 65536]) {
                *sent += n;
                quiet = Instant::now();
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // One that was refused has taken nothing, or little.
    let full = streams.iter().filter(|(_, sent)| *sent > WINDOW).count();
    fs::write(STALLED, full.to_string()).map_err(|e| e.to_string())?;
    std::thread::sleep(Duration::from_secs(3600));
    Ok(Done("held".into()))
}
