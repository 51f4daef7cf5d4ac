//! `codchi secrets`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::Command;

use codchi_core::manifest::Needs;
use codchi_core::name::MachineName;
use codchi_core::report::Kind;
use codchi_core::status::{SecretState, SecretStatus, Secrets, State};
use codchi_core::text;
use codchi_fs::Context;
use codchi_secrets::{Bundle, MAX_VALUE, Private};

use crate::app::App;
use crate::cli::{self, SecretsCommand};
use crate::failure::{Failure, Result};
use crate::make;
use crate::secrets::{self, Source, with_vault};
use crate::worker::{self, HostParts};

/// Runs it.
pub fn run(app: &App, command: &SecretsCommand) -> Result<()> {
    match command {
        SecretsCommand::List(args) => list(app, &app.machine(&args.name)?),
        SecretsCommand::Get(args) => get(app, &app.machine(&args.name)?, &args.secret),
        SecretsCommand::Set(args) => set(app, args),
        SecretsCommand::Unset(args) => unset(app, &app.machine(&args.name)?, &args.secret),
        SecretsCommand::Edit(args) => edit(app, &app.machine(&args.name)?, &args.secret),
    }
}

/// What the machine's system in force declares.
fn needs(app: &App, name: &MachineName) -> Result<Needs> {
    let Some(current) = app.generations(name).current()? else { return Ok(Needs::default()) };
    let store = codchi_store::Store::open(&app.dirs, &app.settings)?;
    let dir = store.map_or_else(|| "/nix/store".into(), |s| s.root_dir());
    Ok(make::manifest(&dir, current.record.toplevel.as_str())?.needs)
}

fn list(app: &App, name: &MachineName) -> Result<()> {
    let needs = needs(app, name)?;
    let have = secrets::names(app, name)?;
    let mut all: Vec<SecretStatus> = needs
        .secrets
        .iter()
        .map(|(secret, declared)| SecretStatus {
            name: secret.clone(),
            kind: Some(declared.kind.clone()),
            description: Some(declared.description.clone()),
            state: match (have.contains(secret), &declared.default, declared.required) {
                (true, ..) => SecretState::Set,
                (false, Some(_), _) => SecretState::Default,
                (false, None, true) => SecretState::Missing,
                (false, None, false) => SecretState::Unset,
            },
        })
        .collect();
    let unused = have.into_iter().filter(|n| !needs.secrets.contains_key(n));
    all.extend(unused.map(|name| SecretStatus {
        name,
        kind: None,
        description: None,
        state: SecretState::Unused,
    }));
    let place = with_vault(app, |vault| vault.place(name))?.describe();
    if app.globals.json {
        app.printer.json(&Secrets { version: 1, machine: name.clone(), kept: place.into(), secrets: all });
        return Ok(());
    }
    if all.is_empty() {
        app.printer.say(&format!("`{name}` has no secrets"));
        return Ok(());
    }
    let mut rows = vec![["SECRET", "KIND", "STATE", "DESCRIPTION"].map(String::from).to_vec()];
    rows.extend(all.into_iter().map(|s| {
        let text = |t: Option<String>| t.unwrap_or_else(|| "-".into());
        vec![s.name, text(s.kind), s.state.as_str().into(), text(s.description)]
    }));
    app.printer.table(&rows);
    app.printer.hint(&format!("they are kept {place}"));
    Ok(())
}

fn get(app: &App, name: &MachineName, secret: &str) -> Result<()> {
    let all = with_vault(app, |vault| vault.load(name))?;
    let needs = needs(app, name)?;
    let default = needs.secrets.get(secret).and_then(|s| s.default.as_deref());
    let value: &[u8] = match (all.get(secret), default) {
        (Some(value), _) => value,
        (None, Some(default)) => default.as_bytes(),
        (None, None) => {
            secrets::declared(&needs, secret)?;
            return Err(Failure::new(Kind::NotFound, format!("`{name}` has no value for `{secret}`"))
                .hint(format!("`codchi secrets set {name} {secret}` sets it")));
        }
    };
    app.printer.raw(value);
    if std::io::stdout().is_terminal() && !value.ends_with(b"\n") {
        app.printer.raw(b"\n");
    }
    Ok(())
}

fn set(app: &App, args: &cli::SecretSet) -> Result<()> {
    let name = app.machine(&args.name)?;
    let needs = needs(app, &name)?;
    let declared = secrets::declared(&needs, &args.secret)?;
    let source = match (&args.from, &args.from_env, &args.from_command) {
        (_, Some(variable), _) => Some(Source::Variable(variable.clone())),
        (_, _, Some(command)) => Some(Source::Command(command.clone())),
        (Some(from), ..) if from == "-" => Some(Source::Stdin),
        (Some(from), ..) => match from.strip_prefix('@').filter(|f| !f.is_empty()) {
            Some(file) => Some(Source::File(file.into())),
            // It may be the value itself, so it is not repeated.
            None => {
                return Err(Failure::usage("a value is read from `@FILE`, or from standard input with `-`")
                    .hint("a value on the command line could be read by everyone on this host"));
            }
        },
        _ if !app.can_ask() => Some(Source::Stdin),
        _ => None,
    };
    let value = match source {
        Some(source) => secrets::fit(&args.secret, declared, secrets::read(&source, &args.secret)?)?,
        None => {
            let is_set = secrets::names(app, &name)?.contains(&args.secret);
            match secrets::ask_one(app, &args.secret, declared, is_set)? {
                Some(value) => value,
                None => {
                    app.printer.say(&format!("`{}` is as it was", args.secret));
                    return Ok(());
                }
            }
        }
    };
    keep(app, &name, &needs, &args.secret, value)
}

/// Keeps a value and hands it to the machine.
fn keep(app: &App, name: &MachineName, needs: &Needs, secret: &str, value: Private) -> Result<()> {
    if app.globals.dry_run {
        app.printer.say(&format!("`{secret}` of `{name}` would be set"));
        return Ok(());
    }
    let lock = worker::hold(app, name, "secrets set")?;
    let mut changes = Bundle::new();
    changes.insert(secret, value);
    let place = with_vault(app, |vault| vault.store(name, changes).and_then(|()| vault.place(name)))?;
    app.printer.say(&format!("`{secret}` of `{name}` is set, {}", place.describe()));
    let done = hand_over(app, name, needs);
    drop(lock);
    done
}

fn unset(app: &App, name: &MachineName, secret: &str) -> Result<()> {
    let needs = needs(app, name)?;
    if app.globals.dry_run {
        app.printer.say(&format!("`{secret}` of `{name}` would be removed"));
        return Ok(());
    }
    let _lock = worker::hold(app, name, "secrets unset")?;
    if !with_vault(app, |vault| vault.unset(name, secret))? {
        if !needs.secrets.contains_key(secret) {
            secrets::declared(&needs, secret)?;
        }
        app.printer.say(&format!("`{secret}` of `{name}` has no value"));
        return Ok(());
    }
    app.printer.say(&format!("`{secret}` of `{name}` is removed"));
    if needs.secrets.get(secret).is_some_and(|s| s.required && s.default.is_none()) {
        app.printer.warn(&format!("`{name}` does not start without it"));
    }
    hand_over(app, name, &needs)
}

/// Hands a running machine what it shall have now; what it lacks is for its next start to refuse.
fn hand_over(app: &App, name: &MachineName, needs: &Needs) -> Result<()> {
    let attachment = app.attachment(name)?;
    let driver = codchi_drivers::find(&attachment.driver)?;
    let parts = HostParts::none();
    let host = parts.host(app, None);
    if driver.state(&host, name)?.state != State::Running {
        return Ok(());
    }
    let mut optional = needs.clone();
    optional.secrets.values_mut().for_each(|s| s.required = false);
    let all = secrets::of(app, name, &optional, &attachment.granted)?;
    let told = driver.deliver(&host, name, &all, false)?;
    for unit in &told.restarted {
        app.printer.say(&format!("  restarted {}", text::printable_line(unit)));
    }
    for warning in &told.warnings {
        app.printer.warn(&text::printable_line(warning));
    }
    Ok(())
}

/// A file in memory that is emptied and removed when this is dropped.
struct Draft(PathBuf);

impl Draft {
    fn new(app: &App, value: &[u8]) -> Result<Draft> {
        const TMPFS: u64 = 0x0102_1994;
        let in_memory = |d: &std::path::Path| rustix::fs::statfs(d).is_ok_and(|s| s.f_type as u64 == TMPFS);
        codchi_fs::create_private_dir(&app.dirs.runtime)?;
        let shm = PathBuf::from("/dev/shm");
        let folder = [app.dirs.runtime.clone(), shm].into_iter().find(|d| in_memory(d)).ok_or_else(|| {
            Failure::new(Kind::Host, "there is no folder in memory for an editor to write to")
                .hint("`codchi secrets set` takes a new value without one")
        })?;
        let folder = folder.join(format!("codchi-edit-{}", std::process::id()));
        // Must be new: in a folder that all may write to, someone else's could be there.
        rustix::fs::mkdir(&folder, rustix::fs::Mode::from(0o700)).at("create directory", &folder)?;
        let draft = Draft(folder);
        codchi_fs::write(draft.file(), value)?;
        codchi_fs::set_mode(draft.file(), 0o600)?;
        Ok(draft)
    }

    fn file(&self) -> PathBuf {
        self.0.join("secret")
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        for entry in codchi_fs::read_dir(&self.0).unwrap_or_default() {
            if let Ok(meta) = entry.metadata() {
                let _ = codchi_fs::write(entry.path(), vec![0; meta.len() as usize]);
            }
        }
        let _ = codchi_fs::remove_dir_all(&self.0);
    }
}

fn edit(app: &App, name: &MachineName, secret: &str) -> Result<()> {
    let needs = needs(app, name)?;
    let declared = secrets::declared(&needs, secret)?;
    if !app.can_ask() {
        return Err(Failure::new(Kind::Declined, "an editor needs a terminal")
            .hint(format!("`codchi secrets set {name} {secret} @FILE` takes a value without one")));
    }
    let all = with_vault(app, |vault| vault.load(name))?;
    let before: &[u8] = all.get(secret).map_or(&[], |v| v);
    let draft = Draft::new(app, before)?;
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|v| std::env::var(v).ok().filter(|e| !e.is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".into());
    app.printer.done();
    let _ = std::io::stderr().flush();
    // As git does it: the variable may hold arguments.
    let status = Command::new("sh")
        .arg("-c")
        .arg(format!("exec {editor} \"$1\""))
        .arg("sh")
        .arg(draft.file())
        .status()
        .map_err(|e| Failure::cannot_run(&editor, e))?;
    if !status.success() {
        return Err(Failure::new(
            Kind::Declined,
            format!("the editor ended with {status}; nothing was changed"),
        ));
    }
    let mut file = codchi_fs::open(draft.file())?;
    let value = Private::read_from(&mut file, MAX_VALUE)
        .map_err(|e| Failure::failed(format!("what was written cannot be read: {e}")))?;
    drop(draft);
    let value = secrets::fit(secret, declared, value)?;
    if *value == *before {
        app.printer.say(&format!("`{secret}` is as it was"));
        return Ok(());
    }
    if value.is_empty() {
        return Err(Failure::new(Kind::Declined, "it is empty; nothing was changed")
            .hint(format!("`codchi secrets unset {name} {secret}` removes it")));
    }
    keep(app, name, &needs, secret, value)
}
