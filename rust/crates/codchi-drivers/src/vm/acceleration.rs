//! Whether this host's processor runs virtual machines. That `/dev/kvm` is there says little, so it is tried; what came of it is
//! remembered for this boot of the host, this QEMU and this kernel.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use codchi_core::status::{Finding, Level};
use codchi_fs::{Lock, LockError};
use codchi_runtime::{Error, Result, outer};
use codchi_sys::process::End;
use serde::{Deserialize, Serialize};

use super::probe;

/// Where that is kept, in the runtime directory of Codchi.
const FILE: &str = "kvm.json";
/// Locked by whoever makes a trial.
const LOCK: &str = "kvm.lock";

/// What came of a trial, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A kernel got to its first program.
    Works,
    /// It was given up: there was no end to be seen.
    Late,
    /// The kernel gave up, or QEMU said that it cannot go on.
    Fails,
}

impl Outcome {
    /// Why a processor is emulated, where it is.
    pub fn why(self) -> Option<&'static str> {
        match self {
            Outcome::Works => None,
            Outcome::Late => Some("with `/dev/kvm` its kernel did not get going in time"),
            Outcome::Fails => Some("its kernel does not run with `/dev/kvm`"),
        }
    }

    /// Of a trial in which QEMU ended by itself; none where that says nothing of the next trial.
    pub fn of_end(end: End, console: &[String]) -> Option<Outcome> {
        let says = |words: &[&str]| console.iter().any(|l| words.iter().any(|w| l.contains(w)));
        let passing = says(&["Cannot allocate memory", "busy", "Permission denied", "terminating on signal"]);
        // A kernel that gives up is no error of QEMU's, which names what it cannot use.
        let told = end == End::Code(0) || (end == End::Code(1) && says(&["kvm", "KVM"]));
        (told && !passing).then_some(Outcome::Fails)
    }
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

    /// The one that went worst.
    fn worst(&self) -> Option<Trial> {
        self.read().ok()?.into_iter().max_by_key(|t| t.outcome)
    }

    /// No other trial is made until this is dropped.
    pub fn lock(&self) -> Result<Lock> {
        let who = format!("process {}", std::process::id());
        Lock::take(self.file.with_file_name(LOCK), &who).map_err(|e| match e {
            LockError::File(e) => e.into(),
            held => Error::Told(held.to_string()),
        })
    }

    /// Remembers what came of it. Once it worked, it was the host that was busy.
    pub fn remember(&self, kernel: &Path, outcome: Outcome) -> Result<()> {
        let mut all = self.read()?;
        let worked = all.iter().any(|t| t.kernel == kernel && t.outcome == Outcome::Works);
        if worked && outcome == Outcome::Late {
            return Ok(());
        }
        all.retain(|t| t.kernel != kernel);
        let (boot, qemu) = (self.boot.clone(), self.qemu.clone());
        all.push(Trial { boot, qemu, kernel: kernel.into(), outcome });
        let text = serde_json::to_string_pretty(&all).unwrap_or_default();
        Ok(codchi_fs::write_atomic(&self.file, text, 0o600)?)
    }
}

const SLOW: &str = "the processor of virtual machines is emulated, and slow";

/// What keeps virtual machines from using it.
pub struct Obstacle {
    /// What it is.
    pub why: String,
    /// What mends it.
    pub fix: Option<String>,
}

/// What is to be seen without a trial. QEMU is none of the caller's groups: without root, `/dev/kvm` has to be open to all.
pub fn obstacle() -> Option<Obstacle> {
    let Ok(about) = std::fs::metadata("/dev/kvm") else {
        return Some(Obstacle { why: "there is no `/dev/kvm`".into(), fix: None });
    };
    let writable = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    if !outer::is_privileged() {
        closed(about.mode())
    } else if rustix::fs::access("/dev/kvm", writable).is_err() {
        Some(Obstacle { why: "`/dev/kvm` is not open to you".into(), fix: None })
    } else {
        None
    }
}

fn closed(mode: u32) -> Option<Obstacle> {
    (mode & 0o006 != 0o006).then(|| Obstacle {
        why: format!("`/dev/kvm` is not open to all users (mode {:04o}), as it must be without root", mode & 0o7777),
        fix: Some(
            "`sudo chmod o+rw /dev/kvm`; for good: `echo 'KERNEL==\"kvm\", MODE=\"0666\"' | sudo tee /etc/udev/rules.d/99-kvm.rules`"
                .into(),
        ),
    })
}

/// What doctor says of it.
pub fn finding(runtime: &Path) -> Finding {
    let told = |level, detail: String, fix| Finding { what: "KVM".into(), level, detail, fix };
    if let Some(o) = obstacle() {
        return told(Level::Degraded, format!("{}: {SLOW}", o.why), o.fix);
    }
    let trials = probe::program().and_then(|qemu| Trials::of(runtime, &qemu).ok());
    let worst = trials.as_ref().and_then(|t| Some((t, t.worst()?)));
    let Some((trials, worst)) = worst else {
        let detail = "`/dev/kvm` is there; the first start of a virtual machine finds out whether it works";
        return told(Level::Good, detail.into(), None);
    };
    match worst.outcome.why() {
        None => told(Level::Good, "a virtual machine was started with `/dev/kvm`".into(), None),
        Some(why) => told(
            Level::Degraded,
            format!("of the kernel `{}`: {why}: {SLOW}", worst.kernel.display()),
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

        trials.remember(two, Outcome::Late).unwrap();
        assert_eq!(trials.known(two).unwrap(), Some(Outcome::Works));
        assert_eq!(trials.worst().unwrap().kernel, one);
        trials.remember(two, Outcome::Fails).unwrap();
        assert_eq!(trials.worst().unwrap().kernel, two);

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

    #[test]
    fn only_what_qemu_or_the_kernel_says_is_told_of_an_end() {
        let of = |end, line: &str| Outcome::of_end(end, &[line.to_owned()]);
        let fails = Some(Outcome::Fails);
        assert_eq!(of(End::Code(0), "Kernel panic - not syncing"), fails);
        assert_eq!(of(End::Code(1), "qemu: failed to initialize kvm: Invalid argument"), fails);
        for passing in ["Device or resource busy", "Cannot allocate memory", "Permission denied"] {
            assert_eq!(of(End::Code(1), &format!("qemu: failed to initialize kvm: {passing}")), None);
        }
        assert_eq!(of(End::Code(0), "qemu: terminating on signal 15"), None);
        assert_eq!(of(End::Code(1), "qemu: cannot open a file"), None);
        assert_eq!(of(End::Code(127), "cannot run `kvm`"), None);
        assert_eq!(of(End::Signal(9), "kvm"), None);
    }

    #[test]
    fn without_root_it_has_to_be_open_to_all() {
        assert!(closed(0o020_666).is_none());
        let o = closed(0o020_660).unwrap();
        assert!(o.why.contains("mode 0660") && o.fix.is_some());
        assert!(closed(0o020_664).is_some());
    }
}
