//! Whether this host's processor runs virtual machines. That `/dev/kvm` is there says little, so it is tried; what came of it is
//! remembered for this boot of the host, this QEMU and this kernel.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use codchi_core::status::{Finding, Level};
use codchi_runtime::Result;
use serde::{Deserialize, Serialize};

use super::probe;

/// Where that is kept, in the runtime directory of Codchi.
const FILE: &str = "kvm.json";

/// What came of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A kernel got to its first program.
    Works,
    /// QEMU ended before, or said that it cannot go on.
    Fails,
    /// It was given up: there was no end to be seen.
    Late,
}

/// A trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trial {
    /// The boot of the host.
    boot: String,
    /// The program: its path, and what changes with it.
    qemu: String,
    /// The kernel's image.
    kernel: PathBuf,
    outcome: Outcome,
}

/// What trials are good for.
#[derive(Clone, Debug)]
pub struct Trials {
    file: PathBuf,
    boot: String,
    qemu: String,
}

impl Trials {
    /// Those with this program; `runtime` is the runtime directory of Codchi.
    pub fn of(runtime: &Path, qemu: &Path) -> Result<Trials> {
        let boot = codchi_fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let about = std::fs::metadata(qemu);
        let about = about.map(|m| format!("{} {} {}", m.ino(), m.size(), m.mtime())).unwrap_or_default();
        let qemu = format!("{} {about}", qemu.display());
        Ok(Trials { file: runtime.join(FILE), boot, qemu })
    }

    /// What does not parse is as good as nothing: it is tried again.
    fn read(&self) -> Result<Vec<Trial>> {
        let text = codchi_fs::read_if_exists(&self.file)?.unwrap_or_default();
        let mut all: Vec<Trial> = serde_json::from_str(&text).unwrap_or_default();
        all.retain(|t| t.boot == self.boot && t.qemu == self.qemu);
        Ok(all)
    }

    /// What came of the trial with a kernel.
    pub fn known(&self, kernel: &Path) -> Result<Option<Outcome>> {
        Ok(self.read()?.iter().find(|t| t.kernel == kernel).map(|t| t.outcome))
    }

    /// Remembers what came of it.
    pub fn remember(&self, kernel: &Path, outcome: Outcome) -> Result<()> {
        let mut all = self.read()?;
        all.retain(|t| t.kernel != kernel);
        let (boot, qemu) = (self.boot.clone(), self.qemu.clone());
        all.push(Trial { boot, qemu, kernel: kernel.into(), outcome });
        let text = serde_json::to_string_pretty(&all).unwrap_or_default();
        Ok(codchi_fs::write_atomic(&self.file, text, 0o600)?)
    }
}

const SLOW: &str = "the processor of virtual machines is emulated, and slow";

/// Whether this process may use it.
pub fn is_open() -> bool {
    use rustix::fs::{Access, access};
    access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_ok()
}

/// What doctor says of it.
pub fn finding(runtime: &Path) -> Finding {
    let told = |level, detail: String, fix| Finding { what: "KVM".into(), level, detail, fix };
    if !Path::new("/dev/kvm").exists() {
        return told(Level::Degraded, format!("there is no `/dev/kvm`: {SLOW}"), None);
    }
    if !is_open() {
        let detail = format!("`/dev/kvm` is not open to you: {SLOW}");
        return told(Level::Degraded, detail, None);
    }
    let trials = probe::program().and_then(|qemu| Trials::of(runtime, &qemu).ok());
    let last = trials.as_ref().and_then(|t| t.read().ok()?.last().map(|last| (t, last.outcome)));
    match last {
        None => {
            let detail =
                "`/dev/kvm` is there; the first start of a virtual machine finds out whether it works";
            told(Level::Good, detail.into(), None)
        }
        Some((_, Outcome::Works)) => {
            told(Level::Good, "a virtual machine was started with `/dev/kvm`".into(), None)
        }
        Some((_, Outcome::Fails)) => {
            told(Level::Degraded, format!("`/dev/kvm` is there, but no kernel runs with it: {SLOW}"), None)
        }
        Some((trials, Outcome::Late)) => told(
            Level::Degraded,
            format!("with `/dev/kvm` no kernel got going in time: {SLOW}"),
            Some(format!("`rm {}` has the next start try it again", trials.file.display())),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_good_for_one_boot_one_program_and_one_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = dir.path().join("qemu");
        codchi_fs::write(&qemu, "one").unwrap();
        let trials = Trials::of(dir.path(), &qemu).unwrap();
        let (one, two) = (Path::new("/nix/store/one"), Path::new("/nix/store/two"));
        assert_eq!(trials.known(one).unwrap(), None);
        trials.remember(one, Outcome::Late).unwrap();
        trials.remember(two, Outcome::Works).unwrap();
        assert_eq!(trials.known(one).unwrap(), Some(Outcome::Late));
        assert_eq!(trials.known(two).unwrap(), Some(Outcome::Works));

        codchi_fs::write(&qemu, "another").unwrap();
        let another = Trials::of(dir.path(), &qemu).unwrap();
        assert_eq!(another.known(one).unwrap(), None);
        let later = Trials { boot: "later".into(), ..trials.clone() };
        assert_eq!(later.known(one).unwrap(), None);
        // What is no more true is not kept.
        later.remember(one, Outcome::Fails).unwrap();
        assert_eq!(trials.known(two).unwrap(), None);

        codchi_fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(later.known(one).unwrap(), None);
    }
}
