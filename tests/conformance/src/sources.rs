//! Sources of every kind, from real servers on the loopback: git over https and ssh, forges' short forms, archives; public and private,
//! pinned and moving.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::host::{Done, Host, Kind, run};

/// Every case. The first makes the servers that the others ask, the last ends them.
pub const ALL: &[Case] = &[
    ("https_gives_a_machine", https),
    ("an_untrusted_certificate_is_named", certificate),
    ("branch_tag_and_commit_pin", pins),
    ("folders_and_submodules_of_a_repository", folders),
    ("a_private_repository_wants_credentials", private),
    ("credentials_come_from_where_a_person_says", credentials),
    ("short_forms_reach_their_forge", short_forms),
    ("modules_are_edited_and_what_a_person_wrote_stays", edits),
    ("status_tells_what_moved", moved),
    ("a_clone_is_a_machine_with_its_repository", clone),
    ("a_checkout_in_the_machine_is_what_is_built", checkout),
    ("a_password_is_nowhere", nowhere),
    ("ssh_says_what_it_lacks_and_never_asks", ssh_refused),
    ("ssh_uses_keys_and_agent", ssh),
    ("the_servers_end", end),
];

const PASSWORD: &str = "pass-w0rd-of-the-forge";

macro_rules! require {
    ($cond:expr, $($what:tt)+) => {
        if !$cond {
            return Err(format!($($what)+).into());
        }
    };
}

/// Where everything of the suite is: an address of its own, so that runs beside each other do not meet.
struct Place {
    dir: PathBuf,
    address: String,
}

impl Place {
    fn of(h: &Host) -> Place {
        let n = std::process::id();
        let address = format!(
            "127.{}.{}.{}",
            1 + n / 65_000 % 200,
            n / 250 % 250,
            1 + n % 250
        );
        Place {
            dir: h.home.join("forge"),
            address,
        }
    }
    fn url(&self, repository: &str) -> String {
        format!("https://{}/{repository}.git", self.address)
    }
    fn ca(&self) -> String {
        self.dir.join("ca.pem").to_string_lossy().into_owned()
    }
    fn work(&self) -> PathBuf {
        self.dir.join("work")
    }
}

/// A shell script as the person under test.
fn sh(h: &Host, dir: &Path, script: &str) -> Result<String, Failed> {
    let prelude = "set -eu; cd \"$0\"; export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.org \
                   GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.org\n";
    let mut c = h.command("sh");
    c.arg("-c").arg(format!("{prelude}{script}")).arg(dir);
    Ok(run(&mut c, b"")?.ok()?.text())
}

/// `codchi ARGS` with the authority of the forge trusted, and what else is in the environment.
fn codchi(h: &Host, args: &[&str], env: &[(&str, &str)]) -> Result<Done, Failed> {
    let mut c = h.codchi_command(args);
    c.env("SSL_CERT_FILE", Place::of(h).ca());
    for (name, value) in env {
        c.env(name, value);
    }
    run(&mut c, b"")
}

/// The same, where a line is added to a file as soon as a source is fetched: by the git that is found first.
fn meddled(h: &Host, file: &Path, line: &str, args: &[&str]) -> Result<Done, Failed> {
    let dir = h.home.join("meddling");
    let script = format!(
        "mkdir -p meddling; rm -f meddling/done; git=$(command -v git)
         printf '%s\\n' '#!/bin/sh' '[ -e {dir}/done ] || {{ : > {dir}/done; echo \"{line}\" >> {file}; }}' \"exec $git \\\"\\$@\\\"\" > meddling/git
         chmod 755 meddling/git; printf %s \"$PATH\"",
        dir = dir.display(),
        file = file.display()
    );
    let path = format!("{}:{}", dir.display(), sh(h, &h.home, &script)?);
    let done = codchi(h, args, &[("PATH", &path)])?;
    require!(dir.join("done").exists(), "git was not asked: {}", done.err);
    Ok(done)
}

/// The commit that a machine's flake.lock has for an input.
fn locked(h: &Host, machine: &str, input: &str) -> Result<String, Failed> {
    let file = h
        .home
        .join(".config/codchi/machines")
        .join(machine)
        .join("flake.lock");
    let lock: serde_json::Value = serde_json::from_str(&codchi_fs::read_to_string(file)?)?;
    let rev = lock["nodes"][input]["locked"]["rev"].as_str();
    rev.map(Into::into)
        .ok_or_else(|| format!("no rev of `{input}` in {lock}").into())
}

/// The commit that a lock means: of an annotated tag, Nix may lock the tag itself.
fn commit(h: &Host, place: &Place, rev: &str) -> Result<String, Failed> {
    sh(
        h,
        &place.dir.join("repositories/team/env.git"),
        &format!("git rev-parse '{rev}^{{commit}}'"),
    )
}

static SERVERS: std::sync::Mutex<Vec<Child>> = std::sync::Mutex::new(Vec::new());

fn serve(mut command: Command, log: &Path, address: &str, port: u16) -> Result<(), Failed> {
    let log = codchi_fs::create(log)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    SERVERS.lock().map_err(|_| "poisoned")?.push(child);
    let until = Instant::now() + Duration::from_secs(30);
    while std::net::TcpStream::connect((address, port)).is_err() {
        require!(
            Instant::now() < until,
            "nothing listens at {address}:{port}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Repositories, certificates and the forge.
fn prepare(h: &Host) -> Result<Place, Failed> {
    let place = Place::of(h);
    sh(
        h,
        &h.home,
        "mkdir -p forge/repositories/team forge/repositories/private forge/work/sub",
    )?;
    let (dir, work) = (&place.dir, place.work());
    sh(
        h,
        &work,
        "printf '%s\\n' '{ outputs = { self }: { nixosModules.default = ./module.nix; }; }' > flake.nix
         printf '%s\\n' '{ environment.etc.\"source\".text = \"one\"; }' > module.nix
         cp flake.nix sub/ && sed s/one/sub/ module.nix > sub/module.nix
         git init -q -b main . && git add -A && git commit -qm one
         git tag light && git tag -a annotated -m annotated
         git checkout -q -b side && sed -i s/one/side/ module.nix && git commit -qam side && git rev-parse HEAD > ../side
         git checkout -q main && git rev-parse HEAD > ../first
         git init -q -b main ../part && printf '%s\\n' '{ environment.etc.\"part\".text = \"of a submodule\"; }' > ../part/part.nix
         cd ../part && git add -A && git commit -qm part
         git init -q -b main ../whole && cd ../whole
         printf '%s\\n' '{ outputs = { self }: { nixosModules.default = ./part/part.nix; }; }' > flake.nix
         git -c protocol.file.allow=always submodule add -q ../part part
         git config -f .gitmodules submodule.part.url ../part.git && git add -A && git commit -qm whole
         cd .. && for r in team private; do
           git clone -q --bare work repositories/$r/env.git
           git clone -q --bare work repositories/$r/other.git
           git clone -q --bare part repositories/$r/part.git
           git clone -q --bare whole repositories/$r/whole.git
           # A commit that no branch or tag leads to any more.
           git -C repositories/$r/env.git branch -q -D side
         done",
    )?;
    let openssl = format!(
        "p='ec -pkeyopt ec_paramgen_curve:prime256v1'
         openssl req -x509 -newkey $p -nodes -keyout ca.key -out ca.pem -days 2 -subj '/CN=Authority of a test' -addext basicConstraints=critical,CA:TRUE
         openssl req -newkey $p -nodes -keyout forge.key -out forge.csr -subj /CN=forge
         echo subjectAltName=IP:{0} > forge.ext
         openssl x509 -req -in forge.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out forge.pem -extfile forge.ext",
        place.address
    );
    sh(h, dir, &format!("{{ {openssl}; }} 2> openssl.log"))?;
    let repositories = dir.join("repositories");
    codchi_fs::write(repositories.join("password"), PASSWORD)?;
    let mut forge = Command::new("python3");
    forge
        .arg(h.repo.join("tests/fixtures/forge/forge.py"))
        .args([&place.address, "443"]);
    forge.args([
        dir.join("forge.pem"),
        dir.join("forge.key"),
        repositories.clone(),
        dir.join("forge.requests"),
    ]);
    serve(forge, &dir.join("forge.log"), &place.address, 443)?;
    Ok(place)
}

fn https(h: &Host) -> Result<(), Failed> {
    let place = prepare(h)?;
    codchi(h, &["init", "web", &place.url("team/env")], &[])?.ok()?;
    let text = h.sh("web", "cat /etc/source")?;
    require!(text == "one", "the module's file holds {text}");
    let first = codchi_fs::read_to_string(place.dir.join("first"))?;
    let rev = locked(h, "web", "env")?;
    require!(rev == first.trim(), "locked to {rev}, not {first}");
    codchi(h, &["delete", "-y", "web"], &[])?.ok().map(drop)
}

fn certificate(h: &Host) -> Result<(), Failed> {
    let place = Place::of(h);
    // Another repository: of the first, Nix has a copy.
    let done = h
        .codchi(&["init", "web", &place.url("team/part"), "--dry-run"])?
        .exits(1)?;
    require!(
        done.err
            .contains("certificate of its server is not trusted")
            && done.err.contains("SSL_CERT_FILE"),
        "{}",
        done.err
    );
    Ok(())
}

fn pins(h: &Host) -> Result<(), Failed> {
    let place = Place::of(h);
    let url = place.url("team/env");
    let read =
        |name: &str| codchi_fs::read_to_string(place.dir.join(name)).map(|t| t.trim().to_owned());
    let (first, side) = (read("first")?, read("side")?);
    let short = format!("git+https://{}/team/env.git", place.address);
    for (machine, pin, wanted) in [
        ("branch", ["--branch", "main"], &first),
        ("light", ["--tag", "light"], &first),
        ("annotated", ["--tag", "annotated"], &first),
        ("commit", ["--commit", &side], &side),
    ] {
        codchi(
            h,
            &["init", machine, &url, pin[0], pin[1], "--no-start"],
            &[],
        )?
        .ok()?;
        let rev = commit(h, &place, &locked(h, machine, "env")?)?;
        require!(
            rev == *wanted,
            "`{}` {} is locked to {rev}, not {wanted}",
            pin[0],
            pin[1]
        );
    }
    for (pin, word) in [("--branch", "no-such-branch"), ("--tag", "no-such-tag")] {
        let done = codchi(h, &["init", "none", &url, pin, word, "--dry-run"], &[])?.exits(1)?;
        require!(
            done.err.contains("no such branch, tag or commit"),
            "{}",
            done.err
        );
    }
    // The branch moves; what is pinned stays.
    let second = sh(
        h,
        &place.work(),
        "sed -i s/one/two/ module.nix && git commit -qam two && git push -q ../repositories/team/env.git main && git rev-parse HEAD",
    )?;
    for (machine, wanted) in [
        ("branch", second.trim()),
        ("light", &first),
        ("annotated", &first),
        ("commit", &side),
    ] {
        codchi(h, &["update", machine, "env"], &[])?.ok()?;
        let rev = commit(h, &place, &locked(h, machine, "env")?)?;
        require!(
            rev == wanted,
            "after `update`, `{machine}` is locked to {rev}, not {wanted}"
        );
        let flake = codchi_fs::read_to_string(
            h.home
                .join(".config/codchi/machines")
                .join(machine)
                .join("flake.nix"),
        )?;
        require!(
            flake.contains(&short),
            "the flake of `{machine}` lost its source: {flake}"
        );
    }
    let done = codchi(
        h,
        &["delete", "-y", "branch", "light", "annotated", "commit"],
        &[],
    )?;
    done.ok().map(drop)
}

fn folders(h: &Host) -> Result<(), Failed> {
    let place = Place::of(h);
    let wanted = |url: &str, file: &str, text: &str| -> Result<(), Failed> {
        let done = codchi(h, &["init", "part", url, "--no-start"], &[])?.ok()?;
        let status = h.status("part")?;
        let toplevel = status["toplevel"].as_str().unwrap_or_default().to_owned();
        let script = format!("cat {toplevel}/etc/{file}");
        let shown = h
            .codchi(&["store", "shell", "--", "sh", "-c", &script])?
            .ok()?
            .text();
        require!(
            shown == text,
            "{url} gives {shown:?}, not {text:?}; {}",
            done.err
        );
        h.codchi(&["delete", "-y", "part"])?.ok().map(drop)
    };
    wanted(
        &format!("{}?dir=sub", place.url("team/env")),
        "source",
        "sub",
    )?;
    wanted(
        &format!("{}?submodules=1", place.url("team/whole")),
        "part",
        "of a submodule",
    )
}

fn private(h: &Host) -> Result<(), Failed> {
    let place = Place::of(h);
    let begun = Instant::now();
    // At a terminal, too, nobody is asked.
    let program = h.codchi_command(&["init", "own", &place.url("private/env"), "--dry-run"]);
    let line: Vec<String> = program
        .get_args()
        .map(|a| format!("'{}'", a.to_string_lossy()))
        .collect();
    let (first, rest) = match h.kind {
        Kind::Root => (program.get_program().to_string_lossy().into_owned(), line),
        // The wrapper's user comes first, then the program.
        Kind::Rootless => (line[1].clone(), line[2..].to_vec()),
    };
    let mut c = h.command("script");
    c.args(["-qec", &format!("{first} {}", rest.join(" ")), "/dev/null"])
        .env("SSL_CERT_FILE", place.ca());
    let done = run(&mut c, b"")?.exits(1)?;
    let said = done.text();
    require!(
        said.contains("it wants a name and password") && said.contains("--auth-from"),
        "nothing tells what is wanted: {said}"
    );
    require!(
        begun.elapsed() < Duration::from_secs(60),
        "it took {:?}",
        begun.elapsed()
    );
    let url = format!("https://me:{PASSWORD}@{}/private/env.git", place.address);
    let done = codchi(h, &["init", "own", &url, "--dry-run"], &[])?.exits(2)?;
    require!(
        !done.err.contains(PASSWORD),
        "the password is in the error: {}",
        done.err
    );
    Ok(())
}

fn credentials(h: &Host) -> Result<(), Failed> {
    let place = Place::of(h);
    let both = format!("reader:{PASSWORD}");
    let archive = format!("https://{}/archive/private/env.tar.gz", place.address);
    let git = place.url("private/env");
    let wrong = codchi(
        h,
        &["init", "own", &git, "--dry-run", "--auth-from", "env:TOKEN"],
        &[("TOKEN", "reader:wrong")],
    )?
    .exits(1)?;
    require!(
        wrong.err.contains("it wants a name and password"),
        "{}",
        wrong.err
    );
    let secret = h.home.join("token");
    codchi_fs::write(&secret, &both)?;
    codchi_fs::write(
        h.home.join(".netrc"),
        format!(
            "machine {} login reader password {PASSWORD}\n",
            place.address
        ),
    )?;
    let file = format!("file:{}", secret.display());
    let of_host = format!("{}={file}", place.address);
    for (url, from) in [
        (&archive, "env:TOKEN"),
        (&git, &*file),
        (&archive, "netrc"),
        (&git, &*of_host),
    ] {
        codchi(
            h,
            &["init", "own", url, "--no-start", "--auth-from", from],
            &[("TOKEN", &both)],
        )?
        .ok()?;
        codchi(
            h,
            &["update", "own", "env", "--auth-from", from],
            &[("TOKEN", &both)],
        )?
        .ok()?;
        codchi(h, &["delete", "-y", "own"], &[])?.ok()?;
    }
    codchi_fs::remove_file(h.home.join(".netrc"))?;
    // What git remembers serves git by itself, and Nix when a person says so.
    let stored = format!("https://reader:{PASSWORD}@{}\n", place.address);
    codchi_fs::write(h.home.join("stored"), stored)?;
    let helper = format!(
        "[credential]\n  helper = store --file={}\n",
        h.home.join("stored").display()
    );
    codchi_fs::write(h.home.join(".gitconfig"), helper)?;
    codchi(
        h,
        &["init", "own", &place.url("private/other"), "--dry-run"],
        &[],
    )?
    .ok()?;
    let other = format!("https://{}/archive/private/other.tar.gz", place.address);
    codchi(h, &["init", "own", &other, "--dry-run"], &[])?.exits(1)?;
    codchi(
        h,
        &["init", "own", &other, "--dry-run", "--auth-from", "git"],
        &[],
    )?
    .ok()?;
    for name in [".gitconfig", "stored", "token"] {
        codchi_fs::remove_file(h.home.join(name))?;
    }
    Ok(())
}

fn short_forms(h: &Host) -> Result<(), Failed> {
    let place = Place::of(h);
    let first = codchi_fs::read_to_string(place.dir.join("first"))?;
    for scheme in ["github", "gitlab"] {
        let url = format!("{scheme}:team/env?host={}", place.address);
        codchi(
            h,
            &["init", "short", &url, "--tag", "annotated", "--no-start"],
            &[],
        )?
        .ok()?;
        let rev = locked(h, "short", "env")?;
        require!(rev == first.trim(), "{url} is locked to {rev}");
        codchi(h, &["delete", "-y", "short"], &[])?.ok()?;
        let url = format!("{scheme}:private/env?host={}", place.address);
        let done = codchi(h, &["init", "short", &url, "--dry-run"], &[])?.exits(1)?;
        require!(done.err.contains("--auth-from"), "{}", done.err);
        let env = [("TOKEN", PASSWORD)];
        codchi(
            h,
            &[
                "init",
                "short",
                &url,
                "--dry-run",
                "--auth-from",
                "env:TOKEN",
            ],
            &env,
        )?
        .ok()?;
    }
    Ok(())
}

fn edits(h: &Host) -> Result<(), Failed> {
    let place = Place::of(h);
    let url = place.url("team/env");
    codchi(h, &["init", "m", "--no-start"], &[])?.ok()?;
    let file = h.home.join(".config/codchi/machines/m/flake.nix");
    let text = codchi_fs::read_to_string(&file)?;
    let by_hand = text.replace("modules = [ ];", "modules = [\n        # mine\n        { environment.etc.mine.text = \"x\"; }\n      ]; # all of them");
    require!(by_hand != text, "the flake is not as expected: {text}");
    sh(
        h,
        &h.home,
        &format!("cat > '{}' <<'END'\n{by_hand}END\n", file.display()),
    )?;
    let dry = codchi(h, &["module", "add", "m", &url, "--dry-run"], &[])?
        .ok()?
        .text();
    require!(
        dry.contains("+         inputs.env.nixosModules.default"),
        "no difference is shown: {dry}"
    );
    require!(
        codchi_fs::read_to_string(&file)? == by_hand,
        "`--dry-run` changed the flake"
    );
    codchi(h, &["module", "add", "m", &url, "--tag", "light"], &[])?.ok()?;
    codchi(
        h,
        &[
            "module",
            "add",
            "m",
            &format!("{url}?dir=sub"),
            "--as",
            "second",
        ],
        &[],
    )?
    .ok()?;
    // Whoever edits the flake meanwhile is not overwritten.
    let before = codchi_fs::read_to_string(&file)?;
    let other = format!("{url}?dir=sub");
    let add = ["module", "add", "m", &other, "--as", "third"];
    let done = meddled(h, &file, "# by hand", &add)?.exits(6)?;
    require!(
        done.err
            .contains("the flake.nix of `m` was changed meanwhile"),
        "{}",
        done.err
    );
    require!(
        codchi_fs::read_to_string(&file)? == format!("{before}# by hand\n"),
        "what was written by hand is gone"
    );
    h.file(".config/codchi/machines/m/flake.nix", &before)?;
    codchi(h, &["module", "rename", "m", "env", "first"], &[])?.ok()?;
    let listed = codchi(h, &["module", "list", "m", "--json"], &[])?
        .ok()?
        .text();
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let first = codchi_fs::read_to_string(place.dir.join("first"))?;
    let inputs: Vec<&str> = listed["modules"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| m["input"].as_str().unwrap_or("-"))
        .collect();
    require!(
        inputs == ["-", "first", "second"],
        "the order is {inputs:?}"
    );
    require!(
        listed["modules"][1]["revision"] == first.trim(),
        "renaming moved the lock: {listed}"
    );
    codchi(h, &["module", "remove", "m", "first"], &[])?.ok()?;
    codchi(
        h,
        &["module", "set", "m", "second", "--branch", "main"],
        &[],
    )?
    .ok()?;
    require!(
        codchi_fs::read_to_string(&file)?.contains("env.git?dir=sub&ref=main"),
        "the branch is not in the address"
    );
    let wrong = codchi(
        h,
        &["module", "set", "m", "second", "--branch", "none"],
        &[],
    )?
    .exits(1)?;
    require!(wrong.err.contains("no such branch"), "{}", wrong.err);
    codchi(h, &["module", "set", "m", "--nixpkgs-from", "second"], &[])?.exits(1)?;
    codchi(h, &["rebuild", "m"], &[])?.ok()?;
    codchi(h, &["module", "remove", "m", "second"], &[])?.ok()?;
    let after = codchi_fs::read_to_string(&file)?;
    require!(
        after == by_hand,
        "adding and removing left the flake as\n{after}"
    );
    // What cannot be edited is refused with its line.
    let computed = by_hand.replace("modules = [", "modules = map (m: m) [");
    sh(
        h,
        &h.home,
        &format!("cat > '{}' <<'END'\n{computed}END\n", file.display()),
    )?;
    let refused = codchi(h, &["module", "add", "m", &url], &[])?.exits(1)?;
    require!(
        refused.err.contains("line 13") && refused.err.contains("by hand"),
        "{}",
        refused.err
    );
    require!(
        codchi_fs::read_to_string(&file)? == computed,
        "a refused edit changed the flake"
    );
    codchi(h, &["delete", "-y", "m"], &[])?.ok().map(drop)
}

fn moved(h: &Host) -> Result<(), Failed> {
    let place = Place::of(h);
    codchi(
        h,
        &["init", "st", &place.url("team/other"), "--no-start"],
        &[],
    )?
    .ok()?;
    let config = |wanted: &str, state: &str| -> Result<(), Failed> {
        let s = h.status("st")?;
        let got = (s["config"].as_str(), s["inputs"][0]["state"].as_str());
        require!(
            got == (Some(wanted), Some(state)),
            "status says {got:?}, not {wanted} and {state}"
        );
        Ok(())
    };
    // The first status asks in the background.
    let answers = h.home.join(".cache/codchi/updates/st.json");
    codchi(h, &["status"], &[])?.ok()?;
    let until = Instant::now() + Duration::from_secs(60);
    while !answers.exists() {
        require!(
            Instant::now() < until,
            "nothing was asked in the background"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    config("up-to-date", "up-to-date")?;
    sh(
        h,
        &place.work(),
        "git commit -q --allow-empty -m three && git push -q ../repositories/team/other.git main",
    )?;
    codchi(h, &["plumbing", "check-updates", "st"], &[])?.ok()?;
    config("updates-available", "updates-available")?;
    let before = locked(h, "st", "other")?;
    let told = codchi(h, &["update", "--check", "st"], &[])?.ok()?;
    require!(
        told.err.contains("other:") && locked(h, "st", "other")? == before,
        "{}",
        told.err
    );
    let lock = h.home.join(".config/codchi/machines/st/flake.lock");
    let text = codchi_fs::read_to_string(&lock)?;
    let done = meddled(h, &lock, "", &["update", "st"])?.exits(6)?;
    require!(
        done.err
            .contains("the flake.lock of `st` was changed meanwhile"),
        "{}",
        done.err
    );
    require!(
        codchi_fs::read_to_string(&lock)? == format!("{text}\n"),
        "what was written meanwhile is gone"
    );
    codchi(h, &["update", "st"], &[])?.ok()?;
    require!(
        locked(h, "st", "other")? != before,
        "`update` moved nothing"
    );
    config("modified", "up-to-date")?;
    codchi(h, &["rebuild", "st"], &[])?.ok()?;
    config("up-to-date", "up-to-date")?;
    // A server that does not answer is not waited for, and what it said before is not forgotten in silence.
    codchi_fs::remove_file(&answers)?;
    let begun = Instant::now();
    h.codchi(&["status"])?.ok()?;
    require!(
        begun.elapsed() < Duration::from_secs(5),
        "status waited {:?}",
        begun.elapsed()
    );
    codchi(h, &["delete", "-y", "st"], &[])?.ok().map(drop)
}

/// What the machine of the two cases below was built from.
fn built(h: &Host) -> Result<String, Failed> {
    Ok(codchi(h, &["exec", "cl", "--", "cat", "/etc/source"], &[])?
        .ok()?
        .text())
}

fn clone(h: &Host) -> Result<(), Failed> {
    let place = Place::of(h);
    sh(
        h,
        &place.dir,
        "git clone -q --bare work repositories/team/plain.git
         mkdir tool && cd tool && git init -q -b main . && cp ../work/flake.nix . && mkdir 'a b'
         printf '%s\\n' '{ pkgs, ... }: { environment.systemPackages = [ pkgs.git ]; environment.etc.\"source\".text = \"one\"; }' > module.nix
         ln -s module.nix link && head -c 300000 /dev/urandom > large && printf x > 'a b/c d' && chmod 755 'a b/c d' && git add -A && git commit -qm one
         printf '\\n' >> flake.nix && git commit -qam two
         git clone -q --bare . ../repositories/team/tool.git
         git init -q -b main ../deep && cd ../deep && cp ../tool/flake.nix .
         printf '%s\\n' '{ pkgs, ... }: { imports = [ ./part/part.nix ]; environment.systemPackages = [ pkgs.git ]; }' > module.nix
         git -c protocol.file.allow=always submodule add -q ../part part
         git config -f .gitmodules submodule.part.url ../part.git && git add -A && git commit -qm deep
         git clone -q --bare . ../repositories/team/deep.git",
    )?;
    let ca = place.ca();
    let env = [
        ("GIT_SSL_CAINFO", ca.as_str()),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ];
    // What the machine lacks is found out before anything is cloned, and the machine stays.
    let done = codchi(h, &["clone", "bare", &place.url("team/plain")], &env)?.exits(1)?;
    require!(
        done.err.contains("there is no git in `bare`"),
        "{}",
        done.err
    );
    codchi(h, &["delete", "--yes", "bare"], &[])?.ok()?;
    codchi(h, &["clone", "cl"], &env)?.exits(2)?;
    let url = place.url("team/tool");
    let done = codchi(
        h,
        &["clone", "cl", &url, "--depth", "1", "--dir", "src/the tool", "--", "sh", "-c",
          "cd ~/'src/the tool' && git log --format=%s && git remote get-url origin && git status --porcelain && readlink link && test -x 'a b/c d' && ls .git/hooks 2>&1 | wc -l"],
        &env,
    )?
    .ok()?;
    require!(
        done.text() == format!("two\n{url}\nmodule.nix\n1")
            || done.text() == format!("two\n{url}\nmodule.nix\n0"),
        "the clone: {}\n{}",
        done.text(),
        done.err
    );
    require!(built(h)? == "one", "it was built from {}", built(h)?);
    let listed = codchi(h, &["module", "list", "cl"], &[])?.ok()?.text();
    require!(
        listed.contains("`/home/codchi/src/the tool` in the machine"),
        "{listed}"
    );
    // What only a clone needs is found out by cloning.
    let refused = [
        env[0],
        env[1],
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "clone.defaultRemoteName"),
        ("GIT_CONFIG_VALUE_0", "no..name"),
    ];
    let done = codchi(h, &["clone", "uncloned", &url], &refused)?.exits(1)?;
    require!(
        done.err.contains("cannot be cloned") && done.err.contains("the machine is there"),
        "{}",
        done.err
    );
    codchi(h, &["delete", "--yes", "uncloned"], &[])?.ok()?;
    // Nothing is cloned over what is there, and whoever sends more than a pipe holds is not waited for.
    let over = codchi(h, &["clone", "over", &url, "--dir", "/etc"], &env)?.exits(1)?;
    require!(over.err.contains("`/etc` is not empty"), "{}", over.err);
    codchi(h, &["delete", "--yes", "over"], &[])?.ok()?;
    // What is pinned is what is checked out, though only the newest is cloned; submodules come along.
    let first = sh(h, &place.dir.join("tool"), "git rev-parse HEAD~1")?;
    let script = "cd ~/tool && git log --format=%s -n 1";
    let done = codchi(
        h,
        &[
            "clone",
            "pinned",
            &url,
            "--commit",
            &first,
            "--depth",
            "1",
            "--no-init-script",
            "--",
            "sh",
            "-c",
            script,
        ],
        &env,
    )?
    .ok()?;
    require!(done.text() == "one", "{}", done.text());
    let into_it = codchi(
        h,
        &["module", "set", "pinned", "tool", "--no-checkout"],
        &[],
    )?
    .ok()?;
    require!(into_it.err.contains("its address"), "{}", into_it.err);
    codchi(h, &["delete", "--yes", "pinned"], &[])?.ok()?;
    // Of a server that gives only what its branches and tags are, the first commit cannot be had alone; Nix has it.
    let older = [
        env[0],
        env[1],
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "protocol.version"),
        ("GIT_CONFIG_VALUE_0", "0"),
    ];
    let words = ["clone", "older", &url, "--commit", &first, "--depth", "1"];
    let done = codchi(h, &words, &older)?.exits(1)?;
    require!(
        done.err.contains(&format!("has no commit `{first}`")),
        "{}",
        done.err
    );
    codchi(h, &["delete", "--yes", "older"], &[])?.ok()?;
    let whole = [
        ("GIT_SSL_CAINFO", ca.as_str()),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ];
    let script = "cd ~/deep && git status --porcelain && cat part/part.nix | wc -l && git submodule status | grep -c ' part'";
    let done = codchi(
        h,
        &[
            "clone",
            "deep",
            &format!("{}?submodules=1", place.url("team/deep")),
            "--recurse-submodules",
            "--",
            "sh",
            "-c",
            script,
        ],
        &whole,
    )?
    .ok()?;
    require!(done.text() == "1\n1", "{}\n{}", done.text(), done.err);
    codchi(h, &["rebuild", "deep"], &[])?.ok()?;
    codchi(h, &["delete", "--yes", "deep"], &[])?.ok()?;
    Ok(())
}

fn checkout(h: &Host) -> Result<(), Failed> {
    let inside = |script: &str| -> Result<String, Failed> {
        let script = format!("set -e; cd ~/'src/the tool'; {script}");
        Ok(codchi(h, &["exec", "cl", "--", "sh", "-c", &script], &[])?
            .ok()?
            .text())
    };
    let rebuild = || codchi(h, &["rebuild", "cl"], &[])?.ok();
    let done = rebuild()?;
    // The clone is of what the machine was built from, so there is nothing to build; only where it comes from is new.
    let again = rebuild()?;
    require!(
        again.err.contains("up to date"),
        "{}\n{}",
        done.err,
        again.err
    );
    // What it holds, not when it was written or what git thinks of it, is what counts; and nothing is left in it.
    let config = || -> Result<String, Failed> {
        let status = codchi(h, &["status", "cl", "--json"], &[])?.ok()?;
        let status: serde_json::Value = serde_json::from_str(&status.text())?;
        Ok(status["machines"][0]["config"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    };
    inside("touch module.nix")?;
    require!(config()? == "up-to-date", "it is told as {}", config()?);
    inside("sed -i s/one/two/ module.nix")?;
    require!(
        config()? == "modified",
        "a change in it is told as {}",
        config()?
    );
    inside("git add module.nix; sed -i s/two/one/ module.nix")?;
    let objects = "git count-objects -v; git status --porcelain";
    let before = inside(objects)?;
    require!(
        config()? == "up-to-date",
        "an index is told as {}",
        config()?
    );
    let after = inside(objects)?;
    require!(after == before, "asking left something: {before}; {after}");
    inside("git reset -q --hard")?;
    // Not committed, and with what git would run: nothing of it runs on this computer.
    inside(
        "sed -i s/one/two/ module.nix; git config core.fsmonitor 'touch /tmp/ran-by-git;false'; echo secret > untracked",
    )?;
    let marker = Path::new("/tmp/ran-by-git");
    let _ = std::fs::remove_file(marker);
    require!(
        config()? == "modified",
        "a change in it is told as {}",
        config()?
    );
    rebuild()?;
    require!(built(h)? == "two", "it was built from {}", built(h)?);
    require!(
        config()? == "up-to-date",
        "what was built is told as {}",
        config()?
    );
    require!(!marker.exists(), "the host ran what the checkout says");
    require!(
        inside("git status >/dev/null; test -e /tmp/ran-by-git && echo ran")? == "ran",
        "the monitor is none"
    );
    // A change that does not evaluate is told with its file, and the machine stays as it was.
    inside("echo '{ nonsense' > module.nix")?;
    let bad = codchi(h, &["rebuild", "cl"], &[])?.exits(1)?;
    require!(bad.err.contains("module.nix"), "{}", bad.err);
    inside("git checkout -q module.nix; sed -i s/one/three/ module.nix")?;
    // A machine that is off is started for it.
    codchi(h, &["stop", "cl"], &[])?.ok()?;
    rebuild()?;
    require!(built(h)? == "three", "it was built from {}", built(h)?);
    // A file that is gone is gone.
    inside("rm 'a b/c d'; sed -i s/three/four/ module.nix")?;
    rebuild()?;
    require!(built(h)? == "four", "it was built from {}", built(h)?);
    // Nothing of this computer is read through a link, held up by a pipe, or taken as an input of what is there.
    for (trick, told) in [
        ("ln -sf /dev/zero flake.nix", "flake.nix"),
        (
            "ln -sf \"$HOME/../../../../etc/passwd\" flake.nix",
            "flake.nix",
        ),
        (
            "rm -f flake.nix; truncate -s 1T flake.nix",
            "more than may be taken",
        ),
        (
            "rm -f flake.nix; truncate -s 64M flake.nix",
            "larger than such a file ever is",
        ),
    ] {
        inside(trick)?;
        let bad = codchi(h, &["rebuild", "cl"], &[])?.exits(1)?;
        require!(bad.err.contains(told), "{trick}: {}", bad.err);
        inside("rm -f flake.nix; git checkout -q HEAD flake.nix")?;
    }
    sh(
        h,
        &h.home,
        "mkdir own-secret && echo 5ec2e7f4 > own-secret/key",
    )?;
    let folder = h.home.join("own-secret").to_string_lossy().into_owned();
    for input in [
        format!("{{ url = \"path:{folder}\"; flake = false; }}"),
        format!("{{ url = \"file://{folder}/key\"; flake = false; }}"),
    ] {
        inside(&format!(
            "printf '%s\\n' '{{ inputs.s = {input}; outputs = {{ self, s }}: {{ nixosModules.default = ./module.nix; }}; }}' > flake.nix"
        ))?;
        let bad = codchi(h, &["rebuild", "cl"], &[])?.exits(1)?;
        require!(
            bad.err.contains("of this computer as its input `s`"),
            "{input}: {}",
            bad.err
        );
        inside("git checkout -q HEAD flake.nix")?;
    }
    let store = h.home.join(".local/share/codchi/store/nix/store");
    let taken = run(
        Command::new("grep").args(["-rlsF", "5ec2e7f4"]).arg(store),
        b"",
    )?
    .text();
    require!(taken.is_empty(), "it is in the store: {taken}");
    codchi(
        h,
        &["module", "set", "cl", "tool", &Place::of(h).url("team/env")],
        &[],
    )?
    .exits(1)?;
    codchi(
        h,
        &["module", "set", "cl", "tool", "--checkout", "nowhere"],
        &[],
    )?
    .exits(5)?;
    let none = codchi(
        h,
        &["module", "set", "cl", "tool", "--checkout", "/etc"],
        &[],
    )?
    .exits(1)?;
    require!(none.err.contains("is no checkout"), "{}", none.err);
    codchi(h, &["module", "rename", "cl", "tool", "other"], &[])?.ok()?;
    codchi(h, &["module", "set", "cl", "other", "--no-checkout"], &[])?.ok()?;
    rebuild()?;
    require!(built(h)? == "one", "it was built from {}", built(h)?);
    codchi(
        h,
        &["module", "set", "cl", "other", "--checkout", "src/the tool"],
        &[],
    )?
    .ok()?;
    rebuild()?;
    require!(built(h)? == "four", "it was built from {}", built(h)?);
    codchi(h, &["delete", "--yes", "cl"], &[])?.ok()?;
    Ok(())
}

fn nowhere(h: &Host) -> Result<(), Failed> {
    // The forge's own file and requests lie in a folder of their own.
    let script =
        format!("grep -rlsF --exclude-dir=forge --exclude-dir=proc -e {PASSWORD} . || test $? = 1");
    let found = run(
        Command::new("sh")
            .arg("-c")
            .arg(script)
            .current_dir(&h.home),
        b"",
    )?
    .text();
    require!(found.is_empty(), "the password is in {found}");
    let left = codchi_fs::read_dir(h.home.join(".local/share/codchi/auth")).unwrap_or_default();
    require!(left.is_empty(), "credentials were left behind");
    Ok(())
}

/// An ssh server of the person's, and the way ssh is told of it.
fn start_ssh(h: &Host) -> Result<(String, PathBuf), Failed> {
    let place = Place::of(h);
    let dir = h.home.join("sshd");
    let port = 20_000 + (std::process::id() % 20_000) as u16;
    sh(
        h,
        &h.home,
        &format!(
            "mkdir -p -m 700 sshd && cd sshd && ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f key
             cp key.pub authorized && ssh-keygen -q -t ed25519 -N '' -f other
             printf '%s\\n' 'Port {port}' 'ListenAddress {0}' \"HostKey $PWD/host\" \"AuthorizedKeysFile $PWD/authorized\" 'StrictModes no' \\
               'UsePAM no' 'PasswordAuthentication no' 'KbdInteractiveAuthentication no' 'PidFile none' > config
             printf '%s\\n' \"UserKnownHostsFile $PWD/known\" 'IdentitiesOnly no' \"IdentityFile $PWD/client\" > client.config
             printf '[core]\\n\\tsshCommand = ssh -F %s\\n' \"$PWD/client.config\" > ../.gitconfig",
            place.address
        ),
    )?;
    // The server refuses a folder that it is told of by a parent that is missing; as root it wants this one.
    let _ = codchi_fs::create_dir_all("/run/sshd");
    let mut sshd = h.command("/usr/sbin/sshd");
    sshd.args(["-D", "-e", "-f"]).arg(dir.join("config"));
    serve(sshd, &dir.join("log"), &place.address, port)?;
    let user = sh(h, &h.home, "id -un")?;
    let repository = place.dir.join("repositories/team");
    Ok((
        format!(
            "git+ssh://{user}@{}:{port}{}",
            place.address,
            repository.display()
        ),
        dir,
    ))
}

fn ssh_refused(h: &Host) -> Result<(), Failed> {
    let (base, dir) = start_ssh(h)?;
    let url = format!("{base}/env.git");
    let begun = Instant::now();
    let refused = |word: &str| -> Result<(), Failed> {
        let done = h.codchi(&["init", "keys", &url, "--dry-run"])?.exits(1)?;
        require!(done.err.contains(word), "`{word}` is not in: {}", done.err);
        require!(
            begun.elapsed() < Duration::from_secs(120),
            "it took {:?}",
            begun.elapsed()
        );
        Ok(())
    };
    refused("the key of its host is not known to ssh")?;
    let known = |key: &str| {
        let line = "\"$(sed -n 's/^ListenAddress //p' config)\" \"$(sed -n 's/^Port //p' config)\"";
        sh(
            h,
            &dir,
            &format!("printf '[%s]:%s %s\\n' {line} \"$(cut -d' ' -f1-2 {key}.pub)\" > known"),
        )
    };
    known("other")?;
    refused("its host shows another key")?;
    known("host")?;
    refused("accepts none of the keys")?;
    codchi_fs::write(dir.join("url"), base)?;
    Ok(())
}

fn ssh(h: &Host) -> Result<(), Failed> {
    let dir = h.home.join("sshd");
    let base = codchi_fs::read_to_string(dir.join("url"))?;
    // A key in an agent.
    let url = format!("{base}/env.git");
    let agent = sh(
        h,
        &dir,
        "ssh-agent -a \"$PWD/agent\" > agent.sh; SSH_AUTH_SOCK=\"$PWD/agent\" ssh-add -q key; sed -n 's/.*SSH_AGENT_PID=\\([0-9]*\\).*/\\1/p' agent.sh | head -1",
    )?;
    let socket = dir.join("agent").to_string_lossy().into_owned();
    let by_agent = codchi(
        h,
        &["init", "keys", &url, "--tag", "light", "--no-start"],
        &[("SSH_AUTH_SOCK", &socket)],
    );
    sh(h, &dir, &format!("kill {agent}"))?;
    by_agent?.ok()?;
    let first = codchi_fs::read_to_string(Place::of(h).dir.join("first"))?;
    let rev = locked(h, "keys", "env")?;
    require!(rev == first.trim(), "locked to {rev}");
    h.codchi(&["delete", "-y", "keys"])?.ok()?;
    // A key in a file, and the host's own parts of ssh's configuration, which belong to nobody in a user namespace.
    sh(h, &dir, "cp key client && chmod 600 client")?;
    let part =
        Path::new("/etc/ssh/ssh_config.d").join(format!("codchi-test-{}.conf", std::process::id()));
    codchi_fs::write(&part, "Host nothing.invalid\n  Port 22\n")?;
    // With `-F` ssh reads no configuration of the host's; here it has to.
    sh(
        h,
        &dir,
        "printf '[core]\\n\\tsshCommand = ssh -o UserKnownHostsFile=%s/known -o IdentityFile=%s/client\\n' \"$PWD\" \"$PWD\" > ../.gitconfig",
    )?;
    let done = h.codchi(&[
        "init",
        "keys",
        &format!("{base}/whole.git?submodules=0"),
        "--dry-run",
    ]);
    codchi_fs::remove_file(&part)?;
    codchi_fs::remove_file(h.home.join(".gitconfig"))?;
    // The flake needs its submodule, which was not asked for: it was fetched, and the evaluation says what is missing.
    let done = done?.exits(1)?;
    require!(done.err.contains("part"), "{}", done.err);
    Ok(())
}

fn end(_: &Host) -> Result<(), Failed> {
    for mut child in SERVERS.lock().map_err(|_| "poisoned")?.drain(..) {
        let pid = rustix::process::Pid::from_raw(child.id() as i32).ok_or("no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        child.wait()?;
    }
    Ok(())
}
