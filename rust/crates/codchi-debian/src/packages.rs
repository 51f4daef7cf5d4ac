//! `Packages` files: what a suite has, kept small (one text buffer for all fields).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};
use std::io::BufRead;

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::{depends, version};

/// Which of Debian's archives a package comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Archive {
    /// The main archive (suites and their `-updates`).
    Main,
    /// The security archive.
    Security,
}

impl Archive {
    /// The name in `mirror://NAME/` addresses.
    pub fn host(self) -> &'static str {
        match self {
            Archive::Main => "debian",
            Archive::Security => "debian-security",
        }
    }
}

/// A part of the text of all packages.
#[derive(Clone, Copy, Default)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn of(self, text: &str) -> &str {
        let start = self.start as usize;
        text.get(start..start + self.len as usize).unwrap_or_default()
    }
}

/// Index of a package in [`Packages`].
pub type Id = u32;

/// How a file is called.
#[derive(Clone, Copy)]
enum Called {
    /// `NAME_VERSION_ARCHITECTURE.deb`, the version without its epoch, in the folder that is kept; with the index of the
    /// architecture.
    ByRule(u8),
    /// As is kept.
    Otherwise,
}

/// The architectures that are not written out for each file.
const ARCHITECTURES: [&str; 3] = ["all", "amd64", "arm64"];

/// A package of the suite.
#[derive(Clone, Copy)]
struct Package {
    name: Span,
    version: Span,
    /// The folder of its file, or the whole path.
    place: Span,
    called: Called,
    provides: Span,
    /// Of the list of needs, where its own begin, and how many there are.
    needs: Span,
    sha256: [u8; 32],
    size: u64,
    archive: Archive,
    priority: u8,
}

/// All packages of a suite, the newest version of each.
///
/// A suite has some 70,000, and most of what it says is said many times over: folders and dependencies are kept once.
pub struct Packages {
    text: String,
    all: Vec<Package>,
    /// Ids, to be found by name: the names are in the text already.
    by_name: HashTable<Id>,
    /// What is kept once: the clauses of dependencies.
    clauses: Vec<Span>,
    /// Indexes of clauses, to be found by their text.
    by_clause: HashTable<u32>,
    /// All packages' dependencies one after the other, as indexes of clauses.
    needs: Vec<u32>,
    hasher: RandomState,
}

impl Default for Packages {
    /// None yet. Room for a whole suite is set aside: what is not used costs nothing, and what grows by copying does.
    fn default() -> Self {
        const PACKAGES: usize = 80_000;
        Packages {
            text: String::with_capacity(48 << 20),
            all: Vec::with_capacity(PACKAGES),
            by_name: HashTable::with_capacity(PACKAGES),
            clauses: Vec::with_capacity(PACKAGES),
            by_clause: HashTable::with_capacity(PACKAGES),
            needs: Vec::with_capacity(8 * PACKAGES),
            hasher: RandomState::new(),
        }
    }
}

/// The fields of one paragraph while it is read.
#[derive(Default)]
struct Paragraph {
    fields: [String; FIELDS.len()],
    any: bool,
}

const FIELDS: [&str; 9] =
    ["Package", "Version", "Filename", "SHA256", "Size", "Priority", "Pre-Depends", "Depends", "Provides"];

impl Packages {
    /// Adds the paragraphs of a `Packages` file. `Err` says what is wrong in which paragraph.
    pub fn read(&mut self, mut input: impl BufRead, archive: Archive) -> Result<(), ReadError> {
        let mut line = Vec::new();
        let mut paragraph = Paragraph::default();
        let mut current: Option<usize> = None;
        loop {
            line.clear();
            let end = input.read_until(b'\n', &mut line).map_err(ReadError::Io)? == 0;
            while line.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
                line.pop();
            }
            match line.first() {
                None => {
                    if paragraph.any {
                        self.add(&paragraph, archive)?;
                        paragraph.fields.iter_mut().for_each(String::clear);
                        paragraph.any = false;
                    }
                    current = None;
                    if end {
                        return Ok(());
                    }
                }
                Some(b' ' | b'\t') => {
                    if let Some(i) = current {
                        paragraph.fields[i].push_str(&String::from_utf8_lossy(&line));
                    }
                }
                Some(b'#') => {}
                Some(_) => {
                    paragraph.any = true;
                    current = None;
                    if let Some(colon) = line.iter().position(|b| *b == b':') {
                        let name = &line[..colon];
                        current = FIELDS.iter().position(|f| f.as_bytes().eq_ignore_ascii_case(name));
                        if let Some(i) = current {
                            let value = line[colon + 1..].trim_ascii();
                            paragraph.fields[i].push_str(&String::from_utf8_lossy(value));
                        }
                    }
                }
            }
        }
    }

    fn add(&mut self, p: &Paragraph, archive: Archive) -> Result<(), ReadError> {
        let [name, version, file, sha256, size, priority, pre, depends, provides] = &p.fields;
        let bad = |what: &'static str| ReadError::Paragraph { package: name.clone(), what };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        if name.is_empty() || !name.bytes().all(plain) || name.starts_with(['.', '-']) {
            return Err(bad("its name is not allowed"));
        }
        if version.is_empty() || !version.bytes().all(|b| plain(b) || matches!(b, b':' | b'~')) {
            return Err(bad("its version is not allowed"));
        }
        let path = |b: u8| plain(b) || matches!(b, b'/' | b'_' | b'~' | b':' | b'%');
        if !file.bytes().all(path)
            || file.starts_with('/')
            || file.split('/').any(|c| matches!(c, "" | "." | ".."))
        {
            return Err(bad("its file name is not allowed"));
        }
        let sha256 = crate::hash::from_hex(sha256).ok_or_else(|| bad("it has no SHA256"))?;
        let size = size.parse().map_err(|_| bad("it has no size"))?;
        let known = self.find(name);
        if let Some(id) = known
            && version::compare(version, self.version(id)) != Ordering::Greater
        {
            return Ok(());
        }
        let full = || bad("there is no room for more");
        let (place, called) = self.place(file, name, version).ok_or_else(full)?;
        let package = Package {
            name: self.keep(name).ok_or_else(full)?,
            version: self.keep(version).ok_or_else(full)?,
            place,
            called,
            provides: self.keep(provides).ok_or_else(full)?,
            needs: self.needs([pre, depends]).ok_or_else(full)?,
            sha256,
            size,
            archive,
            priority: match priority.as_str() {
                "required" => 0,
                "important" => 1,
                "standard" => 2,
                "optional" => 3,
                "extra" => 4,
                _ => 5,
            },
        };
        match known {
            Some(id) => self.all[id as usize] = package,
            None => {
                let id = self.all.len() as Id;
                self.all.push(package);
                let Packages { text, all, by_name, hasher, .. } = self;
                by_name.insert_unique(hasher.hash_one(name.as_str()), id, |id| {
                    hasher.hash_one(all[*id as usize].name.of(text))
                });
            }
        }
        Ok(())
    }

    fn keep(&mut self, text: &str) -> Option<Span> {
        let span = span(self.text.len(), text.len())?;
        self.text.push_str(text);
        Some(span)
    }

    /// What is kept of a file's path. Packages of one source come one after the other, and share their folder.
    fn place(&mut self, file: &str, name: &str, version: &str) -> Option<(Span, Called)> {
        let version = version.split_once(':').map_or(version, |(_epoch, rest)| rest);
        let by_rule = file.rsplit_once('/').and_then(|(folder, called)| {
            let rest = called.strip_prefix(name)?.strip_prefix('_')?.strip_prefix(version)?;
            let found = rest.strip_prefix('_')?.strip_suffix(".deb")?;
            Some((folder, ARCHITECTURES.iter().position(|a| *a == found)? as u8))
        });
        let Some((folder, architecture)) = by_rule else {
            return Some((self.keep(file)?, Called::Otherwise));
        };
        let last = self.all.last().filter(|p| matches!(p.called, Called::ByRule(_)));
        let place = match last.map(|p| p.place).filter(|place| self.text(*place) == folder) {
            Some(place) => place,
            None => self.keep(folder)?,
        };
        Some((place, Called::ByRule(architecture)))
    }

    /// Adds the clauses of both fields to the list of needs.
    fn needs(&mut self, fields: [&str; 2]) -> Option<Span> {
        let start = self.needs.len();
        for clause in fields.into_iter().flat_map(depends::split) {
            let hash = self.hasher.hash_one(clause);
            let of = |i: u32, all: &[Span], text: &str| all[i as usize].of(text) == clause;
            let known = self.by_clause.find(hash, |i| of(*i, &self.clauses, &self.text)).copied();
            let index = match known {
                Some(index) => index,
                None => {
                    let kept = self.keep(clause)?;
                    let index = self.clauses.len() as u32;
                    self.clauses.push(kept);
                    let Packages { text, clauses, by_clause, hasher, .. } = self;
                    by_clause.insert_unique(hash, index, |i| hasher.hash_one(clauses[*i as usize].of(text)));
                    index
                }
            };
            self.needs.push(index);
        }
        span(start, self.needs.len() - start)
    }

    /// A part of the text.
    pub(crate) fn text(&self, span: Span) -> &str {
        span.of(&self.text)
    }

    /// Where in the text a part of it is.
    pub(crate) fn span(&self, part: &str) -> Span {
        let start = (part.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        debug_assert!(start + part.len() <= self.text.len());
        Span { start: start as u32, len: part.len() as u32 }
    }

    /// How many packages there are; ids are below this.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The package of that name.
    pub fn find(&self, name: &str) -> Option<Id> {
        self.by_name.find(self.hasher.hash_one(name), |id| self.name(*id) == name).copied()
    }

    /// All ids.
    pub fn ids(&self) -> std::ops::Range<Id> {
        0..self.all.len() as Id
    }

    /// A package's name.
    pub fn name(&self, id: Id) -> &str {
        self.text(self.all[id as usize].name)
    }

    /// A package's version.
    pub fn version(&self, id: Id) -> &str {
        self.text(self.all[id as usize].version)
    }

    /// Where the file lies below the archive.
    pub fn file(&self, id: Id) -> Cow<'_, str> {
        let package = &self.all[id as usize];
        let place = self.text(package.place);
        match package.called {
            Called::Otherwise => place.into(),
            Called::ByRule(architecture) => {
                let version = self.version(id);
                let version = version.split_once(':').map_or(version, |(_epoch, rest)| rest);
                let architecture = ARCHITECTURES[usize::from(architecture)];
                format!("{place}/{}_{version}_{architecture}.deb", self.name(id)).into()
            }
        }
    }

    /// The clauses of `Pre-Depends` and `Depends`.
    pub fn depends(&self, id: Id) -> impl Iterator<Item = &str> {
        let Span { start, len } = self.all[id as usize].needs;
        let needs = &self.needs[start as usize..][..len as usize];
        needs.iter().map(|i| self.text(self.clauses[*i as usize]))
    }

    /// The field `Provides`.
    pub fn provides(&self, id: Id) -> &str {
        self.text(self.all[id as usize].provides)
    }

    /// SHA-256 of the file.
    pub fn sha256(&self, id: Id) -> &[u8; 32] {
        &self.all[id as usize].sha256
    }

    /// Size of the file in bytes.
    pub fn size(&self, id: Id) -> u64 {
        self.all[id as usize].size
    }

    /// The archive the file is in.
    pub fn archive(&self, id: Id) -> Archive {
        self.all[id as usize].archive
    }

    /// Rank of the priority: 0 is `required`, 5 unknown.
    pub fn priority(&self, id: Id) -> u8 {
        self.all[id as usize].priority
    }
}

/// None above 4 GiB, which no suite comes near.
fn span(start: usize, len: usize) -> Option<Span> {
    Some(Span { start: start.try_into().ok()?, len: len.try_into().ok()? })
}

/// Why a `Packages` file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream failed.
    #[error("{0}")]
    Io(std::io::Error),
    /// A paragraph is not what it should be.
    #[error("the entry of `{package}`: {what}")]
    Paragraph {
        /// The package.
        package: String,
        /// What is wrong.
        what: &'static str,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A `Packages` file from lines `name version | extra field | extra field`.
    pub(crate) fn sample(lines: &[&str]) -> Packages {
        let mut packages = Packages::default();
        packages.read(text(lines).as_bytes(), Archive::Main).unwrap();
        packages
    }

    fn text(lines: &[&str]) -> String {
        let mut out = String::new();
        for line in lines {
            let mut parts = line.split(" / ");
            let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
            out += &format!("Package: {name}\nVersion: {version}\nSHA256: {}\nSize: 7\n", "ab".repeat(32));
            out += &format!("Filename: pool/{name}.deb\n");
            for field in parts {
                out += &format!("{field}\n");
            }
            out.push('\n');
        }
        out
    }

    #[test]
    fn fields_fold_and_the_newest_version_wins() {
        let mut all = Packages::default();
        let main = text(&["a 1.0 / Pre-Depends: x / Depends: y,\n z / Priority: required", "b 2"]);
        all.read(main.as_bytes(), Archive::Main).unwrap();
        all.read(text(&["a 1.0+deb12u1", "b 1"]).as_bytes(), Archive::Security).unwrap();
        let (a, b) = (all.find("a").unwrap(), all.find("b").unwrap());
        assert_eq!((all.version(a), all.archive(a)), ("1.0+deb12u1", Archive::Security));
        assert_eq!((all.version(b), all.archive(b), all.size(b)), ("2", Archive::Main, 7));
        assert_eq!(all.len(), 2);

        let all = sample(&["a 1.0 / Pre-Depends: x / Depends: y,\n z / Priority: required"]);
        assert_eq!(all.depends(0).collect::<Vec<_>>(), ["x", "y", "z"]);
        assert_eq!(all.priority(0), 0);
    }

    #[test]
    fn files_are_called_as_they_were() {
        let of = |name: &str, version: &str, file: &str| {
            format!(
                "Package: {name}\nVersion: {version}\nSHA256: {}\nSize: 7\nFilename: {file}\n\n",
                "ab".repeat(32)
            )
        };
        let files = [
            ("a", "1:2-3", "pool/main/a/a/a_2-3_amd64.deb"),
            ("a-doc", "1:2-3", "pool/main/a/a/a-doc_2-3_all.deb"),
            ("b", "1:2-3", "pool/main/a/a/b_1:2-3_all.deb"),
            ("c", "1", "pool/main/a/a/c_1_riscv64.deb"),
            ("d", "1", "pool/main/d/d_1_all.deb"),
            ("e", "1", "e_1_all.deb"),
        ];
        let mut all = Packages::default();
        let text: String = files.iter().map(|(n, v, f)| of(n, v, f)).collect();
        all.read(text.as_bytes(), Archive::Main).unwrap();
        let found: Vec<_> = all.ids().map(|id| all.file(id)).collect();
        assert_eq!(found, files.map(|(.., file)| file));
    }

    #[test]
    fn entries_that_could_do_harm_are_refused() {
        let good = text(&["a 1"]);
        for (from, to) in [
            ("pool/a.deb", "../../etc/passwd"),
            ("pool/a.deb", "/etc/passwd"),
            ("pool/a.deb", "pool/a.deb?x=1"),
            ("Package: a", "Package: a/b"),
            ("Package: a", "Package: .."),
            ("Version: 1", "Version: 1 2"),
            ("SHA256: ab", "SHA256: xx"),
            ("SHA256: ab", "MD5: ab"),
            ("Size: 7", "Size: -7"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            let result = Packages::default().read(bad.as_bytes(), Archive::Main);
            assert!(matches!(result, Err(ReadError::Paragraph { .. })), "{to}: {result:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(Package: [a-z]{1,3}\n|Version: [0-9]\n|\n| [a-z]*\n|[A-Za-z: ]*\n){0,20}") {
            let _ = Packages::default().read(text.as_bytes(), Archive::Main);
        }
    }
}
