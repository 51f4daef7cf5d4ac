//! Activation scripts of modules: one bash for all that stand together.

use std::path::Path;
use std::process::Command;

use codchi_fs::Context as _;

use super::{RUN, Step, System, activate::Action};
use crate::Result;

/// Runs scripts in order; false when one failed. A failed one does not keep the others from running.
pub fn run(system: &System, steps: &[&Step], action: Action) -> Result<bool> {
    if steps.is_empty() {
        return Ok(true);
    }
    let mut text = format!(
        "systemConfig={}\nexport PATH=$systemConfig/sw/bin:/usr/bin HOME=/root\numask 0022\n_status=0\ntrap '_localstatus=$?; _status=1' ERR\n",
        system.path.display()
    );
    for step in steps {
        text.push_str(&format!(
            "#### {name}\n_localstatus=0\n{script}\nif [ \"$_localstatus\" -gt 0 ]; then echo \"activation script \\`{name}' failed ($_localstatus)\" >&2; fi\n",
            name = step.name,
            script = step.text
        ));
    }
    text.push_str("exit $_status\n");
    codchi_fs::create_dir_all(RUN)?;
    let file = Path::new(RUN).join("activate.sh");
    codchi_fs::write(&file, text)?;
    let status = Command::new("/usr/bin/bash")
        .arg(&file)
        .env("NIXOS_ACTION", action.name())
        .current_dir("/")
        .status()
        .at("run", "/usr/bin/bash")?;
    Ok(status.success())
}
