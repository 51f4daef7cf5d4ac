//! Writes files and links: a single file, or a folder of them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use codchi_fs::Context as _;
use serde::Deserialize;

use super::package::link;
use crate::{Error, Result};

/// One entry of a tree.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    /// A file with this content.
    Text {
        /// Content.
        text: String,
        /// Whether it is a program.
        #[serde(default)]
        executable: bool,
    },
    /// A link.
    Link {
        /// Where it leads.
        source: PathBuf,
    },
}

/// Request of `tree`.
#[derive(Deserialize)]
pub struct Request {
    /// By path; the empty path is the output itself.
    files: BTreeMap<String, Entry>,
}

/// Writes a tree.
pub fn run(out: &Path, request: &Request) -> Result<()> {
    if !request.files.contains_key("") {
        codchi_fs::create_dir_all(out)?;
    }
    for (path, entry) in &request.files {
        put(out, path, entry)?;
    }
    Ok(())
}

/// Writes one entry below a folder.
pub fn put(out: &Path, path: &str, entry: &Entry) -> Result<()> {
    if path.split('/').any(|c| c == "..") || path.starts_with('/') {
        return Err(Error::Usage(format!("`{path}` is not a path inside a tree")));
    }
    let to = if path.is_empty() { out.to_owned() } else { out.join(path) };
    if let Some(parent) = to.parent() {
        codchi_fs::create_dir_all(parent)?;
    }
    match entry {
        Entry::Text { text, executable } => {
            codchi_fs::write(&to, text)?;
            if *executable {
                std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).at("change mode of", &to)?;
            }
            Ok(())
        }
        Entry::Link { source } => link(source, &to),
    }
}
