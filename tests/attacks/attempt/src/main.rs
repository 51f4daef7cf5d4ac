//! `codchi-attempt WHAT [ARGS...]`: tries something that a machine must not be able to do. Static, so that it runs in any
//! machine; the suite puts it there.
//!
//! Status 0: it was done. 1: it was refused. 3: this kernel has no such thing. Anything else: the attempt itself is broken.
//! Why is said on standard output.

mod agent;
mod calls;
mod files;
mod net;
mod port;
mod processes;
mod uring;

use std::io;
use std::process::ExitCode;

/// What became of an attempt.
pub enum Outcome {
    /// The attack succeeded.
    Done(String),
    /// It did not.
    Refused(String),
    /// There is nothing to attack.
    Absent(String),
}

/// An attempt that could not even be made.
pub type Result = std::result::Result<Outcome, String>;

/// The outcome of a system call: negative is refused by an error, or the kernel has no such call.
pub fn outcome(what: &str, result: i64) -> Outcome {
    if result >= 0 {
        return Outcome::Done(format!("{what} gave {result}"));
    }
    let e = io::Error::last_os_error();
    Outcome::Refused(format!("{what}: {e}"))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["create", path] => files::create(path),
        ["change", path] => files::change(path),
        ["remount", path] => files::remount(path),
        ["detach", path] => files::detach(path),
        ["nested", rest @ ..] => processes::nested(rest),
        ["reach", path] => files::reach(path),
        ["break-chroot", path] => files::break_chroot(path),
        ["device"] => files::device(),
        ["handle", path] => files::handle(path),
        ["filesystem", kind] => files::filesystem(kind),
        ["release-agent"] => files::release_agent(),
        ["propagate", path] => files::propagate(path),
        ["connect", targets @ ..] => net::connect(targets),
        ["vsock"] => net::vsock(),
        ["vsock-by-ring"] => uring::vsock(),
        ["sniff", marker] => net::sniff(marker),
        ["links", macs @ ..] => net::links(macs),
        ["call", name] => calls::by_name(name),
        ["call32", name] => calls::by_name_32(name),
        ["key", description] => calls::key(description),
        ["type", text] => calls::type_into_terminal(text),
        ["descriptors"] => processes::descriptors(),
        ["euid"] => processes::euid(),
        ["process", pid] => processes::touch(pid),
        ["watch", marker, seconds] => processes::watch(marker, seconds),
        ["join-openly", pid, seconds] => processes::join_openly(pid, seconds),
        ["multiply", most] => processes::multiply(most),
        ["hoard", most] => processes::hoard(most),
        ["depth", path, levels] => files::depth(path, levels),
        ["hold-key", description, rest @ ..] => calls::hold_key(description, rest),
        ["order", path] => agent::order(path),
        ["agent", mode] => agent::serve(mode),
        ["open-port"] => port::open(),
        ["port", mode] => port::serve(mode),
        ["stall"] => port::stall(),
        ["notify", mode, path] => agent::notify(mode, path),
        _ => Err(format!("no attempt is called `{}`", words.join(" "))),
    };
    let (status, said) = match result {
        Ok(Outcome::Done(s)) => (0, format!("done: {s}")),
        Ok(Outcome::Refused(s)) => (1, format!("refused: {s}")),
        Ok(Outcome::Absent(s)) => (3, format!("absent: {s}")),
        Err(s) => (4, s),
    };
    println!("{said}");
    ExitCode::from(status)
}

/// A C string.
pub fn c(s: &str) -> std::ffi::CString {
    std::ffi::CString::new(s).unwrap_or_default()
}
