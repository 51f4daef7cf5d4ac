//! Hand test: `hand bootstrap DEBDIR`, `hand run [--as-root] PROGRAM ARGS`, `hand shell|serve`.
use codchi_core::{dirs::Dirs, settings::Settings, progress::Silent};
use codchi_store::*;
use codchi_nix::Role;
fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next().unwrap_or_default();
    let uid = rustix::process::getuid().as_raw();
    let dirs = Dirs::from_env(&|n| std::env::var_os(n), uid).unwrap();
    let mut s = Settings::default(); s.store.kind = codchi_core::settings::StoreKind::Own;
    s.store.nix_conf = Some("substituters =".into());
    let mut place = Place::new(&dirs, &s);
    place.plumbing = vec!["/proc/self/exe".into()];
    let code = match verb.to_str().unwrap() {
        "shell" => shell::main(args),
        "serve" => endpoint::main(args),
        "bootstrap" => {
            let t = std::time::Instant::now();
            if args.len() == 0 { place.bootstrap(&P).unwrap(); eprintln!("{:?}", t.elapsed()); return Default::default(); }
            let debs: Vec<_> = std::fs::read_dir(args.next().unwrap()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "deb")).collect();
            bootstrap::from_packages(&place, &debs, &Silent).unwrap();
            eprintln!("{:?}", t.elapsed());
            0
        }
        "run" => {
            let mut role = Role::Caller;
            let mut p = args.next().unwrap();
            if p == "--as-root" { role = Role::Maintainer; p = args.next().unwrap(); }
            let store = place.open().unwrap().unwrap();
            use codchi_nix::Launch;
            store.command(p.to_str().unwrap(), role).args(args).status().unwrap().code().unwrap_or(99) as u8
        }
        _ => 2,
    };
    std::process::ExitCode::from(code)
}

struct P;
impl codchi_core::progress::Progress for P { fn report(&self, e: codchi_core::progress::Event<'_>) { eprintln!("{e:?}") } }
