//! Measures every figure Codchi promises, each beside its peer or floor in the same run. See bench/README.md.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod figures;
mod host;
mod incus;
mod life;
mod measure;
mod peers;
mod qemu;
mod secrets;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use measure::Figure;

/// Why a figure could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] codchi_fs::FsError),
    /// A program could not be started.
    #[error("cannot run `{program}`: {source}")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed with {status}: {said}")]
    Failed {
        /// The whole command.
        command: String,
        /// Its status.
        status: String,
        /// The end of its standard error.
        said: String,
    },
    /// Something is not as it must be to measure.
    #[error("{0}")]
    Not(String),
}

/// What is asked for.
struct Wanted {
    program: PathBuf,
    runs: usize,
    json: bool,
    tree: Option<PathBuf>,
    names: Vec<String>,
}

fn arguments() -> Result<Wanted, Error> {
    let own = std::env::current_exe().map_err(|source| Error::Run {
        program: "this program".into(),
        source,
    })?;
    let mut wanted = Wanted {
        program: own.with_file_name("codchi"),
        runs: 100,
        json: false,
        tree: None,
        names: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .ok_or_else(|| Error::Not(format!("`{arg}` needs a value")))
        };
        match arg.as_str() {
            "--codchi" => wanted.program = value()?.into(),
            "--runs" => {
                wanted.runs = value()?
                    .parse()
                    .map_err(|_| Error::Not("`--runs` needs a number".into()))?;
            }
            "--tree" => wanted.tree = Some(value()?.into()),
            "--json" => wanted.json = true,
            name if figures::NAMES.contains(&name) => wanted.names.push(arg),
            other => {
                let names = figures::NAMES.join(" ");
                return Err(Error::Not(format!(
                    "unknown benchmark `{other}`; there are: {names}"
                )));
            }
        }
    }
    if wanted.names.is_empty() {
        let all = figures::NAMES
            .iter()
            .filter(|n| **n != "tree" || wanted.tree.is_some());
        wanted.names = all.map(|n| n.to_string()).collect();
    }
    Ok(wanted)
}

fn run() -> Result<bool, Error> {
    let wanted = arguments()?;
    let mut host = host::Host::new(&wanted.program, wanted.tree.clone())?;
    let mut all: Vec<Figure> = Vec::new();
    let mut good = true;
    // In the order of the list: the cold start comes first, and its machine serves the others.
    for name in figures::NAMES
        .iter()
        .filter(|n| wanted.names.iter().any(|w| w == *n))
    {
        eprintln!("measuring {name} ...");
        match figures::measure(name, &mut host, wanted.runs) {
            Ok(figures) => {
                for figure in figures {
                    good &= figure.holds() != Some(false);
                    if !wanted.json {
                        println!("{}", figure.line());
                    }
                    all.push(figure);
                }
            }
            Err(e) => {
                good = false;
                eprintln!("{name}: not measured: {e}");
            }
        }
    }
    if wanted.json {
        let list: Vec<_> = all.iter().map(Figure::json).collect();
        println!("{}", serde_json::json!({ "version": 1, "figures": list }));
    }
    Ok(good)
}

/// Engines know pure cgroup2 hosts. Where v1 is beside it, all of this runs with cgroup2 alone in sight, as on a host of today.
fn enter_cgroup2() -> Result<(), Error> {
    const INSIDE: &str = "CODCHI_BENCH_INSIDE";
    if std::env::var_os(INSIDE).is_some()
        || !std::path::Path::new("/sys/fs/cgroup/unified").exists()
    {
        return Ok(());
    }
    let own = std::env::current_exe().map_err(|source| Error::Run {
        program: "this program".into(),
        source,
    })?;
    let script = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$0\" \"$@\"";
    let source = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "sh", "-c", script])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(Error::Run {
        program: "unshare".into(),
        source,
    })
}

fn main() -> ExitCode {
    match enter_cgroup2().and_then(|()| run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("codchi-bench: {e}");
            ExitCode::from(2)
        }
    }
}
