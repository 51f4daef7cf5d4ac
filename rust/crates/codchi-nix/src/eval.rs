//! Evaluating and building, with progress.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use codchi_core::progress::{Event, Progress};
use serde_json::Value;

use crate::log::Parser;
use crate::nix::was_interrupted;
use crate::{Nix, NixError, Result, StorePath, trace};

/// A configuration of a flake that lies in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The flake.
    pub source: StorePath,
    /// The hash of its content, without which a pure evaluation does not read it.
    pub nar_hash: String,
    /// Which of its `nixosConfigurations`.
    pub driver: String,
}

/// An expression that gives `attribute` of each configuration.
fn expression(all: &[Configuration], attribute: &str) -> String {
    let each: Vec<String> = all
        .iter()
        .map(|c| {
            // In a query these three mean something else.
            let hash = c.nar_hash.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
            let reference = format!("path:{}?narHash={hash}", c.source);
            let driver = codchi_core::attr::string(&c.driver);
            let reference = codchi_core::attr::string(&reference);
            format!("(builtins.getFlake {reference}).nixosConfigurations.{driver}.{attribute}")
        })
        .collect();
    format!("[ {} ]", each.join(" "))
}

impl Nix {
    /// Evaluates `installable` (such as `path:DIR#nixosConfigurations.native`) and gives `apply` of it, or itself.
    ///
    /// The flake's lock is used as it is and never written.
    pub fn eval_json(
        &self,
        installable: &str,
        apply: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Value> {
        progress.report(Event::Phase("evaluating"));
        let mut c = self.command(&["eval", "--json", "--no-write-lock-file"]);
        c.args(&self.options().extra);
        if let Some(f) = apply {
            c.args(["--apply", f]);
        }
        c.arg(installable);
        // What the lock calls the sources is how a person knows them; what the caller says comes first.
        let dir =
            installable.strip_prefix("path:").and_then(|r| r.split(['#', '?']).next()).unwrap_or_default();
        let lock = codchi_fs::read_if_exists(Path::new(dir).join("flake.lock")).ok().flatten();
        let mut options = self.options().clone();
        options.labels.extend(crate::lock::labels(&lock.unwrap_or_default()));
        let out = self.with_options(options).run_logged(c, "evaluating", progress)?;
        serde_json::from_str(&out)
            .map_err(|e| NixError::Answer { what: "nix eval".into(), reason: e.to_string() })
    }

    /// Evaluates the same attribute of several configurations by one process, in their order.
    pub fn eval_configurations(
        &self,
        all: &[Configuration],
        attribute: &str,
        progress: &dyn Progress,
    ) -> Result<Vec<Value>> {
        progress.report(Event::Phase("evaluating"));
        let mut c = self.command(&["eval", "--json"]);
        c.args(&self.options().extra);
        c.arg("--expr").arg(expression(all, attribute));
        let out = self.run_logged(c, "evaluating", progress)?;
        serde_json::from_str(&out)
            .map_err(|e| NixError::Answer { what: "nix eval".into(), reason: e.to_string() })
    }

    /// Evaluates an expression that stands alone.
    pub fn eval_expr(&self, expression: &str) -> Result<Value> {
        let mut c = self.command(&["eval", "--json"]);
        c.args(["--expr", expression]);
        let out = self.run(c, "evaluating")?;
        serde_json::from_str(&out)
            .map_err(|e| NixError::Answer { what: "nix eval".into(), reason: e.to_string() })
    }

    /// Builds all outputs of a derivation and gives their paths by name.
    ///
    /// Nothing is rooted: use [`Nix::add_root`] before the result may be collected.
    pub fn build(&self, drv: &StorePath, progress: &dyn Progress) -> Result<BTreeMap<String, StorePath>> {
        progress.report(Event::Phase("building"));
        let mut c = self.command(&["build", "--json", "--no-link"]);
        c.args(&self.options().extra);
        c.arg(format!("{drv}^*"));
        let out = self.run_logged(c, "building", progress)?;
        let odd = |reason: String| NixError::Answer { what: "nix build".into(), reason };
        let v: Value = serde_json::from_str(&out).map_err(|e| odd(e.to_string()))?;
        let outputs = v[0]["outputs"].as_object().ok_or_else(|| odd(format!("no outputs in {out}")))?;
        outputs.iter().map(|(n, p)| Ok((n.clone(), p.as_str().unwrap_or_default().parse()?))).collect()
    }

    /// Builds several derivations by one process, and those that can be built where another fails. Nothing is rooted.
    pub fn build_all(&self, drvs: &[StorePath], progress: &dyn Progress) -> Result<()> {
        progress.report(Event::Phase("building"));
        let mut c = self.command(&["build", "--no-link", "--keep-going"]);
        c.args(&self.options().extra);
        c.args(drvs.iter().map(|drv| format!("{drv}^*")));
        self.run_logged(c, "building", progress).map(drop)
    }

    /// Runs a prepared `nix` command, telling its progress as it goes, and gives its stdout.
    pub(crate) fn run_logged(&self, mut c: Command, what: &str, progress: &dyn Progress) -> Result<String> {
        c.args(["--log-format", "internal-json", "-v"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned = c.spawn();
        let mut child = spawned.map_err(|source| NixError::Spawn { program: "nix".into(), source })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut parser = Parser::new();
        let mut out = Vec::new();
        // Both pipes are drained at once, else a full one would stop Nix.
        std::thread::scope(|scope| {
            scope.spawn(|| stdout.map(|mut s| s.read_to_end(&mut out)));
            if let Some(s) = stderr {
                let mut reader = BufReader::new(s);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    parser.line(String::from_utf8_lossy(&line).trim_end(), progress);
                    line.clear();
                }
            }
        });
        let status = child.wait().map_err(|source| NixError::Spawn { program: "nix".into(), source })?;
        if status.success() {
            return String::from_utf8(out)
                .map_err(|_| NixError::Answer { what: what.into(), reason: "not UTF-8".into() });
        }
        if was_interrupted(status) {
            return Err(NixError::Interrupted);
        }
        if let Some((drv, log)) = parser.failed_build() {
            let message = format!("the build of `{}` failed", crate::log::package_name(drv));
            return Err(NixError::Build { message, drv: Some(drv.into()), log: log.to_vec() });
        }
        let mut text = parser.errors();
        if text.trim().is_empty() {
            text = format!("error: Nix ended with {status} and said nothing");
        }
        if what == "building" {
            let message = trace::shorten(&text, &self.options().labels);
            return Err(NixError::Build { message, drv: None, log: Vec::new() });
        }
        Err(self.failure(what, &text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_named_by_content() {
        let source: StorePath = format!("/nix/store/{}-source", "0".repeat(32)).parse().unwrap();
        let one = Configuration { source, nar_hash: "sha256-a+b/c=".into(), driver: "native".into() };
        let got = expression(&[one.clone(), one], "config.x");
        let each = format!(
            "(builtins.getFlake \"path:/nix/store/{}-source?narHash=sha256-a%2Bb%2Fc%3D\").nixosConfigurations.\"native\".config.x",
            "0".repeat(32)
        );
        assert_eq!(got, format!("[ {each} {each} ]"));
    }
}
