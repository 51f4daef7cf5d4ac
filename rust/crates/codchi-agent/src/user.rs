//! Accounts of the machine, read without NSS: a static program cannot load its modules.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{Gid, Uid};

use crate::error::Error;

/// Where `getent` may be.
const SEARCH: &str = "/run/current-system/sw/bin:/usr/bin:/bin";

/// An account and its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
    /// All groups, the primary one among them.
    pub groups: Vec<Gid>,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

impl User {
    /// Looks an account up by name or number in the files, then by `getent`.
    pub fn find(wanted: &str) -> Result<User, Error> {
        let passwd = codchi_fs::read("/etc/passwd").unwrap_or_default();
        if let Some(mut user) = parse(&String::from_utf8_lossy(&passwd), wanted) {
            let group = codchi_fs::read("/etc/group").unwrap_or_default();
            user.groups = groups(&String::from_utf8_lossy(&group), &user);
            return Ok(user);
        }
        let missing = || Error::NoUser(wanted.into());
        // The name becomes an argument: nothing that could be read as an option, and nothing that is no name.
        if wanted.is_empty() || wanted.starts_with('-') || wanted.contains(['\0', ':', '\n', '/']) {
            return Err(missing());
        }
        let line = getent(&["passwd", wanted]).ok_or_else(missing)?;
        let mut user = parse_any(&line).ok_or_else(missing)?;
        user.groups = vec![user.gid];
        let more = getent(&["initgroups", &user.name]).unwrap_or_default();
        let more = more.split_whitespace().skip(1).filter_map(|g| g.parse().ok()).map(Gid::from_raw);
        user.groups.extend(more.filter(|g| *g != user.gid));
        Ok(user)
    }

    /// The account that runs commands when nobody is named: as configured, else user 1000, else root.
    pub fn default(configured: Option<&str>) -> Result<User, Error> {
        match configured {
            Some(name) => User::find(name),
            None => User::find("1000").or_else(|_| User::find("root")),
        }
    }
}

fn getent(args: &[&str]) -> Option<String> {
    let mut command = Command::new("getent");
    command.args(args).env_clear().env("PATH", SEARCH).stdin(Stdio::null()).stderr(Stdio::null());
    let out = command.output().ok().filter(|o| o.status.success())?;
    String::from_utf8(out.stdout).ok()
}

fn parse_line(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    if name.is_empty() || uid == u32::MAX || gid == u32::MAX {
        return None;
    }
    Some(User {
        name: name.into(),
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups: Vec::new(),
        home: if home.is_empty() { "/".into() } else { home.into() },
        shell: if shell.is_empty() { "/bin/sh".into() } else { shell.into() },
    })
}

fn parse_any(passwd: &str) -> Option<User> {
    passwd.lines().find_map(parse_line)
}

/// By name first: a name made of digits is still a name.
fn parse(passwd: &str, wanted: &str) -> Option<User> {
    let number = wanted.parse().ok().map(Uid::from_raw);
    let mut users = passwd.lines().filter_map(parse_line);
    let mut by_number = None;
    users
        .find(|u| {
            if by_number.is_none() && Some(u.uid) == number {
                by_number = Some(u.clone());
            }
            u.name == wanted
        })
        .or(by_number)
}

fn groups(group: &str, user: &User) -> Vec<Gid> {
    let mut all = vec![user.gid];
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields[..] else { continue };
        let Ok(gid) = gid.parse().map(Gid::from_raw) else { continue };
        if members.split(',').any(|m| m == user.name) && !all.contains(&gid) {
            all.push(gid);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken line\n0:x:7:7::/zero:/bin/sh\nalice:x:1000:100:A:/home/alice:/bin/zsh\nbare:x:1001:1001::::\nshort:x:5:5:::\n";

    #[test]
    fn an_account_is_found_by_name_and_by_number_and_names_win() {
        assert_eq!(parse(PASSWD, "alice").map(|u| u.uid.as_raw()), Some(1000));
        assert_eq!(parse(PASSWD, "1000").map(|u| u.name), Some("alice".into()));
        assert_eq!(parse(PASSWD, "0").map(|u| u.uid.as_raw()), Some(7));
        assert_eq!(parse(PASSWD, "nobody"), None);
    }

    #[test]
    fn empty_fields_have_their_meaning_and_malformed_lines_are_passed_over() {
        let short = parse(PASSWD, "short").unwrap();
        assert_eq!((short.home, short.shell), ("/".into(), "/bin/sh".into()));
        assert_eq!(parse(PASSWD, "broken line"), None);
        assert_eq!(parse(PASSWD, "bare"), None);
    }

    #[test]
    fn the_groups_are_the_primary_one_and_those_that_list_the_user() {
        let alice = parse(PASSWD, "alice").unwrap();
        let group = "root:x:0:\nusers:x:100:alice\nwheel:x:1:bob,alice\nother:x:2:alicex\nbad\n";
        assert_eq!(groups(group, &alice).iter().map(|g| g.as_raw()).collect::<Vec<_>>(), [100, 1]);
    }
}
