//! `codchi doctor`: what this host has and lacks, and what mends it.

use codchi_core::report::Kind;
use codchi_core::status::{Doctor, Finding, Level};
use codchi_core::text;
use codchi_store::Store;

use crate::app::App;
use crate::cli;
use crate::failure::{Failure, Result};
use crate::worker::HostParts;

fn finding(what: &str, level: Level, detail: impl Into<String>, fix: Option<String>) -> Finding {
    Finding { what: what.into(), level, detail: detail.into(), fix }
}

/// `doctor`.
pub fn run(app: &App, args: &cli::Doctor) -> Result<()> {
    if args.fix {
        fix(app)?;
    }
    let mut findings = drivers(app)?;
    findings.push(match Store::open(&app.dirs, &app.settings) {
        Ok(Some(store)) => finding(
            "store",
            Level::Good,
            format!("Nix {}, files in `{}`", store.nix_version(), app.shown(&store.root_dir())),
            None,
        ),
        Ok(None) => finding("store", Level::Good, "none yet; the first `codchi init` makes one", None),
        Err(e) => finding("store", Level::Missing, e.to_string(), Some("`codchi store repair`".into())),
    });
    findings.push(disk(app));
    findings.extend(private(app));
    for name in app.names()? {
        if let Err(failure) = app.attachment(&name) {
            findings.push(finding(
                &format!("machine `{name}`"),
                Level::Missing,
                failure.message,
                failure.hints.first().cloned(),
            ));
        }
    }
    for name in crate::journal::all(app)? {
        let what = format!("machine `{name}`");
        match app.lock(&name, "doctor") {
            // A command that runs has its journal, too.
            Err(failure) if failure.kind == Kind::Busy => {
                findings.push(finding(&what, Level::Good, failure.message, None));
            }
            // It may have come to its end meanwhile.
            _ if !crate::journal::is_open(app, &name) => {}
            _ => findings.push(finding(
                &what,
                Level::Degraded,
                "a command on it was cut short",
                Some("`codchi doctor --fix` brings it to an end".into()),
            )),
        }
    }
    if app.globals.json {
        app.printer.json(&Doctor { version: 1, findings: findings.clone() });
    } else {
        for f in &findings {
            let mark = match f.level {
                Level::Good => "ok     ",
                Level::Unused => "unused ",
                Level::Degraded => "lesser ",
                Level::Missing => "MISSING",
            };
            app.printer.data(&format!("{mark}  {}: {}", f.what, f.detail));
            if let Some(fix) = f.fix.as_ref().filter(|_| f.level != Level::Good) {
                app.printer.data(&format!("         {fix}"));
            }
        }
    }
    let missing = findings.iter().filter(|f| f.level == Level::Missing).count() as u64;
    if missing == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Kind::Host,
        format!("{} missing for machines to run", text::count(missing, "thing is", "things are")),
    )
    .hint("above is what mends each"))
}

/// What the drivers find. One that lacks something is wrong only when a machine needs it, or when none works.
fn drivers(app: &App) -> Result<Vec<Finding>> {
    let parts = HostParts::none();
    let host = parts.host(app, None);
    let mut needed: Vec<String> = app.settings.defaults.driver.iter().cloned().collect();
    for name in app.names()? {
        needed.extend(app.attachment(&name).ok().map(|a| a.driver.to_string()));
    }
    let all: Vec<_> = codchi_drivers::all().map(|d| (d, d.probe(&host))).collect();
    let works = |findings: &[Finding]| findings.iter().all(|f| f.level != Level::Missing);
    let any = all.iter().any(|(_, findings)| works(findings));
    let mut findings = Vec::new();
    for (at, (driver, mut found)) in all.into_iter().enumerate() {
        // Where nothing works, the first driver is the one to mend.
        let wrong = needed.iter().any(|n| n == driver.info().name) || (at == 0 && !any);
        if !works(&found) && !wrong {
            found.retain(|f| f.level == Level::Missing);
            found.iter_mut().for_each(|f| f.level = Level::Unused);
        }
        findings.extend(found);
    }
    Ok(findings)
}

fn disk(app: &App) -> Finding {
    let place = app.dirs.data.ancestors().find(|p| p.exists()).unwrap_or(&app.dirs.home);
    match rustix::fs::statvfs(place) {
        Ok(s) => {
            let free = s.f_bavail * s.f_frsize;
            let level = if free < 1 << 30 { Level::Degraded } else { Level::Good };
            finding(
                "disk",
                level,
                format!("{} free at `{}`", text::bytes(free), app.shown(place)),
                Some("free some space: a machine takes 0.3 GiB and more".into()),
            )
        }
        Err(e) => finding("disk", Level::Degraded, format!("cannot be measured: {e}"), None),
    }
}

/// A set-user-id file of a machine must not be reachable on the host.
fn private(app: &App) -> Option<Finding> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(&app.dirs.data).ok()?;
    let open = meta.mode() & 0o077 != 0;
    let shown = app.shown(&app.dirs.data);
    Some(if open {
        finding(
            "data folder",
            Level::Missing,
            format!("`{shown}` is open to others"),
            Some(format!("`chmod 700 {shown}`")),
        )
    } else {
        finding("data folder", Level::Good, format!("`{shown}` is private"), None)
    })
}

/// Mends what needs neither root nor a decision.
fn fix(app: &App) -> Result<()> {
    if app.dirs.data.exists() {
        rustix::fs::chmod(&app.dirs.data, rustix::fs::Mode::from(0o700)).map_err(|e| {
            Failure::failed(format!("cannot make `{}` private: {e}", app.shown(&app.dirs.data)))
        })?;
    }
    for name in crate::journal::all(app)? {
        match app.lock(&name, "doctor") {
            // It runs yet.
            Err(failure) if failure.kind == Kind::Busy => {}
            lock => crate::worker::recover(app, &lock?, &name)?,
        }
    }
    app.sweep_locks()?;
    if app.dirs.staging().exists() {
        crate::make::Scratch::sweep(&app.dirs.staging())?;
    }
    Ok(())
}
