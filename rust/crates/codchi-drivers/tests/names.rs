//! Nothing outside a driver's own folder asks for a driver by its name, in Rust or in Nix.

#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "a test that reads the repository")]

use std::path::{Path, PathBuf};

/// Files that may name drivers, with the reason.
const MAY: [(&str, &str); 7] = [
    ("rust/crates/codchi-drivers/src/lib.rs", "the registry: a line for each"),
    ("rust/crates/codchi-drivers/tests/names.rs", "this check"),
    ("rust/crates/codchi-debian/src/depends.rs", "Debian's own word `native`"),
    ("rust/crates/codchi-debian/src/resolve.rs", "Debian's own word `native`"),
    ("lib/mk-driver.nix", "an example in a comment"),
    ("modules/driver.nix", "the example of an option"),
    ("modules/on-host/default.nix", "what a declared machine runs on where nothing is said"),
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").canonicalize().expect("the repository")
}

fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && path.file_name().is_none_or(|n| n != "target") {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
}

/// The drivers that run machines: the folders in `drivers/`. `none` is not one to run on, and an ordinary word.
fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(root.join("drivers"))
        .expect("drivers")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|n| n != "none")
        .collect();
    names.sort();
    names
}

/// Whether a line of code asks for a driver: its name as a text, a path, or an attribute.
fn asks(line: &str, name: &str, nix: bool) -> bool {
    if line.contains(&format!("\"{name}\"")) {
        return true;
    }
    if nix {
        // An attribute of that name, such as `drivers.native` or `native = `.
        let attribute = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        return line.match_indices(name).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + name.len()..].chars().next();
            before == Some('.') && !after.is_some_and(attribute)
        });
    }
    line.contains(&format!("{name}::")) || line.contains(&format!("::{name}"))
}

/// The lines of a file that are neither comments nor tests, with their numbers.
fn code(text: &str, nix: bool) -> Vec<(usize, &str)> {
    let comment = if nix { "#" } else { "//" };
    text.lines()
        .enumerate()
        .take_while(|(_, l)| nix || l.trim() != "#[cfg(test)]")
        .filter(|(_, l)| !l.trim_start().starts_with(comment))
        .map(|(n, l)| (n + 1, l))
        .collect()
}

#[test]
fn only_a_driver_and_the_registry_name_it() {
    let root = repository();
    let names = names(&root);
    assert!(names.iter().any(|n| n == "native"), "{names:?}");
    let mut all = Vec::new();
    files(&root.join("rust/crates"), "rs", &mut all);
    files(&root.join("lib"), "nix", &mut all);
    files(&root.join("modules"), "nix", &mut all);
    let mut found = Vec::new();
    for file in all {
        let shown = file.strip_prefix(&root).expect("in the repository").to_string_lossy().into_owned();
        // Tests of other crates need some driver's name as data.
        if MAY.iter().any(|(f, _)| *f == shown) || (shown.contains("/tests/") && shown.ends_with(".rs")) {
            continue;
        }
        let nix = shown.ends_with(".nix");
        let text = std::fs::read_to_string(&file).expect("a text");
        for name in &names {
            let own = format!("rust/crates/codchi-drivers/src/{name}");
            if shown.starts_with(&format!("{own}/")) || shown == format!("{own}.rs") {
                continue;
            }
            for (number, line) in code(&text, nix) {
                if asks(line, name, nix) {
                    found.push(format!("{shown}:{number}: {}", line.trim()));
                }
            }
        }
    }
    assert!(found.is_empty(), "drivers named outside their own folders:\n{}", found.join("\n"));
}

#[test]
fn the_check_finds_what_it_is_for() {
    assert!(asks("if name == \"native\" {", "native", false));
    assert!(asks("codchi_drivers::native::supervise()", "native", false));
    assert!(asks("driver = drivers.native;", "native", true));
    assert!(!asks("nativeBuildInputs = 1", "native", true));
    assert!(!asks("rustls_native_certs::load()", "native", false));
    assert_eq!(code("a\n// b\n#[cfg(test)]\nc", false), [(1, "a")]);
}
