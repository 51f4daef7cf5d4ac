//! What kind of host this is, as far as that decides what mends what it lacks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::outer;

/// Switches of the kernel that keep ordinary users from making namespaces; a distribution sets them, or a person.
const APPARMOR: &str = "kernel.apparmor_restrict_unprivileged_userns";
const CLONE: &str = "kernel.unprivileged_userns_clone";
const MOST: &str = "user.max_user_namespaces";

/// A host, by what was seen of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// Whether it is a NixOS, where options mend things and what a command does is gone with the next switch.
    pub nixos: bool,
    /// Whether systemd runs its services.
    pub systemd: bool,
    /// Whether the caller is root.
    pub root: bool,
    /// The caller's login name.
    pub user: String,
    /// Whether services of the caller outlive the log-in.
    pub lingers: bool,
    /// This program.
    pub program: PathBuf,
    /// What the kernel's switches are set to, by name, where it has them.
    pub switches: BTreeMap<&'static str, String>,
}

impl Host {
    /// Looks at this one.
    pub fn look() -> Host {
        let user = outer::user_name(rustix::process::getuid().as_raw()).unwrap_or_default();
        let switch = |name: &'static str| {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            Some((name, codchi_fs::read_to_string(path).ok()?.trim().to_string()))
        };
        Host {
            nixos: Path::new("/etc/NIXOS").exists(),
            systemd: Path::new("/run/systemd/system").is_dir(),
            root: outer::is_root(),
            lingers: Path::new("/var/lib/systemd/linger").join(&user).exists(),
            user,
            program: std::env::current_exe().unwrap_or_else(|_| "/usr/bin/codchi".into()),
            switches: [APPARMOR, CLONE, MOST].into_iter().filter_map(switch).collect(),
        }
    }

    /// The words for a person: an option where there are options, else a command.
    pub fn mend(&self, option: &str, command: &str) -> String {
        if self.nixos { format!("`{option}` in configuration.nix") } else { format!("`{command}`") }
    }

    fn is_set(&self, switch: &str, to: &str) -> bool {
        self.switches.get(switch).is_some_and(|value| value == to)
    }

    fn set(&self, switch: &str, to: &str) -> String {
        self.mend(
            &format!("boot.kernel.sysctl.\"{switch}\" = {to};"),
            &format!("sudo sysctl -w {switch}={to}"),
        )
    }

    /// What lets this program make user namespaces on a host that gives them only to programs that AppArmor knows, as Ubuntu
    /// does since 23.10; `None` on others.
    pub fn apparmor_hints(&self) -> Option<Vec<String>> {
        if !self.is_set(APPARMOR, "1") {
            return None;
        }
        let mut hints = Vec::new();
        if !self.nixos {
            let exe = self.program.display();
            hints.push(
                "this system lets only programs that AppArmor knows make user namespaces; to let Codchi:"
                    .into(),
            );
            hints.push(format!(
                "`printf 'abi <abi/4.0>,\\nprofile codchi \"{exe}\" flags=(unconfined) {{ userns, }}\\n' | sudo tee \
                 /etc/apparmor.d/codchi && sudo apparmor_parser -r /etc/apparmor.d/codchi`"
            ));
            hints.push(format!("or for all programs: {}", self.set(APPARMOR, "0")));
        } else {
            hints.push(self.set(APPARMOR, "0"));
        }
        Some(hints)
    }

    /// What lets the caller make user namespaces where that was refused.
    pub fn namespace_hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        if self.is_set(CLONE, "0") {
            hints.push(self.set(CLONE, "1"));
        }
        if self.is_set(MOST, "0") {
            hints.push(self.set(MOST, "65536"));
        }
        hints.extend(self.apparmor_hints().into_iter().flatten());
        if hints.is_empty() {
            hints.push("inside a container, the outer engine has to allow user namespaces".into());
        }
        hints
    }

    /// What makes machines of the caller outlive the log-in; `None` where that is no question.
    pub fn linger(&self) -> Option<Result<(), String>> {
        if self.root || !self.systemd {
            return None;
        }
        if self.lingers {
            return Some(Ok(()));
        }
        let option = format!("users.users.{}.linger = true;", self.user);
        Some(Err(self.mend(&option, &format!("sudo loginctl enable-linger {}", self.user))))
    }

    /// What lends the caller subordinate ids, of which the first free one is `free`.
    pub fn lend(&self, free: u32) -> String {
        let (user, last) = (&self.user, free + 65535);
        self.mend(
            &format!("users.users.{user}.autoSubUidGidRange = true;"),
            &format!("sudo usermod --add-subuids {free}-{last} --add-subgids {free}-{last} {user}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(switches: &[(&'static str, &str)]) -> Host {
        Host {
            systemd: true,
            user: "ann".into(),
            program: "/home/ann/.cargo/bin/codchi".into(),
            switches: switches.iter().map(|(n, v)| (*n, v.to_string())).collect(),
            ..Host::default()
        }
    }

    #[test]
    fn where_apparmor_keeps_namespaces_a_profile_for_this_program_comes_first() {
        let ubuntu = host(&[(APPARMOR, "1"), (CLONE, "1"), (MOST, "95000")]);
        let hints = ubuntu.namespace_hints();
        assert!(hints[1].contains("profile codchi \"/home/ann/.cargo/bin/codchi\""), "{hints:?}");
        assert!(hints[1].contains("apparmor_parser -r"), "{hints:?}");
        assert_eq!(
            hints[2],
            "or for all programs: `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
        );
        assert_eq!(hints.len(), 3);
        assert_eq!(host(&[(APPARMOR, "0")]).apparmor_hints(), None);
        assert_eq!(host(&[]).apparmor_hints(), None);
    }

    #[test]
    fn switches_that_are_off_are_named_and_a_container_is_guessed_last() {
        assert_eq!(
            host(&[(CLONE, "0"), (MOST, "0")]).namespace_hints(),
            [
                "`sudo sysctl -w kernel.unprivileged_userns_clone=1`",
                "`sudo sysctl -w user.max_user_namespaces=65536`"
            ]
        );
        assert_eq!(
            host(&[(CLONE, "1"), (MOST, "9")]).namespace_hints(),
            ["inside a container, the outer engine has to allow user namespaces"]
        );
    }

    #[test]
    fn on_nixos_an_option_mends_and_no_command() {
        let nixos = Host { nixos: true, ..host(&[(MOST, "0"), (APPARMOR, "1")]) };
        assert_eq!(
            nixos.namespace_hints(),
            [
                "`boot.kernel.sysctl.\"user.max_user_namespaces\" = 65536;` in configuration.nix",
                "`boot.kernel.sysctl.\"kernel.apparmor_restrict_unprivileged_userns\" = 0;` in configuration.nix"
            ]
        );
        assert_eq!(nixos.linger(), Some(Err("`users.users.ann.linger = true;` in configuration.nix".into())));
        assert_eq!(nixos.lend(100_000), "`users.users.ann.autoSubUidGidRange = true;` in configuration.nix");
        assert_eq!(
            host(&[]).lend(100_000),
            "`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann`"
        );
    }

    #[test]
    fn whether_machines_outlive_the_login_is_a_question_of_ordinary_users_of_systemd() {
        assert_eq!(host(&[]).linger(), Some(Err("`sudo loginctl enable-linger ann`".into())));
        assert_eq!(Host { lingers: true, ..host(&[]) }.linger(), Some(Ok(())));
        assert_eq!(Host { root: true, ..host(&[]) }.linger(), None);
        assert_eq!(Host { systemd: false, ..host(&[]) }.linger(), None);
    }
}
