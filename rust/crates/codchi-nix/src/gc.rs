//! What a store holds and why, and giving free what nothing holds.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use codchi_core::progress::{Event, Progress};

use crate::closure::{Member, members};
use crate::{Nix, NixError, Result, StorePath, Version};

/// Something that keeps a path, and all that it needs, from collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The link, or in braces what else there is: a running program.
    pub holder: String,
    /// What it holds.
    pub path: StorePath,
}

impl Nix {
    /// All roots of the store, those of running programs too. `collector` is `nix-store --gc`, as the store has it run.
    pub fn roots(&self, collector: Command) -> Result<Vec<Root>> {
        let said = self.collector(collector, &["--print-roots"], "reading the store's roots")?;
        Ok(said.lines().filter_map(root).collect())
    }

    /// The paths that nothing holds now.
    pub fn dead(&self, collector: Command) -> Result<Vec<StorePath>> {
        let said = self.collector(collector, &["--print-dead"], "looking for what nothing holds")?;
        // Files that are no store paths, left by what was cut short, have no size that is known.
        Ok(said.lines().filter_map(|l| l.parse().ok()).collect())
    }

    fn collector(&self, mut collector: Command, words: &[&str], what: &str) -> Result<String> {
        collector.args(words).stdin(Stdio::null());
        self.run(collector, what)
    }

    /// All paths that these need at run time, themselves included. What is not in the store is left out.
    pub fn closures(&self, paths: &BTreeSet<StorePath>) -> Result<Vec<Member>> {
        self.info(paths, true)
    }

    /// The sizes of these paths. What is not in the store is left out.
    pub fn sizes(&self, paths: &BTreeSet<StorePath>) -> Result<Vec<Member>> {
        self.info(paths, false)
    }

    fn info(&self, paths: &BTreeSet<StorePath>, recursive: bool) -> Result<Vec<Member>> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let all: Vec<StorePath> = paths.iter().cloned().collect();
        let gone: BTreeSet<StorePath> = self.invalid(&all)?.into_iter().collect();
        let mut c = self.command(&["path-info", "--json", "--stdin"]);
        if recursive {
            c.arg("--recursive");
        }
        if self.version() >= (Version { major: 2, minor: 33, patch: 0 }) {
            c.args(["--json-format", "1"]);
        }
        let spawn = |source| NixError::Spawn { program: "nix".into(), source };
        let mut child =
            c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(spawn)?;
        let mut stdin = child.stdin.take();
        let done = std::thread::scope(|scope| {
            scope.spawn(move || {
                for path in paths.difference(&gone) {
                    // One that does not read on says why when it ends.
                    if stdin.as_mut().is_none_or(|to| writeln!(to, "{path}").is_err()) {
                        break;
                    }
                }
            });
            child.wait_with_output()
        })
        .map_err(spawn)?;
        if !done.status.success() {
            return Err(self.failure("reading a closure", &String::from_utf8_lossy(&done.stderr)));
        }
        members(&String::from_utf8_lossy(&done.stdout))
    }

    /// Gives free what nothing holds.
    pub fn collect_garbage(&self, collector: Command, progress: &dyn Progress) -> Result<()> {
        progress.report(Event::Phase("collecting garbage"));
        self.collector(collector, &[], "collecting garbage").map(drop)
    }
}

/// `LINK -> PATH`; a running program is `{temp:PID}` or a path below /proc.
fn root(line: &str) -> Option<Root> {
    let (holder, path) = line.rsplit_once(" -> ")?;
    Some(Root { holder: holder.into(), path: StorePath::containing(path)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_read_with_who_holds_them() {
        let path = format!("/nix/store/{}-x", "0".repeat(32));
        let of = |line: &str| root(line).map(|r| (r.holder, r.path.to_string()));
        assert_eq!(of(&format!("/home/a -> b/1 -> {path}")), Some(("/home/a -> b/1".into(), path.clone())));
        assert_eq!(of(&format!("{{censored}} -> {path}")), Some(("{censored}".into(), path)));
        assert_eq!(of("finding garbage collector roots..."), None);
    }
}
