//! What a machine of the base runs as `init`, `activate` and `bin/switch-to-configuration`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    codchi_base::machine::main(&args)
}
