//! Prints what the steps of loading a suite cost: `cargo run --release --example measure -- trixie CACHE BASE [PACKAGE...]`,
//! where BASE is the folder of the built-in base (`lib/base`).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Instant;

use codchi_core::progress::{Event, Progress};
use codchi_debian::index;
use codchi_debian::{Freshness, Mirror, Settings, State};

struct Print;

impl Progress for Print {
    fn report(&self, event: Event<'_>) {
        if !matches!(event, Event::Items { .. }) {
            println!("{event:?}");
        }
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let suite = args.next().unwrap_or("trixie".into());
    let cache = PathBuf::from(args.next().unwrap_or("/tmp/codchi-measure".into()));
    let base = PathBuf::from(args.next().unwrap_or("../lib/base".into()));
    let start = Instant::now();
    let mirror = Mirror::discover(&Settings::default().with_env()).unwrap();
    println!("{mirror} {:?}", start.elapsed());
    let state = State::load(&mirror, &suite, "x86_64-linux", &cache, Freshness::Check, &Print).unwrap();
    println!("verified {} {:?}", state.fingerprint(), start.elapsed());
    let suite = state.packages(&mirror, &cache, &[], &Print).unwrap();
    println!("{} packages, {} broken {:?}", suite.names().len(), suite.broken_count(), start.elapsed());
    let before = Instant::now();
    let index =
        index::ensure(&mirror, suite.name(), "x86_64-linux", &base, &cache, Freshness::Offline, &Print)
            .unwrap();
    println!("index {} in {:?}", index.dir.display(), before.elapsed());
    for root in args {
        let closure = suite.closure(&[&root]).unwrap();
        let bytes: u64 = closure.iter().map(|r| r.size).sum();
        println!("{root}: {} packages, {} KB", closure.len(), bytes / 1000);
    }
    let status = codchi_fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default());
}
