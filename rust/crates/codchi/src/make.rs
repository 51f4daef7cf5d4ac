//! From a machine folder to a built system: base, lock, one evaluation, downloads, build.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use codchi_core::attr::AttrPath;
use codchi_core::machine::Host as Attachment;
use codchi_core::manifest::{Base, Manifest, Needs};
use codchi_core::name::MachineName;
use codchi_core::progress::{Event, Progress};
use codchi_core::report::Kind;
use codchi_core::text;
use codchi_debian::index;
use codchi_debian::mirror::{self, Mirror};
use codchi_fs::Lock;
use codchi_nix::drv::Source;
use codchi_nix::lock::{LockRequest, Locked, Update};
use codchi_nix::nix::Options;
use codchi_nix::trace::Label;
use codchi_nix::{Launch, Nix, NixError, StorePath};
use codchi_store::Store;
use serde::{Deserialize, Serialize};

use crate::app::{App, VERSION};
use crate::auth::Auth;
use crate::cli::NixFlags;
use crate::failure::{Failure, Result};

/// The NixOS release whose state layout a new machine starts with.
pub const RELEASE: &str = "26.05";

/// The system of machines made by this program.
pub fn system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}

/// The store and its Nix.
pub struct Tools {
    pub store: Arc<Store>,
    pub nix: Nix,
    /// Credentials for as long as these tools are used.
    auth: Option<Auth>,
}

/// What one evaluation tells.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evaluation {
    pub version: u32,
    pub drv_path: StorePath,
    pub needs: Needs,
    pub driver: String,
    pub system: String,
    pub base: Base,
    pub state_version: String,
    pub warnings: Vec<String>,
}

/// There are machines, and the store is not there.
pub fn no_store() -> Failure {
    Failure::new(Kind::Host, "the store is gone").hint("`codchi doctor` says more")
}

impl Tools {
    /// The store as it is; none where it has to be made first.
    pub fn open(app: &App, flags: &NixFlags) -> Result<Option<Tools>> {
        match Store::open(&app.dirs, &app.settings)? {
            Some(store) => Tools::of(store, flags).map(Some),
            None => Ok(None),
        }
    }

    /// The store, which a machine that was built has.
    pub fn needed(app: &App, flags: &NixFlags) -> Result<Tools> {
        Tools::open(app, flags)?.ok_or_else(no_store)
    }

    /// The store, made when there is none yet.
    pub fn make(app: &App, flags: &NixFlags) -> Result<Tools> {
        if let Some(tools) = Tools::open(app, flags)? {
            return Ok(tools);
        }
        if flags.offline {
            return Err(Failure::new(Kind::Host, "there is no store yet, and the network may not be used")
                .hint("run the command once without `--offline`"));
        }
        let _lock = app.store_lock()?;
        // Someone else may have made it meanwhile.
        if let Some(tools) = Tools::open(app, flags)? {
            return Ok(tools);
        }
        let store = Store::bootstrap(&app.dirs, &app.settings, &app.printer)?;
        Tools::of(store, flags)
    }

    fn of(store: Store, flags: &NixFlags) -> Result<Tools> {
        let store = Arc::new(store);
        let mut extra = Vec::new();
        for pair in flags.override_input.chunks(2) {
            extra.push("--override-input".into());
            extra.extend(pair.iter().cloned());
        }
        if let Some(builders) = &flags.builders {
            extra.extend(["--builders".into(), builders.clone()]);
        }
        let options =
            Options { offline: flags.offline, show_trace: flags.show_trace, extra, ..Options::default() };
        let nix = Nix::new(store.clone() as Arc<dyn Launch>, options)?;
        Ok(Tools { store, nix, auth: None })
    }

    /// Where this host reads `/nix/store`.
    pub fn store_dir(&self) -> PathBuf {
        self.store.root_dir()
    }

    /// Gives git and Nix the credentials that a person names, for the servers of these references.
    pub fn authenticate(&mut self, app: &App, flags: &NixFlags, urls: &[String]) -> Result<()> {
        self.give(Auth::find(app, &flags.auth_from, urls)?);
        Ok(())
    }

    /// Gives them credentials that were found.
    pub fn give(&mut self, auth: Option<Auth>) {
        self.auth = auth;
        let mut options = self.nix.options().clone();
        options.environment = self.auth.iter().flat_map(Auth::environment).collect();
        self.nix = self.nix.with_options(options);
    }

    fn with_labels(&mut self, labels: Vec<Label>) {
        let mut options = self.nix.options().clone();
        options.labels.extend(labels);
        self.nix = self.nix.with_options(options);
    }

    /// Asks no binary cache for what the built-in base makes: none has it.
    pub fn only_local(&mut self, base: &str) {
        if base == "debian" {
            let mut options = self.nix.options().clone();
            options.extra.extend(["--option".into(), "substitute".into(), "false".into()]);
            self.nix = self.nix.with_options(options);
        }
    }

    /// Whether evaluations may build, from now on.
    pub fn import_from_derivation(&mut self, allowed: bool) {
        let mut options = self.nix.options().clone();
        options.import_from_derivation = allowed;
        self.nix = self.nix.with_options(options);
    }

    /// Uses the settings of Nix that are granted.
    pub fn use_settings(&mut self, granted: &[String]) {
        let mut options = self.nix.options().clone();
        for (name, value) in codchi_core::consent::granted_nix_settings(granted) {
            // Before what is there: what the person says on the command line, and what the base is known to lack, counts more.
            options.extra.splice(0..0, ["--option".into(), name.into(), value.into()]);
        }
        self.nix = self.nix.with_options(options);
    }

    /// Whether a path is (still) in the store.
    pub fn has(&self, path: &StorePath) -> bool {
        self.store_dir().join(path.base_name()).symlink_metadata().is_ok()
    }

    /// Adds Codchi's own Nix sources to the store, once.
    pub fn codchi(&mut self, app: &App) -> Result<StorePath> {
        let path = self.remembered(app, "sources", codchi_embed::SOURCES_HASH, || {
            let scratch = Scratch::new(app, "sources")?;
            unpack(codchi_embed::SOURCES_TAR, "", scratch.path())?;
            Ok(self.nix.add_path("codchi", scratch.path())?)
        })?;
        self.with_labels(vec![Label { prefix: path.to_string(), shown: None }]);
        Ok(path)
    }

    /// Adds the built-in base to the store, with the packages of a suite as the mirror has them now.
    pub fn debian(&mut self, app: &App, suite: &str, freshness: mirror::Freshness) -> Result<StorePath> {
        app.printer.report(Event::Phase("reading package lists"));
        let mirror = mirror(app)?;
        let programs = digest(&[
            codchi_embed::SOURCES_HASH.as_bytes(),
            codchi_embed::BASE_BUILD,
            codchi_embed::BASE_INIT,
        ]);
        let system = system();
        let scratch = Scratch::new(app, "base")?;
        unpack(codchi_embed::SOURCES_TAR, "lib/base/", scratch.path())?;
        let index =
            index::ensure(&mirror, suite, &system, scratch.path(), &app.dirs.cache, freshness, &app.printer)?;
        let key = digest(&[
            programs.as_bytes(),
            suite.as_bytes(),
            system.as_bytes(),
            index.fingerprint.as_bytes(),
            index.dir.to_string_lossy().as_bytes(),
        ]);
        let path = self.remembered(app, &format!("base-{suite}"), &key, || {
            let to = scratch.path().join("index").join(&system);
            copy_tree(&index.dir, &to)?;
            let seed = scratch.path().join("seed").join(&system).join("bin");
            codchi_fs::create_dir_all(&seed)?;
            for (name, bytes) in [
                ("codchi-base-build", codchi_embed::BASE_BUILD),
                ("codchi-base-init", codchi_embed::BASE_INIT),
            ] {
                codchi_fs::write_atomic(seed.join(name), bytes, 0o755)?;
            }
            Ok(self.nix.add_path("codchi-base", scratch.path())?)
        })?;
        self.with_labels(vec![Label { prefix: path.to_string(), shown: None }]);
        Ok(path)
    }

    /// A store path that was added before under this key and is still there, or is added now.
    fn remembered(
        &self,
        app: &App,
        what: &str,
        key: &str,
        add: impl FnOnce() -> Result<StorePath>,
    ) -> Result<StorePath> {
        #[derive(Serialize, Deserialize)]
        struct Known {
            key: String,
            path: StorePath,
        }
        let file = app.dirs.cache.join("added").join(format!("{what}.json"));
        let known: Option<Known> =
            codchi_fs::read_if_exists(&file).ok().flatten().and_then(|t| serde_json::from_str(&t).ok());
        if let Some(known) = known
            && known.key == key
            && self.has(&known.path)
        {
            return Ok(known.path);
        }
        let path = add()?;
        if let Some(dir) = file.parent() {
            codchi_fs::create_private_dir(dir)?;
        }
        let text = serde_json::to_string(&Known { key: key.into(), path: path.clone() }).unwrap_or_default();
        codchi_fs::write_atomic(&file, text, 0o600)?;
        Ok(path)
    }

    /// Locks a machine folder.
    pub fn lock(&self, app: &App, dir: &Path, request: &LockRequest) -> Result<Locked> {
        Ok(self.nix.lock(dir, request, &app.printer)?)
    }

    /// Evaluates a machine folder, once.
    pub fn evaluate(&mut self, app: &App, dir: &Path, driver: &str) -> Result<Evaluation> {
        let lock = codchi_fs::read_to_string(dir.join("flake.lock")).unwrap_or_default();
        self.with_labels(source_labels(app, dir, &lock));
        let installable =
            format!("{}#nixosConfigurations.{driver}", codchi_core::source::path_reference(dir));
        let value = self
            .nix
            .eval_json(&installable, Some("c: c.config.codchi.build.evaluation"), &app.printer)
            .map_err(|e| self.explain(app, &installable, e))?;
        Tools::read_evaluation(app, value)
    }

    /// Evaluates several machine folders, each for its driver, by one process: what they have in common is read once.
    pub fn evaluate_all(&mut self, app: &App, machines: &[(PathBuf, String)]) -> Result<Vec<Evaluation>> {
        let mut all = Vec::with_capacity(machines.len());
        for (dir, driver) in machines {
            let lock = codchi_fs::read_to_string(dir.join("flake.lock")).unwrap_or_default();
            self.with_labels(source_labels(app, dir, &lock));
            let locked = self.nix.prefetch(&codchi_core::source::path_reference(dir), &app.printer)?;
            all.push(codchi_nix::eval::Configuration {
                source: locked.path,
                nar_hash: locked.nar_hash,
                driver: driver.clone(),
            });
        }
        let values = self.nix.eval_configurations(&all, "config.codchi.build.evaluation", &app.printer)?;
        values.into_iter().map(|value| Tools::read_evaluation(app, value)).collect()
    }

    fn read_evaluation(app: &App, value: serde_json::Value) -> Result<Evaluation> {
        let evaluation: Evaluation = serde_json::from_value(value).map_err(|e| {
            Failure::failed(format!("the evaluation of the machine gives something unexpected: {e}")).hint(
                "its flake.lock may name a Codchi that does not fit this one: `codchi update NAME codchi`",
            )
        })?;
        if evaluation.version != 1 || evaluation.system != system() {
            return Err(Failure::failed(format!(
                "the machine is for `{}` (evaluation version {}), and this host is `{}`",
                evaluation.system,
                evaluation.version,
                system()
            )));
        }
        app.printer.detail(&format!("state version {}", evaluation.state_version));
        for warning in &evaluation.warnings {
            app.printer.warn(warning);
        }
        Ok(evaluation)
    }

    /// Adds to errors of the base what only this program knows: what there is that has nearly that name.
    fn explain(&self, app: &App, installable: &str, error: NixError) -> Failure {
        let text = error.to_string();
        let mut failure: Failure = error.into();
        let between = |marker: &str| {
            text.split_once(marker).and_then(|(_, r)| r.split_once('\'')).map(|(n, _)| n.to_string())
        };
        let package = between("the debian base has no package `")
            .or_else(|| between("attribute '").filter(|n| text.contains(&format!("pkgs.{n}"))));
        if let Some(name) = package {
            let names: BTreeSet<String> =
                ["names.json", "aliases.json"].iter().flat_map(|file| names_of(app, file)).collect();
            let near = text::nearest(&name, names.iter().map(String::as_str), 3);
            if !near.is_empty() {
                failure.hints.push(format!("the base has `{}`", near.join("`, `")));
            }
            failure.hints.push(
                "every Debian package is there under its own name, `pkgs.NAME`; an overlay gives it another one: \
                 `nixpkgs.overlays = [ (final: prev: { WANTED = final.DEBIAN-NAME; }) ];`"
                    .into(),
            );
        } else if let Some(path) = between("the debian base has no option `") {
            if let Some(near) = self.nearest_option(app, installable, &path) {
                failure.hints.push(format!("did you mean `{near}`?"));
            }
            failure.hints.push(
                "`base.lenient = true` ignores options that the base lacks; `--base nixpkgs` has them all where it can be reached"
                    .into(),
            );
        }
        failure
    }

    /// The option that a person may have meant: of those that stand where the path leads nowhere.
    fn nearest_option(&self, app: &App, installable: &str, path: &str) -> Option<String> {
        let path: AttrPath = path.parse().ok()?;
        let names: Vec<String> = path.names().iter().map(|n| codchi_core::attr::string(n)).collect();
        let apply = format!(
            "c: let go = o: p: if p == [ ] || (o._type or \"\") == \"option\" then [ ] else if o ? ${{builtins.head p}} \
             then go o.${{builtins.head p}} (builtins.tail p) else [ (builtins.length p) (builtins.attrNames o) ]; \
             in go c.options [ {} ]",
            names.join(" ")
        );
        let found = self.nix.eval_json(installable, Some(&apply), &app.printer).ok()?;
        let depth = path.names().len().checked_sub(found[0].as_u64()? as usize)?;
        let there: Vec<&str> = found[1].as_array()?.iter().filter_map(|v| v.as_str()).collect();
        let near = text::nearest(&path.names()[depth], there, 1).first().map(|n| n.to_string())?;
        let mut names = path.names()[..depth].to_vec();
        names.push(near);
        names.extend_from_slice(&path.names()[depth + 1..]);
        AttrPath::new(names).map(|p| p.to_string())
    }

    /// What a build has to download from the mirror.
    pub fn missing(&self, evaluation: &Evaluation) -> Result<Vec<Source>> {
        let mut invalid = |paths: &[StorePath]| self.nix.invalid(paths);
        Ok(codchi_nix::drv::missing_sources(&self.store_dir(), &evaluation.drv_path, &mut invalid)?)
    }

    /// Downloads what a build needs and adds it to the store.
    pub fn fetch(&self, app: &App, missing: &[Source]) -> Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        app.printer.report(Event::Phase("fetching packages"));
        codchi_fs::create_private_dir(app.dirs.debs())?;
        let fetches: Vec<mirror::Fetch> = missing
            .iter()
            .map(|s| mirror::Fetch {
                url: s.url.clone(),
                sha256: s.sha256.clone(),
                size: 0,
                dest: app.dirs.deb(&s.sha256),
                what: s.name.clone(),
            })
            .collect();
        mirror(app)?.fetch_all(&fetches, 8, &app.printer)?;
        let files: Vec<codchi_nix::sources::FixedFile> = missing
            .iter()
            .map(|s| codchi_nix::sources::FixedFile { file: app.dirs.deb(&s.sha256), name: s.name.clone() })
            .collect();
        self.nix.add_fixed(&files, &app.printer)?;
        // The store has them now.
        for file in files {
            codchi_fs::remove_if_exists(file.file)?;
        }
        Ok(())
    }

    /// Builds the system and gives its path, rooted at `link`.
    pub fn build(&self, app: &App, evaluation: &Evaluation, link: &Path) -> Result<StorePath> {
        let outputs = self.nix.build(&evaluation.drv_path, &app.printer).map_err(build_failure)?;
        let toplevel =
            outputs.get("out").cloned().ok_or_else(|| Failure::internal("the build has no output `out`"))?;
        self.nix.add_root(link, &toplevel)?;
        // What was shown to a person and granted is what the evaluation told; a module can put other words into the system.
        let manifest = self.manifest(&toplevel)?;
        if manifest.needs != evaluation.needs || manifest.driver != evaluation.driver {
            return Err(Failure::failed(
                "the built system asks its host for other things than its evaluation told",
            )
            .hint("a module changes `codchi/manifest.json` in the system: it is not used"));
        }
        Ok(toplevel)
    }

    /// What a built system says of itself.
    pub fn manifest(&self, toplevel: &StorePath) -> Result<Manifest> {
        manifest(&self.store_dir(), toplevel.as_str())
    }
}

/// What a built system says of itself.
pub fn manifest(store_dir: &Path, toplevel: &str) -> Result<Manifest> {
    let base = toplevel.rsplit('/').next().unwrap_or(toplevel);
    // The file is a copy in the toplevel, so no link leads elsewhere.
    let file = store_dir.join(base).join("codchi/manifest.json");
    Ok(codchi_core::document::parse_json(&file, &codchi_fs::read_to_string(&file)?, &[])?)
}

/// How new what the mirror says has to be, where the network may be used.
pub fn freshness(flags: &NixFlags, wanted: mirror::Freshness) -> mirror::Freshness {
    if flags.offline { mirror::Freshness::Offline } else { wanted }
}

/// The mirror the built-in base comes from.
pub fn mirror(app: &App) -> Result<Mirror> {
    let base = &app.settings.base;
    let settings = mirror::Settings {
        mirror: base.mirror.clone(),
        security_mirror: base.security_mirror.clone(),
        accept_stale: base.accept_expired,
        ..mirror::Settings::default()
    };
    Ok(Mirror::discover(&settings.with_env())?)
}

/// What a person calls the store copies of their own folders.
fn source_labels(app: &App, dir: &Path, lock: &str) -> Vec<Label> {
    let mut labels =
        vec![Label { prefix: dir.display().to_string(), shown: Some("the machine folder".into()) }];
    let value: serde_json::Value = serde_json::from_str(lock).unwrap_or_default();
    for node in value["nodes"].as_object().into_iter().flat_map(|m| m.values()) {
        let Some(path) = node["locked"]["path"].as_str().filter(|p| p.starts_with("/nix/store/")) else {
            continue;
        };
        let original = &node["original"];
        let shown = match original["type"].as_str() {
            Some("path") => original["path"].as_str().map(|p| app.shown(Path::new(p))),
            Some("git") => original["url"]
                .as_str()
                .map(|u| u.strip_prefix("file://").map_or(u.to_string(), |p| app.shown(Path::new(p)))),
            _ => None,
        };
        if let Some(shown) = shown.filter(|s| !s.starts_with("/nix/store/")) {
            labels.push(Label { prefix: path.into(), shown: Some(shown) });
        }
    }
    labels
}

/// Store paths that a lock refers to: they must stay for as long as the lock is used.
pub fn lock_roots(lock: &str) -> BTreeSet<StorePath> {
    let value: serde_json::Value = serde_json::from_str(lock).unwrap_or_default();
    let nodes = value["nodes"].as_object().into_iter().flat_map(|m| m.values());
    nodes.filter_map(|n| StorePath::containing(n["locked"]["path"].as_str()?)).collect()
}

/// The path a lock gives an input of the machine flake.
pub fn locked_path(lock: &str, input: &[&str]) -> Option<StorePath> {
    let value: serde_json::Value = serde_json::from_str(lock).ok()?;
    let nodes = value["nodes"].as_object()?;
    let mut at = value["root"].as_str()?.to_string();
    for name in input {
        at = nodes.get(&at)?["inputs"][name].as_str()?.to_string();
    }
    StorePath::containing(nodes.get(&at)?["locked"]["path"].as_str()?)
}

/// Names that the last materialised base knows.
fn names_of(app: &App, file: &str) -> Vec<String> {
    let parse = |text: String| -> Vec<String> {
        match serde_json::from_str::<serde_json::Value>(&text) {
            Ok(serde_json::Value::Array(a)) => a.iter().filter_map(|v| v.as_str().map(Into::into)).collect(),
            Ok(serde_json::Value::Object(o)) => o.keys().cloned().collect(),
            _ => Vec::new(),
        }
    };
    if file == "aliases.json" {
        let mut archive = tar::Archive::new(codchi_embed::SOURCES_TAR);
        let Ok(entries) = archive.entries() else { return Vec::new() };
        for mut entry in entries.flatten() {
            if entry.path().is_ok_and(|p| p.ends_with("lib/base/pkgs/aliases.json")) {
                let mut text = String::new();
                let _ = entry.read_to_string(&mut text);
                return parse(text);
            }
        }
        return Vec::new();
    }
    let dirs = codchi_fs::read_dir(app.dirs.cache.join("index")).unwrap_or_default();
    dirs.iter().filter_map(|d| codchi_fs::read_to_string(d.path().join(file)).ok()).flat_map(parse).collect()
}

/// A failed build, with the end of its log.
fn build_failure(error: NixError) -> Failure {
    match error {
        NixError::Build { message, drv, log } => {
            let mut failure = Failure::failed(message);
            let from = log.len().saturating_sub(15);
            failure.hints.extend(log[from..].iter().map(|l| text::printable_line(l)));
            if let Some(drv) = drv {
                failure.hints.push(format!("the whole log: `codchi store shell -- nix log {drv}`"));
            }
            failure
        }
        other => other.into(),
    }
}

/// Whether the real nixpkgs can be had now: its binary cache takes a connection, or the proxy leads to it.
pub fn nixpkgs_reachable() -> bool {
    const CACHE: &str = "cache.nixos.org:443";
    let proxy = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
        .iter()
        .find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
    match proxy {
        None => connect(CACHE).is_some(),
        Some(proxy) => {
            let address = proxy.rsplit("://").next().unwrap_or_default().trim_end_matches('/');
            // A name and password before the address: only Nix knows what to do with them, so believe in the proxy.
            let Some(mut stream) = connect(address.rsplit('@').next().unwrap_or_default()) else {
                return false;
            };
            if address.contains('@') {
                return true;
            }
            use std::io::Write;
            let asked = write!(stream, "CONNECT {CACHE} HTTP/1.1\r\nHost: {CACHE}\r\n\r\n");
            let mut head = [0; 12];
            asked.is_ok() && stream.read_exact(&mut head).is_ok() && &head[9..12] == b"200"
        }
    }
}

fn connect(address: &str) -> Option<std::net::TcpStream> {
    use std::net::ToSocketAddrs;
    const WAIT: std::time::Duration = std::time::Duration::from_secs(3);
    let stream = address
        .to_socket_addrs()
        .ok()?
        .take(2)
        .find_map(|a| std::net::TcpStream::connect_timeout(&a, WAIT).ok())?;
    stream.set_read_timeout(Some(WAIT)).ok()?;
    Some(stream)
}

/// Chooses where a new machine's packages come from, as a person, the settings or the network say.
pub fn choose_base(app: &App, given: Option<crate::cli::Base>) -> Result<String> {
    if let Some(base) = given {
        return Ok(base.as_str().into());
    }
    let from_env = std::env::var("CODCHI_BASE").ok().filter(|v| !v.is_empty());
    if let Some(base) = from_env.or_else(|| app.settings.defaults.base.clone()) {
        return match base.as_str() {
            "nixpkgs" | "debian" => Ok(base),
            _ => Err(Failure::usage(format!(
                "`{}` is no base: there is `nixpkgs` and `debian`",
                text::printable_line(&base)
            ))),
        };
    }
    app.printer.report(Event::Phase("looking for nixpkgs"));
    let reachable = nixpkgs_reachable();
    app.printer.done();
    if reachable {
        return Ok("nixpkgs".into());
    }
    if !app.can_ask() {
        return Err(Failure::new(Kind::Host, "nixpkgs cannot be reached from here")
            .hint("`--base debian` (or `CODCHI_BASE=debian`) makes the machine from a Debian mirror")
            .hint("`--base nixpkgs` tries nixpkgs all the same, for example through a proxy that only Nix knows"));
    }
    app.printer.say("nixpkgs cannot be reached from here");
    app.confirm(
        "make the machine from a Debian mirror instead? It will not be NixOS, but act like it",
        "--base debian",
    )?;
    Ok("debian".into())
}

/// A folder in which something is made that goes away with the process that makes it, or with the next one that looks.
pub struct Scratch {
    path: PathBuf,
    _lock: Lock,
}

impl Scratch {
    /// A new empty folder in the cache.
    fn new(app: &App, what: &str) -> Result<Scratch> {
        Scratch::below(&app.dirs.cache.join("scratch"), what)
    }

    /// Removes what processes that are gone left in a folder.
    pub fn sweep(parent: &Path) -> Result<()> {
        codchi_fs::create_private_dir(parent)?;
        for entry in codchi_fs::read_dir(parent)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(base) = name.strip_suffix(".lock")
                && let Ok(_free) = Lock::try_take(entry.path(), "clean-up")
            {
                codchi_fs::remove_dir_all(parent.join(base))?;
                codchi_fs::remove_if_exists(entry.path())?;
            }
        }
        Ok(())
    }

    /// What somebody is making in a folder now.
    pub fn in_use(parent: &Path) -> Result<Option<String>> {
        Scratch::sweep(parent)?;
        let names = codchi_fs::read_dir(parent)?;
        let locks =
            names.iter().filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".lock")?.to_owned()));
        Ok(locks.filter_map(|l| Some(l.rsplit_once('-')?.0.to_owned())).next())
    }

    /// A new empty folder in `parent`; those left by processes that are gone are removed.
    pub fn below(parent: &Path, what: &str) -> Result<Scratch> {
        Scratch::sweep(parent)?;
        let name = format!("{what}-{}", std::process::id());
        let lock = Lock::try_take(parent.join(format!("{name}.lock")), &name)
            .map_err(|e| Failure::failed(format!("cannot make a scratch folder: {e}")))?;
        let path = parent.join(&name);
        codchi_fs::remove_dir_all(&path)?;
        codchi_fs::create_dir_all(&path)?;
        Ok(Scratch { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = codchi_fs::remove_dir_all(&self.path);
        let mut lock = self.path.clone().into_os_string();
        lock.push(".lock");
        let _ = codchi_fs::remove_if_exists(PathBuf::from(lock));
    }
}

/// The folder of the static programs, made when this program has new ones.
pub fn programs(app: &App) -> Result<PathBuf> {
    let dir = app.dirs.bin().join(&codchi_embed::PROGRAMS_HASH[..32]);
    if !dir.exists() {
        codchi_fs::create_private_dir(&app.dirs.data)?;
        let scratch = Scratch::below(&app.dirs.bin(), "new")?;
        let made = scratch.path().join("bin");
        codchi_fs::create_dir_all(&made)?;
        for (name, bytes) in [("codchi-boot", codchi_embed::BOOT), ("codchi-agent", codchi_embed::AGENT)] {
            codchi_fs::write_atomic(made.join(name), bytes, 0o755)?;
        }
        // Every user of a machine runs the agent.
        rustix::fs::chmod(&made, rustix::fs::Mode::from(0o755))
            .map_err(std::io::Error::from)
            .map_err(|source| codchi_fs::FsError { op: "change the mode of", path: made.clone(), source })?;
        if let Err(e) = codchi_fs::rename(&made, &dir)
            && !dir.exists()
        {
            return Err(e.into());
        }
    }
    Ok(dir)
}

/// SHA-256 in hexadecimal over several parts.
pub fn digest(parts: &[&[u8]]) -> String {
    use sha2::{Digest, Sha256};
    let mut sum = Sha256::new();
    for part in parts {
        sum.update((part.len() as u64).to_le_bytes());
        sum.update(part);
    }
    sum.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Unpacks the files of the embedded sources whose path starts with `prefix`, without it.
fn unpack(tar: &[u8], prefix: &str, to: &Path) -> Result<()> {
    let broken = |e: std::io::Error| Failure::internal(format!("the embedded sources do not unpack: {e}"));
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        let Ok(below) = path.strip_prefix(prefix) else { continue };
        let target = to.join(below);
        if let Some(dir) = target.parent() {
            codchi_fs::create_dir_all(dir)?;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        let mode = entry.header().mode().unwrap_or(0o644);
        use std::os::unix::fs::PermissionsExt;
        codchi_fs::write(&target, bytes)?;
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode)).map_err(broken)?;
    }
    Ok(())
}

/// What of a machine's folder is not given to Nix, whose store everybody reads: where it is attached on this host, and the
/// history of a person who keeps the folder in git.
pub const UNREAD: [&str; 2] = ["host.toml", ".git"];

/// Copies a machine's folder as Nix is given it.
pub fn copy_folder(app: &App, name: &MachineName, to: &Path) -> Result<()> {
    copy_without(&app.dirs.machine(name), to, &UNREAD)
}

/// Copies a folder with the files in it.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    copy_without(from, to, &[])
}

/// The same, but for names at its top.
fn copy_without(from: &Path, to: &Path, without: &[&str]) -> Result<()> {
    codchi_fs::create_dir_all(to)?;
    for entry in codchi_fs::read_dir(from)? {
        if without.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let target = to.join(entry.file_name());
        let examined = |source| codchi_fs::FsError { op: "examine", path: entry.path(), source };
        let kind = entry.file_type().map_err(examined)?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            if let Some(link) = codchi_fs::read_link_if_exists(entry.path())? {
                codchi_fs::symlink_atomic(link, &target)?;
            }
        } else if kind.is_file() {
            codchi_fs::write(&target, codchi_fs::read(entry.path())?)?;
            // All that Nix sees of a mode.
            if entry.metadata().map_err(examined)?.mode() & 0o100 != 0 {
                codchi_fs::set_mode(&target, 0o755)?;
            }
        }
    }
    Ok(())
}

/// The lock request that keeps a machine on its base.
pub fn keep_base(
    lock: &str,
    update: Update,
    base: Option<StorePath>,
    codchi: Option<StorePath>,
) -> LockRequest {
    LockRequest {
        base: base.or_else(|| locked_path(lock, &["codchi", "nixpkgs"])),
        codchi: codchi.or_else(|| locked_path(lock, &["codchi"])),
        checkouts: Default::default(),
        update,
        refresh_local: true,
    }
}

/// What stands for everything an evaluation reads besides files.
pub fn facts(app: &App, name: &MachineName, nix: &str, host: &Attachment) -> Vec<(&'static str, String)> {
    vec![
        ("codchi", VERSION.into()),
        ("nix", nix.into()),
        ("machine", name.to_string()),
        ("driver", host.driver.to_string()),
        ("base", format!("{} {:?}", host.base, host.suite)),
        ("settings", format!("{:?}", app.settings.store)),
        ("sources", codchi_embed::SOURCES_HASH.into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_that_is_built_has_the_fingerprint_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, copy) = (dir.path().join("folder"), dir.path().join("copy"));
        codchi_fs::create_dir_all(folder.join("empty/folder")).unwrap();
        codchi_fs::create_dir_all(folder.join(".git")).unwrap();
        for file in ["flake.nix", "host.toml", "empty/host.toml", "program", ".git/config"] {
            codchi_fs::write(folder.join(file), file).unwrap();
        }
        codchi_fs::set_mode(folder.join("program"), 0o700).unwrap();
        codchi_fs::symlink_atomic("nowhere", folder.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        copy_without(&folder, &copy, &UNREAD).unwrap();
        assert!(!copy.join("host.toml").exists() && !copy.join(".git").exists());
        let fingerprint = |machine: &Path| {
            let cache = dir.path().join("cache/fingerprint.json");
            let inputs = codchi_nix::fingerprint::Inputs {
                machine,
                unread: &UNREAD,
                facts: Vec::new(),
                cache: Some(&cache),
                looks: &Default::default(),
            };
            codchi_nix::fingerprint::compute(&inputs).unwrap()
        };
        let copied = fingerprint(&copy);
        assert_eq!(fingerprint(&folder), copied);
        codchi_fs::write(folder.join("flake.nix"), "changed meanwhile").unwrap();
        assert_ne!(fingerprint(&folder), copied);
    }
}
