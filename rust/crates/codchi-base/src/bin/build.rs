//! Builder of the base's derivations: `codchi-base-build ACTION`, request in the structured attributes.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let action = std::env::args().nth(1).unwrap_or_default();
    match codchi_base::build::run(&action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e}");
            ExitCode::FAILURE
        }
    }
}
