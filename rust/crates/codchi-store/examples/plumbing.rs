//! The plumbing verbs of the store alone, for its tests.

fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next().unwrap_or_default();
    std::process::ExitCode::from(match verb.to_str() {
        Some("shell") => codchi_store::shell::main(args),
        Some("serve") => codchi_store::endpoint::main(args),
        _ => 2,
    })
}
