//! The names a person may have meant.

use std::borrow::Cow;
use std::cmp::Reverse;

/// How many names are offered.
const OFFERED: usize = 5;

/// The names nearest to `wanted`, best first, at most five; nothing when none is near.
///
/// Names of nixpkgs are understood: `python3Packages.requests` finds `python3-requests`, `postgresqlJit` finds `postgresql`.
pub fn nearest<S: AsRef<str>>(names: &[S], wanted: &str) -> Vec<String> {
    let forms = forms(wanted);
    let mut scored: Vec<(usize, usize, &str)> = Vec::new();
    for name in names {
        let name = name.as_ref();
        let best = forms.iter().enumerate().filter_map(|(i, form)| Some(score(name, form)? + i)).min();
        if let Some(best) = best {
            scored.push((best, name.len(), name));
        }
    }
    scored.sort_unstable();
    scored.dedup_by(|a, b| a.2 == b.2);
    scored.into_iter().take(OFFERED).map(|(.., name)| name.to_owned()).collect()
}

/// How a Debian package may spell the name, most likely first.
fn forms(wanted: &str) -> Vec<String> {
    let mut forms = vec![];
    let lower = wanted.to_lowercase();
    if let Some((set, rest)) = wanted.split_once('.') {
        let rest = kebab(rest);
        let prefix = match set {
            s if s.starts_with("python") => Some("python3-"),
            s if s.starts_with("nodePackages") => Some("node-"),
            s if s.starts_with("ruby") || s.starts_with("rubyPackages") => Some("ruby-"),
            s if s.starts_with("php") => Some("php-"),
            s if s.starts_with("lua") => Some("lua-"),
            s if s.starts_with("haskell") => Some("libghc-"),
            _ => None,
        };
        if set.starts_with("perl") {
            forms.push(format!("lib{rest}-perl"));
        }
        forms.extend(prefix.map(|p| format!("{p}{rest}")));
        forms.push(rest);
    }
    forms.push(lower);
    forms.push(kebab(wanted));
    forms.dedup();
    forms
}

/// `fooBar_baz` as `foo-bar-baz`.
fn kebab(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c {
            '_' | '.' => out.push('-'),
            c if c.is_ascii_uppercase() => {
                if !out.is_empty() && !out.ends_with('-') {
                    out.push('-');
                }
                out.push(c.to_ascii_lowercase());
            }
            c => out.push(c),
        }
    }
    out
}

/// How far `name` is from `form`: smaller is nearer, `None` is too far.
fn score(name: &str, form: &str) -> Option<usize> {
    if form.is_empty() {
        return None;
    }
    if name == form {
        return Some(0);
    }
    // A package split or renamed by version: `nodejs_20` is in `nodejs`, `libfoo` in `libfoo-dev`.
    if let Some(rest) = name.strip_prefix(form) {
        let ends_word = rest.starts_with(|c: char| !c.is_ascii_alphabetic());
        return Some(if ends_word { 20 } else { 40 } + rest.len());
    }
    if name.len() >= 3
        && let Some(rest) = form.strip_prefix(name)
        && (rest.len() <= 3 || rest.starts_with(|c: char| !c.is_ascii_alphabetic()))
    {
        return Some(25 + rest.len());
    }
    let limit = match form.len() {
        0..=3 => 1,
        4..=7 => 2,
        _ => 3,
    };
    distance(name, form, limit).map(|d| 10 * d)
}

/// Edits (insert, delete, replace, swap of neighbours) between two names, if at most `limit`.
fn distance(a: &str, b: &str, limit: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let (a, b): (Cow<'_, [u8]>, Cow<'_, [u8]>) = (a.as_bytes().into(), b.as_bytes().into());
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        let mut smallest = i;
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
            smallest = smallest.min(row[j]);
        }
        if smallest > limit {
            return None;
        }
        (before, last) = (last, row);
    }
    Some(last[b.len()]).filter(|d| *d <= limit)
}

/// The same, after what is provided: names that stand for a package the suite has under another name.
pub fn nearest_or_provided<'a, S: AsRef<str>>(
    names: &[S],
    provided: impl Iterator<Item = (&'a str, &'a str)>,
    wanted: &str,
) -> Vec<String> {
    let mut found: Vec<String> =
        provided.filter(|(virt, _)| *virt == wanted).map(|(_, p)| p.to_owned()).collect();
    found.sort_by_key(|n| (n.len(), Reverse(n.clone())));
    for name in nearest(names, wanted) {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found.truncate(OFFERED);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &[
        "curl",
        "gcc",
        "gcc-12",
        "git",
        "git-lfs",
        "golang-go",
        "libssl-dev",
        "neovim",
        "nodejs",
        "postgresql",
        "postgresql-15",
        "python3-requests",
        "python3-requests-toolbelt",
        "ripgrep",
        "libdbi-perl",
        "vim",
    ];

    #[test]
    fn a_person_finds_what_they_meant() {
        for (wanted, best) in [
            ("ripgerp", "ripgrep"),
            ("neovm", "neovim"),
            ("gitlfs", "git-lfs"),
            ("git_lfs", "git-lfs"),
            ("gitLfs", "git-lfs"),
            ("nodejs_20", "nodejs"),
            ("python3Packages.requests", "python3-requests"),
            ("perlPackages.DBI", "libdbi-perl"),
            ("postgres", "postgresql"),
            ("Curl", "curl"),
        ] {
            assert_eq!(nearest(NAMES, wanted).first().map(String::as_str), Some(best), "{wanted}");
        }
    }

    #[test]
    fn nothing_near_is_nothing() {
        assert_eq!(nearest(NAMES, "zzzzzzzz"), Vec::<String>::new());
        assert!(nearest(NAMES, "g").len() <= OFFERED);
        assert_eq!(nearest(NAMES, ""), Vec::<String>::new());
    }

    #[test]
    fn what_provides_the_name_comes_first() {
        let provided = [("editor", "vim"), ("editor", "neovim")];
        assert_eq!(nearest_or_provided(NAMES, provided.into_iter(), "editor"), ["vim", "neovim"]);
    }
}
