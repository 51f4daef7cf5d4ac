//! Ports of the host that lead into a machine: which are free, who has the others, and what network programs are told.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use codchi_core::port::{Forward, PortState, Protocol};

use crate::error::{Doing, Result};
use crate::state;

/// How long a network program may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks which ports can be had. `dir` is the machine's runtime directory: machines beside it are named where they have one.
pub(crate) fn examine(dir: &Path, wanted: &[Forward]) -> Vec<PortState> {
    let mut all: Vec<PortState> = Vec::new();
    for forward in wanted {
        let twice = all.iter().find(|p| {
            (p.forward.host, p.forward.protocol) == (forward.host, forward.protocol) && p.problem.is_none()
        });
        let problem = match twice {
            Some(other) => Some(format!("it leads to port {} of this machine already", other.forward.guest)),
            None => taken(dir, forward),
        };
        all.push(PortState { forward: *forward, problem });
    }
    all
}

fn bind(port: u16, protocol: Protocol) -> io::Result<()> {
    match protocol {
        Protocol::Tcp => TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop),
        Protocol::Udp => UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).map(drop),
    }
}

/// Why a port cannot be had.
fn taken(dir: &Path, forward: &Forward) -> Option<String> {
    // The network programs have no rights on the host, whoever started them.
    let first = codchi_fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    let first = first.and_then(|t| t.trim().parse::<u16>().ok()).unwrap_or(0);
    if forward.host < first {
        return Some(format!("ports below {first} are the host's own services'"));
    }
    let e = bind(forward.host, forward.protocol).err()?;
    if e.kind() != io::ErrorKind::AddrInUse {
        return Some(e.to_string());
    }
    Some(match machine_with(dir, forward).or_else(|| program_with(forward)) {
        Some(who) => format!("it is taken by {who}"),
        None => "it is taken by another program".into(),
    })
}

/// Another machine of this user that has a port.
fn machine_with(dir: &Path, forward: &Forward) -> Option<String> {
    let is = |p: &PortState| {
        p.problem.is_none() && (p.forward.host, p.forward.protocol) == (forward.host, forward.protocol)
    };
    codchi_fs::read_dir(dir.parent()?).ok()?.iter().find_map(|e| {
        let other = Some(e.path()).filter(|o| o != dir)?;
        let there = state::living(&other).ok()??;
        there.ports.iter().any(is).then(|| format!("the machine `{}`", e.file_name().display()))
    })
}

/// The process that listens on a port, where the caller may see it.
fn program_with(forward: &Forward) -> Option<String> {
    let (table, listening) = match forward.protocol {
        Protocol::Tcp => ("tcp", "0A"),
        Protocol::Udp => ("udp", "07"),
    };
    let inodes: Vec<String> = [table.to_string(), format!("{table}6")]
        .iter()
        .filter_map(|t| codchi_fs::read_to_string(format!("/proc/self/net/{t}")).ok())
        .flat_map(|t| sockets(&t, forward.host, listening))
        .collect();
    codchi_fs::read_dir("/proc").ok()?.iter().find_map(|e| {
        let pid: u32 = e.file_name().to_str()?.parse().ok()?;
        let mut open = codchi_fs::read_dir(e.path().join("fd")).ok()?.into_iter();
        open.find(|f| {
            let to = codchi_fs::read_link_if_exists(f.path()).ok().flatten();
            to.is_some_and(|to| inodes.iter().any(|i| to.as_os_str() == format!("socket:[{i}]").as_str()))
        })?;
        let name = codchi_fs::read_to_string(e.path().join("comm")).ok()?;
        Some(format!("`{}` (process {pid})", codchi_core::text::printable_line(name.trim())))
    })
}

/// The inodes of sockets that are bound to a port, in a table of /proc/net (proc(5)).
fn sockets(table: &str, port: u16, state: &str) -> Vec<String> {
    let port = format!(":{port:04X}");
    let line = |l: &str| {
        let f: Vec<&str> = l.split_whitespace().collect();
        let [_, local, _, st, _, _, _, _, _, inode, ..] = f[..] else { return None };
        (local.ends_with(&port) && st == state).then(|| inode.to_string())
    };
    table.lines().filter_map(line).collect()
}

/// A port near the wanted one that is free, for a hint.
fn another(forward: &Forward) -> Option<u16> {
    let from = forward.host.checked_add(if forward.host < 1024 { 8000 } else { 10_000 })?;
    (from..from.saturating_add(100)).find(|p| bind(*p, forward.protocol).is_ok())
}

/// What a person is told of a port that is not forwarded, and what to do.
pub(crate) fn warning(machine: &str, port: &PortState) -> Option<String> {
    let problem = port.problem.as_deref()?;
    let f = &port.forward;
    let udp = if f.protocol == Protocol::Udp { "/udp" } else { "" };
    let other = another(f)
        .map(|p| format!("; `codchi port add {machine} {p}:{}{udp}` gives it another", f.guest))
        .unwrap_or_default();
    Some(format!(
        "port {} of this computer does not lead to port {} of the machine: {problem}{other}",
        f.shown_host(),
        f.guest
    ))
}

/// The ports of one protocol as pasta takes them.
pub(crate) fn pasta(ports: &[PortState], protocol: Protocol) -> String {
    let list: Vec<String> = ports
        .iter()
        .filter(|p| p.problem.is_none() && p.forward.protocol == protocol)
        .map(|p| format!("{}:{}", p.forward.host, p.forward.guest))
        .collect();
    if list.is_empty() { "none".into() } else { format!("127.0.0.1/{}", list.join(",")) }
}

/// Asks slirp4netns for a port, at the socket it listens on. The inner error says why it refused.
pub(crate) fn slirp(socket: &Path, forward: &Forward) -> Result<std::result::Result<(), String>> {
    let ask = serde_json::json!({
        "execute": "add_hostfwd",
        "arguments": {
            "proto": forward.protocol.as_str(),
            "host_addr": "127.0.0.1",
            "host_port": forward.host,
            "guest_port": forward.guest,
        },
    });
    let answer = || -> io::Result<serde_json::Value> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(ask.to_string().as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    let answer = answer().doing("ask slirp4netns for a port")?;
    Ok(match answer.get("error") {
        None => Ok(()),
        Some(e) => Err(e["desc"].as_str().unwrap_or("slirp4netns refuses it").to_string()),
    })
}

/// Whether the network program has to be started anew: the ports asked for are others, or one that was refused is free now.
pub(crate) fn to_change(dir: &Path, old: &[Forward], new: &[Forward], told: &[PortState]) -> bool {
    let freed =
        |p: &PortState| p.problem.is_some() && examine(dir, &[p.forward]).iter().all(|p| p.problem.is_none());
    old != new || told.iter().any(freed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(text: &str) -> Forward {
        text.parse().unwrap()
    }

    #[test]
    fn a_taken_port_names_who_has_it_and_a_way_out() {
        let there = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = there.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("m");
        let wanted = [forward(&format!("{port}:80")), forward(&format!("{port}:80/udp"))];
        let states = examine(&own, &wanted);
        let problem = states[0].problem.clone().unwrap();
        assert!(problem.contains(&format!("(process {})", std::process::id())), "{problem}");
        let told = warning("m", &states[0]).unwrap();
        assert!(told.contains("`codchi port add m ") && told.contains(":80`"), "{told}");
        drop(there);
        assert!(examine(&own, &wanted).iter().all(|p| p.problem.is_none()));
        let twice = examine(&own, &[wanted[0], forward(&format!("{port}:81"))]);
        assert!(twice[1].problem.as_ref().unwrap().contains("port 80 of this machine"));
        assert_eq!(pasta(&twice, Protocol::Tcp), format!("127.0.0.1/{port}:80"));
        assert_eq!(pasta(&twice, Protocol::Udp), "none");
    }

    #[test]
    fn listeners_are_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1\n   1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1\n";
        assert_eq!(sockets(table, 8080, "0A"), ["4711"]);
        assert_eq!(sockets(table, 80, "0A"), Vec::<String>::new());
    }
}
