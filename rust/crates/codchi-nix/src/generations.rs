//! Generations of a machine: numbered links to toplevels, each with a record of how it came to be.
//!
//! They live in a folder only the host writes. The links are indirect roots, so what they point to stays.

use std::path::{Path, PathBuf};

use codchi_core::document::parse_json;
use serde::{Deserialize, Serialize};

use crate::{Nix, NixError, Result, StorePath};

/// The schema version of [`Record`].
pub const RECORD_VERSION: u32 = 1;

/// How a generation came to be; enough to make its machine flake again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Schema version.
    pub version: u32,
    /// The toplevel.
    pub toplevel: StorePath,
    /// Its derivation.
    pub drv: Option<StorePath>,
    /// The driver it was made for.
    pub driver: String,
    /// The base, such as `debian`.
    pub base: String,
    /// What the base says it is, such as `Debian 12 (bookworm)`.
    pub base_label: String,
    /// The version of Codchi that made it.
    pub codchi: String,
    /// The version of Nix that built it.
    pub nix: String,
    /// When, in seconds since 1970.
    pub created: u64,
    /// The machine's flake.nix at that time.
    pub flake_nix: String,
    /// The machine's flake.lock at that time.
    pub flake_lock: String,
}

/// One generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number, from 1.
    pub number: u64,
    /// Its record.
    pub record: Record,
    /// Whether it is the one in force.
    pub current: bool,
}

/// The generations of one machine.
#[derive(Clone, Debug)]
pub struct Generations {
    dir: PathBuf,
}

impl Generations {
    /// Those kept in `dir`, which need not exist yet.
    pub fn at(dir: impl Into<PathBuf>) -> Generations {
        Generations { dir: dir.into() }
    }

    /// The link of a generation: an indirect root.
    pub fn link(&self, number: u64) -> PathBuf {
        self.dir.join(number.to_string())
    }

    fn record_file(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number}.json"))
    }

    fn numbers(&self) -> Result<Vec<u64>> {
        let entries = match codchi_fs::read_dir(&self.dir) {
            Ok(e) => e,
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        let mut all: Vec<u64> = entries
            .iter()
            .filter_map(|e| {
                let name = e.file_name();
                let number = name.to_str()?;
                // A number as this program writes it, and a link: anything else is not a generation.
                let n: u64 = number.parse().ok()?;
                (n.to_string() == number && n > 0 && e.file_type().ok()?.is_symlink()).then_some(n)
            })
            .collect();
        all.sort_unstable();
        Ok(all)
    }

    /// All generations, oldest first.
    pub fn list(&self) -> Result<Vec<Generation>> {
        let current = self.current_number()?;
        let read = |n| match self.read(n, current) {
            // Removed since the names were read.
            Err(_) if self.link(n).symlink_metadata().is_err() => None,
            read => Some(read),
        };
        self.numbers()?.into_iter().filter_map(read).collect()
    }

    /// One generation.
    pub fn get(&self, number: u64) -> Result<Generation> {
        let all = self.numbers()?;
        if !all.contains(&number) {
            return Err(NixError::NoGeneration { number, all });
        }
        self.read(number, self.current_number()?)
    }

    fn read(&self, number: u64, current: Option<u64>) -> Result<Generation> {
        let file = self.record_file(number);
        let text = codchi_fs::read_to_string(&file)?;
        let record: Record = parse_json(&file, &text, &[])?;
        Ok(Generation { number, record, current: current == Some(number) })
    }

    /// The number in force.
    pub fn current_number(&self) -> Result<Option<u64>> {
        let link = codchi_fs::read_link_if_exists(self.dir.join("current"))?;
        Ok(link.and_then(|l| l.to_str()?.parse().ok()))
    }

    /// The generation in force.
    pub fn current(&self) -> Result<Option<Generation>> {
        let mut number = self.current_number()?;
        while let Some(n) = number {
            match self.get(n) {
                Ok(current) => return Ok(Some(current)),
                Err(e) => {
                    // Another may be in force by now, or none.
                    let now = self.current_number()?;
                    if now == number {
                        return Err(e);
                    }
                    number = now;
                }
            }
        }
        Ok(None)
    }

    /// The newest one before that in force: where a rollback goes.
    pub fn previous(&self) -> Result<Option<Generation>> {
        let Some(current) = self.current_number()? else { return Ok(None) };
        self.numbers()?.into_iter().rfind(|n| *n < current).map(|n| self.get(n)).transpose()
    }

    /// The folder with roots of what a generation's flake.lock refers to.
    pub fn inputs(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number}.inputs"))
    }

    /// Adds a generation, rooted with the store paths that its lock refers to, without putting it in force. The record is written
    /// first: a link without a record is never seen, and a record without a link is overwritten by the next.
    pub fn add(&self, nix: &Nix, record: &Record, inputs: &[StorePath]) -> Result<u64> {
        codchi_fs::create_private_dir(&self.dir)?;
        let number = self.numbers()?.last().copied().unwrap_or(0) + 1;
        let text = serde_json::to_string_pretty(record).map_err(|e| NixError::Answer {
            what: "the generation's record".into(),
            reason: e.to_string(),
        })?;
        codchi_fs::write_atomic(self.record_file(number), text, 0o600)?;
        let folder = self.inputs(number);
        codchi_fs::remove_dir_all(&folder)?;
        codchi_fs::create_private_dir(&folder)?;
        let mut roots: Vec<_> =
            inputs.iter().map(|path| (folder.join(path.base_name()), path.clone())).collect();
        roots.push((self.link(number), record.toplevel.clone()));
        nix.add_roots(&roots)?;
        Ok(number)
    }

    /// Puts a generation in force, in one step.
    pub fn set_current(&self, number: u64) -> Result<()> {
        self.get(number)?;
        codchi_fs::symlink_atomic(Path::new(&number.to_string()), self.dir.join("current"))?;
        Ok(())
    }

    /// Removes a generation; the store drops it at the next collection. That in force is refused by the caller's plan.
    pub fn remove(&self, number: u64) -> Result<()> {
        codchi_fs::remove_dir_all(self.inputs(number))?;
        codchi_fs::remove_if_exists(self.link(number))?;
        codchi_fs::remove_if_exists(self.record_file(number))?;
        Ok(())
    }

    /// Removes all of it. What says which is in force goes first: whoever reads meanwhile finds none.
    pub fn remove_all(&self) -> Result<()> {
        codchi_fs::remove_if_exists(self.dir.join("current"))?;
        Ok(codchi_fs::remove_dir_all(&self.dir)?)
    }
}

#[cfg(test)]
mod tests {
    use codchi_core::document::DocumentError;

    use super::*;

    fn record(n: u64) -> Record {
        Record {
            version: RECORD_VERSION,
            toplevel: format!("/nix/store/{}-top", "0".repeat(32)).parse().unwrap(),
            drv: None,
            driver: "native".into(),
            base: "debian".into(),
            base_label: "Debian 12 (bookworm)".into(),
            codchi: "0.1.0".into(),
            nix: "2.26.3".into(),
            created: n,
            flake_nix: "{ }".into(),
            flake_lock: "{}".into(),
        }
    }

    fn put(g: &Generations, n: u64) {
        let r = record(n);
        codchi_fs::write(g.record_file(n), serde_json::to_string(&r).unwrap()).unwrap();
        codchi_fs::symlink_atomic(r.toplevel.as_path(), g.link(n)).unwrap();
    }

    #[test]
    fn a_rollback_goes_to_the_newest_before_the_current() {
        let dir = tempfile::tempdir().unwrap();
        let g = Generations::at(dir.path());
        assert_eq!((g.list().unwrap().len(), g.current().unwrap(), g.previous().unwrap()), (0, None, None));
        for n in [1, 2, 10] {
            put(&g, n);
        }
        g.set_current(10).unwrap();
        assert_eq!(g.previous().unwrap().unwrap().number, 2);
        assert_eq!(
            g.list().unwrap().iter().map(|x| (x.number, x.current)).collect::<Vec<_>>(),
            [(1, false), (2, false), (10, true)]
        );
        g.set_current(1).unwrap();
        assert_eq!(g.previous().unwrap(), None);
        assert!(matches!(g.set_current(7), Err(NixError::NoGeneration { number: 7, .. })));
        g.remove(2).unwrap();
        assert!(matches!(g.get(2), Err(NixError::NoGeneration { number: 2, .. })));
    }

    #[test]
    fn a_record_that_does_not_parse_names_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let g = Generations::at(dir.path());
        put(&g, 1);
        codchi_fs::write(g.record_file(1), "{\n \"version\": 1,\n oops }").unwrap();
        let Err(NixError::Document(DocumentError::Syntax { file, line, .. })) = g.list() else {
            panic!("it was read")
        };
        assert!(file.ends_with("1.json") && line == 3);
    }

    #[test]
    fn a_record_of_a_later_version_is_not_taken_for_one_of_this() {
        let dir = tempfile::tempdir().unwrap();
        let g = Generations::at(dir.path());
        put(&g, 1);
        let text = codchi_fs::read_to_string(g.record_file(1)).unwrap();
        codchi_fs::write(g.record_file(1), text.replace("\"version\":1", "\"version\":2")).unwrap();
        let Err(NixError::Document(DocumentError::Newer { found, .. })) = g.list() else {
            panic!("it was read")
        };
        assert_eq!(found, 2);
    }
}
