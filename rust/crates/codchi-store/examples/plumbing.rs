//! The store's plumbing without the rest of Codchi, for its tests.
//!
//! `shell ...`, `serve ...`: the verbs themselves. `bootstrap`: makes the store. `run [--as-root] PROGRAM ARGS`: a Nix
//! program in it. `kind`: whose store it is. `machine NAME`: an endpoint, in an outer namespace, with a shell that
//! reads a script from stdin as the machine's PID 1.

use std::io::Write;
use std::process::{Command, ExitCode};

use codchi_core::dirs::Dirs;
use codchi_core::progress::{Event, Progress};
use codchi_core::settings::Settings;
use codchi_nix::{Launch, Role};
use codchi_runtime::services::Service;
use codchi_store::{Kind, Place, Result, Store, StoreError, endpoint, shell};

struct Stderr;

impl Progress for Stderr {
    fn report(&self, event: Event<'_>) {
        if let Event::Phase(_) | Event::Warning(_) = event {
            say(&format!("{event:?}"));
        }
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    let verb = if args.is_empty() { Default::default() } else { args.remove(0) };
    let done = match verb.to_str() {
        Some("shell") => return shell::main(args).into(),
        Some("serve") => return endpoint::main(args).into(),
        Some("bootstrap") => place().and_then(|p| p.bootstrap(&Stderr)).map(|_| 0),
        Some("kind") => place().and_then(|p| p.open()).map(|s| {
            let text = match s.as_ref().map(Store::kind) {
                None => "none".to_owned(),
                Some(Kind::Own { version, .. }) => format!("own {version}"),
                Some(Kind::Host(h)) => format!("host {}", h.version),
            };
            let _ = writeln!(std::io::stdout(), "{text}");
            0
        }),
        Some("run") => store().and_then(|s| {
            let as_root = args.first().is_some_and(|a| a == "--as-root");
            let mut args = args.into_iter().skip(usize::from(as_root));
            let program = args.next().unwrap_or_default();
            let role = if as_root { Role::Maintainer } else { Role::Caller };
            let mut c = s.command(&program.to_string_lossy(), role);
            status(c.args(args))
        }),
        Some("forget") => machine_name(&args).and_then(|n| store()?.forget_machine(&n)).map(|()| 0),
        Some("remove") => place().and_then(|p| {
            match p.open()? {
                Some(s) => s.remove()?,
                None => codchi_runtime::outer::remove_tree(&p.dirs.store())?,
            }
            Ok(0)
        }),
        Some("machine") => machine_name(&args).and_then(|n| machine(&n)),
        _ => Ok(2),
    };
    match done {
        Ok(code) => code.into(),
        Err(e) => {
            say(&format!("error: {e}"));
            1.into()
        }
    }
}

fn place() -> Result<Place> {
    let uid = rustix::process::getuid().as_raw();
    let dirs = Dirs::from_env(&|n| std::env::var_os(n), uid).map_err(|e| StoreError::Usage(e.to_string()))?;
    let settings = codchi_fs::read_if_exists(dirs.settings())?.unwrap_or_default();
    let settings =
        Settings::parse(&dirs.settings(), &settings).map_err(|e| StoreError::Usage(e.to_string()))?;
    Ok(Place { plumbing: vec!["/proc/self/exe".into()], ..Place::new(&dirs, &settings) })
}

fn store() -> Result<Store> {
    place()?.open()?.ok_or(StoreError::None)
}

fn machine_name(args: &[std::ffi::OsString]) -> Result<codchi_core::name::MachineName> {
    let name = args.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    name.parse().map_err(|e: codchi_core::name::NameError| StoreError::Usage(e.to_string()))
}

fn status(c: &mut Command) -> Result<u8> {
    let status = c.status().map_err(|source| StoreError::System { what: "run a program".into(), source })?;
    Ok(status.code().map_or(255, |c| c as u8))
}

fn machine(name: &codchi_core::name::MachineName) -> Result<u8> {
    let (place, store) = (place()?, store()?);
    let dir = place.dirs.machine_runtime(name);
    codchi_fs::create_dir_all(dir.join("daemon"))?;
    let mut endpoint = store.endpoint(name);
    let outer = codchi_runtime::outer::enter(&store.outer_config())?;
    let failed = |source| StoreError::System { what: "start a process".into(), source };
    let fork = |f: &mut dyn FnMut() -> Result<u8>| {
        codchi_sys::process::fork(|| match f() {
            Ok(code) => code.into(),
            Err(e) => {
                say(&format!("error: {e}"));
                1
            }
        })
        .map_err(failed)
    };
    let server = fork(&mut || {
        let mut ready = || {
            let _ = codchi_fs::write(dir.join("ready"), "");
        };
        endpoint.run(&mut ready).map(|()| 0).map_err(StoreError::Usage)
    })?;
    while !dir.join("ready").exists() && matches!(server.try_wait(), Ok(None)) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    codchi_fs::remove_if_exists(dir.join("ready"))?;
    let leader = fork(&mut || {
        codchi_runtime::outer::become_role(&outer, codchi_runtime::outer::Role::Maintainer)?;
        codchi_sys::process::unshare(codchi_sys::process::Namespaces::MOUNT).map_err(failed)?;
        let pid = rustix::process::getpid().as_raw_nonzero();
        let mut c = Command::new("bash");
        c.env("RUN", &dir).env("PID", pid.to_string());
        use std::os::unix::process::CommandExt;
        Err(failed(c.exec()))
    })?;
    let end = leader.wait().map_err(failed)?;
    let _ = server.signal(15);
    let _ = server.wait();
    Ok(end.shell_status())
}
