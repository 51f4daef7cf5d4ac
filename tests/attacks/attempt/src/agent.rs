//! A hostile agent, and hostile notifications.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use crate::Outcome::{Done, Refused};
use crate::{Result, c};

const DIR: &str = "/run/codchi/agent";
const HELLO: u8 = 1;
const STARTED: u8 = 3;
const EXIT: u8 = 4;
const FAILURE: u8 = 7;
const STDOUT: u8 = 9;
const PART: u8 = 11;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_le_bytes().to_vec();
    out.push(kind);
    out.extend_from_slice(payload);
    out
}

fn hello() -> Vec<u8> {
    frame(HELLO, br#"{"proto":1}"#)
}

/// Takes the place of the agent for one call of the host, and gives it back.
pub fn serve(mode: &str) -> Result {
    let (socket, kept) = (format!("{DIR}/socket"), format!("{DIR}/.kept"));
    fs::rename(&socket, &kept).map_err(|e| format!("the agent's socket: {e}"))?;
    let done = serve_once(mode, &socket);
    let _ = fs::remove_file(&socket);
    fs::rename(&kept, &socket).map_err(|e| format!("the agent's socket: {e}"))?;
    done
}

fn serve_once(mode: &str, socket: &str) -> Result {
    if let Some(target) = mode.strip_prefix("link:") {
        std::os::unix::fs::symlink(target, socket).map_err(|e| e.to_string())?;
        println!("serving");
        // Until the suite says, by a file, that the host has looked.
        return until_told();
    }
    match mode {
        "fifo" | "folder" => {
            let s = c(socket);
            // SAFETY: a terminated string.
            let r = unsafe {
                if mode == "fifo" {
                    libc::mkfifo(s.as_ptr(), 0o666)
                } else {
                    libc::mkdir(s.as_ptr(), 0o755)
                }
            };
            println!("serving");
            let done = until_told();
            let _ = fs::remove_dir(socket);
            return if r == 0 {
                done
            } else {
                Err("cannot make it".into())
            };
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(|e| e.to_string())?;
    let s = c(socket);
    // SAFETY: a terminated string.
    unsafe { libc::chmod(s.as_ptr(), 0o666) };
    println!("serving");
    if mode == "deaf" {
        return until_told();
    }
    let (mut stream, _) = listener.accept().map_err(|e| e.to_string())?;
    let mut heard = [0; 65536];
    let _ = stream.read(&mut heard);
    // What the host does not want to hear is no failure of the attempt.
    let _ = talk(mode, &mut stream);
    let _ = until_told();
    Ok(Done("served".into()))
}

/// Whether the suite says, by a file, that the host has seen enough.
pub fn is_enough() -> bool {
    fs::remove_file("/opt/.enough").is_ok()
}

fn until_told() -> Result {
    for _ in 0..600 {
        if is_enough() {
            return Ok(Done("served".into()));
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Err("nobody said that it was enough".into())
}

/// What a hostile agent says on a connection.
pub fn talk(mode: &str, stream: &mut UnixStream) -> std::io::Result<()> {
    let started = frame(STARTED, br#"{"pid":1}"#);
    match mode {
        "silent" => Ok(()),
        "garbage" => stream.write_all(&[0xff; 4096]),
        "huge" => {
            let mut f = hello();
            f.extend_from_slice(&u32::MAX.to_le_bytes());
            f.push(STDOUT);
            stream.write_all(&f)
        }
        "endless" => {
            stream.write_all(&hello())?;
            let part = frame(PART, &vec![b'x'; 1 << 20]);
            for _ in 0..4096 {
                stream.write_all(&part)?;
            }
            Ok(())
        }
        "escapes" => {
            stream.write_all(&hello())?;
            let message = "\\u001b]0;owned\\u0007\\u001b[2J\\u009b31m\\u202e";
            stream.write_all(&frame(
                FAILURE,
                format!("{{\"code\":125,\"message\":\"{message}\"}}").as_bytes(),
            ))
        }
        "warning" => {
            stream.write_all(&hello())?;
            let json = "{\"pid\":1,\"warning\":\"\\u001b[2Jcleared\"}";
            send(stream, &frame(STARTED, json.as_bytes()), &pipes())?;
            stream.write_all(&frame(EXIT, br#"{"code":0}"#))
        }
        // A file where a pipe must be: what the host writes or reads would be the machine's choice.
        "file" => {
            stream.write_all(&hello())?;
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open("/tmp/.attempt-file")?;
            send(stream, &started, &[file.as_raw_fd(); 3])
        }
        "socket" => {
            stream.write_all(&hello())?;
            let (a, b) = UnixStream::pair()?;
            send(
                stream,
                &started,
                &[a.as_raw_fd(), b.as_raw_fd(), a.as_raw_fd()],
            )
        }
        "many" => {
            stream.write_all(&hello())?;
            let null = fs::File::open("/dev/null")?;
            for _ in 0..64 {
                send(stream, &frame(PART, b"x"), &[null.as_raw_fd(); 200])?;
            }
            Ok(())
        }
        "nested-exit" => {
            stream.write_all(&hello())?;
            send(stream, &started, &pipes())?;
            stream.write_all(&frame(EXIT, br#"{"code":70000}"#))
        }
        _ => Err(std::io::Error::other("no such mode")),
    }
}

fn pipes() -> [RawFd; 3] {
    let mut all = [0; 3];
    for (i, fd) in all.iter_mut().enumerate() {
        let mut ends = [0; 2];
        // SAFETY: room for the two ends. The other end is closed: nothing will come.
        unsafe {
            libc::pipe(ends.as_mut_ptr());
            let (keep, close) = if i == 0 {
                (ends[1], ends[0])
            } else {
                (ends[0], ends[1])
            };
            libc::close(close);
            *fd = keep;
        }
    }
    all
}

fn send(stream: &impl AsRawFd, bytes: &[u8], fds: &[RawFd]) -> std::io::Result<()> {
    let size = std::mem::size_of_val(fds) as u32;
    // SAFETY: the control buffer has the size that the macros say.
    unsafe {
        let mut control = vec![0u8; libc::CMSG_SPACE(size) as usize];
        let iov = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut m: libc::msghdr = std::mem::zeroed();
        m.msg_iov = (&raw const iov).cast_mut();
        m.msg_iovlen = 1;
        m.msg_control = control.as_mut_ptr().cast();
        m.msg_controllen = control.len() as _;
        let head = libc::CMSG_FIRSTHDR(&m);
        (*head).cmsg_level = libc::SOL_SOCKET;
        (*head).cmsg_type = libc::SCM_RIGHTS;
        (*head).cmsg_len = libc::CMSG_LEN(size) as _;
        std::ptr::copy_nonoverlapping(
            fds.as_ptr().cast::<u8>(),
            libc::CMSG_DATA(head),
            size as usize,
        );
        if libc::sendmsg(stream.as_raw_fd(), &m, libc::MSG_NOSIGNAL) < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Asks an agent for a command of root's, as the host does.
pub fn order(path: &str) -> Result {
    let mut stream = UnixStream::connect(path).map_err(|e| e.to_string())?;
    let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(3)));
    let mut ask = hello();
    ask.extend(frame(2, br#"{"argv":["id"],"user":"root"}"#));
    let _ = stream.write_all(&ask);
    let mut answer = [0; 256];
    Ok(match stream.read(&mut answer) {
        Ok(n) if n > 0 => Done(format!("an answer of {n} bytes")),
        Ok(_) => Refused("it hangs up".into()),
        Err(e) => Refused(e.to_string()),
    })
}

/// Speaks to the supervisor as PID 1 would.
pub fn notify(mode: &str, path: &str) -> Result {
    let socket = UnixDatagram::unbound().map_err(|e| e.to_string())?;
    socket.connect(path).map_err(|e| e.to_string())?;
    let _ = socket.set_nonblocking(true);
    match mode {
        // The start of a machine that is running already, its end, another first process, a text that a terminal obeys.
        "pose" => {
            for m in [
                "READY=1",
                "STOPPING=1",
                "STATUS=\u{1b}[2Jowned",
                "MAINPID=1",
                "FDSTORE=1",
                "X_SYSTEMD_SHUTDOWN=reboot",
            ] {
                socket.send(m.as_bytes()).map_err(|e| e.to_string())?;
            }
        }
        "flood" => {
            for _ in 0..20_000 {
                let _ = socket.send(&[b'x'; 4000]);
            }
        }
        "descriptors" => {
            let null = fs::File::open("/dev/null").map_err(|e| e.to_string())?;
            for _ in 0..200 {
                let _ = send(&socket, b"FDSTORE=1", &[null.as_raw_fd(); 100]);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        _ => return Err("no such mode".into()),
    }
    Ok(Done("said".into()))
}
