//! PID 1 of a container before its init: `codchi-boot [--supervised] [--from DIR] INIT [ARGS...]`.
//!
//! Makes what has to be there before any init runs, whatever system the container has, and becomes that init. What it
//! cannot make it says on the console and goes on: an init that minds will say more.
//!
//! `--from DIR` is for engines that mount what comes from the host before they mount anything else: it lies in `DIR` and
//! is put where a machine has it, and the host is waited for, which connects the network meanwhile. `codchi-boot --hold` becomes
//! nothing: a machine whose files are worked on from outside is up, and does nothing.
//!
//! `--apart` is for containers on another host: nothing of the one that looks after them is mounted, and what it gives them
//! `codchi-boot --take` reads from standard input while they wait. `codchi-boot --store VERB` does what is to be done in a store there.
//!
//! `--supervised` is for runtimes that know nothing of a supervisor: the container ends with the process that looks after it.
//!
//! `codchi-boot --show NUMBER PATH` and `--hide PATH` mount, in a virtual machine that runs, a folder of the host at a path, or unmount it.
//!
//! As `/init` of a virtual machine's first memory it first makes the machine's file system ([`guest`]).
#![allow(clippy::print_stderr)]

mod apart;
mod guest;
mod host;
mod store;

use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::fs::Mode;
use rustix::mount::MountPropagationFlags;

/// Directories every init counts on, with their modes: a machine begins with an empty root.
const DIRECTORIES: [(&str, u32); 8] = [
    ("/etc", 0o755),
    ("/usr", 0o755),
    ("/var", 0o755),
    ("/var/log", 0o755),
    ("/home", 0o755),
    ("/root", 0o700),
    ("/tmp", 0o1777),
    ("/nix/var", 0o755),
];

fn main() -> ExitCode {
    let mut args = std::env::args_os().peekable();
    if args.next().is_some_and(|own| own == "/init") {
        let init = guest::enter();
        make_directories();
        let failed = become_init(Command::new(init));
        // The kernel would panic, and begin anew.
        guest::power_off();
        return failed;
    }
    let word = |arg: Option<std::ffi::OsString>| arg.and_then(|a| a.into_string().ok()).unwrap_or_default();
    if args.next_if(|a| a == "--show").is_some() {
        let number = word(args.next());
        return told(guest::show(Path::new("/"), &number, &word(args.next())));
    }
    if args.next_if(|a| a == "--hide").is_some() {
        return told(guest::hide(&word(args.next())));
    }
    if args.next_if(|a| a == "--hold").is_some() {
        loop {
            std::thread::park();
        }
    }
    if args.next_if(|a| a == "--take").is_some() {
        return told(apart::take());
    }
    if args.next_if(|a| a == "--store").is_some() {
        return told(store::run(&word(args.next())));
    }
    if args.next_if(|a| a == "--supervised").is_some() {
        become_supervised();
    }
    let alone = args.next_if(|a| a == "--apart").is_some();
    let from = args.next_if(|a| a == "--from").and_then(|_| args.next());
    let Some(init) = args.next() else {
        eprintln!("codchi-boot: no init was named");
        return ExitCode::from(2);
    };
    make_directories();
    if alone {
        match std::env::current_exe() {
            Ok(program) => apart::attach(&program),
            Err(e) => eprintln!("codchi-boot: cannot find this program: {e}"),
        }
    }
    if let Some(from) = from {
        host::attach(Path::new(&from));
    }
    let mut command = Command::new(init);
    command.args(args);
    become_init(command)
}

fn told(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("codchi-boot: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What a runtime does not do that was told to make a container: it ends with its parent, who has it by now, and mounts made in it
/// spread in it. systemd counts on the latter: it gives services their credentials by mounts of a namespace of their own.
fn become_supervised() {
    let kill = Some(rustix::process::Signal::KILL);
    if let Err(e) = rustix::process::set_parent_process_death_signal(kill) {
        eprintln!("codchi-boot: cannot be tied to the supervisor: {e}");
    }
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    if let Err(e) = rustix::mount::mount_change("/", shared) {
        eprintln!("codchi-boot: cannot share mounts in the machine: {e}");
    }
}

fn become_init(mut init: Command) -> ExitCode {
    if let Err(e) = keep_machine_id(Path::new("/etc/machine-id")) {
        eprintln!("codchi-boot: {e}");
    }
    let e = init.exec();
    eprintln!("codchi-boot: cannot start `{}`: {e}", init.get_program().display());
    ExitCode::from(if e.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}

fn make_directories() {
    // The modes are exact, whatever the starter's mask.
    let mask = rustix::process::umask(Mode::empty());
    for (path, mode) in DIRECTORIES {
        match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => eprintln!("codchi-boot: cannot make `{path}`: {e}"),
        }
    }
    rustix::process::umask(mask);
}

/// Gives the machine an id of its own at its first start. Without one systemd takes each start for the first, and
/// waits for the disk. See machine-id(5).
fn keep_machine_id(file: &Path) -> Result<(), codchi_fs::FsError> {
    let now = codchi_fs::read_if_exists(file)?.unwrap_or_default();
    if is_id(now.trim()) {
        return Ok(());
    }
    codchi_fs::write(file, new_id() + "\n")?;
    // Read by everyone, changed by nobody.
    let _ = rustix::fs::chmod(file, Mode::from_raw_mode(0o444));
    Ok(())
}

fn is_id(s: &str) -> bool {
    s.len() == 32 && s.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) && s.bytes().any(|c| c != b'0')
}

/// A random id in the form of a version 4 UUID.
fn new_id() -> String {
    let mut b = [0u8; 16];
    let mut have = 0;
    while have < b.len() {
        match rustix::rand::getrandom(&mut b[have..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => have += n,
            Err(rustix::io::Errno::INTR) => {}
            // No kernel that has user namespaces lacks it; the fixed bits below still make a valid, if common, id.
            Err(_) => break,
        }
    }
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    b.iter().fold(String::new(), |mut s, x| {
        let _ = write!(s, "{x:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_id_is_valid_and_not_the_last_one() {
        let (a, b) = (new_id(), new_id());
        assert!(is_id(&a) && is_id(&b), "{a} {b}");
        assert_ne!(a, b);
        assert_eq!(&a[12..13], "4");
    }

    #[test]
    fn an_id_is_kept_and_anything_else_replaced() {
        let file = std::env::temp_dir().join(format!("codchi-boot-{}", std::process::id()));
        for before in ["", "uninitialized\n", "0123", "00000000000000000000000000000000\n"] {
            codchi_fs::write(&file, before).unwrap();
            keep_machine_id(&file).unwrap();
            let id = codchi_fs::read_to_string(&file).unwrap();
            assert!(is_id(id.trim()), "{before:?} became {id:?}");
            keep_machine_id(&file).unwrap();
            assert_eq!(codchi_fs::read_to_string(&file).unwrap(), id);
            codchi_fs::remove_file(&file).unwrap();
        }
    }
}
