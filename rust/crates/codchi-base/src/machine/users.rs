//! Users and groups: what the modules declare, merged with what the machine has.
//!
//! The files that remember ids and what was declared before are those of NixOS (`/var/lib/nixos`), so a machine keeps its
//! accounts when it moves to the other base.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use codchi_fs::Context as _;
use serde::Deserialize;

use super::say;
use crate::{Error, Result};

/// What the modules declare.
#[derive(Debug, Default, Deserialize)]
pub struct Spec {
    /// Whether accounts made in the machine, and changed passwords, stay.
    pub mutable: bool,
    /// Accounts.
    pub users: Vec<User>,
    /// Groups.
    pub groups: Vec<Group>,
}

/// A declared account.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Numeric id, if fixed.
    pub uid: Option<u32>,
    /// Primary group.
    pub group: String,
    /// The person's name.
    pub description: String,
    /// Home directory.
    pub home: String,
    /// Its octal mode.
    pub home_mode: String,
    /// Whether it is made.
    pub create_home: bool,
    /// Login shell.
    pub shell: String,
    /// A person's account.
    pub normal: bool,
    /// Whether user services run without a login.
    pub linger: Option<bool>,
    /// Password, or none.
    pub password: Option<Password>,
    /// Date the account ends on.
    pub expires: Option<String>,
    /// Subordinate user ids: first, count.
    pub sub_uid: Vec<(u32, u32)>,
    /// Subordinate group ids.
    pub sub_gid: Vec<(u32, u32)>,
    /// Whether a range of subordinate ids is chosen.
    pub auto_sub_uid_gid_range: bool,
}

/// Where a password comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Password {
    /// Hashed.
    Hashed(String),
    /// In clear text.
    Plain(String),
    /// Hashed, in a file.
    File(String),
}

/// A declared group.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Numeric id, if fixed.
    pub gid: Option<u32>,
    /// Members besides those whose primary group it is.
    pub members: Vec<String>,
}

/// A line of passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswdLine {
    name: String,
    uid: u32,
    gid: u32,
    gecos: String,
    home: String,
    shell: String,
}

/// A line of group(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLine {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The account files of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// passwd(5).
    pub passwd: Vec<PasswdLine>,
    /// group(5).
    pub group: Vec<GroupLine>,
    /// shadow(5): the fields after the name.
    pub shadow: BTreeMap<String, Vec<String>>,
}

/// What is remembered between activations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Ids once given to a user.
    pub uids: BTreeMap<String, u32>,
    /// Ids once given to a group.
    pub gids: BTreeMap<String, u32>,
    /// Users that were declared the last time.
    pub users: BTreeSet<String>,
    /// Groups that were declared the last time.
    pub groups: BTreeSet<String>,
    /// Start of the chosen range of subordinate ids.
    pub subordinate: BTreeMap<String, u32>,
}

const NOBODY: u32 = 65534;

impl Accounts {
    /// Reads the machine's files; a missing one is empty.
    pub fn read() -> Result<Accounts> {
        let text = |p: &str| codchi_fs::read_if_exists(p).map(Option::unwrap_or_default);
        Ok(Accounts::parse(&text("/etc/passwd")?, &text("/etc/group")?, &text("/etc/shadow")?))
    }

    /// Parses the files; lines that are none are dropped.
    pub fn parse(passwd: &str, group: &str, shadow: &str) -> Accounts {
        let fields = |l: &str| l.split(':').map(str::to_owned).collect::<Vec<_>>();
        Accounts {
            passwd: passwd
                .lines()
                .filter_map(|l| match <[String; 7]>::try_from(fields(l)).ok()? {
                    [name, _, uid, gid, gecos, home, shell] => Some(PasswdLine {
                        name,
                        uid: uid.parse().ok()?,
                        gid: gid.parse().ok()?,
                        gecos,
                        home,
                        shell,
                    }),
                })
                .collect(),
            group: group
                .lines()
                .filter_map(|l| match <[String; 4]>::try_from(fields(l)).ok()? {
                    [name, _, gid, members] => Some(GroupLine {
                        name,
                        gid: gid.parse().ok()?,
                        members: members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect(),
                    }),
                })
                .collect(),
            shadow: shadow
                .lines()
                .filter_map(|l| {
                    let (name, rest) = l.split_once(':')?;
                    Some((name.to_owned(), fields(rest)))
                })
                .collect(),
        }
    }

    /// passwd(5), group(5), shadow(5).
    pub fn render(&self) -> (String, String, String) {
        let (mut passwd, mut group, mut shadow) = (String::new(), String::new(), String::new());
        for u in &self.passwd {
            let _ = writeln!(passwd, "{}:x:{}:{}:{}:{}:{}", u.name, u.uid, u.gid, u.gecos, u.home, u.shell);
        }
        for g in &self.group {
            let _ = writeln!(group, "{}:x:{}:{}", g.name, g.gid, g.members.join(","));
        }
        for (name, fields) in &self.shadow {
            let _ = writeln!(shadow, "{name}:{}", fields.join(":"));
        }
        (passwd, group, shadow)
    }

    /// The primary group of a user.
    pub fn primary_group(&self, uid: u32) -> Option<u32> {
        self.passwd.iter().find(|u| u.uid == uid).map(|u| u.gid)
    }

    /// The id of a user given as name or `+number`; root where unknown.
    pub fn uid(&self, who: &str) -> Option<u32> {
        let number = who.strip_prefix('+').and_then(|n| n.parse().ok());
        number.or_else(|| self.passwd.iter().find(|u| u.name == who).map(|u| u.uid)).or(Some(0))
    }

    /// The id of a group given as name or `+number`; root where unknown.
    pub fn gid(&self, who: &str) -> Option<u32> {
        let number = who.strip_prefix('+').and_then(|n| n.parse().ok());
        number.or_else(|| self.group.iter().find(|g| g.name == who).map(|g| g.gid)).or(Some(0))
    }
}

/// How passwords become hashes, and what the day is.
pub trait World {
    /// Hashes a password for shadow(5).
    fn hash(&self, plain: &str) -> Result<String>;
    /// Whether a hash is that of a password.
    fn matches(&self, plain: &str, hash: &str) -> bool;
    /// Content of a password file.
    fn read(&self, file: &str) -> Option<String>;
}

/// Merges the declaration with what is there. Warnings are for the person.
pub fn merge(
    spec: &Spec,
    old: &Accounts,
    memory: &Memory,
    world: &dyn World,
) -> Result<(Accounts, Memory, Vec<String>)> {
    let mut warnings = Vec::new();
    let mut next = Memory {
        users: spec.users.iter().map(|u| u.name.clone()).collect(),
        groups: spec.groups.iter().map(|g| g.name.clone()).collect(),
        ..memory.clone()
    };
    let mut new = Accounts::default();

    let kept_group =
        |g: &GroupLine| spec.mutable && !next.groups.contains(&g.name) && !memory.groups.contains(&g.name);
    let mut used: BTreeSet<u32> =
        spec.groups.iter().filter_map(|g| g.gid).chain(memory.gids.values().copied()).collect();
    used.extend(old.group.iter().map(|g| g.gid));
    for g in &spec.groups {
        let there = old.group.iter().find(|o| o.name == g.name);
        let gid = match (there, g.gid) {
            (Some(o), Some(wanted)) if o.gid != wanted => {
                warnings.push(format!(
                    "the id of group `{}` stays {}, not {wanted}: its files would lose it",
                    g.name, o.gid
                ));
                o.gid
            }
            (Some(o), _) => o.gid,
            (None, Some(wanted)) => wanted,
            (None, None) => match memory.gids.get(&g.name) {
                Some(id) => *id,
                None => free(&mut used, (400..=999).rev())?,
            },
        };
        next.gids.insert(g.name.clone(), gid);
        let mut members: BTreeSet<String> = g.members.iter().cloned().collect();
        if let Some(o) = there.filter(|_| spec.mutable) {
            members.extend(o.members.iter().filter(|m| !next.users.contains(*m)).cloned());
        }
        new.group.push(GroupLine { name: g.name.clone(), gid, members: members.into_iter().collect() });
    }
    new.group.extend(old.group.iter().filter(|g| kept_group(g)).cloned());

    let kept_user =
        |u: &PasswdLine| spec.mutable && !next.users.contains(&u.name) && !memory.users.contains(&u.name);
    let mut used: BTreeSet<u32> =
        spec.users.iter().filter_map(|u| u.uid).chain(memory.uids.values().copied()).collect();
    used.extend(old.passwd.iter().map(|u| u.uid));
    for u in &spec.users {
        let there = old.passwd.iter().find(|o| o.name == u.name);
        let uid = match (there, u.uid) {
            (Some(o), Some(wanted)) if o.uid != wanted => {
                warnings.push(format!(
                    "the id of user `{}` stays {}, not {wanted}: their files would lose it",
                    u.name, o.uid
                ));
                o.uid
            }
            (Some(o), _) => o.uid,
            (None, Some(wanted)) => wanted,
            (None, None) => match memory.uids.get(&u.name) {
                Some(id) => *id,
                None if u.normal => free(&mut used, 1000..=29999)?,
                None => free(&mut used, (400..=999).rev())?,
            },
        };
        next.uids.insert(u.name.clone(), uid);
        let gid = match new.group.iter().find(|g| g.name == u.group) {
            Some(g) => g.gid,
            None => {
                warnings.push(format!("user `{}` has the unknown group `{}`", u.name, u.group));
                NOBODY
            }
        };
        new.passwd.push(PasswdLine {
            name: u.name.clone(),
            uid,
            gid,
            gecos: u.description.replace([':', '\n'], " "),
            home: u.home.clone(),
            shell: u.shell.clone(),
        });
        let fields = shadow_line(u, old.shadow.get(&u.name), spec.mutable, world, &mut warnings)?;
        new.shadow.insert(u.name.clone(), fields);
        if u.auto_sub_uid_gid_range && !next.subordinate.contains_key(&u.name) {
            let taken: BTreeSet<u32> = next.subordinate.values().copied().collect();
            let mut starts = (0..).map(|i| 100_000 + i * 65536u32).filter(|s| !taken.contains(s));
            if let Some(start) = starts.next() {
                next.subordinate.insert(u.name.clone(), start);
            }
        }
    }
    for u in old.passwd.iter().filter(|u| kept_user(u)) {
        new.passwd.push(u.clone());
        if let Some(s) = old.shadow.get(&u.name) {
            new.shadow.insert(u.name.clone(), s.clone());
        }
    }
    Ok((new, next, warnings))
}

fn free(used: &mut BTreeSet<u32>, ids: impl IntoIterator<Item = u32>) -> Result<u32> {
    let id = ids
        .into_iter()
        .find(|id| !used.contains(id))
        .ok_or_else(|| Error::Machine("no id is left for an account".into()))?;
    used.insert(id);
    Ok(id)
}

fn shadow_line(
    user: &User,
    old: Option<&Vec<String>>,
    mutable: bool,
    world: &dyn World,
    warnings: &mut Vec<String>,
) -> Result<Vec<String>> {
    let mut fields = match old {
        Some(f) if f.len() == 8 => f.clone(),
        _ => ["!", "1", "", "", "", "", "", ""].map(str::to_owned).to_vec(),
    };
    // A password that exists is the person's, unless nothing in the machine may change.
    if old.is_none() || !mutable {
        fields[0] = match &user.password {
            None => "!".to_owned(),
            Some(Password::Hashed(hash)) => hash.clone(),
            Some(Password::Plain(plain)) if world.matches(plain, &fields[0]) => fields[0].clone(),
            Some(Password::Plain(plain)) => world.hash(plain)?,
            Some(Password::File(file)) => match world.read(file) {
                Some(text) => text.lines().next().unwrap_or("!").trim().to_owned(),
                None => {
                    warnings
                        .push(format!("the password file `{file}` of user `{}` cannot be read", user.name));
                    "!".to_owned()
                }
            },
        };
        if fields[0].contains([':', '\n']) {
            warnings.push(format!("the password of user `{}` is not a hash", user.name));
            fields[0] = "!".to_owned();
        }
    }
    fields[6] = match &user.expires {
        Some(date) => days(date).map(|d| d.to_string()).unwrap_or_default(),
        None => String::new(),
    };
    Ok(fields)
}

/// Days from 1970 to a date (YYYY-MM-DD).
fn days(date: &str) -> Option<i64> {
    let mut parts = date.splitn(3, '-').map(|p| p.parse::<i64>().ok());
    let (y, m, d) = (parts.next()??, parts.next()??, parts.next()??);
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let of_era = y - era * 400;
    let of_year = (153 * (if m > 2 { m - 3 } else { m + 9 }) + 2) / 5 + d - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

struct Here;

impl World for Here {
    fn hash(&self, plain: &str) -> Result<String> {
        let params = sha_crypt::Sha512Params::new(sha_crypt::ROUNDS_DEFAULT)
            .map_err(|e| Error::Machine(format!("cannot hash a password: {e:?}")))?;
        sha_crypt::sha512_simple(plain, &params)
            .map_err(|e| Error::Machine(format!("cannot hash a password: {e:?}")))
    }

    fn matches(&self, plain: &str, hash: &str) -> bool {
        hash.starts_with("$6$") && sha_crypt::sha512_check(plain, hash).is_ok()
    }

    fn read(&self, file: &str) -> Option<String> {
        codchi_fs::read_to_string(file).ok()
    }
}

const STATE: &str = "/var/lib/nixos";

fn remembered() -> Result<Memory> {
    let map = |name: &str| -> Result<BTreeMap<String, u32>> {
        let path = Path::new(STATE).join(name);
        match codchi_fs::read_if_exists(&path)? {
            Some(text) => serde_json::from_str(&text).map_err(|source| Error::Parse { path, source }),
            None => Ok(BTreeMap::new()),
        }
    };
    let set = |name: &str| -> Result<BTreeSet<String>> {
        let text = codchi_fs::read_if_exists(Path::new(STATE).join(name))?.unwrap_or_default();
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    Ok(Memory {
        uids: map("uid-map")?,
        gids: map("gid-map")?,
        users: set("declarative-users")?,
        groups: set("declarative-groups")?,
        subordinate: map("auto-subuid-map")?,
    })
}

fn write_if_changed(path: &Path, text: &str, mode: u32) -> Result<bool> {
    if codchi_fs::read_if_exists(path)?.as_deref() == Some(text) {
        return Ok(false);
    }
    codchi_fs::write_atomic(path, text, mode)?;
    Ok(true)
}

fn remember(memory: &Memory) -> Result<()> {
    let state = Path::new(STATE);
    codchi_fs::create_dir_all(state)?;
    for (name, map) in
        [("uid-map", &memory.uids), ("gid-map", &memory.gids), ("auto-subuid-map", &memory.subordinate)]
    {
        let text = serde_json::to_string(map).map_err(|source| Error::Parse { path: name.into(), source })?;
        write_if_changed(&state.join(name), &text, 0o644)?;
    }
    for (name, set) in [("declarative-users", &memory.users), ("declarative-groups", &memory.groups)] {
        let text = set.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        write_if_changed(&state.join(name), &text, 0o644)?;
    }
    Ok(())
}

/// Brings the machine's accounts to what is declared.
pub fn apply(spec: &Spec) -> Result<()> {
    let old = Accounts::read()?;
    let memory = remembered()?;
    let (new, next, warnings) = merge(spec, &old, &memory, &Here)?;
    for w in warnings {
        say(format!("warning: {w}"));
    }
    remember(&next)?;
    let (passwd, group, shadow) = new.render();
    write_if_changed(Path::new("/etc/group"), &group, 0o644)?;
    write_if_changed(Path::new("/etc/passwd"), &passwd, 0o644)?;
    if write_if_changed(Path::new("/etc/shadow"), &shadow, 0o640)? {
        chown("/etc/shadow", Some(0), new.gid("shadow")).at("change owner of", "/etc/shadow")?;
        std::fs::set_permissions("/etc/shadow", PermissionsExt::from_mode(0o640))
            .at("change mode of", "/etc/shadow")?;
    }
    subordinate(spec, &next)?;
    for u in &spec.users {
        if u.create_home {
            home(u, &new)?;
        }
        linger(u)?;
    }
    Ok(())
}

fn subordinate(spec: &Spec, memory: &Memory) -> Result<()> {
    for (file, ranges) in [
        ("/etc/subuid", (|u: &User| u.sub_uid.clone()) as fn(&User) -> Vec<(u32, u32)>),
        ("/etc/subgid", |u: &User| u.sub_gid.clone()),
    ] {
        let mut text = String::new();
        for u in &spec.users {
            let chosen =
                memory.subordinate.get(&u.name).filter(|_| u.auto_sub_uid_gid_range).map(|s| (*s, 65536));
            for (start, count) in ranges(u).into_iter().chain(chosen) {
                let _ = writeln!(text, "{}:{start}:{count}", u.name);
            }
        }
        write_if_changed(Path::new(file), &text, 0o644)?;
    }
    Ok(())
}

fn home(user: &User, accounts: &Accounts) -> Result<()> {
    let path = Path::new(&user.home);
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    codchi_fs::create_dir_all(path)?;
    let line = accounts.passwd.iter().find(|u| u.name == user.name);
    chown(path, line.map(|l| l.uid), line.map(|l| l.gid)).at("change owner of", path)?;
    let mode = u32::from_str_radix(&user.home_mode, 8).unwrap_or(0o700);
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).at("change mode of", path)?;
    Ok(())
}

fn linger(user: &User) -> Result<()> {
    let mark = Path::new("/var/lib/systemd/linger").join(&user.name);
    match user.linger {
        Some(true) if !mark.exists() => {
            if let Some(dir) = mark.parent() {
                codchi_fs::create_dir_all(dir)?;
            }
            Ok(codchi_fs::write(&mark, "")?)
        }
        Some(false) => Ok(codchi_fs::remove_if_exists(&mark)?),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;
    impl World for Fake {
        fn hash(&self, plain: &str) -> Result<String> {
            Ok(format!("hash({plain})"))
        }
        fn matches(&self, plain: &str, hash: &str) -> bool {
            hash == format!("hash({plain})")
        }
        fn read(&self, file: &str) -> Option<String> {
            (file == "/there").then(|| "$6$file\n".to_owned())
        }
    }

    fn user(name: &str, normal: bool) -> User {
        User {
            name: name.into(),
            group: "users".into(),
            home: format!("/home/{name}"),
            shell: "/bin/sh".into(),
            normal,
            ..User::default()
        }
    }

    fn spec(mutable: bool, users: Vec<User>) -> Spec {
        Spec { mutable, users, groups: vec![Group { name: "users".into(), gid: Some(100), members: vec![] }] }
    }

    fn run(spec: &Spec, old: &Accounts, memory: &Memory) -> (Accounts, Memory, Vec<String>) {
        merge(spec, old, memory, &Fake).unwrap()
    }

    #[test]
    fn ids_are_chosen_once_and_kept_even_when_an_account_was_gone() {
        let (a, m, _) = run(
            &spec(true, vec![user("ann", true), user("svc", false)]),
            &Accounts::default(),
            &Memory::default(),
        );
        assert_eq!((a.passwd[0].uid, a.passwd[1].uid), (1000, 999));
        let (b, m, _) = run(&spec(true, vec![user("bob", true)]), &a, &m);
        assert_eq!(b.passwd.iter().map(|u| (u.name.as_str(), u.uid)).collect::<Vec<_>>(), [("bob", 1001)]);
        let (c, _, _) = run(&spec(true, vec![user("ann", true), user("bob", true)]), &b, &m);
        assert_eq!(c.passwd.iter().map(|u| u.uid).collect::<Vec<_>>(), [1000, 1001]);
    }

    #[test]
    fn a_machines_own_accounts_stay_only_when_they_may() {
        let old = Accounts::parse(
            "own:x:1234:100::/home/own:/bin/sh\n",
            "g:x:77:own\nusers:x:100:own,ann\n",
            "own:$y$x:1::::::\n",
        );
        let (a, _, _) = run(&spec(true, vec![user("ann", true)]), &old, &Memory::default());
        assert!(a.passwd.iter().any(|u| u.name == "own" && u.uid == 1234));
        assert_eq!(a.shadow["own"][0], "$y$x");
        assert_eq!(
            a.group.iter().find(|g| g.name == "users").unwrap().members,
            ["own"],
            "declared users are members by declaration"
        );
        let (b, _, _) = run(&spec(false, vec![user("ann", true)]), &old, &Memory::default());
        assert_eq!(b.passwd.len(), 1);
        assert_eq!(b.group.len(), 1);
    }

    #[test]
    fn a_password_that_exists_is_not_changed_unless_accounts_are_immutable() {
        let mut ann = user("ann", true);
        ann.password = Some(Password::Plain("secret".into()));
        let (a, m, _) = run(&spec(true, vec![ann.clone()]), &Accounts::default(), &Memory::default());
        assert_eq!(a.shadow["ann"][0], "hash(secret)");
        ann.password = Some(Password::Hashed("$6$new".into()));
        assert_eq!(run(&spec(true, vec![ann.clone()]), &a, &m).0.shadow["ann"][0], "hash(secret)");
        assert_eq!(run(&spec(false, vec![ann]), &a, &m).0.shadow["ann"][0], "$6$new");
    }

    #[test]
    fn an_id_that_the_modules_change_is_not_changed_in_the_machine() {
        let mut ann = user("ann", true);
        ann.uid = Some(1500);
        let old = Accounts::parse("ann:x:1000:100::/home/ann:/bin/sh\n", "users:x:100:\n", "");
        let (a, _, warnings) = run(&spec(true, vec![ann]), &old, &Memory::default());
        assert_eq!(a.passwd[0].uid, 1000);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn a_password_file_that_is_missing_locks_the_account_and_says_so() {
        let mut ann = user("ann", true);
        ann.password = Some(Password::File("/missing".into()));
        let (a, _, warnings) = run(&spec(true, vec![ann.clone()]), &Accounts::default(), &Memory::default());
        assert_eq!((a.shadow["ann"][0].as_str(), warnings.len()), ("!", 1));
        ann.password = Some(Password::File("/there".into()));
        assert_eq!(
            run(&spec(true, vec![ann]), &Accounts::default(), &Memory::default()).0.shadow["ann"][0],
            "$6$file"
        );
    }

    #[test]
    fn what_is_rendered_parses_to_the_same() {
        let old = Accounts::parse("a:x:1:2:g:/h:/s\n", "b:x:2:a,c\n", "a:!:1::::::\n");
        let (p, g, s) = old.render();
        assert_eq!(Accounts::parse(&p, &g, &s), old);
    }

    #[test]
    fn subordinate_ranges_do_not_overlap_and_stay() {
        let with = |n: &str| User { auto_sub_uid_gid_range: true, ..user(n, true) };
        let (a, m, _) =
            run(&spec(true, vec![with("ann"), with("bob")]), &Accounts::default(), &Memory::default());
        assert_eq!((m.subordinate["ann"], m.subordinate["bob"]), (100_000, 165_536));
        let (_, m, _) = run(&spec(true, vec![with("bob"), with("cid")]), &a, &m);
        assert_eq!((m.subordinate["bob"], m.subordinate["cid"]), (165_536, 231_072));
    }

    #[test]
    fn a_date_is_counted_from_1970() {
        assert_eq!(days("1970-01-01"), Some(0));
        assert_eq!(days("2026-11-20"), Some(20777));
        assert_eq!(days("never"), None);
    }
}
