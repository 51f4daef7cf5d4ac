//! Every template is an ordinary repository: it is turned into a machine, must come up whole, and its check must pass inside.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use crate::cases::{eventually, same};
use crate::host::{Host, run};
use crate::require;
use crate::session::private_authority;

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
    // With what the templates have fetched already.
    let trusts = host.clone();
    trials.push(Trial::test(
        format!("{which}::node_and_java_trust_what_the_host_trusts"),
        move || trust(&trusts),
    ));
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

/// Interpreters that look for certificates in ways of their own, at a server with one that only the person's settings vouch for.
fn trust(h: &Host) -> Result<(), Failed> {
    private_authority(h)?;
    let repo = h.checkout("tests/fixtures/trust", "trust-project")?;
    let source = repo.to_string_lossy();
    let certificates = "host-secret:certificates";
    h.codchi(&["init", "trust", &source, "--accept", certificates])?
        .ok()?;
    for file in [
        h.home.join("ca/cert.pem"),
        h.home.join("ca/key.pem"),
        repo.join("Get.java"),
        repo.join("server.js"),
    ] {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let write = format!("cat > ~/{name}");
        h.codchi_with(
            &["exec", "trust", "--", "sh", "-c", &write],
            &codchi_fs::read(&file)?,
        )?
        .ok()?;
    }
    h.sh(
        "trust",
        "systemd-run --user --quiet --setenv=PATH=$PATH $(command -v node) ~/server.js",
    )?;
    eventually("the server listens", || {
        Ok(h.sh("trust", "ls")?.contains("listens"))
    })?;
    let url = "https://127.0.0.1:8443/";
    let node = format!(
        "node -e 'fetch(\"{url}\").then(r => r.text()).then(t => process.stdout.write(t))'"
    );
    same("node", h.sh("trust", &node)?, "hello".into())?;
    let java = format!("java ~/Get.java {url}");
    same("java", h.sh("trust", &java)?, "hello".into())?;
    // It is the host's certificates that count.
    for (what, script) in [
        (
            "node",
            format!(
                "NODE_EXTRA_CA_CERTS=/dev/null SSL_CERT_FILE=/dev/null SSL_CERT_DIR=/dev/null {node}"
            ),
        ),
        (
            "java",
            format!("java -Djavax.net.ssl.trustStore=NONE ~/Get.java {url}"),
        ),
    ] {
        let done = h.codchi(&["exec", "trust", "--", "sh", "-lc", &script])?;
        require!(done.status != 0, "{what} trusts anybody: {}", done.text());
    }
    h.codchi(&["delete", "--yes", "trust"])?.ok()?;
    codchi_fs::remove_file(h.home.join(".config/codchi/config.toml"))?;
    Ok(())
}
