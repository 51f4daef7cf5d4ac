//! Sockets.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::Outcome::{Absent, Done, Refused};
use crate::{Result, outcome};

/// Connects to any of `unix:PATH`, `abstract:NAME` and `tcp:ADDRESS`; what answers has to say who it is.
pub fn connect(targets: &[&str]) -> Result {
    let mut said = Vec::new();
    for t in targets {
        let r = match t.split_once(':') {
            Some(("unix", path)) => UnixStream::connect(path).map(|s| hear_unix(&s)),
            Some(("abstract", name)) => std::os::unix::net::SocketAddr::from_abstract_name(name)
                .and_then(|a| UnixStream::connect_addr(&a))
                .map(|s| hear_unix(&s)),
            Some(("tcp", address)) => {
                let a: SocketAddr = address
                    .parse()
                    .map_err(|_| format!("`{address}` is no address"))?;
                TcpStream::connect_timeout(&a, Duration::from_secs(2)).map(|mut s| {
                    let _ = s.set_read_timeout(Some(Duration::from_secs(2)));
                    hear(&mut s)
                })
            }
            _ => return Err(format!("`{t}` is no target")),
        };
        match r {
            Ok(Some(word)) => return Ok(Done(format!("{t} says `{word}`"))),
            Ok(None) => said.push(format!("{t}: connected, but nobody of the host answered")),
            Err(e) => said.push(format!("{t}: {e}")),
        }
    }
    Ok(Refused(said.join(", ")))
}

fn hear_unix(mut s: &UnixStream) -> Option<String> {
    let _ = s.set_read_timeout(Some(Duration::from_secs(2)));
    hear(&mut s)
}

fn hear(s: &mut impl Read) -> Option<String> {
    let mut b = [0; 64];
    let n = s.read(&mut b).ok().filter(|n| *n > 0)?;
    Some(String::from_utf8_lossy(&b[..n]).into_owned())
}

/// The socket family by which hypervisors are spoken to: no network namespace bounds it.
pub fn vsock() -> Result {
    let mut said = Vec::new();
    // The kernel looks at half of the register only.
    for high in [0, 1 << 32] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let family = high | i64::from(libc::AF_VSOCK);
            // SAFETY: plain numbers.
            let fd = unsafe { libc::syscall(libc::SYS_socket, family, i64::from(kind), 0_i64) };
            if fd >= 0 {
                return Ok(Done(format!(
                    "a socket of family {family:#x} and kind {kind}"
                )));
            }
            said.push(io::Error::last_os_error().to_string());
        }
    }
    if said.iter().all(|s| s.contains("not supported")) && outside() {
        return Ok(Absent("this kernel has no AF_VSOCK".into()));
    }
    Ok(Refused(said.join(", ")))
}

/// Whether this runs in the namespaces of the host.
fn outside() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|m| m.contains("4294967295"))
}

/// Listens to all packets for a while, for one that only the host's loopback carries.
pub fn sniff(marker: &str) -> Result {
    const ALL: u16 = 0x0003;
    // SAFETY: plain numbers and a buffer of the length that is given.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(ALL.to_be()));
        if fd < 0 {
            return Ok(Refused(format!(
                "packet socket: {}",
                io::Error::last_os_error()
            )));
        }
        println!("listening");
        let t = libc::timeval {
            tv_sec: 0,
            tv_usec: 100_000,
        };
        let size = std::mem::size_of::<libc::timeval>() as u32;
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const t).cast(),
            size,
        );
        let until = std::time::Instant::now() + Duration::from_millis(1500);
        let mut b = vec![0u8; 65536];
        while std::time::Instant::now() < until {
            let n = libc::recv(fd, b.as_mut_ptr().cast(), b.len(), 0);
            let n = usize::try_from(n).unwrap_or(0);
            if b[..n].windows(marker.len()).any(|w| w == marker.as_bytes()) {
                return Ok(Done("the host's packet".into()));
            }
        }
    }
    Ok(Refused("no packet of the host".into()))
}

/// Asks the kernel for network interfaces and looks for the host's hardware addresses.
pub fn links(macs: &[&str]) -> Result {
    // SAFETY: plain numbers and buffers of the lengths that are given.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        if fd < 0 {
            return Ok(outcome("netlink socket", -1));
        }
        // struct nlmsghdr and struct ifinfomsg: length, RTM_GETLINK, REQUEST | DUMP, sequence, then zeroes
        let mut ask = [0u8; 32];
        ask[0] = 32;
        ask[4] = 18;
        ask[6..8].copy_from_slice(&0x301u16.to_ne_bytes());
        ask[8] = 1;
        libc::send(fd, ask.as_ptr().cast(), ask.len(), 0);
        let mut all = Vec::new();
        let mut b = vec![0u8; 65536];
        loop {
            let n = libc::recv(fd, b.as_mut_ptr().cast(), b.len(), 0);
            let Ok(n) = usize::try_from(n) else { break };
            all.extend_from_slice(&b[..n]);
            // NLMSG_DONE
            if n < 16
                || b[4] == 3
                || all.windows(2).last().is_none()
                || b[..n].chunks(4).any(|w| w == [20, 0, 0, 0])
            {
                break;
            }
        }
        for mac in macs {
            let bytes: Vec<u8> = mac
                .split(':')
                .filter_map(|h| u8::from_str_radix(h, 16).ok())
                .collect();
            if bytes.len() == 6 && all.windows(6).any(|w| w == bytes) {
                return Ok(Done(format!("the interface {mac} of the host")));
            }
        }
        Ok(Refused(format!(
            "{} bytes of interfaces, none of the host's",
            all.len()
        )))
    }
}
