//! Builds the static programs and packs the Nix sources that the library embeds.
//!
//! The programs are linked statically (`crt-static`), which must not reach proc-macros: with an explicit `--target`, RUSTFLAGS
//! apply to the target only. They get a target directory of their own, so that this build and the one that runs it do not wait
//! for each other. `CODCHI_EMBED=none` embeds nothing, for a quick type check.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

/// Crates with static programs, and the programs.
const PROGRAMS: [(&str, &[&str]); 3] = [
    ("codchi-boot", &["codchi-boot"]),
    ("codchi-agent", &["codchi-agent"]),
    ("codchi-base", &["codchi-base-build", "codchi-base-init"]),
];
/// Workspace crates that those are made of.
const PARTS: [&str; 4] = ["codchi-core", "codchi-fs", "codchi-sys", "codchi-debian"];
/// What of the repository a machine's evaluation reads.
const SOURCES: [&str; 6] = ["flake.nix", "flake.lock", "lib", "modules", "drivers", "docs/templates"];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn var(name: &str) -> Result<String> {
    env::var(name).map_err(|e| format!("{name}: {e}").into())
}

fn main() -> Result<()> {
    let out = PathBuf::from(var("OUT_DIR")?);
    let workspace = Path::new(&var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    let repository = workspace.parent().ok_or("the workspace has no parent folder")?.to_path_buf();

    println!("cargo::rerun-if-env-changed=CODCHI_EMBED");
    println!("cargo::rerun-if-changed=build.rs");
    let programs = PROGRAMS.iter().map(|(krate, _)| *krate);
    for krate in programs.chain(PARTS) {
        watch(&workspace.join("crates").join(krate).join("src"));
        watch(&workspace.join("crates").join(krate).join("Cargo.toml"));
    }
    watch(&workspace.join("Cargo.toml"));
    watch(&workspace.join("Cargo.lock"));
    for source in SOURCES {
        watch(&repository.join(source));
    }

    let sources = pack(&repository, &out.join("sources.tar"))?;
    let mut machine = Sha256::new();
    let wanted = env::var("CODCHI_EMBED").as_deref() != Ok("none");
    let built = if wanted { build(&workspace, &out)? } else { PathBuf::new() };
    for (krate, program) in PROGRAMS.iter().flat_map(|(k, p)| p.iter().map(move |p| (*k, *p))) {
        let bytes = if wanted && is_declared(&workspace, krate, program) {
            fs::read(built.join(program)).map_err(|e| format!("{program}: {e}"))?
        } else {
            Vec::new()
        };
        if krate != "codchi-base" {
            machine.update((bytes.len() as u64).to_le_bytes());
            machine.update(&bytes);
        }
        replace(&out.join(program), &bytes)?;
    }
    replace(&out.join("sources.hash"), hex(Sha256::digest(sources)).as_bytes())?;
    replace(&out.join("programs.hash"), hex(machine.finalize()).as_bytes())
}

/// Only a changed file makes the library new.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        fs::write(path, bytes)?;
    }
    Ok(())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// A path that is not there would make cargo run this each time.
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// Whether a crate has that program.
fn is_declared(workspace: &Path, krate: &str, program: &str) -> bool {
    let manifest = workspace.join("crates").join(krate).join("Cargo.toml");
    krate == program
        || fs::read_to_string(manifest).is_ok_and(|m| m.contains(&format!("name = \"{program}\"")))
}

fn build(workspace: &Path, out: &Path) -> Result<PathBuf> {
    let triple = var("TARGET")?;
    // OUT_DIR is TARGET_DIR[/TRIPLE]/PROFILE/build/codchi-embed-HASH/out.
    let target = out.ancestors().nth(4).ok_or("OUT_DIR is too short")?.join("static-programs");
    let run = |offline: bool| -> Result<bool> {
        let mut cargo = Command::new(var("CARGO")?);
        cargo.current_dir(workspace).args(["build", "--profile", "static", "--target", &triple]);
        cargo.arg("--manifest-path").arg(workspace.join("Cargo.toml"));
        if offline {
            // What the build that runs this needed is on the disk; no index needs to be asked again.
            cargo.arg("--offline").stderr(Stdio::null());
        }
        for (krate, programs) in PROGRAMS {
            cargo.args(["-p", krate]);
            for program in programs.iter().filter(|p| is_declared(workspace, krate, p)) {
                cargo.args(["--bin", program]);
            }
        }
        for name in
            ["CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS"]
        {
            cargo.env_remove(name);
        }
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_FEATURE_")
                || name.starts_with("CARGO_CFG_")
                || name.starts_with("CARGO_PROFILE_")
            {
                cargo.env_remove(name);
            }
        }
        cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static").env("CARGO_TARGET_DIR", &target);
        Ok(cargo.stdin(Stdio::null()).stdout(Stdio::null()).status()?.success())
    };
    if run(true)? || run(false)? {
        Ok(target.join(triple).join("static"))
    } else {
        Err("the static programs do not build".into())
    }
}

/// The same sources give the same bytes: sorted, without times and owners.
fn pack(repository: &Path, to: &Path) -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    for source in SOURCES {
        collect(repository, Path::new(source), &mut files)?;
    }
    let mut archive = tar::Builder::new(Vec::new());
    for (path, (mode, bytes)) in files {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_mtime(1);
        archive.append_data(&mut header, path, bytes.as_slice())?;
    }
    let bytes = archive.into_inner()?;
    replace(to, &bytes)?;
    Ok(bytes)
}

fn collect(repository: &Path, path: &Path, files: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let full = repository.join(path);
    let Ok(meta) = fs::symlink_metadata(&full) else { return Ok(()) };
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // Build results, and editors' leavings.
    if name.starts_with('.') || name == "result" || name.starts_with("result-") || name.ends_with('~') {
        return Ok(());
    }
    if meta.is_dir() {
        for entry in fs::read_dir(&full)? {
            collect(repository, &path.join(entry?.file_name()), files)?;
        }
    } else if meta.is_file() {
        let mode = if meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        files.insert(path.into(), (mode, fs::read(&full)?));
    }
    Ok(())
}
