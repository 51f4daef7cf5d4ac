//! The store of machines on another host: a volume there that all machines of one caller mount, read-only, and that an instance which
//! does nothing else fills by way of the engine.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use codchi_core::name::MachineName;
use codchi_core::progress::{Event, Silent};
use codchi_core::remote::Remote;
use codchi_fs::Lock;
use codchi_nix::{Launch as _, Role};
use codchi_runtime::spec::Launch;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Api, ApiError};
use super::network::{self, Network};
use super::{did_not, guard, image, mark, member, stream};
use crate::{DriverError, Host, Result};

/// In the mark of an instance that fills a store: whose process it works for.
const CARRIER: &str = "user.codchi.carrier";
/// What it does.
const NOTHING: &str = "lxc.init.cmd = /codchi-boot --hold";
/// The program in it.
const BOOT: &str = "/codchi-boot";

/// What a machine on another host has there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stocked {
    /// The storage pool of its store.
    pub pool: String,
    /// The volume in it.
    pub volume: String,
    /// The store path of the static programs.
    pub programs: PathBuf,
    /// The network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

/// A store on another host.
struct Depot<'a> {
    api: &'a Api,
    host: &'a Host<'a>,
    remote: &'a Remote,
    pool: String,
    member: Option<String>,
    volume: String,
}

/// Has everything that a system needs where the instance is, and tells where and what.
pub fn stock(api: &Api, host: &Host, remote: &Remote, instance: &Value, toplevel: &str) -> Result<Stocked> {
    let store = host.store.ok_or_else(|| DriverError::Settings("there is no store".into()))?;
    let depot = Depot::of(api, host, remote, instance)?;
    let _lock = lock(host, remote)?;
    depot.make()?;
    let programs = added(store, host.bin)?;
    let unread = |e: codchi_store::StoreError| DriverError::Helper {
        what: format!("read what `{toplevel}` needs"),
        reason: e.to_string(),
    };
    let mut wanted: BTreeSet<String> = store.closure(toplevel).map_err(unread)?.into_iter().collect();
    wanted.extend(base_name(&programs));
    let carrier = depot.carrier()?;
    let there = carrier.names()?;
    let missing: Vec<&String> = wanted.iter().filter(|name| !there.contains(*name)).collect();
    if !missing.is_empty() {
        carrier.send(&store.root_dir(), &missing)?;
    }
    // What runs may still use what nobody else needs.
    if depot.is_idle()? {
        let mut kept = depot.needed(store)?;
        kept.extend(wanted);
        if there.iter().any(|name| !kept.contains(name)) {
            carrier.keep(&kept)?;
        }
    }
    let network = network::find(api, instance, &Silent).map_err(depot.failed("look at the networks"))?;
    Ok(Stocked { pool: depot.pool.clone(), volume: depot.volume.clone(), programs, network })
}

/// After a machine was removed: nothing of a store stays that none of the caller's machines uses, whatever pool or member it was on.
pub fn clear(api: &Api, host: &Host, remote: &Remote) -> Result<()> {
    let failed = |e: ApiError| did_not(api.dialect(), e, format!("remove the store on `{remote}`"));
    let _lock = lock(host, remote)?;
    for instance in instances(api, host).map_err(failed)? {
        sweep(api, &instance);
    }
    let name = volume(host);
    let pools = api.get("/1.0/storage-pools").map_err(failed)?;
    for pool in pools.as_array().into_iter().flatten().filter_map(|p| p.as_str()?.rsplit('/').next()) {
        let all = format!("/1.0/storage-pools/{pool}/volumes/custom?recursion=1");
        let all = api.get(&all).map_err(failed)?;
        let unused = |v: &&Value| {
            v["name"] == name.as_str()
                && mark::is_callers(v, host.dirs)
                && v["used_by"].as_array().is_none_or(Vec::is_empty)
        };
        for found in all.as_array().into_iter().flatten().filter(unused) {
            match api.delete(&at(pool, &name, mark::member(found))) {
                Err(e) if !e.is_not_found() => return Err(failed(e)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Two commands of one host must not fill and clear a store at once.
fn lock(host: &Host, remote: &Remote) -> Result<Lock> {
    codchi_fs::create_private_dir(&host.dirs.state)?;
    let file = host.dirs.state.join("remotes.lock");
    Lock::take(file, &format!("process {}", std::process::id())).map_err(|e| DriverError::Helper {
        what: format!("use the store on `{remote}`"),
        reason: e.to_string(),
    })
}

/// What the caller's store is called on every engine.
fn volume(host: &Host) -> String {
    format!("codchi-{}", mark::caller(host.dirs))
}

fn at(pool: &str, volume: &str, member: Option<&str>) -> String {
    member::targeted(&format!("/1.0/storage-pools/{pool}/volumes/custom/{volume}"), member)
}

/// The caller's instances.
fn instances(api: &Api, host: &Host) -> Result<Vec<Value>, ApiError> {
    let all = api.get("/1.0/instances?recursion=1")?;
    let ours = |i: &&Value| mark::is_callers(i, host.dirs);
    Ok(all.as_array().into_iter().flatten().filter(ours).cloned().collect())
}

/// Removes an instance that a killed command left with a store.
fn sweep(api: &Api, instance: &Value) {
    let works_for = instance["config"][CARRIER].as_str();
    if works_for.is_some_and(|p| p == process() || !is_alive(p)) {
        remove(api, instance["name"].as_str().unwrap_or_default());
    }
}

/// The static programs, in this host's store.
fn added(store: &codchi_store::Store, bin: &Path) -> Result<PathBuf> {
    let failed = |reason: String| DriverError::Helper { what: "add programs to the store".into(), reason };
    let mut command = store.command("nix-store", Role::Maintainer);
    let done = command.arg("--add").arg(bin).stdin(std::process::Stdio::null()).output();
    let done = done.map_err(|e| failed(e.to_string()))?;
    if !done.status.success() {
        return Err(failed(String::from_utf8_lossy(&done.stderr).trim().into()));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim().into())
}

fn base_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

impl<'a> Depot<'a> {
    fn of(api: &'a Api, host: &'a Host<'a>, remote: &'a Remote, instance: &Value) -> Result<Depot<'a>> {
        let pool = instance["expanded_devices"]["root"]["pool"]
            .as_str()
            .ok_or_else(|| DriverError::Settings("the instance has no root disk".into()))?;
        Ok(Depot {
            api,
            host,
            remote,
            pool: pool.into(),
            member: mark::member(instance).map(String::from),
            volume: volume(host),
        })
    }

    fn path(&self) -> String {
        at(&self.pool, &self.volume, self.member.as_deref())
    }

    fn failed(&self, what: &str) -> impl Fn(ApiError) -> DriverError + '_ {
        let what = format!("{what} on `{}`", self.remote);
        move |e| did_not(self.api.dialect(), e, what.clone())
    }

    fn make(&self) -> Result<()> {
        match self.api.get(&self.path()) {
            Ok(volume) if mark::is_callers(&volume, self.host.dirs) => return Ok(()),
            Ok(_) => {
                return Err(DriverError::Host {
                    what: format!(
                        "{} has a volume `{}` on `{}` that is not yours; it is left alone",
                        self.api.dialect().title,
                        self.volume,
                        self.remote
                    ),
                    hints: vec![format!(
                        "`{} storage volume rename {}:{} {} OTHER` gives it another name",
                        self.api.dialect().client,
                        self.remote.name,
                        self.pool,
                        self.volume
                    )],
                });
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(self.failed("look at the store")(e)),
        }
        let mut config = mark::of_caller(self.host.dirs);
        // Each machine has ids of its own, and sees root as its owner.
        config.insert("security.shifted".into(), json!("true"));
        let volume = json!({
            "name": self.volume,
            "type": "custom",
            "content_type": "filesystem",
            "description": "the store of code machines; `codchi` looks after it",
            "config": config,
        });
        let path = format!("/1.0/storage-pools/{}/volumes/custom", self.pool);
        let path = member::targeted(&path, self.member.as_deref());
        self.api.change("POST", &path, &volume).map(drop).map_err(self.failed("make a store"))
    }

    fn instances(&self) -> Result<Vec<Value>> {
        instances(self.api, self.host).map_err(self.failed("look at the instances"))
    }

    /// Whether no machine of the caller's runs there.
    fn is_idle(&self) -> Result<bool> {
        let there =
            |i: &&Value| i["config"].get(mark::APART).is_some() && mark::member(i) == self.member.as_deref();
        Ok(self.instances()?.iter().filter(there).all(|i| i["status"] == "Stopped"))
    }

    /// What the caller's machines on that engine need.
    fn needed(&self, store: &codchi_store::Store) -> Result<BTreeSet<String>> {
        let dirs = self.host.dirs;
        let mut kept = BTreeSet::new();
        for entry in codchi_fs::read_dir(dirs.machines()).unwrap_or_default() {
            let name = entry.file_name().to_str().and_then(|n| n.parse::<MachineName>().ok());
            let Some(name) = name else { continue };
            let there = super::remote_of(dirs, &name)?;
            // An engine may be known by several names.
            if there.is_none() {
                continue;
            }
            let generations = codchi_fs::read_dir(dirs.generations(&name)).unwrap_or_default();
            let mut systems: Vec<PathBuf> =
                generations.iter().filter_map(|g| std::fs::read_link(g.path()).ok()).collect();
            systems.extend(Launch::read(&dirs.machine_runtime(&name)).ok().map(|l| l.toplevel));
            for system in systems.iter().filter(|s| s.starts_with("/nix/store")) {
                // One that is not here any more cannot be started anew.
                kept.extend(store.closure(&system.to_string_lossy()).unwrap_or_default());
            }
        }
        Ok(kept)
    }

    fn carrier(&self) -> Result<Carrier<'_>> {
        self.instances()?.iter().for_each(|instance| sweep(self.api, instance));
        let name = format!("codchi-store-{:x}-{}", self.host.dirs.uid, std::process::id());
        let not = self.failed("reach the store");
        let image =
            (!self.api.dialect().vacant).then(|| image::Image::new(self.api)).transpose().map_err(&not)?;
        let mut config = mark::of_caller(self.host.dirs);
        config.insert(CARRIER.into(), json!(process()));
        config.insert("raw.lxc".into(), json!(NOTHING));
        config.insert("security.privileged".into(), json!("false"));
        config.insert("security.idmap.isolated".into(), json!("true"));
        config.insert("security.idmap.size".into(), json!("65536"));
        config.insert(self.api.dialect().guest_api.into(), json!("false"));
        let instance = json!({
            "name": name,
            "type": "container",
            "description": "fills the store of code machines for a moment",
            "ephemeral": true,
            "source": image.as_ref().map_or_else(|| json!({ "type": "none" }), image::Image::source),
            "profiles": [],
            "config": config,
            "devices": {
                "root": { "type": "disk", "path": "/", "pool": self.pool },
                "store": { "type": "disk", "path": "/nix/store", "pool": self.pool, "source": self.volume },
            },
        });
        self.api
            .change("POST", &member::targeted("/1.0/instances", self.member.as_deref()), &instance)
            .map_err(&not)?;
        let carrier = Carrier { depot: self, name };
        for folder in ["/nix", "/nix/store"] {
            self.api.make_folder(&carrier.name, folder).map_err(&not)?;
        }
        let program = codchi_fs::read(self.host.bin.join("codchi-boot"))?;
        self.api.put_program(&carrier.name, BOOT, &program).map_err(&not)?;
        self.api.set_state(&carrier.name, "start", false).map_err(&not)?;
        Ok(carrier)
    }
}

/// An instance that fills a store, until this is dropped.
struct Carrier<'a> {
    depot: &'a Depot<'a>,
    name: String,
}

impl Carrier<'_> {
    fn run(&self, verb: &str, from: &mut (dyn Read + Send), to: &mut dyn Write) -> Result<()> {
        stream::run(self.depot.api, &self.name, &[BOOT, "--store", verb], from, to)
            .map_err(self.depot.failed("use the store"))
    }

    fn names(&self) -> Result<BTreeSet<String>> {
        let mut out = Vec::new();
        self.run("names", &mut std::io::empty(), &mut out)?;
        Ok(String::from_utf8_lossy(&out).lines().map(String::from).collect())
    }

    fn keep(&self, names: &BTreeSet<String>) -> Result<()> {
        let list: String = names.iter().flat_map(|n| [n.as_str(), "\n"]).collect();
        self.run("keep", &mut list.as_bytes(), &mut std::io::sink())
    }

    /// Sends paths of this host's store.
    fn send(&self, store: &Path, names: &[&String]) -> Result<()> {
        let progress = self.depot.host.progress;
        progress.report(Event::Phase(&format!("copying packages to `{}`", self.depot.remote)));
        let failed = |reason: String| DriverError::Helper {
            what: format!("copy packages to `{}`", self.depot.remote),
            reason,
        };
        let (mut reader, writer) = std::io::pipe().map_err(|e| failed(e.to_string()))?;
        let total = names.len() as u64;
        let pack = move || -> std::io::Result<()> {
            let mut tar = tar::Builder::new(std::io::BufWriter::with_capacity(1 << 20, writer));
            tar.follow_symlinks(false);
            for (done, name) in (0..).zip(names) {
                let items = Event::Items { what: "packages", done, total, bytes: 0, total_bytes: 0 };
                progress.report(items);
                let path = store.join(name);
                if path.symlink_metadata()?.is_dir() {
                    tar.append_dir_all(name, path)?;
                } else {
                    tar.append_path_with_name(path, name)?;
                }
            }
            tar.into_inner()?.flush()
        };
        let (packed, sent) = std::thread::scope(|s| {
            let packing = s.spawn(pack);
            let sent = self.run("import", &mut reader, &mut std::io::sink());
            // Nobody reads any more: who still writes hears of that.
            drop(reader);
            (packing.join(), sent)
        });
        sent?;
        packed.map_err(|_| failed("a thread ended".into()))?.map_err(|e| failed(e.to_string()))
    }
}

impl Drop for Carrier<'_> {
    fn drop(&mut self) {
        remove(self.depot.api, &self.name);
    }
}

/// An ephemeral instance goes when it is off.
fn remove(api: &Api, name: &str) {
    let _ = super::attendant::stop(api, name, true);
    let _ = api.delete(&format!("/1.0/instances/{name}"));
}

/// This process, as it is never mixed up with a later one.
fn process() -> String {
    let pid = std::process::id();
    let begun = i32::try_from(pid).ok().and_then(codchi_runtime::state::start_time).unwrap_or(0);
    format!("{pid}:{begun}")
}

fn is_alive(process: &str) -> bool {
    let Some((pid, begun)) = process.split_once(':') else { return false };
    let now = pid.parse().ok().and_then(codchi_runtime::state::start_time);
    now.is_some_and(|now| begun.parse() == Ok(now))
}

/// What a machine has that has nothing of this host but what is in a store there.
pub fn settle(
    settings: &mut guard::Settings,
    stocked: &Stocked,
    toplevel: &Path,
) -> codchi_runtime::Result<()> {
    settings.devices.retain(|name, _| !guard::is_mount(name));
    let store = json!({
        "type": "disk",
        "pool": stocked.pool,
        "source": stocked.volume,
        "path": "/nix/store",
        "readonly": "true",
    });
    settings.devices.insert("store".into(), store);
    if let Some(network) = &stocked.network {
        settings.devices.insert("eth0".into(), network.device.clone());
    }
    settings.config.remove("environment.NOTIFY_SOCKET");
    let lines = settings.config.get("raw.lxc").map(String::as_str).unwrap_or_default();
    let lines = guard::apart(lines, toplevel, &stocked.programs.join("codchi-boot")).ok_or_else(|| {
        codchi_runtime::Error::Settings("on another host, `raw.lxc` cannot be another than Codchi's".into())
    })?;
    settings.config.insert("raw.lxc".into(), lines);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_apart() {
        assert!(is_alive(&process()));
        assert!(!is_alive("1:0") && !is_alive("") && !is_alive("x:y"));
    }
}
