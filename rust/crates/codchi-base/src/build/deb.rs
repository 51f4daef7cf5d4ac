//! Unpacks a `.deb` into a store path: merged `/usr`, no documentation, no references.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use codchi_debian::unpack;
use serde::Deserialize;

use super::{DebInfo, INFO, alternatives};
use crate::{Error, Result};

/// Request of `unpack`.
#[derive(Deserialize)]
pub struct Request {
    src: PathBuf,
}

/// Fields of the control file that later steps look at.
const FIELDS: [&str; 6] = ["Depends", "Pre-Depends", "Provides", "Conflicts", "Breaks", "Essential"];

/// Unpacks one package.
pub fn run(out: &Path, request: &Request) -> Result<()> {
    let unpacked = unpack::extract(&request.src, out, &unpack::Options::default())?;
    let control = &unpacked.control;
    let field = |name: &str| control.field(name).unwrap_or_default().to_owned();
    let name = field("Package");
    let source = field("Source").split(' ').next().filter(|s| !s.is_empty()).unwrap_or(&name).to_owned();
    let info = DebInfo {
        version: field("Version"),
        source,
        size: unpacked.bytes,
        control: FIELDS
            .iter()
            .filter_map(|f| control.field(f).map(|v| ((*f).to_owned(), v.to_owned())))
            .collect::<BTreeMap<_, _>>(),
        alternatives: control
            .members
            .get("postinst")
            .map(|s| alternatives::parse(&String::from_utf8_lossy(s)))
            .unwrap_or_default(),
        var: unpacked
            .state
            .into_iter()
            .map(|d| (format!("/{}", d.path.display()), format!("{:04o}", d.mode), d.user, d.group))
            .collect(),
        name,
    };
    let text = serde_json::to_vec(&info).map_err(|source| Error::Parse { path: INFO.into(), source })?;
    codchi_fs::create_dir_all(out.join("nix-support"))?;
    codchi_fs::create_dir_all(out.join("usr"))?;
    codchi_fs::write(out.join(INFO), text)?;
    Ok(())
}
