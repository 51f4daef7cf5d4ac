//! Release files: fetched, verified, kept, and checked for their age.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use codchi_core::progress::{Event, Progress};

use crate::error::{Error, Result};
use crate::hash;
use crate::http::Trouble;
use crate::mirror::{Address, Mirror};
use crate::openpgp::Keyring;
use crate::packages::Archive;
use crate::unpack::parse_fields;

/// How old a verified copy may be before the mirror is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Ask each time.
    Check,
    /// Ask when the copy was last compared with the mirror longer ago than this.
    Within(Duration),
    /// Never ask; without a copy it is an error.
    Offline,
}

/// A file that a Release file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Path below the suite's folder.
    pub path: String,
    /// Its SHA-256.
    pub sha256: [u8; 32],
    /// Its size in bytes.
    pub size: u64,
}

/// A verified Release file, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The archive it is of.
    pub archive: Archive,
    /// The suite, such as `bookworm-security`.
    pub suite: String,
    /// When it was made.
    pub date: SystemTime,
    /// Until when it may be used; text and time.
    pub valid_until: Option<(String, SystemTime)>,
    /// Whether files can be had by their sum, which no update of the mirror disturbs.
    pub by_hash: bool,
    /// The index of packages.
    pub packages: Named,
    /// SHA-256 of the verified text.
    pub sum: [u8; 32],
}

/// More than any Release file has.
const LIMIT: u64 = 8 << 20;

impl Release {
    /// Reads the text of a Release file for the suite and Debian architecture.
    pub fn parse(text: &str, archive: Archive, suite: &str, architecture: &str) -> Result<Release, String> {
        let fields = parse_fields(text);
        let field = |name: &str| fields.get(name).map(String::as_str);
        match field("Codename") {
            Some(name) if name == suite => {}
            Some(name) => return Err(format!("it is of `{name}`, not `{suite}`")),
            None => return Err("it names no suite".into()),
        }
        if field("Origin") != Some("Debian") {
            return Err("it is not Debian's".into());
        }
        let date = field("Date").and_then(parse_date).ok_or("it has no date")?;
        let valid_until = match field("Valid-Until") {
            Some(text) => Some((text.to_owned(), parse_date(text).ok_or("its Valid-Until is no date")?)),
            None => None,
        };
        let path = format!("main/binary-{architecture}/Packages.xz");
        let packages = field("SHA256")
            .and_then(|list| {
                list.lines().find_map(|line| {
                    let mut words = line.split_whitespace();
                    let (sum, size, name) = (words.next()?, words.next()?, words.next()?);
                    (name == path).then(|| Some((hash::from_hex(sum)?, size.parse::<u64>().ok()?)))?
                })
            })
            .ok_or_else(|| format!("it does not name `{path}`"))?;
        Ok(Release {
            archive,
            suite: suite.into(),
            date,
            valid_until,
            by_hash: field("Acquire-By-Hash") == Some("yes"),
            packages: Named { path, sha256: packages.0, size: packages.1 },
            sum: hash::sha256(text.as_bytes()),
        })
    }
}

/// Reads `Sat, 11 Jul 2026 10:16:37 UTC`.
pub fn parse_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = text.split_once(',').map_or(text, |(_, rest)| rest);
    let words: Vec<&str> = text.split_whitespace().collect();
    let [day, month, year, time, zone] = words[..] else { return None };
    if !matches!(zone, "UTC" | "GMT" | "+0000") {
        return None;
    }
    let number = |s: &str| s.parse::<i64>().ok().filter(|n| (0..=9999).contains(n));
    let mut clock = time.split(':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let (day, year) = (number(day)?, number(year)?);
    let month = MONTHS.iter().position(|m| *m == month)? as i64 + 1;
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 || year < 1970 {
        return None;
    }
    // Days since 1970 in the Gregorian calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// Gets Release files and keeps them below a folder.
pub(crate) struct Source<'a> {
    pub mirror: &'a Mirror,
    pub keyring: &'a Keyring,
    /// Folder of the copies.
    pub lists: &'a Path,
    pub architecture: &'a str,
    pub freshness: Freshness,
    pub now: SystemTime,
    pub progress: &'a dyn Progress,
}

impl Source<'_> {
    /// The verified Release file of a suite.
    pub(crate) fn release(&self, archive: Archive, suite: &str) -> Result<Release> {
        let copy = self.lists.join(format!("{}_{suite}_InRelease", archive.host()));
        let kept = self.kept(&copy, archive, suite);
        let release = match (kept, self.freshness) {
            (Some((release, _)), Freshness::Offline) => release,
            (None, Freshness::Offline) => return Err(Error::Offline(suite.into())),
            (Some((release, age)), Freshness::Within(limit)) if age.is_some_and(|a| a <= limit) => release,
            (kept, _) => match (self.fetch(archive, suite, &copy, kept.as_ref().map(|(r, _)| r)), kept) {
                // What is at hand is still signed, and its age is looked at as ever.
                (Err(e @ Error::Network { .. }), Some((release, _))) => {
                    self.progress.report(Event::Warning(&format!("{e}; the lists at hand are used")));
                    release
                }
                (result, _) => result?,
            },
        };
        self.check_age(&release)?;
        Ok(release)
    }

    /// The copy, verified again, and how long ago it was compared with the mirror.
    fn kept(&self, copy: &Path, archive: Archive, suite: &str) -> Option<(Release, Option<Duration>)> {
        let data = codchi_fs::read(copy).ok()?;
        let signature = codchi_fs::read(signature_of(copy)).ok();
        let text = self.verify(&data, signature.as_deref(), "").ok()?;
        let release = Release::parse(&text, archive, suite, self.architecture).ok()?;
        let changed = codchi_fs::open(copy).ok()?.metadata().ok()?.modified().ok();
        Some((release, changed.and_then(|t| self.now.duration_since(t).ok())))
    }

    fn verify(&self, data: &[u8], signature: Option<&[u8]>, url: &str) -> Result<String> {
        let text = match signature {
            None => self.keyring.clear_text(data, self.now),
            Some(signature) => self.keyring.detached(data, signature, self.now).and_then(|()| {
                String::from_utf8(data.into()).map_err(|_| crate::openpgp::SignatureError::Unreadable)
            }),
        };
        text.map_err(|source| Error::Signature { url: url.into(), source })
    }

    fn fetch(&self, archive: Archive, suite: &str, copy: &Path, kept: Option<&Release>) -> Result<Release> {
        let what = format!("the suite `{suite}`");
        let at = |name: &str| self.mirror.at(archive, &format!("dists/{suite}/{name}"));
        let get = |address: &Address| self.mirror.client.get_bytes(address, LIMIT);
        let address = at("InRelease");
        let (data, signature, address) = match get(&address) {
            Ok(data) => (data, None, address),
            Err(Trouble::Missing) => {
                let (plain, gpg) = (at("Release"), at("Release.gpg"));
                // InRelease is what people know; that it is missing says more than that its predecessor is.
                let data = get(&plain).map_err(|t| Error::download(t, &what, &address))?;
                let signature = get(&gpg).map_err(|t| Error::download(t, &what, &gpg))?;
                (data, Some(signature), plain)
            }
            Err(t) => return Err(Error::download(t, &what, &address)),
        };
        let url = address.to_string();
        let text = self.verify(&data, signature.as_deref(), &url)?;
        let release = Release::parse(&text, archive, suite, self.architecture)
            .map_err(|reason| Error::BadIndex { url: url.clone(), reason })?;
        if let Some(kept) = kept.filter(|k| k.date > release.date) {
            let warning = format!("`{url}` is older than the copy at hand, which is used instead");
            self.progress.report(Event::Warning(&warning));
            return Ok(kept.clone());
        }
        codchi_fs::create_dir_all(self.lists)?;
        match signature {
            Some(signature) => codchi_fs::write_atomic(signature_of(copy), signature, 0o644)?,
            None => codchi_fs::remove_if_exists(signature_of(copy))?,
        }
        codchi_fs::write_atomic(copy, data, 0o644)?;
        Ok(release)
    }

    fn check_age(&self, release: &Release) -> Result<()> {
        let Some((until, end)) = &release.valid_until else { return Ok(()) };
        if *end >= self.now {
            return Ok(());
        }
        let url = self.mirror.at(release.archive, &format!("dists/{}/InRelease", release.suite)).to_string();
        if self.mirror.accept_stale || self.freshness == Freshness::Offline {
            self.progress.report(Event::Warning(&format!(
                "`{url}` was valid until {until} only; it is used as asked"
            )));
            return Ok(());
        }
        Err(Error::Stale { url, until: until.clone() })
    }
}

fn signature_of(copy: &Path) -> PathBuf {
    let mut name = copy.as_os_str().to_owned();
    name.push(".gpg");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> String {
        format!(
            "Origin: Debian\nLabel: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 12 Sep 2026 07:55:41 UTC\n\
            Valid-Until: Sat, 19 Sep 2026 07:55:41 UTC\nAcquire-By-Hash: yes\nMD5Sum:\n {} 5 main/binary-amd64/Packages.xz\n\
            SHA256:\n {} 1 main/binary-arm64/Packages.xz\n {} 99 main/binary-amd64/Packages.xz\n",
            "0".repeat(32),
            "1".repeat(64),
            "2".repeat(64),
        )
    }

    #[test]
    fn a_release_file_gives_dates_and_the_index() {
        let release = Release::parse(&sample(), Archive::Main, "trixie", "amd64").unwrap();
        assert_eq!(release.packages.size, 99);
        assert_eq!(release.packages.sha256, [0x22; 32]);
        assert!(release.by_hash);
        // `date -u -d '2026-09-12 07:55:41' +%s`
        assert_eq!(release.date, UNIX_EPOCH + Duration::from_secs(1_789_199_741));
        assert_eq!(release.valid_until.unwrap().1, UNIX_EPOCH + Duration::from_secs(1_789_804_541));
    }

    #[test]
    fn another_suites_release_file_is_refused() {
        for (from, to, words) in [
            ("Codename: trixie", "Codename: bookworm", "it is of `bookworm`"),
            ("Codename: trixie", "Code: x", "names no suite"),
            ("Origin: Debian", "Origin: Other", "not Debian's"),
            ("Date: Sat,", "Date: x", "no date"),
            ("19 Sep 2026", "19 Soon 2026", "no date"),
            ("SHA256:", "SHA1:", "does not name"),
        ] {
            let error = Release::parse(&sample().replacen(from, to, 1), Archive::Main, "trixie", "amd64")
                .unwrap_err();
            assert!(error.contains(words), "{to}: {error}");
        }
    }

    #[test]
    fn dates_of_leap_years_and_month_ends_are_right() {
        for (text, want) in [
            ("Thu, 01 Jan 1970 00:00:00 UTC", Some(0)),
            ("Thu, 29 Feb 2024 23:59:59 UTC", Some(1_709_251_199)),
            ("Fri, 01 Mar 2024 00:00:00 GMT", Some(1_709_251_200)),
            ("Fri, 31 Dec 2100 00:00:00 +0000", Some(4_133_894_400)),
            ("Fri, 31 Dec 2100 00:00:00 CET", None),
            ("Fri, 32 Dec 2100 00:00:00 UTC", None),
            ("31 Foo 2100 00:00:00 UTC", None),
            ("", None),
        ] {
            let want = want.map(|s| UNIX_EPOCH + Duration::from_secs(s));
            assert_eq!(parse_date(text), want, "{text}");
        }
    }
}
