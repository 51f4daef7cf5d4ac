//! What a machine has of the host's session and of the host's own secrets, against real peers. The first case creates the machine
//! `ses`, the last deletes it.

use std::path::{Path, PathBuf};

use libtest_mimic::Failed;

use crate::cases::{Case, eventually, same};
use crate::host::{Done, Host, Kind, run};
use crate::require;

/// Every case, in the order in which they run.
pub const ALL: &[Case] = &[
    ("session_capabilities_that_are_missing_are_told", missing),
    ("session_host_secrets_are_delivered", delivered),
    ("session_certificates_of_the_host_are_trusted", trusted),
    ("session_ssh_agent_logs_in_and_may_restart", agent),
    ("session_outlives_the_agent_of_the_machine", outlives),
    ("session_git_asks_the_host_for_granted_servers", git),
    ("session_x11_needs_no_cookie_inside", x11),
    ("session_wayland_reaches_the_caller", wayland),
    ("session_sound_reaches_the_caller", sound),
    ("session_kvm_is_there_once_it_is_granted", kvm),
    ("session_ends_with_the_machine", ends),
];

/// What runs beside the machine until this is dropped.
struct Peer<'a> {
    host: &'a Host,
    pid: String,
}

impl Peer<'_> {
    /// Starts a shell command in the background, as the person who uses Codchi.
    fn start<'a>(h: &'a Host, command: &str) -> Result<Peer<'a>, Failed> {
        // In a group of its own, with which all of it ends.
        let script = "setsid sh -c \"$0\" >/dev/null 2>&1 & echo $!";
        let pid = run(h.command("sh").args(["-c", script, command]), b"")?
            .ok()?
            .text();
        Ok(Peer { host: h, pid })
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        let script = "kill -- -$0";
        let _ = run(self.host.command("sh").args(["-c", script, &self.pid]), b"");
    }
}

fn on_host(h: &Host, script: &str) -> Result<Done, Failed> {
    run(h.command("sh").args(["-c", script]), b"")
}

/// `codchi` with variables of a session.
fn with(h: &Host, vars: &[(&str, &Path)], args: &[&str]) -> Result<Done, Failed> {
    let mut c = h.codchi_command(args);
    for (name, value) in vars {
        c.env(name, value);
    }
    run(&mut c, b"")
}

/// A shell script in the machine, called with variables of a session.
fn sh_with(h: &Host, vars: &[(&str, &Path)], script: &str) -> Result<Done, Failed> {
    with(h, vars, &["exec", "ses", "--", "sh", "-c", script])
}

/// An agent at a socket in the home, with one key.
fn ssh_agent<'a>(h: &'a Host, socket: &str, key: &str) -> Result<(Peer<'a>, PathBuf), Failed> {
    let peer = Peer::start(h, &format!("exec ssh-agent -D -a ~/{socket}"))?;
    let add = format!("SSH_AUTH_SOCK=~/{socket} ssh-add {key}");
    eventually("the agent is there", || Ok(on_host(h, &add)?.status == 0))?;
    Ok((peer, h.home.join(socket)))
}

const GRANTED: [&str; 8] = [
    "--accept",
    "host-secret",
    "--refuse",
    "capability:kvm",
    "--refuse",
    "capability:display",
    "--refuse",
    "capability:sound",
];

fn missing(h: &Host) -> Result<(), Failed> {
    let repo = h.checkout("tests/fixtures/session", "session-project")?;
    let flake = codchi_fs::read_to_string(repo.join("module.nix"))?;
    let wanting = flake.replace(
        "codchi = {",
        "codchi = { requiredCapabilities = [ \"display\" \"sound\" ];",
    );
    codchi_fs::write(repo.join("module.nix"), wanting)?;
    h.commit(&repo)?;
    let refused = h
        .codchi(&["init", "ses", &repo.to_string_lossy()])?
        .exits(3)?;
    for told in [
        "`display`: this session has no display",
        "`sound`: no sound server",
    ] {
        require!(refused.err.contains(told), "no {told:?} in {}", refused.err);
    }
    require!(
        !refused.err.contains("building"),
        "something was built before: {}",
        refused.err
    );
    h.codchi(&["status", "ses"])?.exits(5)?;
    codchi_fs::write(repo.join("module.nix"), flake)?;
    h.commit(&repo)
}

/// Makes a private certificate authority in `~/ca`, with a server's certificate and key, and has the settings name it.
pub fn private_authority(h: &Host) -> Result<(), Failed> {
    on_host(
        h,
        "mkdir -p ~/ca ~/.config/codchi && cd ~/ca &&
         openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 3 -subj '/CN=Private CA' \
           -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign &&
         openssl req -newkey rsa:2048 -nodes -keyout key.pem -out csr.pem -subj /CN=localhost &&
         printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\nauthorityKeyIdentifier=keyid,issuer\\n' > ext &&
         openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile ext &&
         printf 'version = 1\\n[certificates]\\nextra = [\"%s/ca/ca.pem\"]\\n' ~ > ~/.config/codchi/config.toml",
    )?
    .ok()?;
    Ok(())
}

fn delivered(h: &Host) -> Result<(), Failed> {
    private_authority(h)?;
    h.file(
        ".netrc",
        "machine private.example login me password s3cret\n",
    )?;
    let repo = h.home.join("session-project");
    let mut args = vec!["init", "ses"];
    let repo = repo.to_string_lossy().into_owned();
    args.push(&repo);
    args.extend(GRANTED);
    let mut c = h.codchi_command(&args);
    c.env("https_proxy", "http://proxy.example:3128")
        .env("no_proxy", "127.0.0.1");
    run(&mut c, b"")?.ok()?;
    same(
        "netrc",
        h.sh(
            "ses",
            "cat ~/.netrc; stat -L -c '%U %a' ~/.netrc; printf %s \"$https_proxy\"",
        )?,
        "machine private.example login me password s3cret\ncodchi 600\nhttp://proxy.example:3128"
            .into(),
    )
}

fn trusted(h: &Host) -> Result<(), Failed> {
    let server = "import http.server, ssl\n\
        c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain('cert.pem', 'key.pem')\n\
        s = http.server.HTTPServer(('127.0.0.1', 8443), http.server.SimpleHTTPRequestHandler)\n\
        s.socket = c.wrap_socket(s.socket, server_side=True); s.serve_forever()\n";
    let mut files = vec![("server.py".to_string(), server.as_bytes().to_vec())];
    for name in ["cert.pem", "key.pem"] {
        files.push((name.into(), codchi_fs::read(h.home.join("ca").join(name))?));
    }
    for (name, bytes) in files {
        let write = format!("mkdir -p ~/www && cat > ~/www/{name}");
        h.codchi_with(&["exec", "ses", "--", "sh", "-c", &write], &bytes)?
            .ok()?;
    }
    h.sh(
        "ses",
        "cd ~/www && echo hello > page && git init -q --bare repo.git && git -C repo.git update-server-info &&
         systemd-run --user --quiet --working-directory=$PWD --setenv=PATH=$PATH $(command -v python3) server.py",
    )?;
    eventually("the server answers", || {
        Ok(h.codchi(&[
            "exec",
            "ses",
            "--",
            "curl",
            "-sSf",
            "https://127.0.0.1:8443/page",
        ])?
        .text()
            == "hello")
    })?;
    for (what, script) in [
        (
            "no variable",
            "env -i $(command -v curl) -sSf https://127.0.0.1:8443/page",
        ),
        (
            "git",
            "git ls-remote https://127.0.0.1:8443/repo.git && echo hello",
        ),
        (
            "python",
            "python3 -c 'import urllib.request as u; print(u.urlopen(\"https://127.0.0.1:8443/page\").read().decode(), end=\"\")'",
        ),
        (
            "nix",
            "nix store prefetch-file --json https://127.0.0.1:8443/page | grep -q storePath && echo hello",
        ),
    ] {
        same(what, h.sh("ses", script)?, "hello".into())?;
    }
    // The same without the host's certificates is refused: it is they that count.
    let other = h.sh(
        "ses",
        "curl -sS --cacert /etc/ssl/certs/none https://127.0.0.1:8443/page 2>&1 || echo refused",
    )?;
    require!(other.contains("refused"), "trusted without: {other}");
    Ok(())
}

fn agent(h: &Host) -> Result<(), Failed> {
    on_host(
        h,
        "cd ~ && for k in one two; do ssh-keygen -q -t ed25519 -N '' -C $k -f key-$k; done",
    )?
    .ok()?;
    let keys =
        ["one", "two"].map(|k| codchi_fs::read_to_string(h.home.join(format!("key-{k}.pub"))));
    let keys = keys.into_iter().collect::<Result<String, _>>()?;
    h.codchi_with(
        &[
            "exec",
            "ses",
            "--",
            "sh",
            "-c",
            "mkdir -m 700 -p ~/.ssh && cat > ~/.ssh/authorized_keys",
        ],
        keys.as_bytes(),
    )?
    .ok()?;
    let log_in = "ssh -p 2222 -o StrictHostKeyChecking=no -o BatchMode=yes 127.0.0.1 id -un";
    let (peer, first) = ssh_agent(h, "agent-1", "key-one")?;
    let vars: [(&str, &Path); 1] = [("SSH_AUTH_SOCK", &first)];
    // The first that calls with an agent has it at once.
    same(
        "the agent of the first call",
        sh_with(h, &vars, "echo $SSH_AUTH_SOCK; ssh-add -l | wc -l")?.text(),
        "/run/codchi/host/ssh-agent\n1".into(),
    )?;
    // A program that holds on to the path.
    sh_with(
        h,
        &vars,
        "systemd-run --user --quiet --unit=holds --setenv=SSH_AUTH_SOCK=$SSH_AUTH_SOCK --setenv=PATH=$PATH \
         sh -c 'while :; do ssh-add -l > ~/keys.new 2>&1; mv ~/keys.new ~/keys; sleep 0.2; done'",
    )?
    .ok()?;
    eventually("the agent logs in", || {
        Ok(sh_with(h, &vars, log_in)?.text().ends_with("codchi"))
    })?;
    eventually("the first key is seen", || {
        Ok(h.sh("ses", "cat ~/keys")?.contains(" one "))
    })?;
    let other = h.root_sh("ses", "setpriv --reuid nobody --clear-groups ssh-add -l 2>&1 || true; stat -c %a%U /run/codchi/host/ssh-agent")?;
    require!(
        other.ends_with("600codchi"),
        "others may use the agent: {other}"
    );
    drop(peer);
    let (_peer, second) = ssh_agent(h, "agent-2", "key-two")?;
    let vars: [(&str, &Path); 1] = [("SSH_AUTH_SOCK", &second)];
    same(
        "log in by the second",
        sh_with(h, &vars, log_in)?.text(),
        "codchi".into(),
    )?;
    eventually("the second key is seen at the same path", || {
        Ok(h.sh("ses", "cat ~/keys")?.contains(" two "))
    })?;
    h.sh("ses", "systemctl --user stop holds")?;
    Ok(())
}

fn outlives(h: &Host) -> Result<(), Failed> {
    let (_peer, socket) = ssh_agent(h, "agent-3", "key-one")?;
    let vars: [(&str, &Path); 1] = [("SSH_AUTH_SOCK", &socket)];
    let main = "systemctl show --property MainPID --value codchi-agent";
    let before = h.root_sh("ses", main)?;
    // It may be cut off with what it restarts.
    let words = ["exec", "-u", "root", "ses", "--", "systemctl"];
    h.codchi(&[&words[..], &["--no-block", "restart", "codchi-agent"]].concat())?;
    eventually("the agent is another one", || {
        let now = h.codchi(&["exec", "ses", "--", "sh", "-c", main])?;
        Ok(now.status == 0 && now.text() != before)
    })?;
    let keys = sh_with(h, &vars, "ssh-add -l")?.text();
    require!(
        keys.contains(" one "),
        "the session is out of reach: {keys}"
    );
    Ok(())
}

fn git(h: &Host) -> Result<(), Failed> {
    on_host(
        h,
        "git config --global credential.helper store &&
         printf 'https://me:pass-a@granted.example\\nhttps://me:pass-b@other.example\\n' > ~/.git-credentials && chmod 600 ~/.git-credentials",
    )?
    .ok()?;
    let file = h.home.join(".config/codchi/machines/ses/host.toml");
    let text = codchi_fs::read_to_string(&file)?;
    let granted = text.replace(
        "\"host-secret:gitCredentials\"",
        "\"host-secret:gitCredentials = granted.example\"",
    );
    require!(granted != text, "no line for git in {text}");
    codchi_fs::write(&file, granted)?;
    h.codchi(&["restart", "ses"])?.ok()?;
    let ask = |host: &str| {
        let script = format!(
            "printf 'protocol=https\\nhost={host}\\n\\n' | GIT_TERMINAL_PROMPT=0 git credential fill"
        );
        h.codchi(&["exec", "ses", "--", "sh", "-c", &script])
    };
    let told = ask("granted.example")?.ok()?.text();
    require!(told.contains("password=pass-a"), "git was not told: {told}");
    let told = ask("other.example")?;
    require!(
        told.status != 0 && !told.text().contains("pass-b"),
        "git was told what was not granted: {}",
        told.text()
    );
    codchi_fs::write(&file, text)?;
    Ok(())
}

fn x11(h: &Host) -> Result<(), Failed> {
    // Of this kind's own: another runs beside it.
    let screen = match h.kind {
        Kind::Root => ":77",
        Kind::Rootless => ":78",
    };
    let cookies = h.home.join("cookies");
    on_host(
        h,
        &format!("touch ~/cookies && xauth -q -f ~/cookies add {screen} . 0123456789abcdef0123456789abcdef"),
    )?
    .ok()?;
    let _peer = Peer::start(
        h,
        &format!("exec Xvfb {screen} -auth ~/cookies -screen 0 320x200x24 -nolisten tcp"),
    )?;
    eventually("the X server answers", || {
        Ok(on_host(
            h,
            &format!("XAUTHORITY=~/cookies DISPLAY={screen} xdpyinfo"),
        )?
        .status
            == 0)
    })?;
    let stranger = on_host(
        h,
        &format!("XAUTHORITY=/dev/null DISPLAY={screen} xdpyinfo"),
    )?;
    require!(stranger.status != 0, "the X server lets everyone in");
    let vars: [(&str, &Path); 2] = [("DISPLAY", Path::new(screen)), ("XAUTHORITY", &cookies)];
    with(
        h,
        &vars,
        &["rebuild", "ses", "--accept", "capability:display"],
    )?
    .ok()?;
    let draws = "echo $DISPLAY; xwininfo -root | grep -o 320x200";
    eventually("the machine sees the screen", || {
        Ok(sh_with(h, &vars, draws)?.text() == ":0\n320x200")
    })?;
    // The window of a client in the machine is on the host's screen.
    let _window = h.sh(
        "ses",
        "systemd-run --user --quiet --unit=eyes --setenv=DISPLAY=:0 xev -name from-the-machine",
    )?;
    eventually("its window is there", || {
        Ok(on_host(
            h,
            &format!("XAUTHORITY=~/cookies DISPLAY={screen} xwininfo -root -tree"),
        )?
        .text()
        .contains("from-the-machine"))
    })?;
    h.sh("ses", "systemctl --user stop eyes")?;
    Ok(())
}

/// A session without root, as compositors want it: in root's suite that of another account.
fn session(h: &Host, folder: &Path) -> Result<String, Failed> {
    let user = std::env::var("CODCHI_TEST_USER").unwrap_or_else(|_| "codchi-test".into());
    let start = format!(
        "export HOME={0} XDG_RUNTIME_DIR={0} WLR_BACKENDS=headless WLR_LIBINPUT_NO_DEVICES=1 WLR_RENDERER=pixman; \
         cd {0}; exec dbus-run-session -- sh -c 'sway -c /dev/null & pipewire & wireplumber & until [ -S pipewire-0 ]; do sleep 0.05; done; pipewire-pulse & wait'",
        folder.display()
    );
    Ok(match h.kind {
        Kind::Root => {
            on_host(
                h,
                &format!("mkdir -m 700 {0} && chown {user} {0}", folder.display()),
            )?
            .ok()?;
            format!("exec setpriv --reuid {user} --regid {user} --clear-groups sh -c \"{start}\"")
        }
        Kind::Rootless => {
            on_host(h, &format!("mkdir -m 700 {}", folder.display()))?.ok()?;
            start
        }
    })
}

/// A session with a compositor and a sound server, for as long as this is there.
struct Desktop<'a> {
    folder: PathBuf,
    wayland: PathBuf,
    pulse: PathBuf,
    _peer: Peer<'a>,
}

impl Desktop<'_> {
    fn start(h: &Host) -> Result<Desktop<'_>, Failed> {
        let folder = std::env::temp_dir().join(format!("codchi-session-{}", std::process::id()));
        let command = session(h, &folder)?;
        let desktop = Desktop {
            wayland: folder.join("wayland-1"),
            pulse: PathBuf::from(format!("unix:{}/pulse/native", folder.display())),
            folder,
            _peer: Peer::start(h, &command)?,
        };
        eventually("the session is there", || {
            Ok(desktop.on_pulse(h, "pactl info")?.status == 0 && desktop.wayland.exists())
        })?;
        Ok(desktop)
    }

    /// The variables that lead there.
    fn vars(&self) -> [(&str, &Path); 2] {
        [
            ("WAYLAND_DISPLAY", &self.wayland),
            ("PULSE_SERVER", &self.pulse),
        ]
    }

    /// A shell script on the host, with its sound server.
    fn on_pulse(&self, h: &Host, script: &str) -> Result<Done, Failed> {
        let server = self.pulse.display();
        on_host(h, &format!("export PULSE_SERVER={server}; {script}"))
    }
}

impl Drop for Desktop<'_> {
    fn drop(&mut self) {
        let _ = codchi_fs::remove_dir_all(&self.folder);
    }
}

fn wayland(h: &Host) -> Result<(), Failed> {
    let desktop = Desktop::start(h)?;
    let accept = ["rebuild", "ses", "--accept", "capability:display"];
    with(h, &desktop.vars(), &accept)?.ok()?;
    // A picture goes through memory that both share.
    let picture = "grim - | head -c 4 | tail -c 3";
    eventually("the machine takes a picture of the screen", || {
        Ok(sh_with(h, &desktop.vars(), picture)?.text() == "PNG")
    })
}

fn sound(h: &Host) -> Result<(), Failed> {
    // A sound server that starves on a busy computer may not recover: then another one is asked.
    let mut rounds = 3;
    loop {
        rounds -= 1;
        let desktop = Desktop::start(h)?;
        match heard(h, &desktop) {
            Err(_) if rounds > 0 => {}
            done => return done,
        }
    }
}

/// What the machine plays is what the caller's sound server gets.
fn heard(h: &Host, desktop: &Desktop) -> Result<(), Failed> {
    let accept = ["rebuild", "ses", "--accept", "capability:sound"];
    with(h, &desktop.vars(), &accept)?.ok()?;
    let sink = "pactl load-module module-null-sink sink_name=null";
    desktop.on_pulse(h, sink)?.ok()?;
    let play = "timeout 15 sh -c 'yes abcdefg | pacat -d null --format=s16le --channels=1 --rate=8000' & echo";
    let record = "timeout 12 parec -d null.monitor --format=s16le --channels=1 --rate=8000 | tr -d '\\000' | head -c 2000 | wc -c";
    // Nothing may come in time; then both begin anew.
    let played = eventually("what the machine plays is heard", || {
        sh_with(h, &desktop.vars(), &format!("({play}) >/dev/null 2>&1"))?;
        Ok(desktop.on_pulse(h, record)?.text().trim() == "2000")
    });
    played.map_err(|e| {
        let there = desktop.on_pulse(h, "pactl list short");
        let there = there.map(|done| done.text()).unwrap_or_default();
        let why = e.message().unwrap_or_default();
        format!("{why}; the sound server has:\n{there}").into()
    })
}

fn kvm(h: &Host) -> Result<(), Failed> {
    let open = ["exec", "ses", "--", "sh", "-c", ": <> /dev/kvm"];
    require!(h.codchi(&open)?.status != 0, "it is there unasked");
    let offered = on_host(h, "test -w /dev/kvm")?.status == 0 && h.kind == Kind::Root;
    if offered {
        let done = h
            .codchi(&["rebuild", "ses", "--accept", "capability:kvm"])?
            .ok()?;
        require!(
            done.err.contains("codchi restart ses"),
            "no word of the next start: {}",
            done.err
        );
        h.codchi(&["restart", "ses"])?.ok()?;
        h.codchi(&open)?.ok()?;
    }
    Ok(())
}

fn ends(h: &Host) -> Result<(), Failed> {
    let runtime = h.home.join("run/codchi/machines/ses");
    require!(
        runtime.join("host/ssh-agent").exists(),
        "nothing leads to the session"
    );
    h.codchi(&["delete", "--yes", "ses"])?.ok()?;
    require!(!runtime.exists(), "`{}` is left", runtime.display());
    on_host(
        h,
        "rm -f ~/.config/codchi/config.toml ~/.netrc ~/.git-credentials ~/.gitconfig",
    )?
    .ok()?;
    Ok(())
}
