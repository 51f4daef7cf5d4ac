//! What foreign modules ask of the host is granted by a person, by content. The first case creates the machine `con`, which never runs;
//! the last deletes it.

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::host::{Host, run};
use crate::require;

/// Every case, in the order in which they run.
pub const ALL: &[Case] = &[
    ("consent_is_given_item_by_item", granted),
    ("consent_is_to_a_content_and_not_to_a_name", content),
    (
        "consent_is_what_a_person_writes_in_the_machine_flake",
        written,
    ),
];

fn host_toml(h: &Host) -> Result<String, Failed> {
    Ok(codchi_fs::read_to_string(
        h.home.join(".config/codchi/machines/con/host.toml"),
    )?)
}

/// Replaces text in a file of the module's repository.
fn change(h: &Host, file: &str, from: &str, to: &str) -> Result<(), Failed> {
    let path = h.home.join("consent-project").join(file);
    let text = codchi_fs::read_to_string(&path)?;
    require!(text.contains(from), "no {from:?} in {text}");
    codchi_fs::write(&path, text.replace(from, to))?;
    Ok(())
}

fn granted(h: &Host) -> Result<(), Failed> {
    let repo = h.checkout("tests/fixtures/consent", "consent-project")?;
    let repo = repo.to_string_lossy().into_owned();
    run(h.command("mkdir").arg("theirs"), b"")?.ok()?;
    let init = |words: &[&str]| {
        let mut args = vec!["init", "con", &repo, "--no-start", "--yes"];
        args.extend(words);
        h.codchi(&args)
    };
    // Before anything is built for it, nobody knows what else it asks for.
    let first = init(&[])?.exits(4)?.err;
    require!(
        first.contains("--accept import-from-derivation") && !first.contains("mount:"),
        "a build during evaluation was not asked for: {first}"
    );
    let all = init(&["--accept", "import-from-derivation"])?.exits(4)?.err;
    for item in [
        "--accept host-secret:sshAgent",
        "--accept mount:~/theirs",
        "--accept nix-config:extra-substituters",
        "--refuse nix-config",
        "`post-build-hook`, which is not used",
    ] {
        require!(all.contains(item), "no {item:?} in {all}");
    }
    let refused = init(&["--accept", "import-from-derivation", "--refuse", "mount"])?.exits(4)?;
    require!(
        refused.err.contains("cannot do without"),
        "a folder that was refused: {}",
        refused.err
    );
    h.codchi(&["status", "con"])?.exits(5)?;
    init(&[
        "--accept",
        "import-from-derivation",
        "--accept",
        "host-secret:sshAgent",
        "--accept",
        "mount:~/theirs",
        "--refuse",
        "nix-config",
    ])?
    .ok()?;
    let kept = host_toml(h)?;
    for line in [
        "import-from-derivation = ",
        "\"host-secret:sshAgent\"",
        "mount:~/theirs = /srv/theirs ro",
        "not nix-config:extra-substituters = https://cache.example.org",
    ] {
        require!(kept.contains(line), "no {line:?} in {kept}");
    }
    Ok(())
}

fn content(h: &Host) -> Result<(), Failed> {
    change(h, "flake.nix", "cache.example.org", "other.example.org")?;
    change(h, "module.nix", "readOnly = true", "readOnly = false")?;
    h.commit(&h.home.join("consent-project"))?;
    let asked = h.codchi(&["rebuild", "--yes", "con"])?.exits(4)?.err;
    for item in [
        "--accept mount:~/theirs",
        "--accept nix-config:extra-substituters",
        "other.example.org",
    ] {
        require!(asked.contains(item), "no {item:?} in {asked}");
    }
    require!(
        !asked.contains("sshAgent") && !asked.contains("import-from"),
        "what did not change is asked for again: {asked}"
    );
    h.codchi(&[
        "rebuild",
        "con",
        "--accept",
        "mount",
        "--accept",
        "nix-config",
    ])?
    .ok()?;
    let kept = host_toml(h)?;
    require!(
        kept.contains("/srv/theirs rw")
            && kept.contains("\"nix-config:extra-substituters = https://other"),
        "not remembered: {kept}"
    );
    required(h)
}

/// A no to what was optional is no answer once the machine requires it, and a yes outlasts the system that asked.
fn required(h: &Host) -> Result<(), Failed> {
    let repo = h.home.join("consent-project");
    let first = "codchi.hostSecrets.sshAgent";
    let asked = |list: &str| format!("codchi.{list} = [ \"netrc\" ];\n  {first}");
    codchi_fs::write(h.home.join(".netrc"), "")?;
    change(h, "module.nix", first, &asked("optionalCapabilities"))?;
    h.commit(&repo)?;
    h.codchi(&["rebuild", "con", "--refuse", "capability:netrc"])?
        .ok()?;
    let kept = host_toml(h)?;
    require!(
        kept.contains("\"not capability:netrc\""),
        "a no is not remembered: {kept}"
    );
    change(
        h,
        "module.nix",
        "optionalCapabilities",
        "requiredCapabilities",
    )?;
    h.commit(&repo)?;
    let again = h.codchi(&["rebuild", "con"])?.exits(4)?.err;
    require!(
        again.contains("--accept capability:netrc"),
        "what is required now is not asked for: {again}"
    );
    let granted = |kept: &str| kept.contains("\"capability:netrc\"") && !kept.contains("not cap");
    h.codchi(&["rebuild", "con", "--accept", "capability:netrc"])?
        .ok()?;
    let kept = host_toml(h)?;
    require!(granted(&kept), "a yes is not remembered: {kept}");
    change(h, "module.nix", &asked("requiredCapabilities"), first)?;
    h.commit(&repo)?;
    h.codchi(&["rebuild", "con"])?.ok()?;
    let kept = host_toml(h)?;
    require!(granted(&kept), "nothing is left for a rollback: {kept}");
    codchi_fs::remove_file(h.home.join(".netrc"))?;
    Ok(())
}

fn written(h: &Host) -> Result<(), Failed> {
    let flake = h.home.join(".config/codchi/machines/con/flake.nix");
    let text = codchi_fs::read_to_string(&flake)?;
    let mine = "modules = [\n      { codchi.ports.\"9\".host = 18999; codchi.mounts.\"/srv/mine\".source = \"~/theirs\"; }";
    require!(text.contains("modules = ["), "no list of modules: {text}");
    codchi_fs::write(&flake, text.replace("modules = [", mine))?;
    h.codchi(&["rebuild", "con"])?.ok()?;
    let kept = host_toml(h)?;
    require!(
        kept.contains("port:18999 = 9/tcp") && kept.contains("mount:~/theirs = /srv/mine rw"),
        "not remembered: {kept}"
    );
    h.codchi(&["delete", "--yes", "con"])?.ok()?;
    Ok(())
}
