//! What the process beside a machine asks of the engine.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::engine::{Variable, substitute};
use codchi_core::remote::Remote;
use codchi_runtime::attached::Attached;
use codchi_runtime::attend::{Engine, Has, Seen, Warn};
use codchi_runtime::spec::{Launch, User};
use codchi_runtime::{Error, Result};
use codchi_secrets::Bundle;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Api, ApiError};
use super::depot::{self, Stocked};
use super::dialect::Dialect;
use super::guard::{self, Settings};
use super::site::Site;
use super::{did_not, mark};
use crate::DriverError;

/// The variables of this engine's settings.
const VARIABLES: [Variable; 6] = [
    Variable::needed("toplevel"),
    Variable::needed("store"),
    Variable::needed("bin"),
    Variable::needed("host"),
    Variable::needed("notify"),
    Variable::optional("endpoint"),
];
/// How long the engine may take from the end of one PID 1 to the next.
const RESTART: Duration = Duration::from_secs(30);
/// How long an instance that is off may be about to start again. When it takes longer, the next command looks after it.
const BETWEEN_LIVES: Duration = Duration::from_secs(5);
/// Lines of the console that go with the message of a failed start.
const TAIL: usize = 20;

/// What `spec.json` says of the engine.
#[derive(Debug, Deserialize, Serialize)]
pub struct Said {
    /// Where it listens on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The machine has nothing of this host: where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apart: Option<Apart>,
    /// The settings of the built system.
    pub settings: Value,
    /// What a person granted of them.
    pub granted: Value,
}

/// Where a machine is that has nothing of this host.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Apart {
    /// Its engine.
    pub remote: Remote,
    /// Where the engine's client keeps what it knows.
    pub client: PathBuf,
    /// Its store there.
    pub stocked: Stocked,
}

/// What `spec.json` says of the engine.
pub fn said(launch: &Launch) -> Result<Said> {
    serde_json::from_value(launch.engine.clone()).map_err(|e| Error::Settings(e.to_string()))
}

/// The engine that `spec.json` names.
pub fn api(dialect: &'static Dialect, said: &Said) -> Result<Api> {
    if let Some(Apart { remote, client, .. }) = &said.apart {
        let site = Site::named(dialect, client, &remote.name).map_err(from_driver)?;
        return Ok(Api::at(dialect, &site).apart(remote.clone()));
    }
    let socket = said.socket.clone().ok_or_else(|| Error::Settings("no engine is named".into()))?;
    Ok(Api::at(dialect, &Site::Socket(socket)))
}

/// Puts this host's values into the engine settings; `dir` is the machine's runtime directory.
fn settings(dialect: &Dialect, launch: &Launch, dir: &Path) -> Result<Settings> {
    let text = |p: &Path| {
        p.to_str().map(String::from).ok_or_else(|| Error::Settings(format!("`{}` is not UTF-8", p.display())))
    };
    let values = BTreeMap::from([
        ("toplevel", text(&launch.toplevel)?),
        ("store", text(&launch.store)?),
        ("bin", text(&launch.bin)?),
        ("host", text(&dir.join("host"))?),
        ("notify", text(&dir.join("notify"))?),
        ("endpoint", text(&dir.join("daemon"))?),
    ]);
    let said = said(launch)?;
    let mut settings = guard::settled(dialect, &said.settings, &said.granted)?;
    let whole = json!({ "config": settings.config, "devices": settings.devices });
    let done = substitute(&whole, &VARIABLES, &values).map_err(|e| Error::Settings(e.to_string()))?;
    let part = |key: &str| done[key].clone();
    settings.config = serde_json::from_value(part("config")).map_err(|e| Error::Settings(e.to_string()))?;
    settings.devices = serde_json::from_value(part("devices")).map_err(|e| Error::Settings(e.to_string()))?;
    if let Some(apart) = &said.apart {
        depot::settle(&mut settings, &apart.stocked, &launch.toplevel)?;
    }
    Ok(settings)
}

/// Gives an instance the configuration that its system asks for.
pub fn configure(api: &Api, launch: &Launch, dir: &Path) -> Result<()> {
    let settings = settings(api.dialect(), launch, dir)?;
    let path = format!("/1.0/instances/{}", launch.name);
    let configured = api.get(&path).and_then(|instance| match mark::merged(&instance, &settings) {
        Some(whole) => api.change("PUT", &path, &whole).map(drop),
        None => Ok(()),
    });
    configured.map_err(|e| told(api.dialect(), e, format!("configure the instance `{}`", launch.name)))
}

/// Stops an instance and waits until it is off.
pub fn stop(api: &Api, name: &str, force: bool) -> Result<(), ApiError> {
    match api.set_state(name, "stop", force) {
        Err(ApiError::Refused { message, .. }) if message.contains("already stopped") => Ok(()),
        done => done,
    }
}

/// Starts an instance. What the engine says of its failure comes with what `console` gives.
pub fn start(
    api: &Api,
    name: &str,
    failed: impl FnOnce(ApiError) -> Error,
    console: impl FnOnce() -> Vec<String>,
) -> Result<()> {
    match api.set_state(name, "start", false) {
        Err(ApiError::Refused { message, .. }) => {
            Err(Error::Start { name: name.into(), why: message, console: console() })
        }
        done => done.map_err(failed),
    }
}

/// Has an instance stop, without waiting for it; one that does is on its way already.
pub fn begin_stop(api: &Api, name: &str, force: bool) -> Result<(), ApiError> {
    match api.begin_state(name, "stop", force) {
        Err(ApiError::Refused { .. }) => Ok(()),
        done => done,
    }
}

/// What the engine keeps of an instance's console.
fn whole_console(api: &Api, name: &str) -> Result<String, ApiError> {
    api.text(&format!("/1.0/instances/{name}/console"))
}

/// The last lines of it.
pub fn console(api: &Api, name: &str) -> Vec<String> {
    tail(&whole_console(api, name).unwrap_or_default(), |_| true)
}

/// Writes it to a file; best effort.
pub fn save_console(api: &Api, name: &str, file: &Path) {
    if let Ok(text) = whole_console(api, name) {
        let text: String = text.chars().filter(|c| *c != '\r').collect();
        let _ = codchi_fs::write_atomic(file, text, 0o600);
    }
}

/// What the engine did not do, as the runtime tells it.
pub fn told(dialect: &Dialect, e: ApiError, what: String) -> Error {
    from_driver(did_not(dialect, e, what))
}

/// An error of a driver, as the runtime tells it.
pub fn from_driver(e: DriverError) -> Error {
    match e {
        DriverError::Host { what, hints } => Error::Host { what, hints },
        other => Error::Told(other.to_string()),
    }
}

/// The engine, for one machine.
pub struct Attendant {
    api: Api,
    name: String,
    dir: PathBuf,
    attached: Option<Attached>,
    member: Option<String>,
}

impl Attendant {
    /// For the machine whose runtime directory is `dir`.
    pub fn new(dialect: &'static Dialect, launch: &Launch, dir: &Path) -> Result<Attendant> {
        let api = api(dialect, &said(launch)?)?;
        Ok(Attendant { api, name: launch.name.clone(), dir: dir.into(), attached: None, member: None })
    }

    fn path(&self, rest: &str) -> String {
        format!("/1.0/instances/{}{rest}", self.name)
    }

    fn state(&self) -> Result<Value, ApiError> {
        self.api.get(&self.path("/state"))
    }

    fn told(&self, e: ApiError, what: &str) -> Error {
        told(self.api.dialect(), e, what.into())
    }

    fn attached(&mut self) -> Result<&mut Attached> {
        self.attached.as_mut().ok_or_else(|| Error::Told("nothing is prepared for the machine".into()))
    }

    /// The host's id of the machine's root.
    fn root_id(&self, instance: &Value) -> Result<u32> {
        root_id(instance).ok_or_else(|| Error::Host {
            what: format!("{} gave `{}` no user ids of its own", self.api.dialect().title, self.name),
            hints: vec![
                "root needs a large range in /etc/subuid and /etc/subgid, such as `root:1000000:1000000000`"
                    .into(),
            ],
        })
    }
}

/// The host's id of an instance's root.
pub fn root_id(instance: &Value) -> Option<u32> {
    let map = instance["config"]["volatile.idmap.next"].as_str()?;
    let map: Value = serde_json::from_str(map).ok()?;
    let mut extents = map.as_array()?.iter().filter(|e| e["Isuid"] == true && e["Nsid"] == 0);
    extents.find_map(|e| e["Hostid"].as_u64().and_then(|id| u32::try_from(id).ok()))
}

/// PID 1, as the state of an instance names it.
pub fn pid(state: &Value) -> Option<i32> {
    state["pid"].as_i64().and_then(|p| i32::try_from(p).ok()).filter(|p| *p > 0)
}

impl Engine for Attendant {
    fn open(&mut self, launch: &Launch, secrets: Bundle) -> Result<()> {
        let instance = self.api.get(&self.path("")).map_err(|e| self.told(e, "look at the instance"))?;
        self.member = mark::member(&instance).map(String::from);
        self.attached = Some(Attached::open(&self.dir, launch, self.root_id(&instance)?, &secrets)?);
        Ok(())
    }

    fn user(&self, launch: &Launch) -> Option<User> {
        self.attached.as_ref().map(|a| a.on_host(launch.user))
    }

    fn find(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) -> Result<Has> {
        self.attached()?.find(leader, launch, warn)
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.attached.as_ref().map(Attached::events).unwrap_or_default()
    }

    fn look(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) -> Result<Seen> {
        self.attached()?.look(leader, launch, warn)
    }

    fn change(&mut self, leader: i32, old: &Launch, new: &Launch, warn: &mut Warn<'_>) -> Result<Has> {
        self.attached()?.change(leader, old, new, warn)
    }

    fn children(&self) -> Vec<i32> {
        self.attached.as_ref().map(Attached::children).unwrap_or_default()
    }

    fn part(&mut self) {
        if let Some(attached) = &mut self.attached {
            attached.part();
        }
    }

    fn close(&mut self) {
        if let Some(attached) = &mut self.attached {
            attached.close();
        }
    }

    fn leader(&mut self) -> Result<Option<i32>> {
        let state = self.state().map_err(|e| self.told(e, "look at the instance"))?;
        Ok(if state["status"] == "Running" { pid(&state) } else { None })
    }

    fn start(&mut self, launch: &Launch) -> Result<i32> {
        configure(&self.api, launch, &self.dir)?;
        start(&self.api, &self.name, |e| self.told(e, "start the instance"), || self.log())?;
        self.leader()?.ok_or_else(|| Error::Start {
            name: self.name.clone(),
            why: "its first process has gone".into(),
            console: self.console(),
        })
    }

    fn stop(&mut self, force: bool) -> Result<()> {
        begin_stop(&self.api, &self.name, force).map_err(|e| self.told(e, "stop the instance"))
    }

    fn next(&mut self, last: i32, asked: bool) -> Result<Option<i32>> {
        let until = Instant::now() + RESTART;
        let mut off_since = None;
        loop {
            match self.api.get(&self.path("?recursion=1")) {
                // Of one that somebody moved away, the process id is another host's.
                Ok(i) if mark::member(&i) != self.member.as_deref() => return Ok(None),
                Ok(i) if i["status"] == "Running" => {
                    if let Some(next) = pid(&i["state"]).filter(|p| *p != last) {
                        return Ok(Some(next));
                    }
                }
                // Between two lives of a machine that reboots, the engine says for a moment that it is off.
                Ok(i) if i["config"]["volatile.last_state.power"] == "STOPPED" => {
                    let since = *off_since.get_or_insert_with(Instant::now);
                    if asked || since.elapsed() > BETWEEN_LIVES {
                        return Ok(None);
                    }
                }
                Err(e) if e.is_not_found() => return Ok(None),
                _ => {}
            }
            if Instant::now() > until {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn console(&mut self) -> Vec<String> {
        console(&self.api, &self.name)
    }

    fn save_console(&mut self, file: &Path) {
        save_console(&self.api, &self.name, file);
    }
}

impl Attendant {
    /// What the engine's own log says went wrong.
    fn log(&self) -> Vec<String> {
        let text = self.api.text(&self.path("/logs/lxc.log")).unwrap_or_default();
        tail(&text, |line| line.contains(" ERROR "))
    }
}

fn tail(text: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let clean = |l: &str| l.chars().filter(|c| !c.is_control()).collect::<String>();
    let lines: Vec<String> =
        text.lines().filter(|l| wanted(l)).map(clean).filter(|l| !l.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incus::DIALECT as INCUS;

    /// What `lib/instance.nix` renders; `tests/nix/run` fails when it is stale.
    const ENGINE: &str = include_str!("../../../../../tests/nix/cases/engine-incus.json");

    fn launch() -> Launch {
        let engine: Value = serde_json::from_str(ENGINE).unwrap();
        serde_json::from_value(json!({
            "version": 1,
            "name": "demo",
            "engine": {
                "socket": "/run/incus/unix.socket",
                "settings": engine,
                "granted": { "config": { "limits.cpu.priority": "5" } },
            },
            "root": "",
            "store": "/data/store/nix/store",
            "toplevel": "/nix/store/00000000000000000000000000000000-nixos-system",
            "bin": "/data/bin",
            "consoleLog": "/state/console.log",
        }))
        .unwrap()
    }

    #[test]
    fn what_nix_renders_is_what_the_engine_is_told() {
        let settings = settings(&INCUS, &launch(), Path::new("/run/codchi/machines/demo")).unwrap();
        let text = format!("{:?} {:?}", settings.config, settings.devices);
        assert!(!text.contains('@'), "{text}");
        assert_eq!(settings.devices["store"]["source"], "/data/store/nix/store");
        assert_eq!(settings.devices["store"]["readonly"], "true");
        assert_eq!(settings.devices["host"]["source"], "/run/codchi/machines/demo/host");
        assert!(
            settings.config["raw.lxc"]
                .contains("/nix/store/00000000000000000000000000000000-nixos-system/init")
        );
        assert_eq!(settings.config["limits.memory"], "2147483648");
        assert_eq!(settings.disk, Some(20 << 30));
    }

    #[test]
    fn the_end_of_a_log_is_shown_without_control_characters() {
        let text = "a ERROR one\nb WARN two\nc ERROR \u{1b}[31mthree\n";
        assert_eq!(tail(text, |l| l.contains(" ERROR ")), ["a ERROR one", "c ERROR [31mthree"]);
    }
}
