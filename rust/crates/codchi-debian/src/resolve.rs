//! Chooses, once for the whole suite, which packages satisfy each package's dependencies.
//!
//! The choice does not depend on what else a machine has, so that a package has one store path for all machines.
//! Conflicts are looked at when the packages of one machine are put together.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::depends::{Atom, Relation, alternatives, split};
use crate::packages::{Id, Packages, Span};
use crate::suite::parallel;

/// Needed to install or configure a package on Debian, not to run it: maintainer scripts never run here.
/// A dependency on the exact version of one is kept, since it is then part of the same program.
const PACKAGING: &[&str] = &[
    "adduser",
    "apt",
    "debconf",
    "debconf-2.0",
    "dpkg",
    "init-system-helpers",
    "install-info",
    "lsb-base",
    "sysvinit-utils",
    "ucf",
    "update-inetd",
    "usr-is-merged",
    "usrmerge",
];

/// Dependencies of each package of a suite.
pub struct Resolution {
    /// All packages' dependencies one after the other: of each sorted by name, each once.
    depends: Vec<Id>,
    /// Where in that list each package's end.
    ends: Vec<u32>,
    /// Packages that cannot work in this suite, and why.
    broken: BTreeMap<Id, String>,
}

impl Resolution {
    /// What the package needs directly.
    pub fn depends(&self, id: Id) -> &[Id] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.depends[start..self.ends[id] as usize]
    }

    /// Why the package cannot work, if so.
    pub fn broken(&self, id: Id) -> Option<&str> {
        self.broken.get(&id).map(String::as_str)
    }

    /// How many packages cannot work.
    pub fn broken_count(&self) -> usize {
        self.broken.len()
    }

    /// The packages and all they need, by id.
    pub fn closure(&self, roots: impl IntoIterator<Item = Id>) -> Vec<Id> {
        let mut seen = vec![false; self.ends.len()];
        let mut open: Vec<Id> = roots.into_iter().collect();
        let mut all = Vec::new();
        while let Some(id) = open.pop() {
            if !std::mem::replace(&mut seen[id as usize], true) {
                all.push(id);
                open.extend(self.depends(id));
            }
        }
        all.sort_unstable();
        all
    }
}

/// Resolves every package. `roots` are the packages that each machine has: they, and what they need, win wherever
/// they satisfy a dependency. `architecture` is Debian's name, such as `amd64`.
pub fn resolve(packages: &Packages, architecture: &str, roots: &[&str]) -> Resolution {
    let resolver = Resolver { packages, architecture, providers: providers(packages) };
    let mut preferred: HashSet<Id> = roots.iter().filter_map(|n| resolver.named(n)).collect();
    // First what the roots need, by need; then everything, with those preferred.
    let mut open: Vec<Id> = preferred.iter().copied().collect();
    open.sort_unstable();
    let mut done = preferred.clone();
    let mut base = preferred.clone();
    while let Some(id) = open.pop() {
        for dependency in resolver.package(id, &preferred).unwrap_or_else(|(found, _)| found) {
            if done.insert(dependency) {
                base.insert(dependency);
                open.push(dependency);
            }
        }
    }
    preferred = base;
    let half = packages.len() as Id / 2;
    let halves = [0..half, half..packages.len() as Id];
    let found = parallel(&halves, |ids| {
        let mut part = Resolution { depends: Vec::new(), ends: Vec::new(), broken: BTreeMap::new() };
        for id in ids.clone() {
            let found = resolver.package(id, &preferred).unwrap_or_else(|(found, reason)| {
                part.broken.insert(id, reason);
                found
            });
            part.depends.extend(found);
            part.ends.push(part.depends.len() as u32);
        }
        part
    });
    found
        .into_iter()
        .reduce(|mut all, part| {
            let before = all.depends.len() as u32;
            all.ends.extend(part.ends.iter().map(|end| before + end));
            all.depends.extend(part.depends);
            all.broken.extend(part.broken);
            all
        })
        .unwrap_or(Resolution { depends: Vec::new(), ends: Vec::new(), broken: BTreeMap::new() })
}

/// Resolves only some packages and what they need, by id: what [`resolve`] gives them where no package is preferred.
pub fn resolve_some(
    packages: &Packages,
    architecture: &str,
    roots: impl IntoIterator<Item = Id>,
) -> BTreeMap<Id, Vec<Id>> {
    let resolver = Resolver { packages, architecture, providers: providers(packages) };
    let none = HashSet::new();
    let mut open: Vec<Id> = roots.into_iter().collect();
    let mut done = BTreeMap::new();
    while let Some(id) = open.pop() {
        if let Entry::Vacant(new) = done.entry(id) {
            let found = resolver.package(id, &none).unwrap_or_else(|(found, _)| found);
            open.extend(&found);
            new.insert(found);
        }
    }
    done
}

/// A package that provides something.
struct Provider {
    name: Span,
    id: Id,
    /// In which version, if that is said.
    version: Option<Span>,
}

/// Who provides a name; best first.
struct Providers<'a> {
    packages: &'a Packages,
    /// By name, and within one, best first.
    all: Vec<Provider>,
    /// Where in that list the first of each name is.
    first: HashTable<u32>,
    hasher: RandomState,
}

impl<'a> Providers<'a> {
    fn of(&self, name: &str) -> impl Iterator<Item = (Id, Option<&'a str>)> {
        let packages = self.packages;
        let is_of = |at: u32| self.all.get(at as usize).is_some_and(|p| packages.text(p.name) == name);
        let first = self.first.find(self.hasher.hash_one(name), |at| is_of(*at)).copied();
        let from = first.map_or(self.all.len(), |at| at as usize);
        self.all[from..]
            .iter()
            .take_while(move |p| packages.text(p.name) == name)
            .map(move |p| (p.id, p.version.map(|v| packages.text(v))))
    }
}

fn providers(packages: &Packages) -> Providers<'_> {
    let mut all = Vec::new();
    for id in packages.ids() {
        for atom in provisions(packages, id) {
            let version = atom.version.and_then(|(r, v)| (r == Relation::Equal).then_some(v));
            let (name, version) = (packages.span(atom.name), version.map(|v| packages.span(v)));
            all.push(Provider { name, id, version });
        }
    }
    let name = |p: &Provider| packages.text(p.name);
    // In place: what sorts with a copy takes as much again.
    all.sort_unstable_by_key(|p| {
        (name(p), packages.priority(p.id), packages.name(p.id), p.version.map(|v| packages.text(v)))
    });
    let hasher = RandomState::new();
    let mut first = HashTable::new();
    for (i, provider) in all.iter().enumerate() {
        if i == 0 || name(&all[i - 1]) != name(provider) {
            first.insert_unique(hasher.hash_one(name(provider)), i as u32, |at| {
                hasher.hash_one(name(&all[*at as usize]))
            });
        }
    }
    Providers { packages, all, first, hasher }
}

/// What a package provides. A provision that cannot be read provides nothing.
fn provisions(packages: &Packages, id: Id) -> impl Iterator<Item = Atom<'_>> {
    split(packages.provides(id)).filter_map(alternatives).flatten()
}

/// Pairs of a provided name and a package that provides it.
pub fn provided(packages: &Packages) -> impl Iterator<Item = (&str, &str)> {
    packages
        .ids()
        .flat_map(move |id| provisions(packages, id).map(move |atom| (atom.name, packages.name(id))))
}

struct Resolver<'a> {
    packages: &'a Packages,
    architecture: &'a str,
    providers: Providers<'a>,
}

impl<'a> Resolver<'a> {
    /// The package of that name, or the best that provides it.
    fn named(&self, name: &str) -> Option<Id> {
        self.packages.find(name).or_else(|| self.providers.of(name).next().map(|(id, _)| id))
    }

    /// All packages that satisfy an alternative, best first.
    fn candidates(&self, atom: Atom<'a>) -> impl Iterator<Item = Id> {
        let here = atom.arch.is_none_or(|a| a == "any" || a == "native" || a == self.architecture);
        let fits = move |version: &str| atom.version.is_none_or(|(r, v)| r.holds(version, v));
        let real = self.packages.find(atom.name).filter(|id| fits(self.packages.version(*id)));
        let virt = self.providers.of(atom.name).filter_map(move |(id, v)| {
            match (atom.version, v) {
                (None, _) => Some(id),
                // Only a versioned provision satisfies a versioned dependency (policy manual 7.5).
                (Some(_), Some(v)) => fits(v).then_some(id),
                (Some(_), None) => None,
            }
        });
        real.into_iter().chain(virt).filter(move |_| here)
    }

    /// The dependencies of a package; `Err` with those found and why it cannot work.
    fn package(&self, id: Id, preferred: &HashSet<Id>) -> Result<Vec<Id>, (Vec<Id>, String)> {
        let mut found: Vec<Id> = Vec::new();
        let mut problem = None;
        for clause in self.packages.depends(id) {
            let Some(alternatives) = alternatives(clause) else {
                problem.get_or_insert_with(|| format!("its dependency `{clause}` cannot be read"));
                continue;
            };
            if alternatives.iter().any(packaging) {
                continue;
            }
            let mut first = None;
            let mut chosen = None;
            'clause: for atom in &alternatives {
                for candidate in self.candidates(*atom) {
                    if candidate == id || preferred.contains(&candidate) {
                        chosen = Some(candidate);
                        break 'clause;
                    }
                    first.get_or_insert(candidate);
                }
            }
            match chosen.or(first) {
                Some(c) if c == id => {}
                Some(c) => found.push(c),
                None => {
                    problem.get_or_insert_with(|| self.reason(&alternatives));
                }
            }
        }
        found.sort_unstable_by_key(|d| self.packages.name(*d));
        found.dedup();
        match problem {
            None => Ok(found),
            Some(problem) => Err((found, problem)),
        }
    }

    fn reason(&self, alternatives: &[Atom<'_>]) -> String {
        let show = |a: &Atom<'_>| match a.version {
            None => a.name.to_owned(),
            Some((r, v)) => format!("{} ({} {v})", a.name, sign(r)),
        };
        let wanted = alternatives.iter().map(show).collect::<Vec<_>>().join(" | ");
        match alternatives.first().and_then(|a| self.packages.find(a.name)) {
            Some(id) => {
                format!("it needs `{wanted}`, but the suite has version {}", self.packages.version(id))
            }
            None => format!("it needs `{wanted}`, which the suite does not have"),
        }
    }
}

fn packaging(atom: &Atom<'_>) -> bool {
    PACKAGING.contains(&atom.name) && !matches!(atom.version, Some((Relation::Equal, _)))
}

fn sign(relation: Relation) -> &'static str {
    match relation {
        Relation::Less => "<<",
        Relation::LessEqual => "<=",
        Relation::Equal => "=",
        Relation::GreaterEqual => ">=",
        Relation::Greater => ">>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::tests::sample;

    fn depends(lines: &[&str], roots: &[&str], of: &str) -> Vec<String> {
        let packages = sample(lines);
        let resolution = resolve(&packages, "amd64", roots);
        let id = packages.find(of).unwrap();
        if let Some(reason) = resolution.broken(id) {
            return vec![format!("broken: {reason}")];
        }
        resolution.depends(id).iter().map(|d| packages.name(*d).to_owned()).collect()
    }

    #[test]
    fn the_rules_of_choice() {
        let suite = &[
            "app 1 / Depends: first | second",
            "late 1 / Depends: missing | second",
            "virt 1 / Depends: mail",
            "versioned 1 / Depends: mail (>= 2)",
            "wrapped 1 / Depends: debconf (>= 0.5) | debconf-2.0, first, init-system-helpers (>= 1.54~), dpkg (>= 1)",
            "tool 1 / Depends: apt (= 2)",
            "apt 2",
            "self 1 / Depends: service / Provides: service",
            "service 1",
            "qualified 1 / Depends: first:any, second:amd64",
            "foreign 1 / Depends: first:i386",
            "old 1 / Depends: first (>= 9)",
            "twice 1 / Pre-Depends: first / Depends: first (>= 1)",
            "gone 1 / Depends: missing (<< 3) | also-missing",
            "unreadable 1 / Depends: first second",
            "first 1",
            "second 1",
            "b-mta 1 / Provides: mail / Priority: optional",
            "a-mta 1 / Provides: mail (= 1) / Priority: optional",
            "z-mta 1 / Provides: mail (= 2) / Priority: important",
        ];
        for (of, roots, want) in [
            ("app", &[][..], &["first"][..]),
            ("app", &["second"], &["second"]),
            ("late", &[], &["second"]),
            ("virt", &[], &["z-mta"]),
            ("virt", &["b-mta"], &["b-mta"]),
            ("versioned", &[], &["z-mta"]),
            ("versioned", &["b-mta"], &["z-mta"]),
            ("wrapped", &[], &["first"]),
            ("tool", &[], &["apt"]),
            ("self", &[], &[]),
            ("qualified", &[], &["first", "second"]),
            ("foreign", &[], &["broken: it needs `first`, but the suite has version 1"]),
            ("old", &[], &["broken: it needs `first (>= 9)`, but the suite has version 1"]),
            ("twice", &[], &["first"]),
            (
                "gone",
                &[],
                &["broken: it needs `missing (<< 3) | also-missing`, which the suite does not have"],
            ),
            ("unreadable", &[], &["broken: its dependency `first second` cannot be read"]),
        ] {
            assert_eq!(depends(suite, roots, of), want, "{of} with {roots:?}");
        }
    }

    #[test]
    fn what_the_roots_need_wins_too() {
        let suite = &[
            "init 1 / Depends: mawk",
            "script 1 / Depends: gawk | awk",
            "gawk 1 / Provides: awk",
            "mawk 1 / Provides: awk",
        ];
        assert_eq!(depends(suite, &[], "script"), ["gawk"]);
        assert_eq!(depends(suite, &["init"], "script"), ["mawk"]);
    }

    #[test]
    fn a_closure_ends_on_cycles() {
        let packages = sample(&["a 1 / Depends: b", "b 1 / Depends: a, c", "c 1", "d 1"]);
        let resolution = resolve(&packages, "amd64", &[]);
        let names: Vec<_> = resolution.closure([0]).into_iter().map(|id| packages.name(id)).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let some = resolve_some(&packages, "amd64", [0]);
        assert_eq!(some.keys().copied().collect::<Vec<_>>(), resolution.closure([0]));
        assert!(some.iter().all(|(id, depends)| depends == resolution.depends(*id)));
    }
}
