//! Where a person's session has its display, sound and ssh agent, and where a machine finds them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::consent;
use crate::manifest::Needs;

/// A socket in a machine that leads to something of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// The X server.
    X11,
    /// The Wayland compositor.
    Wayland,
    /// The PipeWire daemon.
    Pipewire,
    /// The PulseAudio daemon, or what stands in for it.
    Pulse,
    /// The ssh agent.
    SshAgent,
    /// Passwords that git remembers.
    GitCredentials,
}

impl Channel {
    /// All of them.
    pub const ALL: [Channel; 6] = [
        Channel::X11,
        Channel::Wayland,
        Channel::Pipewire,
        Channel::Pulse,
        Channel::SshAgent,
        Channel::GitCredentials,
    ];

    /// The socket's name below `/run/codchi/host` in the machine.
    pub fn file(self) -> &'static str {
        match self {
            Channel::X11 => "x11",
            Channel::Wayland => "wayland",
            Channel::Pipewire => "pipewire",
            Channel::Pulse => "pulse",
            Channel::SshAgent => "ssh-agent",
            Channel::GitCredentials => "git-credentials",
        }
    }

    /// The variable by which programs in the machine find it, and its value.
    pub fn variable(self) -> Option<(&'static str, &'static str)> {
        match self {
            // Its socket is where that display is, by a link.
            Channel::X11 => Some(("DISPLAY", ":0")),
            Channel::Wayland => Some(("WAYLAND_DISPLAY", "/run/codchi/host/wayland")),
            Channel::Pipewire => Some(("PIPEWIRE_REMOTE", "/run/codchi/host/pipewire")),
            Channel::Pulse => Some(("PULSE_SERVER", "unix:/run/codchi/host/pulse")),
            Channel::SshAgent => Some(("SSH_AUTH_SOCK", "/run/codchi/host/ssh-agent")),
            Channel::GitCredentials => None,
        }
    }

    /// Whether descriptors go along with bytes: shared memory is what these protocols are made of.
    pub fn carries_descriptors(self) -> bool {
        matches!(self, Channel::Wayland | Channel::Pipewire)
    }

    /// Its number at the port of a machine that no socket of the host reaches; none where more than bytes would have to.
    pub fn number(self) -> Option<u8> {
        match self {
            Channel::X11 => Some(1),
            Channel::Pulse => Some(2),
            Channel::SshAgent => Some(3),
            Channel::GitCredentials => Some(4),
            Channel::Wayland | Channel::Pipewire => None,
        }
    }

    /// The one with this number.
    pub fn numbered(number: u8) -> Option<Channel> {
        Channel::ALL.into_iter().find(|c| c.number() == Some(number))
    }
}

/// The channels that a machine with these needs, and this said of them, shall have.
pub fn channels(needs: &Needs, lines: &[String]) -> Vec<Channel> {
    let has = |name| consent::has_capability(needs, lines, name);
    let mut all = Vec::new();
    let shown = |protocol: &str| needs.displays.is_empty() || needs.displays.iter().any(|d| d == protocol);
    if has("display") {
        all.extend(shown("x11").then_some(Channel::X11));
        all.extend(shown("wayland").then_some(Channel::Wayland));
    }
    if has("sound") {
        all.extend([Channel::Pipewire, Channel::Pulse]);
    }
    all.extend(has("ssh-agent").then_some(Channel::SshAgent));
    all.extend(has("git-credentials").then_some(Channel::GitCredentials));
    all
}

/// The same for one that is reached by a port: of them, those made of bytes alone.
pub fn streams(needs: &Needs, lines: &[String]) -> Vec<Channel> {
    channels(needs, lines).into_iter().filter(|c| c.number().is_some()).collect()
}

/// Where the X server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Display {
    /// A display of this computer, by its number.
    Local(u32),
    /// A socket, by its path.
    Socket(PathBuf),
    /// Another computer's, or one that ssh forwards: host and number.
    Remote(String, u32),
}

/// What a session's variables say. What is not there was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Session {
    /// `DISPLAY`.
    pub display: Option<String>,
    /// The file with the X server's cookies.
    pub xauthority: Option<PathBuf>,
    /// The compositor's socket.
    pub wayland: Option<PathBuf>,
    /// PipeWire's socket.
    pub pipewire: Option<PathBuf>,
    /// PulseAudio's socket.
    pub pulse: Option<PathBuf>,
    /// The ssh agent's socket.
    pub ssh_agent: Option<PathBuf>,
}

impl Session {
    /// Reads the variables of a session. `is_there` tells whether a socket exists where one is by custom.
    pub fn of(var: &dyn Fn(&str) -> Option<OsString>, is_there: &dyn Fn(&Path) -> bool) -> Session {
        let text = |name: &str| var(name).and_then(|v| v.into_string().ok()).filter(|v| !v.is_empty());
        let path = |name: &str| text(name).map(PathBuf::from);
        let runtime = path("XDG_RUNTIME_DIR");
        let below = |p: PathBuf| if p.is_absolute() { Some(p) } else { Some(runtime.as_ref()?.join(p)) };
        let usual = |name: &str| runtime.as_ref().map(|r| r.join(name)).filter(|p| is_there(p));
        let pulse = match text("PULSE_SERVER") {
            Some(server) => server.strip_prefix("unix:").map(PathBuf::from).filter(|p| p.is_absolute()),
            None => usual("pulse/native"),
        };
        let pipewire = match path("PIPEWIRE_REMOTE") {
            Some(remote) => below(remote),
            None => usual("pipewire-0"),
        };
        Session {
            display: text("DISPLAY"),
            xauthority: path("XAUTHORITY")
                .or_else(|| path("HOME").map(|h| h.join(".Xauthority")).filter(|p| is_there(p))),
            wayland: path("WAYLAND_DISPLAY").and_then(below),
            pipewire,
            pulse,
            ssh_agent: path("SSH_AUTH_SOCK").filter(|p| p.is_absolute()),
        }
    }

    /// This session where it says something, else the one before: a caller without a display takes none away.
    pub fn over(self, before: &Session) -> Session {
        // A cookie belongs to its display.
        let (display, xauthority) = match self.display {
            Some(d) => (Some(d), self.xauthority),
            None => (before.display.clone(), before.xauthority.clone()),
        };
        Session {
            display,
            xauthority,
            wayland: self.wayland.or_else(|| before.wayland.clone()),
            pipewire: self.pipewire.or_else(|| before.pipewire.clone()),
            pulse: self.pulse.or_else(|| before.pulse.clone()),
            ssh_agent: self.ssh_agent.or_else(|| before.ssh_agent.clone()),
        }
    }

    /// Where the X server is, as X(7) reads `DISPLAY`.
    pub fn x_server(&self) -> Option<Display> {
        let text = self.display.as_deref()?;
        let plain = text.strip_prefix("unix:").unwrap_or(text);
        if plain.starts_with('/') {
            return Some(Display::Socket(plain.into()));
        }
        let (host, number) = text.rsplit_once(':')?;
        let number = number.split('.').next()?.parse().ok()?;
        Some(if host.is_empty() || host == "unix" {
            Display::Local(number)
        } else {
            Display::Remote(host.trim_matches(['[', ']']).into(), number)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(vars: &[(&str, &str)]) -> Session {
        let var = |n: &str| vars.iter().find(|(k, _)| *k == n).map(|(_, v)| v.into());
        Session::of(&var, &|p| p.ends_with("pulse/native"))
    }

    #[test]
    fn a_session_is_read_as_its_programs_read_it() {
        let s = session(&[
            ("XDG_RUNTIME_DIR", "/run/user/1"),
            ("WAYLAND_DISPLAY", "wayland-1"),
            ("DISPLAY", ":3.0"),
            ("SSH_AUTH_SOCK", "/tmp/ssh-x/agent.1"),
        ]);
        assert_eq!(s.wayland.as_deref(), Some(Path::new("/run/user/1/wayland-1")));
        assert_eq!(s.pulse.as_deref(), Some(Path::new("/run/user/1/pulse/native")));
        assert_eq!(s.pipewire, None);
        assert_eq!(s.x_server(), Some(Display::Local(3)));
        for (text, display) in [
            ("localhost:10.0", Some(Display::Remote("localhost".into(), 10))),
            ("[::1]:2", Some(Display::Remote("::1".into(), 2))),
            ("unix:/tmp/x", Some(Display::Socket("/tmp/x".into()))),
            ("unix:1", Some(Display::Local(1))),
            ("x", None),
            (":y", None),
        ] {
            assert_eq!(session(&[("DISPLAY", text)]).x_server(), display, "{text}");
        }
    }

    #[test]
    fn only_bytes_go_over_a_port() {
        for channel in Channel::ALL {
            assert_eq!(channel.number().is_some(), !channel.carries_descriptors(), "{channel:?}");
            assert!(channel.number().is_none_or(|n| Channel::numbered(n) == Some(channel)));
        }
        assert_eq!((Channel::numbered(0), Channel::numbered(255)), (None, None));
        let needs = Needs {
            optional_capabilities: vec!["display".into(), "sound".into(), "ssh-agent".into()],
            ..Needs::default()
        };
        let lines = ["capability:sound", "capability:ssh-agent"].map(String::from);
        assert_eq!(channels(&needs, &lines).len(), 3);
        assert_eq!(streams(&needs, &lines), [Channel::Pulse, Channel::SshAgent]);
    }

    #[test]
    fn a_caller_without_a_display_takes_none_away() {
        let before = session(&[("DISPLAY", ":1"), ("XAUTHORITY", "/a"), ("SSH_AUTH_SOCK", "/b")]);
        assert_eq!(session(&[]).over(&before), before);
        let now = session(&[("DISPLAY", ":2")]).over(&before);
        assert_eq!((now.display.as_deref(), now.xauthority), (Some(":2"), None));
        assert_eq!(now.ssh_agent, before.ssh_agent);
    }
}
