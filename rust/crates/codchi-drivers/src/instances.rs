//! What the drivers of Incus and LXD are: machines as unprivileged system containers of a daemon, through its REST API.
//!
//! The engine starts PID 1 and keeps the root file system; `codchi supervise` stands beside the machine and gives it network,
//! folders, secrets, endpoint and resolver as everywhere else ([`codchi_runtime::attend`]). Commands go through the agent's socket,
//! in memory of the machine that the process beside it shows. The engine's own `exec` is used where the machine is on another host
//! ([`apart`]), and then for our own programs only.

mod apart;
mod api;
mod attendant;
mod depot;
mod dialect;
mod files;
mod guard;
mod image;
mod mark;
mod member;
mod network;
mod ports;
mod probe;
mod site;
mod stream;

use std::collections::{BTreeMap, BTreeSet};

use codchi_core::dirs::Dirs;
use codchi_core::folder::Folder;
use codchi_core::machine::{Host as Attachment, IdRange};
use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_core::remote::Remote;
use codchi_core::session::{self, Session};
use codchi_core::status::{Finding, State};
use codchi_files::Report;
use codchi_runtime::attend::Engine;
use codchi_runtime::spec::Launch;
use codchi_runtime::{folders, ids, outer, relay, start, state};
use serde_json::{Value, json};

use crate::supervised::{self, life, prepare};
use crate::{
    Begun, Driver, DriverError, Exec, Export, Given, Host, Info, Machine, Result, Running, Switched, Watchers,
};

use api::{Api, ApiError};
pub use dialect::Dialect;
use site::Site;

/// The driver, of one engine.
pub struct Instances {
    pub(crate) dialect: &'static Dialect,
}

impl Driver for Instances {
    fn info(&self) -> &'static Info {
        &self.dialect.info
    }

    fn probe(&self, host: &Host) -> Vec<Finding> {
        let mut all = probe::probe(&self.here(), host.dirs);
        all.extend(self.remotes(host.dirs).into_iter().map(|remote| {
            let api = self.reached(host.dirs, Some(remote.clone()));
            probe::remote(self.dialect, &remote.name, api.and_then(|api| self.usable(api)))
        }));
        all
    }

    fn reach(&self, host: &Host, remote: &Remote) -> Option<Result<()>> {
        Some(self.reach_remote(host, remote))
    }

    fn ids(&self, _: &[IdRange]) -> Result<Option<IdRange>> {
        // The engine gives each instance a range of its own.
        Ok(None)
    }

    fn refusal(&self, host: &Host, machine: &MachineName, folder: &Folder) -> Option<String> {
        if let Ok(Some(remote)) = remote_of(host.dirs, machine) {
            return Some(format!("the machine is on `{remote}`: {}", apart::NO_FOLDERS));
        }
        folders::refusal(folder)
    }

    fn create(&self, host: &Host, machine: &Machine) -> Result<()> {
        let api = self.usable(self.reached(host.dirs, machine.attachment.remote.clone())?)?;
        let remote = api.remote();
        if find(&api, machine.name)?.is_some() {
            return self.own(&api, host.dirs, machine.name).map(drop);
        }
        let pool = pool(&api)?;
        let name = machine.name.as_str();
        remember(host.dirs, machine.name, remote)?;
        let did_not_make = |e| did_not(self.dialect, e, format!("make the instance `{name}`"));
        // An empty root file system: the machine's init fills it.
        let image =
            (!self.dialect.vacant).then(|| image::Image::new(&api)).transpose().map_err(did_not_make)?;
        let source = image.as_ref().map_or_else(|| json!({ "type": "none" }), image::Image::source);
        let mut config = mark::marks(host.dirs, machine.name, remote.is_some());
        config.insert("security.idmap.isolated".into(), json!("true"));
        config.insert("security.idmap.size".into(), json!("65536"));
        let instance = json!({
            "name": machine.name,
            "type": "container",
            "description": "a code machine; `codchi` looks after it",
            "source": source,
            // A person's default profile may lack anything, and change.
            "profiles": [],
            "config": config,
            "devices": { "root": { "type": "disk", "path": "/", "pool": pool } },
        });
        let member = match remote {
            None => member::here(&api).map_err(did_not_make)?,
            Some(remote) => remote.member.clone(),
        };
        api.change("POST", &member::targeted("/1.0/instances", member.as_deref()), &instance)
            .map_err(did_not_make)?;
        drop(image);
        // Where a mount with mapped owners goes has to be there.
        for folder in ["/nix", "/nix/store"] {
            if let Err(e) = api.make_folder(name, folder) {
                let _ = api.delete(&format!("/1.0/instances/{name}"));
                return Err(did_not(self.dialect, e, format!("prepare the root file system of `{name}`")));
            }
        }
        if remote.is_some() {
            // Said once: here a person can still change it, and each start sees what there is then.
            network::find(&api, &instance, host.progress)
                .map_err(|e| did_not(self.dialect, e, "look at the networks".into()))?;
        }
        Ok(())
    }

    fn update(&self, host: &Host, machine: &Machine) -> Result<Switched> {
        let launch = self.launch(host, machine)?;
        life::update(host, machine, &launch, || {
            let api = self.connect(host.dirs, machine.name)?;
            Ok(attendant::configure(&api, &launch, &host.dirs.machine_runtime(machine.name))?)
        })
    }

    fn give(&self, host: &Host, machine: &Machine) -> Result<Given> {
        life::give(host, machine, &self.launch(host, machine)?)
    }

    fn start(&self, host: &Host, machine: &Machine) -> Result<()> {
        files::thaw(|| self.api(host.dirs, machine.name), host, machine.name)?;
        life::start(host, machine, || {
            // Found out here, where it can be said better than by the attendant.
            let api = self.connect(host.dirs, machine.name)?;
            let instance = files::end_hold(&api, self.own(&api, host.dirs, machine.name)?, machine.name)?;
            if runs(&instance) {
                host.progress.report(Told::Warning(
                    "nobody looked after the machine: its network and store are connected again",
                ));
            }
            let asks = life::system(machine)?.manifest.resources.disk.is_some();
            if asks && let Some(pool) = unlimited(&api, &instance) {
                host.progress.report(Told::Warning(&format!(
                    "`codchi.resources.disk` may not hold: the storage pool `{pool}` is a folder, which the engine can limit with project quotas only"
                )));
            }
            self.launch(host, machine)
        })
    }

    fn stop(&self, host: &Host, machine: &MachineName) -> Result<()> {
        let dir = host.dirs.machine_runtime(machine);
        files::thaw(|| self.api(host.dirs, machine), host, machine)?;
        if state::status(&dir)?.supervisor.is_some() {
            // It kills a machine that does not go down, and takes its state with it when that is off.
            let _ = start::stop(&dir, false, life::PATIENCE);
            let left = state::status(&dir)?;
            if left.supervisor.is_some() {
                host.progress.report(Told::Warning(
                    "what looks after the machine does not answer; the engine is asked instead",
                ));
            } else if left.state == state::State::Stopped {
                return Ok(());
            }
        }
        // Or started by hand, or its attendant was killed.
        self.stop_instance(host, machine)?;
        if state::status(&dir)?.supervisor.is_some() {
            let _ = start::stop(&dir, true, life::FAREWELL);
        }
        if state::status(&dir)?.supervisor.is_none() {
            codchi_fs::remove_if_exists(dir.join("supervisor.json"))?;
        }
        Ok(())
    }

    fn state(&self, host: &Host, machine: &MachineName) -> Result<Running> {
        files::thaw(|| self.api(host.dirs, machine), host, machine)?;
        match attended(host, machine)? {
            Some(running) => Ok(running),
            None => self.states(host, std::slice::from_ref(machine)).remove(0),
        }
    }

    fn states(&self, host: &Host, machines: &[MachineName]) -> Vec<Result<Running>> {
        // Those that are attended are known without asking; for all others together each engine is asked once.
        let mut lists: BTreeMap<Option<String>, Result<Listed, ApiError>> = BTreeMap::new();
        machines
            .iter()
            .map(|machine| {
                if let Some(running) = attended(host, machine)? {
                    return Ok(running);
                }
                let remote = remote_of(host.dirs, machine)?;
                let key = remote.as_ref().map(|r| r.name.clone());
                let api = match self.reached(host.dirs, remote) {
                    Ok(api) => api,
                    Err(e) => return Ok(failed_state(e.to_string())),
                };
                match lists.entry(key).or_insert_with(|| Listed::new(&api)) {
                    Ok(listed) => self.unattended(listed, host, machine),
                    Err(e) => Ok(failed_state(probe::unreachable(self.dialect, e).0)),
                }
            })
            .collect()
    }

    fn follow(&self, host: &Host, machine: &MachineName, session: Session) -> Result<()> {
        Ok(relay::follow(&host.dirs.machine_runtime(machine), session)?)
    }

    fn watch(&self, host: &Host, machine: &MachineName, watchers: &mut Watchers) {
        if let Ok(api) = self.api(host.dirs, machine) {
            let name = format!("{} at {}", self.dialect.title, api.site());
            watchers.add(name, move |tell| drop(stream::hear(&api, tell)));
        }
    }

    fn attach(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<u8> {
        supervised::attach(host, machine, exec, || {
            let (client, name) = (self.dialect.client, self.api(host.dirs, machine)?.called(machine));
            let start = "-- /run/current-system/sw/bin/systemctl start codchi-agent";
            Err(supervised::silent(machine, vec![format!("`{client} exec {name} {start}` starts it")]))
        })
    }

    fn remove(&self, host: &Host, machine: &MachineName) -> Result<()> {
        let dir = host.dirs.machine_runtime(machine);
        let api = self.api(host.dirs, machine)?;
        let instance = find(&api, machine)?;
        // One of another owner is never touched: ours is gone then.
        if instance.is_some_and(|i| mark::is_ours(&i, host.dirs, machine, api.remote().is_some())) {
            self.stop(host, machine)?;
            self.on_boot(host, machine, false)?;
            match api.delete(&path(machine)) {
                Ok(()) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => {
                    return Err(did_not(self.dialect, e, format!("remove the instance `{machine}`")));
                }
            }
        }
        if let Some(remote) = api.remote() {
            depot::clear(&api, host, remote)?;
        }
        codchi_fs::remove_if_exists(note(host.dirs, machine))?;
        supervised::remove_tree(host.program, &dir)?;
        supervised::forget(host, machine)
    }

    fn extras(&self, host: &Host, machine: &MachineName) -> Result<Vec<String>> {
        let api = self.connect(host.dirs, machine)?;
        let instance = self.own(&api, host.dirs, machine)?;
        let snapshots = api
            .get(&format!("{}/snapshots", path(machine)))
            .map_err(|e| did_not(self.dialect, e, format!("look at the snapshots of `{machine}`")))?;
        let mut extras = mark::extras(&instance);
        extras.extend(
            snapshots.as_array().filter(|s| !s.is_empty()).map(|s| format!("snapshots ({})", s.len())),
        );
        Ok(extras)
    }

    fn prepare(&self, host: &Host, machine: &Machine) -> Result<()> {
        life::write(host, machine, &self.launch(host, machine)?)
    }

    fn supervise(
        &self,
        host: &Host,
        machine: &MachineName,
        begin: &mut dyn FnMut(bool) -> Result<Begun>,
    ) -> Result<()> {
        prepare(host, machine)?;
        let dir = host.dirs.machine_runtime(machine);
        // The store of one on another host is there, too.
        let with_endpoint = || Ok(attendant::said(&Launch::read(&dir)?)?.apart.is_none());
        let engine = |launch: &Launch, dir: &std::path::Path| -> codchi_runtime::Result<Box<dyn Engine>> {
            Ok(match attendant::said(launch)?.apart {
                None => Box::new(attendant::Attendant::new(self.dialect, launch, dir)?),
                Some(_) => Box::new(apart::Attendant::new(self.dialect, launch, dir)?),
            })
        };
        Ok(codchi_runtime::attend::attend(&dir, supervised::begun(machine, begin, with_endpoint), engine)?)
    }

    fn duplicate(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<Report> {
        let api = self.connect(host.dirs, from)?;
        self.clear(&api, host.dirs, to)?;
        let source = files::end_hold(&api, self.own(&api, host.dirs, from)?, from)?;
        let not_copied = |e| did_not(self.dialect, e, format!("copy the instance `{from}`"));
        remember(host.dirs, to, api.remote())?;
        let still = files::Still::new(&api, host, &source, from)?;
        let path = member::targeted("/1.0/instances", mark::member(&source));
        let mut devices = source["devices"].clone();
        if api.remote().is_some()
            && devices.get("eth0").is_some()
            && !mark::devices_of_others(&source).contains_key("eth0")
        {
            // Its address is no other machine's; what is left out here would be copied.
            devices["eth0"] = json!({ "type": "none" });
        }
        let copied = api.change("POST", &path, &json!({
            "name": to,
            "source": { "type": "copy", "source": from, "instance_only": true, "allow_inconsistent": true },
            "config": mark::marks(host.dirs, to, api.remote().is_some()),
            "devices": devices,
            "profiles": [],
        }));
        drop(still);
        copied.map_err(not_copied)?;
        // What makes a machine itself is made anew.
        let not_prepared = |e| did_not(self.dialect, e, format!("prepare `{to}`"));
        for file in api.folder(to.as_str(), "/etc/ssh").iter().filter(|f| f.starts_with("ssh_host_")) {
            api.remove_file(to.as_str(), &format!("/etc/ssh/{file}")).map_err(not_prepared)?;
        }
        match api.remove_file(to.as_str(), "/etc/machine-id") {
            Err(e) if !e.is_not_found() => Err(not_prepared(e)),
            _ => Ok(Report::default()),
        }
    }

    fn holds(&self, host: &Host, machine: &MachineName, file: &str) -> Result<bool> {
        match self.connect(host.dirs, machine)?.text(&format!("{}/files?path={file}", path(machine))) {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(did_not(self.dialect, e, format!("look for `{file}` in `{machine}`"))),
        }
    }

    fn can_pack(&self, host: &Host, machine: &MachineName) -> Result<()> {
        self.with_files_here(&self.api(host.dirs, machine)?)
    }

    fn pack(&self, host: &Host, machine: &Machine, export: &Export, to: std::fs::File) -> Result<Report> {
        self.can_pack(host, machine.name)?;
        let api = self.connect(host.dirs, machine.name)?;
        let instance = files::end_hold(&api, self.own(&api, host.dirs, machine.name)?, machine.name)?;
        if runs(&instance) {
            let _still = files::Still::new(&api, host, &instance, machine.name)?;
            let leader = files::leader(&api, machine.name)?;
            return supervised::files::pack_inside(host, leader, export, to);
        }
        let hold = files::Hold::new(&api, host, machine.name)?;
        supervised::files::pack_inside(host, hold.leader(), export, to)
    }

    fn unpack(&self, host: &Host, machine: &Machine, from: std::fs::File, without: &str) -> Result<Report> {
        let api = self.usable(self.reached(host.dirs, machine.attachment.remote.clone())?)?;
        self.with_files_here(&api)?;
        self.clear(&api, host.dirs, machine.name)?;
        self.create(host, machine)?;
        let hold = files::Hold::new(&api, host, machine.name)?;
        supervised::files::unpack_inside(host, hold.leader(), without, from)
    }

    fn size(&self, _: &Host, _: &MachineName) -> Result<Option<u64>> {
        Ok(None)
    }

    fn rename(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<()> {
        let remote = remote_of(host.dirs, from)?.or(remote_of(host.dirs, to)?);
        let api = self.usable(self.reached(host.dirs, remote)?)?;
        let apart = api.remote().is_some();
        if let Some(instance) = find(&api, from)? {
            if !mark::is_ours(&instance, host.dirs, from, apart) {
                return Err(self.foreign(&api, from));
            }
            self.stop(host, from)?;
            let renamed = api.change("POST", &path(from), &json!({ "name": to }));
            renamed.map_err(|e| did_not(self.dialect, e, format!("rename the instance `{from}`")))?;
        }
        // One that was renamed before this was cut short still has the mark of its old name.
        match find(&api, to)? {
            Some(instance) if mark::is_owned(&instance, host.dirs, apart) => {
                let mark = json!({ "config": { mark::MACHINE: to } });
                api.change("PATCH", &path(to), &mark)
                    .map_err(|e| did_not(self.dialect, e, format!("mark the instance `{to}`")))?;
            }
            Some(_) => return Err(self.foreign(&api, to)),
            None => return Err(self.gone(&api, host.dirs, from)),
        }
        supervised::rename(host, from, to)
    }
}

impl Instances {
    /// The engine of this host.
    fn here(&self) -> Api {
        Api::at(self.dialect, &Site::Socket(self.dialect.socket()))
    }

    /// The engine of this host or of another.
    fn reached(&self, dirs: &Dirs, remote: Option<Remote>) -> Result<Api> {
        let Some(remote) = remote else { return Ok(self.here()) };
        let site = Site::named(self.dialect, &self.dialect.client_dir(&dirs.home), &remote.name)?;
        Ok(Api::at(self.dialect, &site).apart(remote))
    }

    /// The remotes that machines of this driver are on, without their members.
    fn remotes(&self, dirs: &Dirs) -> BTreeSet<Remote> {
        let entries = codchi_fs::read_dir(dirs.machines()).unwrap_or_default();
        let names = entries.iter().filter_map(|e| e.file_name().to_str()?.parse::<MachineName>().ok());
        let attached = names.filter_map(|name| {
            let file = dirs.host_toml(&name);
            Attachment::parse(&file, &codchi_fs::read_to_string(&file).ok()?).ok()
        });
        let ours = attached.filter(|a| a.driver.as_str() == self.dialect.info.name);
        ours.filter_map(|a| a.remote).map(|remote| Remote { member: None, ..remote }).collect()
    }

    /// The engine of a machine.
    fn api(&self, dirs: &Dirs, machine: &MachineName) -> Result<Api> {
        self.reached(dirs, remote_of(dirs, machine)?)
    }

    /// The same, which has to answer.
    fn connect(&self, dirs: &Dirs, machine: &MachineName) -> Result<Api> {
        self.usable(self.api(dirs, machine)?)
    }

    fn usable(&self, api: Api) -> Result<Api> {
        if api.remote().is_none() && !outer::is_privileged() {
            return Err(DriverError::Host {
                what: format!("machines on {} need root on this computer", self.dialect.title),
                hints: vec![
                    "run `codchi` as root, use the driver that needs no root, or another host: `--remote NAME`"
                        .into(),
                ],
            });
        }
        match probe::usable(&api) {
            Ok(()) => Ok(api),
            Err((what, hints)) => Err(DriverError::Host { what, hints }),
        }
    }

    fn reach_remote(&self, host: &Host, remote: &Remote) -> Result<()> {
        let api = self.usable(self.reached(host.dirs, Some(remote.clone()))?)?;
        let Some(member) = &remote.member else { return Ok(()) };
        match api.get(&format!("/1.0/cluster/members/{member}")) {
            Ok(_) => Ok(()),
            Err(e) => Err(DriverError::Host {
                what: format!("there is no member `{member}` on the remote `{}`: {e}", remote.name),
                hints: vec![format!(
                    "`{} cluster list {}:` shows those there are",
                    self.dialect.client, remote.name
                )],
            }),
        }
    }

    /// Fails where this host cannot reach the files of machines.
    fn with_files_here(&self, api: &Api) -> Result<()> {
        match api.remote() {
            None => Ok(()),
            Some(remote) => Err(DriverError::Host {
                what: format!(
                    "the files of a machine on `{remote}` can be neither exported nor imported as a whole from here yet"
                ),
                hints: vec![format!(
                    "`{} export {}:NAME` there exports its instance",
                    self.dialect.client, remote.name
                )],
            }),
        }
    }

    /// The instance of a machine, which has to be there and the caller's.
    fn own(&self, api: &Api, dirs: &Dirs, machine: &MachineName) -> Result<Value> {
        match find(api, machine)? {
            Some(instance) if mark::is_ours(&instance, dirs, machine, api.remote().is_some()) => {
                if api.remote().is_none() {
                    member::check(api, &instance, machine)?;
                }
                Ok(instance)
            }
            Some(_) => Err(self.foreign(api, machine)),
            None => Err(self.gone(api, dirs, machine)),
        }
    }

    /// Removes what an earlier attempt to make a machine left.
    fn clear(&self, api: &Api, dirs: &Dirs, machine: &MachineName) -> Result<()> {
        let Some(instance) = find(api, machine)? else { return Ok(()) };
        if !mark::is_ours(&instance, dirs, machine, api.remote().is_some()) {
            return Err(self.foreign(api, machine));
        }
        files::end_hold(api, instance, machine)?;
        api.delete(&path(machine))
            .map_err(|e| did_not(self.dialect, e, format!("remove the instance `{machine}`")))
    }

    /// Has an instance go down without an attendant: it is asked, and killed when it does not.
    fn stop_instance(&self, host: &Host, machine: &MachineName) -> Result<()> {
        let api = self.connect(host.dirs, machine)?;
        let Some(instance) = find(&api, machine)? else { return Ok(()) };
        if !mark::is_ours(&instance, host.dirs, machine, api.remote().is_some())
            || instance["status"] == "Stopped"
        {
            return Ok(());
        }
        let failed = |e: ApiError| did_not(self.dialect, e, format!("stop `{machine}`"));
        let stop = |force| attendant::stop(&api, machine.as_str(), force);
        // One that is up to do nothing hears nothing.
        if instance["status"] == "Running" && !files::is_held(&instance) {
            match stop(false) {
                Ok(()) => return Ok(()),
                Err(e) if e.is_unreachable() => return Err(failed(e)),
                Err(_) => host
                    .progress
                    .report(Told::Warning("the machine does not go down by itself; it is killed")),
            }
        }
        stop(true).map_err(failed)
    }

    /// What an attendant is told of a machine.
    fn launch(&self, host: &Host, machine: &Machine) -> Result<Launch> {
        let system = life::system(machine)?;
        let api = self.api(host.dirs, machine.name)?;
        // The engine is found where it is now, also by a service manager that knows nothing of this environment.
        let apart = api.remote().map(|remote| self.apart(host, machine, &api, remote)).transpose()?;
        let engine = attendant::Said {
            socket: api.site().socket().filter(|_| apart.is_none()).map(Into::into),
            apart,
            settings: system.manifest.engine.clone(),
            granted: system.manifest.needs.driver_settings.clone(),
        };
        let engine = serde_json::to_value(engine).map_err(|e| DriverError::Settings(e.to_string()))?;
        let (needs, granted) = (&system.manifest.needs, &machine.attachment.granted);
        Ok(Launch {
            channels: match api.remote() {
                None => session::channels(needs, granted),
                // What is passed on is bytes.
                Some(_) => session::streams(needs, granted),
            },
            git_hosts: codchi_core::consent::git_hosts(granted),
            // The engine has both.
            root: std::path::PathBuf::new(),
            uid_base: None,
            uid_count: ids::COUNT,
            store: host.store_dir.into(),
            ..life::launch(host, machine, engine)?
        })
    }

    /// Makes ready what a machine on another host has there.
    fn apart(&self, host: &Host, machine: &Machine, api: &Api, remote: &Remote) -> Result<attendant::Apart> {
        let folders = machine.folders(&host.dirs.home)?;
        if let Some(folder) = folders.iter().find(|f| !f.optional) {
            return Err(DriverError::Host {
                what: format!(
                    "`{}` is to be at `{}` of `{}`, which is on `{remote}`: {}",
                    folder.source.display(),
                    folder.target.display(),
                    machine.name,
                    apart::NO_FOLDERS
                ),
                hints: vec![format!(
                    "`codchi mount remove {} {}` does without",
                    machine.name,
                    folder.target.display()
                )],
            });
        }
        let toplevel = &life::system(machine)?.toplevel;
        // One that runs has it already, when it is to be what it is.
        if attended(host, machine.name)?.is_some()
            && let Some(launched) = supervised::launched(host, machine.name)
            && launched.toplevel.as_os_str() == toplevel.as_str()
            && launched.bin == host.bin
            && let Some(apart) = attendant::said(&launched)?.apart
            && apart.remote == *remote
        {
            return Ok(apart);
        }
        let instance = self.own(api, host.dirs, machine.name)?;
        Ok(attendant::Apart {
            remote: remote.clone(),
            client: self.dialect.client_dir(&host.dirs.home),
            stocked: depot::stock(api, host, remote, &instance, toplevel)?,
        })
    }

    /// What the engine says of a machine that nobody looks after.
    fn unattended(&self, listed: &Listed, host: &Host, machine: &MachineName) -> Result<Running> {
        let Listed { instances, here, apart } = listed;
        let named = instances.iter().find(|i| i["name"] == machine.as_str());
        Ok(match named {
            Some(i) if mark::is_ours(i, host.dirs, machine, *apart) => match i["status"].as_str() {
                _ if i["config"].get(mark::APART).is_none()
                    && let Some((there, _)) = member::elsewhere(mark::member(i), here.as_deref()) =>
                {
                    failed_state(member::away(self.dialect, machine, there))
                }
                Some("Running" | "Ready" | "Frozen") if !files::is_held(i) => {
                    Running { state: State::Running, attended: false, ..Running::stopped() }
                }
                Some("Error") => failed_state(format!("{} says that it has failed", self.dialect.title)),
                // Why it is down may have been written down.
                _ => supervised::at_rest(host, machine)?,
            },
            Some(_) => failed_state(self.is_foreign(machine)),
            None => failed_state(match renamed(instances, host.dirs, machine, *apart) {
                Some(name) => format!("the instance is called `{name}` in {} now", self.dialect.title),
                None => format!("its instance is gone from {}", self.dialect.title),
            }),
        })
    }

    fn is_foreign(&self, machine: &MachineName) -> String {
        let title = self.dialect.title;
        format!("{title} has an instance `{machine}` that is not this machine's; it is left alone")
    }

    fn foreign(&self, api: &Api, machine: &MachineName) -> DriverError {
        let (client, name) = (self.dialect.client, api.called(machine));
        DriverError::Host {
            what: self.is_foreign(machine),
            hints: vec![format!("choose another name, or rename it: `{client} rename {name} OTHER`")],
        }
    }

    /// The instance of a machine is not there.
    fn gone(&self, api: &Api, dirs: &Dirs, machine: &MachineName) -> DriverError {
        let Dialect { title, client, .. } = self.dialect;
        let all = api.get("/1.0/instances?recursion=1").unwrap_or_default();
        match renamed(
            all.as_array().map(Vec::as_slice).unwrap_or_default(),
            dirs,
            machine,
            api.remote().is_some(),
        ) {
            Some(name) => DriverError::Host {
                what: format!("the instance of `{machine}` is called `{name}` in {title} now"),
                hints: vec![format!(
                    "`{client} rename {} {machine}` gives it its name back",
                    api.called(name)
                )],
            },
            None => DriverError::Host {
                what: format!("the instance of `{machine}` is gone from {title}, and its files with it"),
                hints: vec![format!("`codchi delete {machine}` removes what is left of the machine")],
            },
        }
    }
}

/// What the engine has, for the questions of one command.
struct Listed {
    instances: Vec<Value>,
    here: Option<String>,
    apart: bool,
}

impl Listed {
    fn new(api: &Api) -> Result<Listed, ApiError> {
        let found = api.get("/1.0/instances?recursion=1")?;
        let instances = found.as_array().cloned().unwrap_or_default();
        let clustered = instances.iter().any(|i| mark::member(i).is_some());
        let here = if clustered { member::here(api)? } else { None };
        Ok(Listed { instances, here, apart: api.remote().is_some() })
    }
}

/// What is known of a machine that somebody looks after.
fn attended(host: &Host, machine: &MachineName) -> Result<Option<Running>> {
    let status = state::status(&host.dirs.machine_runtime(machine))?;
    if status.supervisor.is_none() {
        return Ok(None);
    }
    let running = supervised::running(status);
    // On another host that is the process which leads there.
    let leader = running.leader.filter(|_| !matches!(remote_of(host.dirs, machine), Ok(Some(_))));
    Ok(Some(Running { leader, ..running }))
}

/// Where a machine is that is not on the engine of this host.
pub(crate) fn remote_of(dirs: &Dirs, machine: &MachineName) -> Result<Option<Remote>> {
    let file = dirs.host_toml(machine);
    if let Some(text) = codchi_fs::read_if_exists(&file)? {
        return Ok(Attachment::parse(&file, &text)?.remote);
    }
    // It is being made, or was being.
    let noted = codchi_fs::read_if_exists(note(dirs, machine))?;
    Ok(noted.and_then(|text| text.trim().parse().ok()))
}

/// Writes that down before there is something to be found again.
fn remember(dirs: &Dirs, machine: &MachineName, remote: Option<&Remote>) -> Result<()> {
    let Some(remote) = remote else { return Ok(()) };
    codchi_fs::create_private_dir(dirs.machine_data(machine))?;
    Ok(codchi_fs::write_atomic(note(dirs, machine), remote.to_string(), 0o600)?)
}

/// The file that says so before there is a machine.
fn note(dirs: &Dirs, machine: &MachineName) -> std::path::PathBuf {
    dirs.machine_data(machine).join("remote")
}

/// Whether the engine runs an instance.
fn runs(instance: &Value) -> bool {
    instance["status"] != "Stopped" && instance["status"] != "Error"
}

fn failed_state(reason: String) -> Running {
    Running { state: State::Failed, reason: Some(reason), ..Running::stopped() }
}

/// The name that somebody gave to the instance of a machine.
fn renamed<'a>(instances: &'a [Value], dirs: &Dirs, machine: &MachineName, apart: bool) -> Option<&'a str> {
    instances.iter().find(|i| mark::is_ours(i, dirs, machine, apart)).and_then(|i| i["name"].as_str())
}

fn path(machine: &MachineName) -> String {
    format!("/1.0/instances/{machine}")
}

fn find(api: &Api, machine: &MachineName) -> Result<Option<Value>> {
    match api.get(&path(machine)) {
        Ok(instance) => Ok(Some(instance)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(did_not(api.dialect(), e, format!("look at the instance `{machine}`"))),
    }
}

/// The storage pool of an instance, where that is one which is not known to limit what an instance takes of it.
fn unlimited(api: &Api, instance: &Value) -> Option<String> {
    let pool = instance["devices"]["root"]["pool"].as_str()?;
    let found = api.get(&format!("/1.0/storage-pools/{pool}")).ok()?;
    (found["driver"] == "dir").then(|| pool.into())
}

/// Where new root file systems go: the default profile's pool, or the first there is.
fn pool(api: &Api) -> Result<String> {
    if let Ok(profile) = api.get("/1.0/profiles/default")
        && let Some(devices) = profile["devices"].as_object()
        && let Some(root) = devices.values().find(|d| d["type"] == "disk" && d["path"] == "/")
        && let Some(pool) = root["pool"].as_str()
    {
        return Ok(pool.into());
    }
    let dialect = api.dialect();
    let pools = api
        .get("/1.0/storage-pools?recursion=1")
        .map_err(|e| did_not(dialect, e, "look at the storage pools".into()))?;
    let mut usable = pools.as_array().into_iter().flatten().filter(|p| p["status"] == "Created");
    match usable.next().and_then(|p| p["name"].as_str()) {
        Some(name) => Ok(name.into()),
        None => Err(DriverError::Host {
            what: format!("{} has no storage pool", dialect.title),
            hints: vec![format!("`{} storage create default dir` makes one", dialect.client)],
        }),
    }
}

/// The engine was asked and did not do it.
fn did_not(dialect: &Dialect, e: ApiError, what: String) -> DriverError {
    if e.is_unreachable() {
        let (what, hints) = probe::unreachable(dialect, &e);
        return DriverError::Host { what, hints };
    }
    let reason = e.to_string();
    if ["no space left", "disk quota exceeded"].iter().any(|w| reason.to_lowercase().contains(w)) {
        return DriverError::Host {
            what: format!("cannot {what}: the storage pool is full"),
            hints: vec![format!("`{} storage info POOL` shows how full it is", dialect.client)],
        };
    }
    DriverError::Helper { what, reason }
}
