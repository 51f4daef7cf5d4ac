//! Attempts at the nix-daemon: to be believed, to have the host run something, to put a false path into the store.

use std::fmt::Write as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use sha2::{Digest, Sha256};

use crate::host::{Done, run};
use crate::require;
use crate::stage::{ALICE, MALLORY, OPEN, Place, Stage, Who};

/// A word of the person's environment that no build of a machine's may read.
pub const WORD: &str = "the-persons-own-word";
/// The variable it is in.
pub const VARIABLE: &str = "CODCHI_TEST_WORD";

/// A word in a shell's single quotes.
pub fn quote(s: &str) -> String {
    format!("'{}'", s.replace('\'', "'\\''"))
}

fn derivation(name: &str, script: &str, more: &str) -> String {
    format!(
        "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"{script}\" ]; {more} }}"
    )
}

/// A derivation that writes its name.
pub fn expression(name: &str) -> String {
    derivation(name, &format!("echo {name} > $out"), "")
}

/// A name that was not used before: what is built already is not built again.
fn fresh(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{what}-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

fn sh(stage: &Stage, place: &'static str, who: Who, text: &str) -> Result<Done, Failed> {
    stage.run(Place::Machine(place), who, &["sh", "-c", text])
}

/// Collects garbage, or deletes. Nix gives up where a process of anybody is in a folder deeper than a path may be long, such as
/// another suite that runs beside this may have one.
fn collecting(mut act: impl FnMut() -> Result<Done, Failed>) -> Result<Done, Failed> {
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        let done = act()?;
        if !done.err.contains("File name too long") || Instant::now() > end {
            return Ok(done);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Listens as the endpoint of a machine would, and starts a daemon that trusts whoever calls. The folder is for a machine.
pub fn trusted(stage: &Stage) -> Result<PathBuf, Failed> {
    let dir = stage.host.home.join("trusted");
    codchi_fs::create_dir_all(&dir)?;
    stage.give(&dir)?;
    codchi_fs::remove_if_exists(dir.join("socket"))?;
    let listener = UnixListener::bind(dir.join("socket"))?;
    codchi_fs::set_mode(dir.join("socket"), 0o666)?;
    let make = |c: &std::process::Command| {
        let mut again = std::process::Command::new(c.get_program());
        again.args(c.get_args()).env_clear().current_dir("/");
        again.envs(
            c.get_envs()
                .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))),
        );
        again
    };
    let words = [
        "store",
        "shell",
        "--as-root",
        "--",
        "nix-daemon",
        "--extra-experimental-features",
        "daemon-trust-override",
        "--stdio",
        "--force-trusted",
    ];
    let command = stage.host.codchi_command(&words);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut c = make(&command);
            let Ok(second) = stream.try_clone() else {
                continue;
            };
            c.stdin(Stdio::from(std::os::fd::OwnedFd::from(stream)));
            c.stdout(Stdio::from(std::os::fd::OwnedFd::from(second)))
                .stderr(Stdio::null());
            if let Ok(mut child) = c.spawn() {
                std::thread::spawn(move || child.wait());
            }
        }
    });
    Ok(dir)
}

// Programs that the host would run.

/// A program that leaves a mark, and the mark.
fn marker(stage: &Stage) -> Result<(PathBuf, PathBuf), Failed> {
    let (marks, program) = (stage.host.home.join("marks"), stage.host.home.join("mark"));
    codchi_fs::create_dir_all(&marks)?;
    codchi_fs::set_mode(&marks, 0o777)?;
    let mark = marks.join("ran");
    codchi_fs::remove_if_exists(&mark)?;
    codchi_fs::write(&program, format!("#!/bin/sh\n: > {}\n", mark.display()))?;
    codchi_fs::set_mode(&program, 0o755)?;
    Ok((program, mark))
}

fn hook(stage: &Stage, place: &'static str, who: Who, options: &str) -> Result<bool, Failed> {
    let (program, mark) = marker(stage)?;
    let options = options.replace("HOOK", &program.display().to_string());
    let script = derivation(
        &fresh("hooked"),
        "read x < /proc/sys/kernel/random/uuid; echo $x > $out",
        "",
    );
    let first = if options.contains("--check") {
        "nix-build --no-out-link -E \"$e\" && "
    } else {
        ""
    };
    let text = format!(
        "e={}; {first}nix-build --no-out-link {options} -E \"$e\"",
        quote(&script)
    );
    sh(stage, place, who, &text)?;
    Ok(mark.exists())
}

macro_rules! hooks {
    ($($name:ident $control:ident $options:expr;)+) => {$(
        pub fn $name(stage: &Stage, who: Who) -> Result<(), Failed> {
            require(!hook(stage, MALLORY, who, $options)?, "the host ran the program")
        }
        pub fn $control(stage: &Stage) -> Result<(), Failed> {
            stage.open()?;
            require(hook(stage, OPEN, Who::Root, $options)?, "a trusting daemon did not run the program either")
        }
    )+};
}

hooks! {
    post_build_hook post_build_hook_control "--option post-build-hook HOOK";
    pre_build_hook pre_build_hook_control "--option pre-build-hook HOOK";
    build_hook build_hook_control "--option build-hook HOOK --option builders 'ssh://nobody x86_64-linux' --max-jobs 0";
    diff_hook diff_hook_control "--check --option run-diff-hook true --option diff-hook HOOK";
}

// Files of the host that a build would read.

/// Whether a build that reads the host's file came back with it.
fn steals(
    stage: &Stage,
    place: &'static str,
    who: Who,
    before: &str,
    options: &str,
    more: &str,
) -> Result<bool, Failed> {
    let file = stage.host.home.join("public-secret");
    let script = format!("read x < {}; echo \\\"$x\\\" > $out", file.display());
    let e = derivation(&fresh("steals"), &script, more);
    let options = options.replace("FILE", &file.display().to_string());
    let text = format!(
        "{before}\ncat $(nix-build --no-out-link {options} -E {})",
        quote(&e)
    );
    let done = sh(stage, place, who, &text)?;
    if place == OPEN && !done.text().contains("the host's") {
        return Err(format!("{} {}", done.text(), done.err).into());
    }
    Ok(done.text().contains("the host's"))
}

macro_rules! thefts {
    ($($name:ident $control:ident $before:expr, $options:expr, $control_options:expr, $more:expr;)+) => {$(
        pub fn $name(stage: &Stage, who: Who) -> Result<(), Failed> {
            require(!steals(stage, MALLORY, who, $before, $options, $more)?, "the build read the host's file")
        }
        pub fn $control(stage: &Stage) -> Result<(), Failed> {
            stage.open()?;
            let done = steals(stage, OPEN, Who::Root, $before, $control_options, $more)?;
            require(done, "a trusting daemon did not let it read the file either")
        }
    )+};
}

thefts! {
    no_sandbox no_sandbox_control "", "--option sandbox false", "--option sandbox false", "";
    sandbox_paths sandbox_paths_control "", "--option sandbox-paths 'FILE /bin/sh=/nix/libexec/sh'",
        "--option sandbox-paths 'FILE /bin/sh=/nix/libexec/sh'", "";
    no_chroot no_chroot_control "", "--option sandbox relaxed", "--option sandbox relaxed", "__noChroot = true;";
}

pub fn trusted_users(stage: &Stage, who: Who) -> Result<(), Failed> {
    let options = "--option trusted-users '*' --option allowed-users '*' --option sandbox false";
    require(
        !steals(stage, MALLORY, who, "", options, "")?,
        "the build read the host's file",
    )
}

const CONFIGURED: &str = "export NIX_CONFIG='sandbox = false\ntrusted-users = *'";

fn by_flake(stage: &Stage, place: &'static str, who: Who) -> Result<bool, Failed> {
    let file = stage.host.home.join("public-secret");
    let name = fresh("flake");
    let script = format!(
        "d=$(mktemp -d) && cd $d && cat > flake.nix <<'E'\n{{ nixConfig.sandbox = false; outputs = _: {{ \
         packages.x86_64-linux.default = derivation {{ name = \"{name}\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"read x < {}; echo $x > $out\" ]; }}; }}; }}\nE\n\
         nix --extra-experimental-features 'nix-command flakes' build --accept-flake-config --out-link $d/r path:$d && cat $d/r",
        file.display()
    );
    Ok(sh(stage, place, who, &script)?
        .text()
        .contains("the host's"))
}

pub fn nix_config(stage: &Stage, who: Who) -> Result<(), Failed> {
    require(
        !steals(stage, MALLORY, who, CONFIGURED, "", "")?,
        "NIX_CONFIG was believed",
    )?;
    require(!by_flake(stage, MALLORY, who)?, "`nixConfig` was believed")
}

pub fn nix_config_control(stage: &Stage) -> Result<(), Failed> {
    stage.open()?;
    require(
        steals(stage, OPEN, Who::Root, CONFIGURED, "", "")?,
        "a trusting daemon does not believe NIX_CONFIG",
    )?;
    require(
        by_flake(stage, OPEN, Who::Root)?,
        "a trusting daemon does not believe `nixConfig`",
    )
}

// False paths.

/// A store path nobody built, with content of our own, as a cache and as an export. Answers the path.
fn forged(stage: &Stage) -> Result<String, Failed> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = u64::from(std::process::id()) * 1000 + COUNT.fetch_add(1, Ordering::Relaxed);
    let path = format!("/nix/store/{number:032}-forged");
    let text = |out: &mut Vec<u8>, s: &[u8]| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s);
        out.resize(out.len().next_multiple_of(8), 0);
    };
    let mut nar = Vec::new();
    for s in [
        &b"nix-archive-1"[..],
        b"(",
        b"type",
        b"regular",
        b"contents",
        b"forged\n",
        b")",
    ] {
        text(&mut nar, s);
    }
    let cache = stage.host.home.join("cache");
    codchi_fs::create_dir_all(&cache)?;
    codchi_fs::write(
        cache.join("nix-cache-info"),
        "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 1\n",
    )?;
    codchi_fs::write(cache.join(format!("{number}.nar")), &nar)?;
    let mut info = String::new();
    let _ = write!(
        info,
        "StorePath: {path}\nURL: {number}.nar\nCompression: none\nNarHash: sha256:{:x}\nNarSize: {}\nReferences: \n",
        Sha256::digest(&nar),
        nar.len()
    );
    codchi_fs::write(cache.join(format!("{number:032}.narinfo")), info)?;
    let mut export = 1u64.to_le_bytes().to_vec();
    export.extend(&nar);
    export.extend(0x4558_494eu64.to_le_bytes());
    text(&mut export, path.as_bytes());
    export.extend(0u64.to_le_bytes());
    text(&mut export, b"");
    export.extend(0u64.to_le_bytes());
    export.extend(0u64.to_le_bytes());
    codchi_fs::write(cache.join("export"), export)?;
    let made = "chmod -R a+rwX \"$0\"";
    run(
        std::process::Command::new("sh")
            .arg("-c")
            .arg(made)
            .arg(&cache),
        b"",
    )?
    .ok()?;
    // The same in the machine, at the same place.
    let tar = run(
        std::process::Command::new("tar").args(["-cP"]).arg(&cache),
        b"",
    )?
    .ok()?;
    let unpack = [
        "exec",
        "-u",
        "root",
        MALLORY,
        "--",
        "tar",
        "-xP",
        "--no-same-owner",
    ];
    stage.host.codchi_with(&unpack, &tar.out)?.ok()?;
    Ok(path)
}

fn in_store(stage: &Stage, path: &str) -> Result<bool, Failed> {
    let base = path.rsplit('/').next().unwrap_or_default();
    Ok(stage.ready()?.store.join(base).symlink_metadata().is_ok())
}

fn poison(stage: &Stage, place: &'static str, who: Who, text: &str) -> Result<bool, Failed> {
    let path = forged(stage)?;
    let cache = stage.host.home.join("cache").display().to_string();
    let done = sh(
        stage,
        place,
        who,
        &text.replace("PATH", &path).replace("CACHE", &cache),
    )?;
    let there = in_store(stage, &path)?;
    if there {
        let words = [
            "store",
            "shell",
            "--as-root",
            "--",
            "nix-store",
            "--delete",
            &path,
        ];
        collecting(|| stage.host.codchi(&words))?.ok()?;
    } else if place == OPEN {
        return Err(format!("{} {}", done.text(), done.err).into());
    }
    Ok(there)
}

macro_rules! poisons {
    ($($name:ident $control:ident $text:expr;)+) => {$(
        pub fn $name(stage: &Stage, who: Who) -> Result<(), Failed> {
            require(!poison(stage, MALLORY, who, $text)?, "the false path is in the store")
        }
        pub fn $control(stage: &Stage) -> Result<(), Failed> {
            stage.open()?;
            require(poison(stage, OPEN, Who::Root, $text)?, "a trusting daemon did not take it either")
        }
    )+};
}

poisons! {
    substituter substituter_control
        "nix-store -r PATH --option substitute true --option substituters 'file://CACHE?trusted=true' --option require-sigs false";
    copy copy_control
        "nix --extra-experimental-features nix-command copy --no-check-sigs --from file://CACHE PATH";
    import import_control "nix-store --import < CACHE/export";
}

/// Registers a derivation from its text, with or without another's output named in it, and builds it.
fn build_by_text(stage: &Stage, who: Who, forge: Option<&str>) -> Result<(bool, Done), Failed> {
    let name = fresh("chosen");
    let e = quote(&expression(&name));
    let drv = sh(stage, MALLORY, who, &format!("nix-instantiate -E {e}"))?
        .ok()?
        .text();
    let out = sh(
        stage,
        MALLORY,
        who,
        &format!("nix-store -q --outputs {drv}"),
    )?
    .ok()?
    .text();
    let text = sh(stage, MALLORY, who, &format!("cat {drv}"))?.ok()?.text();
    let wanted = forge.map_or(out.clone(), str::to_string);
    let file = format!("/tmp/{name}.drv");
    let script = format!("cat > {file} && nix-store -r $(nix-store --add {file})");
    let input = text.replace(&out, &wanted);
    let mut words = vec!["exec"];
    if who == Who::Root {
        words.extend(["-u", "root"]);
    }
    words.extend([MALLORY, "--", "sh", "-c", &script]);
    let done = stage.host.codchi_with(&words, input.as_bytes())?;
    Ok((in_store(stage, &wanted)?, done))
}

pub fn chosen(stage: &Stage, who: Who) -> Result<(), Failed> {
    let number = fresh("").bytes().map(u64::from).sum::<u64>() + u64::from(std::process::id());
    let wanted = format!("/nix/store/{number:032}-chosen");
    let (there, _) = build_by_text(stage, who, Some(&wanted))?;
    require(!there, "the build wrote the output it named")
}

pub fn chosen_control(stage: &Stage) -> Result<(), Failed> {
    let (there, done) = build_by_text(stage, Who::User, None)?;
    require(
        there,
        format!("not even a true derivation is taken: {}", done.err),
    )
}

// Builds that see a network.

fn fixed(script: &str, content: &str, more: &str) -> String {
    let hash = format!("{:x}", Sha256::digest(content));
    let more = format!(
        "outputHashAlgo = \"sha256\"; outputHashMode = \"flat\"; outputHash = \"{hash}\"; {more}"
    );
    derivation(&fresh("fixed"), script, &more)
}

fn listener() -> Result<(std::net::TcpListener, u16), Failed> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    listener.set_nonblocking(true)?;
    Ok((listener, port))
}

fn calls(port: u16) -> String {
    let word = fresh("calls");
    let script = format!("(: < /dev/tcp/127.0.0.1/{port}); echo {word} > $out");
    fixed(&script, &format!("{word}\n"), "")
}

pub fn fixed_output(stage: &Stage, who: Who) -> Result<(), Failed> {
    let (listener, port) = listener()?;
    let done = sh(
        stage,
        MALLORY,
        who,
        &format!("nix-build --no-out-link -E {}", quote(&calls(port))),
    )?;
    require(done.status == 0, format!("it was not built: {}", done.err))?;
    require(
        listener.accept().is_err(),
        "the build reached the host's loopback",
    )
}

pub fn fixed_output_control(stage: &Stage) -> Result<(), Failed> {
    let (listener, port) = listener()?;
    let words = [
        "store",
        "shell",
        "--",
        "nix-build",
        "--no-out-link",
        "-E",
        &calls(port),
    ];
    let done = stage.host.codchi(&words)?;
    require(
        listener.accept().is_ok(),
        format!("the person's build does not reach it: {}", done.err),
    )
}

fn reads_word() -> String {
    let script = format!("echo ${VARIABLE} > $out");
    fixed(
        &script,
        &format!("{WORD}\n"),
        &format!("impureEnvVars = [ \"{VARIABLE}\" ];"),
    )
}

pub fn impure(stage: &Stage, who: Who) -> Result<(), Failed> {
    let done = sh(
        stage,
        MALLORY,
        who,
        &format!("nix-build --no-out-link -E {}", quote(&reads_word())),
    )?;
    require(done.status != 0, "the build read the person's variable")
}

pub fn impure_control(stage: &Stage) -> Result<(), Failed> {
    let mut c = stage.host.codchi_command(&[
        "store",
        "shell",
        "--",
        "nix-build",
        "--no-out-link",
        "-E",
        &reads_word(),
    ]);
    c.env(VARIABLE, WORD);
    run(&mut c, b"")?.ok()?;
    Ok(())
}

// Garbage.

pub fn collect(stage: &Stage, who: Who) -> Result<(), Failed> {
    collecting(|| sh(stage, MALLORY, who, "nix-store --gc"))?.ok()?;
    let made = stage.ready()?;
    require(
        in_store(stage, &made.victim)?,
        "what the other machine holds is gone",
    )?;
    for name in [MALLORY, ALICE] {
        let status = stage.host.status(name)?;
        let toplevel = status["toplevel"].as_str().unwrap_or_default();
        require(
            in_store(stage, toplevel)?,
            format!("the system of `{name}` is gone"),
        )?;
    }
    Ok(())
}

pub fn collect_control(stage: &Stage) -> Result<(), Failed> {
    let e = quote(&expression(&fresh("loose")));
    let loose = sh(
        stage,
        MALLORY,
        Who::User,
        &format!("nix-build --no-out-link -E {e}"),
    )?
    .ok()?
    .text();
    require(in_store(stage, &loose)?, "it was not built")?;
    collecting(|| sh(stage, MALLORY, Who::User, "nix-store --gc"))?.ok()?;
    require(!in_store(stage, &loose)?, "a collection takes nothing")
}

pub fn delete(stage: &Stage, who: Who) -> Result<(), Failed> {
    let victim = stage.ready()?.victim.clone();
    for how in ["", "--ignore-liveness"] {
        let text = format!("nix-store --delete {how} {victim}");
        collecting(|| sh(stage, MALLORY, who, &text))?;
        require(
            in_store(stage, &victim)?,
            "what the other machine holds is gone",
        )?;
    }
    Ok(())
}

pub fn delete_control(stage: &Stage) -> Result<(), Failed> {
    let e = quote(&expression(&fresh("held")));
    let held = sh(
        stage,
        ALICE,
        Who::User,
        &format!("nix-build -o ~/held -E {e}"),
    )?
    .ok()?
    .text();
    let words = [
        "store",
        "shell",
        "--as-root",
        "--",
        "nix-store",
        "--delete",
        "--ignore-liveness",
        &held,
    ];
    let done = collecting(|| stage.host.codchi(&words))?;
    sh(stage, ALICE, Who::User, "rm ~/held")?.ok()?;
    // Whoever looks at the roots next must not see it go.
    let roots = stage.roots(ALICE);
    let leads_there =
        |e: &std::fs::DirEntry| std::fs::read_link(e.path()).is_ok_and(|to| to == Path::new(&held));
    crate::hostile::eventually("the root of a removed link goes", || {
        codchi_fs::read_dir(&roots).is_ok_and(|all| !all.iter().any(leads_there))
    })?;
    require(
        !in_store(stage, &held)?,
        format!("its owner cannot delete it: {}", done.err),
    )
}
