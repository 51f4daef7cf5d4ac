//! What a machine asks of its host: capabilities are checked, and what foreign modules want is consented to by content.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use codchi_core::consent::{self, Item, NixSetting, Weight};
use codchi_core::flake::Flake;
use codchi_core::folder::{self, OwnFolder};
use codchi_core::manifest::Needs;
use codchi_core::report::Kind;
use codchi_core::status::{Finding, Level};
use codchi_core::text;
use codchi_drivers::capability;

use crate::app::App;
use crate::failure::{Failure, Result};
use crate::make::{Evaluation, Tools};

/// What is known of a machine beside its needs.
pub struct Known<'a> {
    /// What was said before.
    pub before: &'a [String],
    /// What the person wrote out in the machine flake.
    pub own: Vec<Item>,
    /// The servers of its sources.
    pub hosts: Vec<String>,
    /// Settings of Nix that its sources come with.
    pub settings: Vec<Item>,
    /// Whether anything in it is another's.
    pub foreign: bool,
    /// The person's own folders in it.
    pub mounts: &'a BTreeMap<String, OwnFolder>,
}

/// Refuses what this host cannot give, asks for what a person has to grant, and gives what is said of it, to be remembered.
pub fn check(app: &App, needs: &Needs, known: &Known) -> Result<Vec<String>> {
    capabilities(needs)?;
    folders(app, needs, known.mounts)?;
    let mut wanted = consent::of_needs(needs, &known.hosts);
    wanted.extend(known.settings.iter().cloned());
    decide(app, wanted, needs, known)
}

/// Evaluates a machine. Builds that its modules want for that are a person's to grant, and none is done before.
///
/// Gives what was granted for it, to be remembered, too.
pub fn evaluate(
    app: &App,
    tools: &mut Tools,
    folder: &Path,
    driver: &str,
    addresses: &[String],
    known: &Known,
) -> Result<(Evaluation, Vec<String>)> {
    let item = consent::import_from_derivation(addresses);
    let said = said_of_import(app, item.clone(), known.before);
    tools.import_from_derivation(!known.foreign || !said.is_empty());
    match tools.evaluate(app, folder, driver) {
        // The name of Nix's setting, which its error tells.
        Err(failure) if failure.message.contains("allow-import-from-derivation") && known.foreign => {
            let said = decide(app, vec![item], &Needs::default(), known)?;
            if app.globals.dry_run && said.is_empty() {
                return Err(failure);
            }
            tools.import_from_derivation(true);
            Ok((tools.evaluate(app, folder, driver)?, said))
        }
        done => Ok((done?, said)),
    }
}

/// Whether it was granted that evaluations of a machine with these sources build.
pub fn may_import(app: &App, addresses: &[String], before: &[String]) -> bool {
    !said_of_import(app, consent::import_from_derivation(addresses), before).is_empty()
}

fn said_of_import(app: &App, item: Item, before: &[String]) -> Vec<String> {
    consent::sort(vec![item], before, &[], &app.globals.accept, &app.globals.refuse).lines
}

fn decide(app: &App, wanted: Vec<Item>, needs: &Needs, known: &Known) -> Result<Vec<String>> {
    let own = if known.foreign { &known.own } else { &wanted };
    let flags = &app.globals;
    let mut said = consent::sort(wanted.clone(), known.before, own, &flags.accept, &flags.refuse);
    if !said.impossible.is_empty() {
        let mut failure = Failure::new(Kind::Declined, "the machine cannot do without what you refuse");
        failure.hints.extend(said.impossible.iter().map(|i| format!("it wants to {}", words(i))));
        return Err(failure);
    }
    if said.open.is_empty() {
        return Ok(said.lines);
    }
    app.printer.done();
    let (mut optional, asked): (Vec<Item>, Vec<Item>) =
        std::mem::take(&mut said.open).into_iter().partition(|i| i.weight == Weight::Optional);
    // What is not there now is no question now.
    let session = capability::session();
    optional.retain(|item| {
        let name = item.name.strip_prefix("capability:").unwrap_or_default();
        capability::probe(name, needs, &session).level != Level::Missing
    });
    if app.globals.dry_run {
        let items: Vec<String> = asked.iter().map(|i| format!("`--accept {}`", named(i))).collect();
        if !items.is_empty() {
            app.printer
                .say(&format!("the module asks for what you would have to grant: {}", items.join(", ")));
        }
        return Ok(said.lines);
    }
    if !app.can_ask() {
        if !asked.is_empty() {
            let mut failure =
                Failure::new(Kind::Declined, "the module asks for things that only you can grant");
            for item in &asked {
                failure.hints.push(format!("`--accept {}` lets it {}", named(item), words(item)));
            }
            if asked.iter().any(|i| i.weight == Weight::Choice) {
                failure.hints.push("`--refuse nix-config` does without settings of Nix".into());
            }
            return Err(failure);
        }
        for item in optional {
            app.printer.hint(&format!("`--accept {}` would let it {}", named(&item), words(&item)));
        }
        return Ok(said.lines);
    }
    let (needed, choices): (Vec<Item>, Vec<Item>) =
        asked.into_iter().partition(|i| i.weight == Weight::Needed);
    if !needed.is_empty() {
        app.printer.say("the module wants to");
        for item in &needed {
            app.printer.say(&format!("  {}", words(item)));
        }
        app.confirm("grant all of this?", "--accept ITEM")?;
        said.lines.extend(needed.iter().map(Item::granted));
    }
    for item in choices.iter().chain(&optional) {
        let question = format!("the module would like to {}; let it? [y/N]", words(item));
        let yes = matches!(app.printer.ask(&question).as_deref(), Some("y" | "Y" | "yes" | "Yes"));
        said.lines.push(if yes { item.granted() } else { item.refused() });
    }
    said.lines.sort();
    Ok(said.lines)
}

fn named(item: &Item) -> String {
    let name = text::printable_line(&item.name);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:~=@%+,".contains(c);
    // As it can be put into a shell; a `~` in the middle means nothing to one.
    if name.chars().all(plain) { name } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

fn words(item: &Item) -> String {
    text::printable_line(&item.what)
}

/// Settings of Nix in a `nixConfig`, as items; those that nobody can grant are told and left out.
pub fn settings(app: &App, whose: &str, config: &BTreeMap<String, String>) -> Vec<Item> {
    let mut all = Vec::new();
    for (name, value) in config {
        match consent::nix_setting(name, value) {
            NixSetting::Nothing => {}
            NixSetting::Ask(item) => all.push(item),
            NixSetting::Never => app.printer.warn(&format!(
                "`{}` sets Nix's `{}`, which is not used: it is yours alone to set",
                text::printable_line(whose),
                text::printable_line(name)
            )),
        }
    }
    all
}

/// Settings of Nix that the sources of a machine come with, as the lock has them.
pub fn settings_of_sources(app: &App, tools: &Tools, flake: &Flake, lock: &str) -> Result<Vec<Item>> {
    let mut all: Vec<Item> = Vec::new();
    for (input, _) in flake.inputs().iter().filter(|(n, _)| n != "codchi" && n != "nixpkgs") {
        let Some((path, dir)) = tools.nix.locked_source(lock, input, &app.printer)? else { continue };
        let folder = tools.store_dir().join(path.base_name()).join(dir);
        // What cannot be read is for the evaluation to complain of.
        let config = codchi_nix::flake::read(&folder, input).map(|f| f.nix_config).unwrap_or_default();
        for item in settings(app, input, &config) {
            if !all.contains(&item) {
                all.push(item);
            }
        }
    }
    Ok(all)
}

/// Tells what settings of Nix a source comes with that nobody has said anything about: the next rebuild asks.
pub fn tell_settings(app: &App, before: &[String], settings: Vec<Item>) {
    for item in consent::sort(settings, before, &[], &app.globals.accept, &app.globals.refuse).open {
        app.printer.hint(&format!(
            "it would like to {}: `codchi rebuild` asks whether it may, or takes `--accept {}`",
            words(&item),
            named(&item)
        ));
    }
}

/// The servers of these references.
pub fn hosts(addresses: &[String]) -> Vec<String> {
    let mut all: Vec<String> =
        addresses.iter().filter_map(|a| codchi_core::credentials::server(a)).map(|s| s.host).collect();
    all.sort();
    all.dedup();
    all
}

/// What the person wrote out in the machine flake: its modules that are no input's, in it or in files beside it.
pub fn own(flake: &Flake, folder: &Path, driver: &str, hosts: &[String]) -> Vec<Item> {
    let modules = flake.modules().unwrap_or_default();
    let texts = modules.iter().filter(|m| m.of_input.is_none()).map(|m| match beside(folder, &m.text) {
        Some(text) => codchi_nix::flake::written(&text),
        None => codchi_nix::flake::written(&m.text),
    });
    consent::written(&texts.collect::<Vec<_>>(), driver, hosts)
}

/// The text of a file in the machine's folder, where a module is one.
fn beside(folder: &Path, module: &str) -> Option<String> {
    let path = Path::new(module.trim().strip_prefix("./")?);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    codchi_fs::read_if_exists(folder.join(path)).ok().flatten().filter(|_| plain)
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

/// Refuses a machine that requires what this host or this session lacks.
fn capabilities(needs: &Needs) -> Result<()> {
    let session = capability::session();
    let missing: Vec<Finding> = needs
        .required_capabilities
        .iter()
        .map(|c| capability::probe(c, needs, &session))
        .filter(|f| f.level == Level::Missing)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut failure = Failure::new(Kind::Host, "this computer lacks what the machine requires");
    for f in missing {
        failure.hints.push(format!(
            "`{}`: {}; {}",
            text::printable_line(&f.what),
            f.detail,
            f.fix.unwrap_or_default()
        ));
    }
    Err(failure)
}
