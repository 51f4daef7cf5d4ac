//! Downloads with a known SHA-256, several at a time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use codchi_core::progress::{Event, Progress};
use codchi_fs::Context;

use crate::error::{Error, Result};
use crate::hash::{self, Hasher};
use crate::http::{Answer, Trouble};
use crate::mirror::{Address, Mirror};

/// One file to download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// `mirror://debian/...`, `mirror://debian-security/...`, or an address of its own.
    pub url: String,
    /// The SHA-256 it must have, in hexadecimal digits.
    pub sha256: String,
    /// Its size in bytes; 0 where it is not known.
    pub size: u64,
    /// Where to put it.
    pub dest: PathBuf,
    /// What it is, for messages: a package's name.
    pub what: String,
}

impl Mirror {
    /// Downloads all files that are not there yet with the right content; `parallel` at a time.
    ///
    /// A file appears at its place only when it is whole and its sum is right. The first failure ends the rest.
    pub fn fetch_all(&self, items: &[Fetch], parallel: usize, progress: &dyn Progress) -> Result<()> {
        let folders: BTreeSet<&Path> = items.iter().filter_map(|i| i.dest.parent()).collect();
        for folder in folders {
            codchi_fs::create_dir_all(folder)?;
            remove_leftovers(folder);
        }
        // The largest first, so that none is left over at the end.
        let mut order: Vec<&Fetch> = items.iter().collect();
        order.sort_by_key(|i| std::cmp::Reverse(i.size));
        let counter = Counter {
            progress,
            total: items.len() as u64,
            total_bytes: AtomicU64::new(items.iter().map(|i| i.size).sum()),
            done: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            shown: Mutex::new(None),
        };
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let Some(item) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                if let Err(e) = self.fetch_one(item, &stop, &counter)
                    && !stop.swap(true, Ordering::Relaxed)
                {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..parallel.clamp(1, items.len().max(1)) {
                scope.spawn(work);
            }
            work();
        });
        counter.show(true);
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn fetch_one(&self, item: &Fetch, stop: &AtomicBool, counter: &Counter<'_>) -> Result<()> {
        let bad = |reason: &str| Error::BadIndex { url: item.what.clone(), reason: reason.into() };
        let sha256 = hash::from_hex(&item.sha256).ok_or_else(|| bad("it has no SHA-256 to be checked by"))?;
        let address = self.resolve(&item.url).ok_or_else(|| bad("its address cannot be used"))?;
        if holds(&item.dest, item.size, &sha256) {
            counter.add_bytes(item.size);
        } else {
            let size = (item.size > 0).then_some(item.size);
            let mut told = item.size > 0;
            let mut on_bytes = |n, length: Option<u64>| {
                // Where the size was not known, the first answer tells it.
                if !std::mem::replace(&mut told, true) {
                    counter.total_bytes.fetch_add(length.unwrap_or(0), Ordering::Relaxed);
                }
                counter.count(n);
            };
            self.download(&address, &sha256, size, &item.dest, Some(stop), &mut on_bytes)
                .map_err(|t| Error::download(t, &format!("the package `{}`", item.what), &address))?;
        }
        counter.done.fetch_add(1, Ordering::Relaxed);
        counter.show(false);
        Ok(())
    }

    /// Downloads one file to `dest`, which appears only when its sum is right. `on_bytes` gets differences, negative
    /// when a download begins again, and the length the server told.
    pub(crate) fn download(
        &self,
        address: &Address,
        sha256: &[u8; 32],
        size: Option<u64>,
        dest: &Path,
        stop: Option<&AtomicBool>,
        on_bytes: &mut dyn FnMut(i64, Option<u64>),
    ) -> Result<(), Trouble> {
        let part = Part::new(dest);
        self.client.get(address, |answer| {
            let mut got = 0;
            let result = part.receive(answer, sha256, size, stop, &mut got, on_bytes);
            if result.is_err() {
                on_bytes(-(got as i64), None);
            }
            result
        })?;
        part.keep(dest)
    }
}

/// Whether a file is there and is what it should be.
pub(crate) fn holds(path: &Path, size: u64, sha256: &[u8; 32]) -> bool {
    let Ok(mut file) = codchi_fs::open(path) else { return false };
    if size > 0 && file.metadata().map(|m| m.len()).ok() != Some(size) {
        return false;
    }
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return hasher.finish() == *sha256,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(_) => return false,
        }
    }
}

/// A file on its way; removed when it is not kept.
struct Part {
    path: PathBuf,
}

impl Part {
    fn new(dest: &Path) -> Part {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = dest.file_name().unwrap_or_default().to_string_lossy();
        Part { path: dest.with_file_name(format!(".{name}.{}.{number}.part", std::process::id())) }
    }

    fn receive(
        &self,
        mut answer: Answer,
        sha256: &[u8; 32],
        size: Option<u64>,
        stop: Option<&AtomicBool>,
        got: &mut u64,
        on_bytes: &mut dyn FnMut(i64, Option<u64>),
    ) -> Result<(), Trouble> {
        let mut file: File = codchi_fs::create(&self.path).map_err(Trouble::File)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 128 * 1024];
        let expected = size.or(answer.length);
        loop {
            if stop.is_some_and(|s| s.load(Ordering::Relaxed)) {
                return Err(Trouble::Connection("another download failed".into()));
            }
            let n = answer.body.read(&mut buffer).map_err(|e| Trouble::from_read(&e))?;
            if n == 0 {
                break;
            }
            *got += n as u64;
            if size.is_some_and(|s| *got > s) {
                return Err(Trouble::TooBig);
            }
            hasher.update(&buffer[..n]);
            file.write_all(&buffer[..n]).at("write", &self.path).map_err(Trouble::File)?;
            on_bytes(n as i64, answer.length);
        }
        if let Some(want) = expected.filter(|want| want != got) {
            return Err(Trouble::Size(*got, want));
        }
        let sum = hasher.finish();
        if sum == *sha256 { Ok(()) } else { Err(Trouble::Wrong(hash::to_hex(&sum))) }
    }

    fn keep(self, dest: &Path) -> Result<(), Trouble> {
        codchi_fs::rename(&self.path, dest).map_err(Trouble::File)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After `keep` there is nothing left of that name.
        let _ = codchi_fs::remove_if_exists(&self.path);
    }
}

/// Removes parts that a process left which is gone.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = codchi_fs::read_dir(folder) else { return };
    for entry in entries {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix('.')?.strip_suffix(".part")) else {
            continue;
        };
        let process = rest.rsplit('.').nth(1).and_then(|p| p.parse::<u32>().ok());
        if process.is_some_and(|p| !Path::new(&format!("/proc/{p}")).exists()) {
            let _ = codchi_fs::remove_if_exists(entry.path());
        }
    }
}

/// Adds up what all threads did, and tells it now and then.
struct Counter<'a> {
    progress: &'a dyn Progress,
    total: u64,
    total_bytes: AtomicU64,
    done: AtomicU64,
    bytes: AtomicU64,
    shown: Mutex<Option<Instant>>,
}

impl Counter<'_> {
    fn add_bytes(&self, n: u64) {
        self.bytes.fetch_add(n, Ordering::Relaxed);
    }

    fn count(&self, n: i64) {
        if n < 0 {
            self.bytes.fetch_sub(n.unsigned_abs(), Ordering::Relaxed);
        } else {
            self.add_bytes(n.unsigned_abs());
        }
        self.show(false);
    }

    fn show(&self, now: bool) {
        const BETWEEN: Duration = Duration::from_millis(100);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if now || shown.is_none_or(|t| t.elapsed() >= BETWEEN) {
            *shown = Some(Instant::now());
            self.progress.report(Event::Items {
                what: "packages",
                done: self.done.load(Ordering::Relaxed),
                total: self.total,
                bytes: self.bytes.load(Ordering::Relaxed),
                total_bytes: self.total_bytes.load(Ordering::Relaxed),
            });
        }
    }
}
