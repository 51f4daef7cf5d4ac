//! `codchi status`, `list`, `generations`, `logs`, `option`.

use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use codchi_core::name::{DriverName, MachineName};
use codchi_core::status::{Config, GenerationStatus, Generations, InputState, MachineStatus, State, Status};
use codchi_core::text;
use codchi_drivers::Running;
use codchi_nix::fingerprint::Looks;

use crate::app::App;
use crate::cli::{self, NixFlags};
use crate::cmd::rebuild::read_flake;
use crate::cmd::{life, rebuild};
use crate::failure::{Failure, Result};
use crate::make::{Scratch, Tools, copy_folder};
use crate::watch::Watch;
use crate::worker::HostParts;
use crate::{checkout, needs, updates};

/// How long all machines together may take to say whether their checkouts changed.
const PATIENCE: Duration = Duration::from_secs(2);

/// What machines do now, in their order. Each driver is asked once.
fn running(app: &App, names: &[MachineName]) -> Vec<Result<Running>> {
    let parts = HostParts::none();
    let host = parts.host(app, None);
    let mut all: Vec<Option<Result<Running>>> = names.iter().map(|_| None).collect();
    let mut by_driver: Vec<(DriverName, Vec<usize>)> = Vec::new();
    for (at, name) in names.iter().enumerate() {
        match app.attachment(name) {
            Ok(a) => match by_driver.iter_mut().find(|(driver, _)| *driver == a.driver) {
                Some((_, there)) => there.push(at),
                None => by_driver.push((a.driver, vec![at])),
            },
            Err(failure) => all[at] = Some(Err(failure)),
        }
    }
    for (driver, there) in by_driver {
        match codchi_drivers::find(&driver) {
            Ok(driver) => {
                let names: Vec<MachineName> = there.iter().map(|at| names[*at].clone()).collect();
                for (at, state) in there.into_iter().zip(driver.states(&host, &names)) {
                    all[at] = Some(state.map_err(Failure::from));
                }
            }
            Err(e) => {
                let failure = Failure::from(e);
                there.into_iter().for_each(|at| all[at] = Some(Err(failure.clone())));
            }
        }
    }
    all.into_iter()
        .map(|r| r.unwrap_or_else(|| Err(Failure::internal("its driver does not answer"))))
        .collect()
}

/// What a machine says of its checkouts is waited for until `end`.
fn machine_status(
    app: &App,
    name: &MachineName,
    running: Running,
    measure: bool,
    end: Instant,
    looks: &Looks,
) -> Result<MachineStatus> {
    let attachment = app.attachment(name)?;
    let driver = codchi_drivers::find(&attachment.driver)?;
    let current = app.generations(name).current()?;
    let inputs = updates::inputs(app, name);
    let changed = running.is_up() && checkout::is_changed(app, name, &attachment.checkouts, end);
    let config = if rebuild::is_rolled_back(app, name) {
        Config::RolledBack
    } else if !rebuild::is_up_to_date_beside(app, name, looks) || changed {
        Config::Modified
    } else if inputs.iter().any(|i| i.state == InputState::UpdatesAvailable) {
        Config::UpdatesAvailable
    } else {
        Config::UpToDate
    };
    let disk_bytes = measure.then(|| usage(&app.dirs.machine_root(name))).flatten();
    Ok(MachineStatus {
        name: name.clone(),
        driver: attachment.driver.to_string(),
        remote: attachment.remote.map(|r| r.to_string()),
        base: attachment.base,
        state: running.state,
        reason: running.reason.clone().filter(|_| running.state == State::Failed),
        leader: running.leader,
        acceleration: running.acceleration,
        generation: current.as_ref().map(|g| g.number as u32),
        config,
        addresses: driver.addresses(&running),
        toplevel: current.map(|g| g.record.toplevel.to_string()),
        disk_bytes,
        inputs,
    })
}

/// Bytes of a tree; none where parts of it are closed to the caller.
fn usage(dir: &std::path::Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in codchi_fs::read_dir(dir).ok()? {
        let meta = entry.metadata().ok()?;
        sum += meta.blocks() * 512;
        if meta.is_dir() {
            sum += usage(&entry.path())?;
        }
    }
    Some(sum)
}

/// `status`.
pub fn status(app: &App, args: &cli::Status) -> Result<()> {
    let given = args.name.as_deref().map(|n| app.machine(n)).transpose()?;
    let mut watch = args.watch.then(Watch::new);
    loop {
        let names = match &given {
            Some(name) => vec![name.clone()],
            None => app.names()?,
        };
        if let Some(watch) = &mut watch {
            watch.begin(app, &names);
        }
        let (mut machines, mut broken) = (Vec::new(), None);
        let (end, looks) = (Instant::now() + PATIENCE, Looks::default());
        for (name, running) in names.iter().zip(running(app, &names)) {
            let measure = app.globals.json || given.is_some();
            match running.and_then(|r| machine_status(app, name, r, measure, end, &looks)) {
                Ok(status) => machines.push(status),
                // Deleted or renamed since the names were read.
                Err(_) if given.is_none() && !app.exists(name) => {}
                // One that cannot be read must not hide the others.
                Err(failure) if given.is_none() && !app.globals.json => {
                    if let Some(earlier) = broken.replace(failure) {
                        app.printer.failure(&earlier);
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        if args.watch && !app.globals.json {
            app.printer.raw(b"\x1b[H\x1b[2J");
        }
        updates::ask_in_background(app, &names);
        if !machines.is_empty() || broken.is_none() {
            print_status(app, machines, given.is_some())?;
        }
        match (broken, &mut watch) {
            (Some(failure), None) => return Err(failure),
            (None, None) => return Ok(()),
            (broken, Some(watch)) => {
                broken.iter().for_each(|failure| app.printer.failure(failure));
                watch.wait();
            }
        }
    }
}

fn print_status(app: &App, machines: Vec<MachineStatus>, one: bool) -> Result<()> {
    if app.globals.json {
        app.printer.json(&Status { version: 1, machines });
        return Ok(());
    }
    if machines.is_empty() {
        app.printer.say("there are no machines");
        app.printer.hint("`codchi init NAME SOURCE` makes one");
        return Ok(());
    }
    if one {
        for m in &machines {
            let mut rows = vec![
                ("state", m.state.as_str().to_string()),
                ("driver", m.remote.iter().fold(m.driver.clone(), |d, r| format!("{d} on {r}"))),
                ("base", m.base.clone()),
                ("generation", m.generation.map_or("none".into(), |g| g.to_string())),
                ("config", m.config.as_str().to_string()),
            ];
            rows.extend(m.reason.iter().map(|r| ("reason", text::printable_line(r))));
            rows.extend(m.leader.map(|l| ("process", l.to_string())));
            rows.extend(m.acceleration.map(|a| ("processor", a.as_str().to_string())));
            rows.extend((!m.addresses.is_empty()).then(|| ("addresses", m.addresses.join(", "))));
            rows.extend(m.disk_bytes.map(|b| ("disk", text::bytes(b))));
            rows.push(("folder", app.shown(&app.dirs.machine(&m.name))));
            app.printer.data(&app.printer.strong(m.name.as_str()));
            for (key, value) in rows {
                app.printer.data(&format!("  {key:<11} {value}"));
            }
            for i in &m.inputs {
                let short = |rev: &str| rev.chars().take(10).collect::<String>();
                let to = match (&i.newest, i.state) {
                    (Some(newest), InputState::UpdatesAvailable) => format!(" -> {}", short(newest)),
                    _ => String::new(),
                };
                app.printer.data(&format!(
                    "  {:<11} {} {}{to} ({})",
                    "input",
                    i.name,
                    short(&i.locked),
                    i.state.as_str()
                ));
            }
        }
        return Ok(());
    }
    let mut rows =
        vec![["NAME", "STATE", "BASE", "GENERATION", "CONFIG", "ADDRESSES"].map(String::from).to_vec()];
    for m in machines {
        rows.push(vec![
            m.name.to_string(),
            m.state.as_str().into(),
            m.base,
            m.generation.map_or("-".into(), |g| g.to_string()),
            m.config.as_str().into(),
            if m.addresses.is_empty() { "-".into() } else { m.addresses.join(", ") },
        ]);
    }
    app.printer.table(&rows);
    Ok(())
}

/// `list`.
pub fn list(app: &App) -> Result<()> {
    let names = app.names()?;
    if app.globals.json {
        app.printer.json(&names);
    } else {
        names.iter().for_each(|n| app.printer.data(n.as_str()));
    }
    Ok(())
}

/// `generations`.
pub fn generations(app: &App, args: &cli::Name) -> Result<()> {
    let name = app.machine(&args.name)?;
    let all = app.generations(&name).list()?;
    if app.globals.json {
        let generations = all
            .into_iter()
            .map(|g| GenerationStatus {
                number: g.number as u32,
                created: g.record.created,
                current: g.current,
                toplevel: g.record.toplevel.to_string(),
                base: g.record.base_label,
            })
            .collect();
        app.printer.json(&Generations { version: 1, machine: name, generations });
        return Ok(());
    }
    let mut rows = vec![["", "NUMBER", "BUILT (UTC)", "BASE", "CODCHI"].map(String::from).to_vec()];
    for g in all {
        rows.push(vec![
            if g.current { "*" } else { "" }.into(),
            g.number.to_string(),
            text::timestamp(g.record.created),
            g.record.base_label,
            g.record.codchi,
        ]);
    }
    app.printer.table(&rows);
    Ok(())
}

/// `logs`.
pub fn logs(app: &App, args: &cli::Logs) -> Result<u8> {
    let name = app.machine(&args.name)?;
    let running = life::state(app, &name)? == State::Running;
    if running && !args.console {
        let mut argv = vec!["journalctl".to_string(), "--no-pager".into(), "--output=short".into()];
        if args.follow {
            argv.push("--follow".into());
        }
        match &args.unit {
            Some(unit) => argv.push(format!("--unit={unit}")),
            None => argv.push("--boot".into()),
        }
        return journal(app, &name, &argv);
    }
    if let Some(unit) = &args.unit {
        return Err(Failure::failed(format!(
            "`{name}` is not running, so the log of `{unit}` cannot be read"
        ))
        .hint(format!("start it with `codchi start {name}`")));
    }
    let file = app.dirs.console_log(&name);
    let missing = |e: codchi_fs::FsError| {
        if e.is_not_found() {
            Failure::failed(format!("`{name}` has no log yet: it was never started"))
        } else {
            e.into()
        }
    };
    let mut log = codchi_fs::open(&file).map_err(missing)?;
    loop {
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes).map_err(|source| codchi_fs::FsError {
            op: "read",
            path: file.clone(),
            source,
        })?;
        app.printer.raw(text::printable(&String::from_utf8_lossy(&bytes).replace('\r', "")).as_bytes());
        if !args.follow {
            return Ok(0);
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        // The supervisor caps the log by starting it anew.
        let length = log.metadata().map_or(0, |m| m.len());
        if log.stream_position().is_ok_and(|at| at > length) {
            let _ = log.seek(SeekFrom::Start(0));
        }
    }
}

/// Runs the machine's journalctl, which may be anything, and shows what it says without obeying it.
fn journal(app: &App, name: &MachineName, argv: &[String]) -> Result<u8> {
    use std::process::{Command, Stdio};
    app.printer.done();
    let failed = |e: std::io::Error| Failure::cannot_run("codchi exec", e);
    let mut child = Command::new(&app.program)
        .args(["exec", "-T", "-u", "root", name.as_str(), "--"])
        .args(argv)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|s| {
        s.spawn(|| lines(err, &mut |text| app.printer.raw_err(text.as_bytes())));
        lines(out, &mut |text| app.printer.raw(text.as_bytes()));
    });
    let status = child.wait().map_err(failed)?;
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(crate::cmd::exec::OWN_FAILURE))
}

/// Gives whole lines on, made printable; of a line without an end, what has come so far is enough.
fn lines(from: Option<impl Read>, to: &mut dyn FnMut(&str)) {
    const LONGEST: usize = 64 << 10;
    let Some(mut from) = from else { return };
    let (mut held, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        let n = match from.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        held.extend_from_slice(&buffer[..n]);
        let end = if n == 0 || held.len() > LONGEST {
            held.len()
        } else {
            held.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1)
        };
        let ready: Vec<u8> = held.drain(..end).collect();
        if !ready.is_empty() {
            to(&text::printable(&String::from_utf8_lossy(&ready).replace('\r', "")));
        }
        if n == 0 {
            return;
        }
    }
}

/// `option`.
pub fn option(app: &App, args: &cli::OptionArgs) -> Result<()> {
    let name = app.machine(&args.name)?;
    let path: codchi_core::attr::AttrPath = args.path.parse().map_err(|e| Failure::usage(format!("{e}")))?;
    let attachment = app.attachment(&name)?;
    let mut tools = Tools::needed(app, &NixFlags::default())?;
    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let folder = staging.path().join("machine");
    copy_folder(app, &name, &folder)?;
    let flake = read_flake(app, &name, &folder)?;
    let granted = needs::may_import(app, &flake, &attachment);
    tools.import_from_derivation(!needs::is_foreign(&flake) || granted);
    let installable =
        format!("{}#nixosConfigurations.{}", codchi_core::source::path_reference(&folder), attachment.driver);
    let apply = format!(
        "c: let o = c.options.{path}; shown = v: builtins.unsafeDiscardStringContext (builtins.toJSON v); attempt = v: \
         let t = builtins.tryEval (shown v); in if t.success then t.value else null; in \
         if (o._type or \"\") == \"option\" then {{ option = true; type = o.type.description or \"\"; \
         description = let d = o.description or \"\"; in if builtins.isAttrs d then d.text or \"\" else d; \
         default = if o ? default then attempt o.default else null; value = attempt o.value; \
         files = map toString (o.files or []); declared = map toString (o.declarations or []); }} \
         else {{ option = false; names = builtins.attrNames o; }}"
    );
    let value = tools.nix.eval_json(&installable, Some(&apply), &app.printer)?;
    app.printer.done();
    if app.globals.json {
        app.printer.json(&value);
        return Ok(());
    }
    if value["option"].as_bool() != Some(true) {
        for inner in value["names"].as_array().into_iter().flatten().filter_map(|v| v.as_str()) {
            app.printer.data(&format!("{path}.{}", codchi_core::attr::attr_name(inner)));
        }
        return Ok(());
    }
    app.printer.data(&app.printer.strong(&path.to_string()));
    let list = |key: &str| {
        let all: Vec<&str> = value[key].as_array().into_iter().flatten().filter_map(|v| v.as_str()).collect();
        all.join(", ")
    };
    for (what, shown) in [
        ("value", value["value"].as_str().unwrap_or("(not plain data)").to_string()),
        ("default", value["default"].as_str().unwrap_or("none").to_string()),
        ("type", value["type"].as_str().unwrap_or_default().to_string()),
        ("set in", list("files")),
        ("declared in", list("declared")),
    ] {
        if !shown.is_empty() {
            app.printer.data(&format!("  {what:<11} {shown}"));
        }
    }
    let description = value["description"].as_str().unwrap_or_default().trim();
    if !description.is_empty() {
        app.printer.data(&format!("\n{description}"));
    }
    Ok(())
}
