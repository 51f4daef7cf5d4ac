//! What a machine asks of its host: capabilities are checked, and what foreign modules want is consented to by content.

use std::collections::BTreeMap;

use codchi_core::folder::{self, OwnFolder};
use codchi_core::manifest::Needs;
use codchi_core::report::Kind;
use codchi_core::text;

use crate::app::App;
use crate::failure::{Failure, Result};

/// One thing a module asks for, as `--accept` names it, and for people.
fn items(needs: &Needs, nix_config: bool) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (guest, m) in &needs.mounts {
        let how = if m.read_only { "read" } else { "read and change" };
        all.push((
            format!("mount:{}", m.source),
            format!("{how} your folder `{}` (at `{guest}` inside)", m.source),
        ));
    }
    for (guest, p) in &needs.ports {
        all.push((
            format!("port:{}", p.host),
            format!(
                "be reached at {} port {} of this computer (port {guest} inside)",
                p.protocol.as_str(),
                p.host
            ),
        ));
    }
    for (name, _) in needs.host_secrets.iter().filter(|(_, on)| **on) {
        all.push((format!("host-secret:{name}"), format!("use your `{name}`")));
    }
    for capability in &needs.required_capabilities {
        all.push((format!("capability:{capability}"), format!("use this computer's `{capability}`")));
    }
    if let Some(settings) = needs.driver_settings.as_object() {
        for (key, value) in settings {
            all.push((format!("setting:{key}"), format!("set `{key}` of the driver to `{value}`")));
        }
    }
    if nix_config {
        all.push(("nix-config".into(), "set options of Nix (they are ignored, whatever you answer)".into()));
    }
    all
}

/// A grant is for this content: another folder behind the same name asks again.
fn remembered(item: &(String, String)) -> String {
    format!("{} {}", item.0, &crate::make::digest(&[item.1.as_bytes()])[..16])
}

/// Refuses what this host cannot give, asks for what a person has to grant, and gives what was granted.
pub fn check(app: &App, needs: &Needs, foreign: bool, nix_config: bool) -> Result<Vec<String>> {
    check_again(app, needs, foreign, nix_config, &[], &BTreeMap::new())
}

/// The same for a machine that was granted some things before.
pub fn check_again(
    app: &App,
    needs: &Needs,
    foreign: bool,
    nix_config: bool,
    before: &[String],
    own: &BTreeMap<String, OwnFolder>,
) -> Result<Vec<String>> {
    capabilities(needs)?;
    folders(app, needs, own)?;
    if !foreign {
        return Ok(before.to_vec());
    }
    let wanted = items(needs, nix_config);
    let missing: Vec<&(String, String)> = wanted
        .iter()
        .filter(|i| !before.contains(&remembered(i)) && !app.globals.accept.contains(&i.0))
        .filter(|i| i.0 != "nix-config")
        .collect();
    if nix_config {
        app.printer.warn("the source sets options of Nix in `nixConfig`; they are not used");
    }
    if !missing.is_empty() && app.globals.dry_run {
        app.printer.done();
        let items: Vec<String> =
            missing.iter().map(|(item, _)| format!("`--accept {}`", text::printable_line(item))).collect();
        app.printer.say(&format!("the module asks for what you would have to grant: {}", items.join(", ")));
    } else if !missing.is_empty() {
        app.printer.done();
        if !app.can_ask() {
            let mut failure =
                Failure::new(Kind::Declined, "the module asks for things that only you can grant");
            for (item, what) in missing {
                failure.hints.push(format!(
                    "`--accept {}` lets it {}",
                    text::printable_line(item),
                    text::printable_line(what)
                ));
            }
            return Err(failure);
        }
        app.printer.say("the module wants to");
        for (_, what) in &missing {
            app.printer.say(&format!("  {}", text::printable_line(what)));
        }
        app.confirm("grant all of this?", "--accept ITEM")?;
    }
    Ok(wanted.iter().map(remembered).collect())
}

/// Refuses a machine whose folders this computer lacks before anything is built for it.
fn folders(app: &App, needs: &Needs, own: &BTreeMap<String, OwnFolder>) -> Result<()> {
    let all = folder::wanted(&needs.mounts, own, &app.home()).map_err(|e| Failure::failed(e.to_string()))?;
    let mut failure: Option<Failure> = None;
    for (folder, _) in all.iter().filter(|(f, _)| !f.optional && f.source.symlink_metadata().is_err()) {
        let shown = text::printable_line(&folder.source.to_string_lossy());
        let f = failure.get_or_insert_with(|| {
            Failure::new(Kind::Host, "this computer lacks folders that the machine asks for")
        });
        let target = text::printable_line(&folder.target.to_string_lossy());
        f.hints.push(format!("`mkdir -p '{shown}'` makes the one for `{target}` in the machine"));
    }
    failure.map_or(Ok(()), Err)
}

fn capabilities(needs: &Needs) -> Result<()> {
    let mut failure: Option<Failure> = None;
    for capability in &needs.required_capabilities {
        let (there, way) = match capability.as_str() {
            "kvm" => (
                rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK)
                    .is_ok(),
                "enable virtualisation in the firmware, and `sudo usermod -aG kvm $USER`",
            ),
            "ssh-agent" => {
                (std::env::var_os("SSH_AUTH_SOCK").is_some(), "start an agent: `eval $(ssh-agent)`")
            }
            "display" => (
                std::env::var_os("WAYLAND_DISPLAY").is_some() || std::env::var_os("DISPLAY").is_some(),
                "run codchi in a graphical session",
            ),
            "gpu" => (std::path::Path::new("/dev/dri").exists(), "install the driver of the graphics card"),
            "certificates" => (std::path::Path::new("/etc/ssl/certs").exists(), "install `ca-certificates`"),
            // What cannot be told here is for the driver to refuse.
            _ => (true, ""),
        };
        if !there {
            let f = failure.get_or_insert_with(|| {
                Failure::new(Kind::Host, "this computer lacks what the machine requires")
            });
            f.hints.push(format!("`{}`: {way}", text::printable_line(capability)));
        }
    }
    failure.map_or(Ok(()), Err)
}
