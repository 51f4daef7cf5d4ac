//! `codchi port`: ports of this computer that lead into a machine.

use std::collections::BTreeMap;

use codchi_core::machine::HostEdit;
use codchi_core::manifest::{Needs, Port};
use codchi_core::name::MachineName;
use codchi_core::plan::{Plan, Step};
use codchi_core::port::{Forward, GuestPort, HostPort, Origin, wanted};
use codchi_core::report::Kind;
use codchi_core::status::{PortStatus, Ports, Standing, State};
use codchi_drivers::Given;
use codchi_store::Store;

use crate::app::App;
use crate::cli::PortCommand;
use crate::cmd::life::carry_out_with;
use crate::failure::{Failure, Result};
use crate::make;
use crate::worker::HostParts;

/// Runs a verb.
pub fn run(app: &App, command: &PortCommand) -> Result<()> {
    match command {
        PortCommand::List { name } => list(app, &app.machine(name)?),
        PortCommand::Add { name, port } => add(app, &app.machine(name)?, parse(port)?),
        PortCommand::Remove { name, port } => remove(app, &app.machine(name)?, parse(port)?),
    }
}

fn parse(text: &str) -> Result<Forward> {
    text.parse().map_err(|e: codchi_core::port::PortError| Failure::usage(e.to_string()))
}

/// What the system in force asks of the host; nothing before there is one.
pub fn needs(app: &App, name: &MachineName) -> Result<Needs> {
    let Some(current) = app.generations(name).current()? else { return Ok(Needs::default()) };
    let store = Store::open(&app.dirs, &app.settings)?;
    let store_dir = store.map_or_else(|| "/nix/store".into(), |s| s.root_dir());
    Ok(make::manifest(&store_dir, current.record.toplevel.as_str())?.needs)
}

/// What a machine has of the host now, and whether it runs.
pub fn given(app: &App, name: &MachineName) -> Result<(bool, Given)> {
    let driver = codchi_drivers::find(&app.attachment(name)?.driver)?;
    let parts = HostParts::none();
    let host = parts.host(app, None);
    let running = driver.state(&host, name)?.state == State::Running;
    Ok((running, if running { driver.given(&host, name)? } else { Given::default() }))
}

/// Whether a machine that runs has other ports or folders of the host than its host.toml and its module say.
pub fn is_pending(app: &App, name: &MachineName) -> Result<bool> {
    let (running, given) = given(app, name)?;
    if !running {
        return Ok(false);
    }
    let (attachment, asked) = (app.attachment(name)?, needs(app, name)?);
    let folders = codchi_core::folder::wanted(&asked.mounts, &attachment.mounts, &app.home())
        .map_err(|e| Failure::usage(e.to_string()))?;
    let wanted: Vec<Forward> = wanted(&asked.ports, &attachment.ports).into_iter().map(|(f, _)| f).collect();
    let has: Vec<Forward> = given.ports.iter().map(|p| p.forward).collect();
    Ok(has.len() != wanted.len()
        || wanted.iter().any(|f| !has.contains(f))
        || given.folders.len() != folders.len()
        || folders.iter().any(|(f, _)| !given.folders.iter().any(|g| g.folder == *f)))
}

fn list(app: &App, name: &MachineName) -> Result<()> {
    let own = app.attachment(name)?.ports;
    let asked = needs(app, name)?.ports;
    let (running, given) = given(app, name)?;
    let mut ports = Vec::new();
    for (forward, by) in wanted(&asked, &own) {
        let now = given.ports.iter().find(|p| p.forward == forward);
        let problem = now.and_then(|p| p.problem.clone());
        let state = match (running, now) {
            (false, _) => Standing::Stopped,
            (true, Some(p)) if p.problem.is_some() => Standing::Refused,
            (true, Some(_)) => Standing::Given,
            (true, None) => Standing::Pending,
        };
        ports.push(PortStatus { forward, by, state, problem });
    }
    for (guest, port) in withheld(&asked, &own) {
        ports.push(PortStatus {
            forward: Forward { host: port.host, guest: guest.port, protocol: guest.protocol },
            by: Origin::Module,
            state: Standing::Withheld,
            problem: None,
        });
    }
    if app.globals.json {
        app.printer.json(&Ports { version: 1, machine: name.clone(), ports });
        return Ok(());
    }
    if ports.is_empty() {
        app.printer.say(&format!("no port leads into `{name}`"));
        app.printer.hint(&format!("`codchi port add {name} HOST:GUEST` adds one"));
        return Ok(());
    }
    let mut rows = vec![["HOST", "MACHINE", "ASKED BY", "STATE"].map(String::from).to_vec()];
    for p in ports {
        rows.push(vec![
            format!("127.0.0.1:{}", p.forward.shown_host()),
            p.forward.guest.to_string(),
            p.by.as_str().into(),
            match &p.problem {
                Some(problem) => format!("{}: {problem}", p.state.as_str()),
                None => p.state.as_str().into(),
            },
        ]);
    }
    app.printer.table(&rows);
    Ok(())
}

/// What a module asks for and the person does not give.
fn withheld(asked: &BTreeMap<String, Port>, own: &BTreeMap<GuestPort, HostPort>) -> Vec<(GuestPort, Port)> {
    let there = |(guest, port): (&String, &Port)| {
        let guest = GuestPort { port: guest.parse().ok()?, protocol: port.protocol };
        (own.get(&guest) == Some(&HostPort::Withheld)).then(|| (guest, port.clone()))
    };
    asked.iter().filter_map(there).collect()
}

fn asked_for(asked: &BTreeMap<String, Port>, guest: GuestPort) -> Option<u16> {
    let port = asked.get(&guest.port.to_string())?;
    (port.protocol == guest.protocol).then_some(port.host)
}

/// Records a port, and gives it to the machine when that runs.
fn record(app: &App, name: &MachineName, guest: GuestPort, host: Option<HostPort>) -> Result<Given> {
    let path = app.dirs.host_toml(name);
    let change = match host {
        Some(HostPort::Port(n)) => format!("port {n} of this computer leads to port {guest} of the machine"),
        _ => format!("no port leads to port {guest} of the machine"),
    };
    carry_out_with(app, name, "port", || {
        let mut edit = HostEdit::new(&path, &codchi_fs::read_to_string(&path)?)?;
        edit.port(guest, host);
        let write = Step::WriteHost { path: path.clone(), text: edit.text(), change };
        Ok(Plan::new("port", name, vec![write, Step::Give]))
    })
}

fn add(app: &App, name: &MachineName, forward: Forward) -> Result<()> {
    let own = app.attachment(name)?.ports;
    let asked = needs(app, name)?.ports;
    let guest = forward.guest_port();
    for (other, _) in wanted(&asked, &own) {
        if (other.host, other.protocol) == (forward.host, forward.protocol) && other.guest != forward.guest {
            return Err(Failure::failed(format!(
                "port {} leads to port {} of `{name}` already",
                forward.shown_host(),
                other.guest
            ))
            .hint(format!("`codchi port remove {name} {}` takes that back", other.shown_host())));
        }
    }
    for other in app.names()?.iter().filter(|n| *n != name) {
        // One that cannot be read wants nothing that counts.
        let (Ok(attachment), Ok(needs)) = (app.attachment(other), needs(app, other)) else { continue };
        let same = |(f, _): &(Forward, Origin)| (f.host, f.protocol) == (forward.host, forward.protocol);
        if wanted(&needs.ports, &attachment.ports).iter().any(same) {
            app.printer.warn(&format!(
                "`{other}` wants port {} of this computer, too: the one that starts first has it",
                forward.shown_host()
            ));
        }
    }
    // What a module says already needs no word of the person's.
    let host = Some(HostPort::Port(forward.host)).filter(|_| asked_for(&asked, guest) != Some(forward.host));
    let given = record(app, name, guest, host)?;
    if app.globals.dry_run {
        return Ok(());
    }
    match given.ports.iter().position(|p| p.forward == forward && p.problem.is_some()) {
        Some(_) => {
            let mut failure = Failure::failed(format!("the port is recorded, but not given to `{name}`"));
            failure.hints = given.refusals;
            Err(failure)
        }
        None => {
            let when = if given.ports.is_empty() { "will lead" } else { "leads" };
            app.printer.say(&format!(
                "127.0.0.1:{} {when} to port {} of `{name}`",
                forward.shown_host(),
                forward.guest
            ));
            Ok(())
        }
    }
}

fn remove(app: &App, name: &MachineName, given: Forward) -> Result<()> {
    let own = app.attachment(name)?.ports;
    let asked = needs(app, name)?.ports;
    let all: Vec<Forward> = wanted(&asked, &own).into_iter().map(|(f, _)| f).collect();
    let exact = all.iter().find(|f| **f == given);
    let by_host = all
        .iter()
        .find(|f| (f.host, f.protocol) == (given.host, given.protocol) && given.host == given.guest);
    let Some(found) = exact.or(by_host) else {
        let failure =
            Failure::new(Kind::NotFound, format!("port {} does not lead into `{name}`", given.shown_host()));
        let list: Vec<String> = all.iter().map(|f| format!("`{}`", f.shown_host())).collect();
        return Err(match list.as_slice() {
            [] => failure,
            all => failure.hint(format!("it has {}", all.join(", "))),
        });
    };
    let guest = found.guest_port();
    let host = asked_for(&asked, guest).map(|_| HostPort::Withheld);
    record(app, name, guest, host)?;
    if !app.globals.dry_run {
        app.printer.say(&format!("127.0.0.1:{} does not lead into `{name}` any more", found.shown_host()));
        if host.is_some() {
            app.printer.hint(&format!("its module asks for that: `codchi port add {name} {found}` gives it"));
        }
    }
    Ok(())
}
