//! The bundle of trusted certificates.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Result;

/// Request of `certificates`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Debian's certificates, one `.crt` each, in folders.
    folder: PathBuf,
    /// Names of such files, without suffix, that are left out.
    left_out: Vec<String>,
    /// Further files.
    files: Vec<PathBuf>,
    /// Further certificates.
    texts: Vec<String>,
}

/// Writes the bundle.
pub fn run(out: &Path, request: &Request) -> Result<()> {
    let mut bundle = String::new();
    collect(&request.folder, &request.left_out, &mut bundle)?;
    for file in &request.files {
        add(&mut bundle, &codchi_fs::read_to_string(file)?);
    }
    for text in &request.texts {
        add(&mut bundle, text);
    }
    codchi_fs::write(out, bundle)?;
    Ok(())
}

fn collect(folder: &Path, left_out: &[String], bundle: &mut String) -> Result<()> {
    for e in codchi_fs::read_dir(folder)? {
        let path = e.path();
        if path.is_dir() {
            collect(&path, left_out, bundle)?;
        } else if path.extension().is_some_and(|x| x == "crt")
            && !path.file_stem().and_then(|n| n.to_str()).is_some_and(|n| left_out.iter().any(|l| l == n))
        {
            add(bundle, &codchi_fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn add(bundle: &mut String, text: &str) {
    bundle.push_str(text.trim_end());
    bundle.push('\n');
}
