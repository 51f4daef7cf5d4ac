//! Every template is an ordinary repository: it is turned into a machine, must come up whole, and its check must pass inside.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use crate::host::{Host, run};

/// One case per folder of `docs/templates`.
pub fn all(which: &str, host: &Arc<Host>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for entry in codchi_fs::read_dir(host.repo.join("docs/templates")).unwrap_or_default() {
        if entry.path().join("flake.nix").exists() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let host = host.clone();
            trials.push(Trial::test(
                format!("{which}::template_{name}"),
                move || boot(&host, &name),
            ));
        }
    }
    let host = host.clone();
    trials.push(Trial::test(format!("{which}::leave_nothing"), move || {
        host.codchi(&["store", "remove", "--yes"])?.ok()?;
        Ok(())
    }));
    trials
}

fn boot(h: &Host, name: &str) -> Result<(), Failed> {
    let check = codchi_fs::read(h.repo.join("tests/templates.d").join(format!("{name}.sh")))?;
    let repo = h.checkout(
        &format!("docs/templates/{name}"),
        &format!("template-{name}"),
    )?;
    let machine = format!("t-{name}");
    let source = repo.to_string_lossy();
    let mut init = vec!["init", machine.as_str(), &source];
    // What a person would be asked, in the check: `# accept: port:8080`.
    let script = String::from_utf8_lossy(&check).into_owned();
    let said = |what: &str| {
        script
            .lines()
            .find_map(|l| l.strip_prefix(what))
            .unwrap_or_default()
    };
    for what in said("# accept:").split_whitespace() {
        init.extend(["--accept", what]);
    }
    h.codchi(&init)?.ok()?;
    let state = h.codchi(&[
        "exec",
        "-u",
        "root",
        &machine,
        "--",
        "systemctl",
        "is-system-running",
    ])?;
    if state.text() != "running" {
        let failed = h.root_sh(
            &machine,
            "systemctl --failed --no-pager; journalctl -p err -b --no-pager | tail -n 20",
        )?;
        return Err(format!("the machine is {}:\n{failed}", state.text()).into());
    }
    h.codchi_with(
        &["exec", &machine, "--", "bash", "-euo", "pipefail", "-s"],
        &check,
    )?
    .ok()?;
    // What a browser on this host would show, as `# fetch: URL WORDS`.
    if let Some((url, words)) = said("# fetch:").trim().split_once(' ') {
        let page = run(
            h.command("curl")
                .args(["-sSf", "--noproxy", "*", "--retry", "5"])
                .args(["--retry-connrefused", url]),
            b"",
        )?
        .ok()?
        .text();
        if !page.contains(words) {
            return Err(format!("`{url}` does not say `{words}`: {page}").into());
        }
    }
    h.codchi(&["delete", "--yes", &machine])?.ok()?;
    Ok(())
}
