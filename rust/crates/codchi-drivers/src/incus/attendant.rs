//! What the process beside a machine asks of the engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::engine::{Variable, substitute};
use codchi_core::name::MachineName;
use codchi_runtime::attend::Engine;
use codchi_runtime::spec::Launch;
use codchi_runtime::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::api::{Api, ApiError};
use super::{did_not, mark, unreachable};
use crate::DriverError;

/// The variables of this engine's settings.
const VARIABLES: [Variable; 7] = [
    Variable::needed("toplevel"),
    Variable::needed("store"),
    Variable::needed("bin"),
    Variable::needed("agent"),
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

/// Engine settings of a machine, as `drivers/incus/host.nix` renders them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    version: u32,
    config: BTreeMap<String, String>,
    devices: Map<String, Value>,
}

/// What `spec.json` says of the engine.
#[derive(Debug, Deserialize)]
struct Said {
    socket: PathBuf,
    settings: Value,
}

fn said(launch: &Launch) -> Result<Said> {
    serde_json::from_value(launch.engine.clone()).map_err(|e| Error::Settings(e.to_string()))
}

/// Puts this host's values into the engine settings; `dir` is the machine's runtime directory.
fn settings(launch: &Launch, dir: &Path) -> Result<Settings> {
    let text = |p: &Path| {
        p.to_str().map(String::from).ok_or_else(|| Error::Settings(format!("`{}` is not UTF-8", p.display())))
    };
    let values = BTreeMap::from([
        ("toplevel", text(&launch.toplevel)?),
        ("store", text(&launch.store)?),
        ("bin", text(&launch.bin)?),
        ("agent", text(&dir.join("agent"))?),
        ("host", text(&dir.join("host"))?),
        ("notify", text(&dir.join("notify"))?),
        ("endpoint", text(&dir.join("daemon"))?),
    ]);
    let done = substitute(&said(launch)?.settings, &VARIABLES, &values)
        .map_err(|e| Error::Settings(e.to_string()))?;
    let settings: Settings = serde_json::from_value(done).map_err(|e| Error::Settings(e.to_string()))?;
    if settings.version != 1 {
        return Err(Error::Settings(format!("version {} is not supported, only 1", settings.version)));
    }
    Ok(settings)
}

/// Gives an instance the configuration that its system asks for.
pub fn configure(api: &Api, launch: &Launch, dir: &Path) -> Result<()> {
    let settings = settings(launch, dir)?;
    let path = format!("/1.0/instances/{}", launch.name);
    let configured = api.get(&path).and_then(|instance| {
        match mark::merged(&instance, &settings.config, &settings.devices) {
            Some(whole) => api.change("PUT", &path, &whole).map(drop),
            None => Ok(()),
        }
    });
    configured.map_err(|e| told(e, format!("configure the instance `{}`", launch.name)))
}

/// Stops an instance and waits until it is off.
pub fn stop(api: &Api, name: &str, force: bool) -> Result<(), ApiError> {
    let body = json!({ "action": "stop", "timeout": 100, "force": force });
    match api.change("PUT", &format!("/1.0/instances/{name}/state"), &body) {
        Err(ApiError::Refused { message, .. }) if message.contains("already stopped") => Ok(()),
        done => done.map(drop),
    }
}

fn told(e: ApiError, what: String) -> Error {
    from_driver(did_not(e, what))
}

fn from_driver(e: DriverError) -> Error {
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
}

impl Attendant {
    /// For the machine whose runtime directory is `dir`.
    pub fn new(dir: &Path, machine: &MachineName) -> crate::Result<Attendant> {
        let text = codchi_fs::read_to_string(dir.join("spec.json"))?;
        let launch: Launch = serde_json::from_str(&text).map_err(|e| DriverError::Settings(e.to_string()))?;
        Ok(Attendant { api: Api::at(&said(&launch)?.socket), name: machine.to_string(), dir: dir.into() })
    }

    fn path(&self, rest: &str) -> String {
        format!("/1.0/instances/{}{rest}", self.name)
    }

    fn state(&self) -> Result<Value, ApiError> {
        self.api.get(&self.path("/state"))
    }
}

fn pid(state: &Value) -> Option<i32> {
    state["pid"].as_i64().and_then(|p| i32::try_from(p).ok()).filter(|p| *p > 0)
}

impl Engine for Attendant {
    fn leader(&mut self) -> Result<Option<i32>> {
        let state = self.state().map_err(|e| from_driver(unreachable(e)))?;
        Ok(if state["status"] == "Running" { pid(&state) } else { None })
    }

    fn root_id(&mut self) -> Result<u32> {
        let instance = self.api.get(&self.path("")).map_err(|e| from_driver(unreachable(e)))?;
        let map = instance["config"]["volatile.idmap.next"].as_str().unwrap_or_default();
        let map: Value = serde_json::from_str(map).unwrap_or_default();
        let extents = map.as_array().into_iter().flatten();
        extents
            .filter(|e| e["Isuid"] == true && e["Nsid"] == 0)
            .find_map(|e| e["Hostid"].as_u64().and_then(|id| u32::try_from(id).ok()))
            .ok_or_else(|| Error::Host {
                what: format!("Incus gave `{}` no user ids of its own", self.name),
                hints: vec!["root needs a large range in /etc/subuid and /etc/subgid, such as `root:1000000:1000000000`".into()],
            })
    }

    fn start(&mut self, launch: &Launch) -> Result<i32> {
        configure(&self.api, launch, &self.dir)?;
        let started =
            self.api.change("PUT", &self.path("/state"), &json!({ "action": "start", "timeout": 60 }));
        if let Err(e) = started {
            let ApiError::Refused { message, .. } = &e else {
                return Err(told(e, "start the instance".into()));
            };
            return Err(Error::Start { name: self.name.clone(), why: message.clone(), console: self.log() });
        }
        self.leader()?.ok_or_else(|| Error::Start {
            name: self.name.clone(),
            why: "its first process has gone".into(),
            console: self.console(),
        })
    }

    fn stop(&mut self, force: bool) -> Result<()> {
        let body = json!({ "action": "stop", "timeout": 100, "force": force });
        match self.api.ask("PUT", &self.path("/state"), &body) {
            // On its way already.
            Ok(()) | Err(ApiError::Refused { .. }) => Ok(()),
            Err(e) => Err(told(e, "stop the instance".into())),
        }
    }

    fn next(&mut self, last: i32, asked: bool) -> Result<Option<i32>> {
        let until = Instant::now() + RESTART;
        let mut off_since = None;
        loop {
            match self.api.get(&self.path("?recursion=1")) {
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
        let text = self.api.text(&self.path("/console")).unwrap_or_default();
        tail(&text, |_| true)
    }

    fn save_console(&mut self, file: &Path) {
        if let Ok(text) = self.api.text(&self.path("/console")) {
            let text: String = text.chars().filter(|c| *c != '\r').collect();
            let _ = codchi_fs::write_atomic(file, text, 0o600);
        }
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

    /// What `drivers/incus/host.nix` renders; `tests/nix/run` fails when it is stale.
    const ENGINE: &str = include_str!("../../../../../tests/nix/cases/engine-incus.json");

    fn launch() -> Launch {
        let engine: Value = serde_json::from_str(ENGINE).unwrap();
        serde_json::from_value(json!({
            "version": 1,
            "name": "demo",
            "engine": { "socket": "/run/incus/unix.socket", "settings": engine },
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
        let settings = settings(&launch(), Path::new("/run/codchi/machines/demo")).unwrap();
        let text = format!("{:?} {:?}", settings.config, settings.devices);
        assert!(!text.contains('@'), "{text}");
        assert_eq!(settings.devices["store"]["source"], "/data/store/nix/store");
        assert_eq!(settings.devices["store"]["readonly"], "true");
        assert_eq!(settings.devices["agent"]["source"], "/run/codchi/machines/demo/agent");
        assert!(
            settings.config["raw.lxc"]
                .contains("/nix/store/00000000000000000000000000000000-nixos-system/init")
        );
        assert_eq!(settings.config["limits.memory"], "2147483648");
    }

    #[test]
    fn the_end_of_a_log_is_shown_without_control_characters() {
        let text = "a ERROR one\nb WARN two\nc ERROR \u{1b}[31mthree\n";
        assert_eq!(tail(text, |l| l.contains(" ERROR ")), ["a ERROR one", "c ERROR [31mthree"]);
    }
}
