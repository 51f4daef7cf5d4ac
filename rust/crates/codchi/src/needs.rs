//! What a machine asks of its host: capabilities are checked, and what foreign modules want is consented to by content.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use codchi_core::consent::{self, Item, NixSetting, Weight};
use codchi_core::flake::Flake;
use codchi_core::folder::{self, OwnFolder};
use codchi_core::machine::Host as Attachment;
use codchi_core::manifest::Needs;
use codchi_core::name::{InputName, MachineName};
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
    before: &'a [String],
    /// What the generations that are there ask for.
    earlier: Vec<Needs>,
    /// What the person wrote out in the machine flake.
    own: Vec<Item>,
    /// Where its sources come from.
    addresses: Vec<String>,
    /// The same, with a checkout where one stands in.
    origins: Vec<String>,
    /// Settings of Nix that its sources and its machine flake come with.
    settings: Vec<Item>,
    /// Whether anything in it is another's.
    foreign: bool,
    /// The person's own folders in it.
    mounts: &'a BTreeMap<String, OwnFolder>,
}

impl<'a> Known<'a> {
    /// Of a machine whose flake, in `folder`, is locked. `there` is the machine as it is attached; none while it is being made.
    pub fn of(
        app: &App,
        tools: &Tools,
        folder: &Path,
        flake: &Flake,
        lock: &str,
        driver: &str,
        there: Option<(&MachineName, &'a Attachment)>,
    ) -> Result<Known<'a>> {
        static NO_FOLDERS: BTreeMap<String, OwnFolder> = BTreeMap::new();
        let whose = "the machine flake";
        let shown = there.map_or_else(|| whose.into(), |(name, _)| app.shown(&app.dirs.machine(name)));
        let described = codchi_nix::flake::read(folder, "", &shown)?;
        let own_settings = settings(app, whose, &described.nix_config);
        let mut settings = settings_of_sources(app, tools, flake, lock)?;
        let addresses = addresses(flake);
        let mut own = own_items(flake, folder, driver, &hosts(&addresses));
        own.extend(own_settings.iter().cloned());
        settings.extend(own_settings);
        Ok(Known {
            before: there.map_or(&[][..], |(_, attachment)| &attachment.granted[..]),
            earlier: there.map_or_else(Vec::new, |(name, _)| earlier(app, tools, name)),
            own,
            addresses,
            origins: origins(flake, there.map(|(_, attachment)| &attachment.checkouts)),
            settings,
            foreign: is_foreign(flake),
            mounts: there.map_or(&NO_FOLDERS, |(_, attachment)| &attachment.mounts),
        })
    }

    /// The same where the machine flake itself is another's.
    pub fn of_another(mut self) -> Known<'a> {
        self.foreign = true;
        self.own.clear();
        self
    }
}

/// What the generations of a machine ask for.
fn earlier(app: &App, tools: &Tools, name: &MachineName) -> Vec<Needs> {
    let all = app.generations(name).list().unwrap_or_default();
    all.iter().filter_map(|g| tools.manifest(&g.record.toplevel).ok()).map(|m| m.needs).collect()
}

/// Where the sources of a machine come from.
pub fn addresses(flake: &Flake) -> Vec<String> {
    flake.sources().into_iter().filter_map(|(_, url)| url).collect()
}

/// What a machine is made of: what is in a checkout is whatever the machine writes there.
fn origins(flake: &Flake, checkouts: Option<&BTreeMap<InputName, String>>) -> Vec<String> {
    let of = |(input, url): (String, Option<String>)| {
        let checkout = checkouts.and_then(|all| all.iter().find(|(name, _)| name.as_str() == input));
        checkout.map(|(_, folder)| format!("checkout:{folder}")).or(url)
    };
    flake.sources().into_iter().filter_map(of).collect()
}

/// Whether anything in a machine is another's.
pub fn is_foreign(flake: &Flake) -> bool {
    !flake.sources().is_empty()
}

/// Refuses what this host cannot give, asks for what a person has to grant, and gives what is said of it, to be remembered.
pub fn check(app: &App, needs: &Needs, known: &Known) -> Result<Vec<String>> {
    capabilities(needs)?;
    folders(app, needs, known.mounts)?;
    let mut wanted = consent::of_needs(needs, &hosts(&known.addresses));
    wanted.extend(known.settings.iter().cloned());
    let said = decide(app, wanted, needs, known)?;
    Ok(consent::kept(known.before, said, &known.earlier, &app.globals.refuse))
}

/// What is remembered of a machine that the configuration of this computer declares: it is granted what it asks for by being there.
pub fn of_declared(
    app: &App,
    tools: &Tools,
    needs: &Needs,
    there: Option<(&MachineName, &Attachment)>,
) -> Result<Vec<String>> {
    let wanted = consent::of_needs(needs, &[]);
    let (before, earlier) = match there {
        Some((name, attachment)) => (&attachment.granted[..], earlier(app, tools, name)),
        None => (&[][..], Vec::new()),
    };
    let flags = &app.globals;
    let said = consent::sort(wanted.clone(), before, &wanted, &flags.accept, &flags.refuse);
    refuse_impossible(&said.impossible)?;
    Ok(consent::kept(before, said.lines, &earlier, &flags.refuse))
}

/// Evaluates a machine. Builds that its modules want for that are a person's to grant, and none is done before.
///
/// Gives what was granted for it, to be remembered, too.
pub fn evaluate(
    app: &App,
    tools: &mut Tools,
    folder: &Path,
    driver: &str,
    known: &Known,
) -> Result<(Evaluation, Vec<String>)> {
    let item = consent::import_from_derivation(&known.origins);
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

/// Whether it was granted that evaluations of a machine build.
pub fn may_import(app: &App, flake: &Flake, attachment: &Attachment) -> bool {
    let item = consent::import_from_derivation(&origins(flake, Some(&attachment.checkouts)));
    !said_of_import(app, item, &attachment.granted).is_empty()
}

fn said_of_import(app: &App, item: Item, before: &[String]) -> Vec<String> {
    consent::sort(vec![item], before, &[], &app.globals.accept, &app.globals.refuse).lines
}

fn decide(app: &App, wanted: Vec<Item>, needs: &Needs, known: &Known) -> Result<Vec<String>> {
    let own = if known.foreign { &known.own } else { &wanted };
    let flags = &app.globals;
    let mut said = consent::sort(wanted.clone(), known.before, own, &flags.accept, &flags.refuse);
    refuse_impossible(&said.impossible)?;
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
        match app.printer.ask(&question).as_deref() {
            Some("y" | "Y" | "yes" | "Yes") => said.lines.push(item.granted()),
            Some(_) => said.lines.push(item.refused()),
            // No answer (Ctrl-D) is none for the next time either.
            None => {}
        }
    }
    said.lines.sort();
    Ok(said.lines)
}

fn refuse_impossible(items: &[Item]) -> Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    let mut failure = Failure::new(Kind::Declined, "the machine cannot do without what you refuse");
    failure.hints.extend(items.iter().map(|i| format!("it wants to {}", words(i))));
    Err(failure)
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
    for (input, _) in flake.sources() {
        let Some((path, dir)) = tools.nix.locked_source(lock, &input, &app.printer)? else { continue };
        let source = tools.store_dir().join(path.base_name());
        // What cannot be read is for the evaluation to complain of.
        let config = codchi_nix::flake::read(&source, &dir, &input).map(|f| f.nix_config).unwrap_or_default();
        for item in settings(app, &input, &config) {
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
fn hosts(addresses: &[String]) -> Vec<String> {
    let mut all: Vec<String> =
        addresses.iter().filter_map(|a| codchi_core::credentials::server(a)).map(|s| s.host).collect();
    all.sort();
    all.dedup();
    all
}

/// What the person wrote out in the machine flake: its modules that are no input's, in it or in files beside it.
fn own_items(flake: &Flake, folder: &Path, driver: &str, hosts: &[String]) -> Vec<Item> {
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
