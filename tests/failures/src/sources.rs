//! The texts of the errors that the program can print, read from its sources.

use std::collections::BTreeSet;
use std::path::Path;

use regex_lite::Regex;

use crate::Failure;

/// The crates whose errors the program prints.
const CRATES: [&str; 9] = [
    "codchi",
    "codchi-core",
    "codchi-debian",
    "codchi-drivers",
    "codchi-files",
    "codchi-nix",
    "codchi-runtime",
    "codchi-secrets",
    "codchi-store",
];

/// An error of the sources.
pub struct Site {
    /// Its text, with placeholders.
    pub template: String,
    /// What it looks like when it is printed.
    pub pattern: Regex,
    /// Where the first such is.
    pub at: String,
    /// Whether it tells of a defect of the program: nothing that anybody does leads to it.
    pub internal: bool,
}

/// The errors below the folder of the crates, each text once.
pub fn read(root: &Path) -> Result<Vec<Site>, Failure> {
    let mut found = Found::default();
    for name in CRATES {
        folder(&root.join(name).join("src"), name, &mut found)?;
    }
    let mut seen = BTreeSet::new();
    let mut sites = Vec::new();
    for (template, at, internal) in found.all {
        if let Some(pattern) = pattern(&template)?
            && seen.insert(template.clone())
        {
            sites.push(Site {
                template,
                pattern,
                at,
                internal,
            });
        }
    }
    Ok(sites)
}

fn folder(dir: &Path, shown: &str, found: &mut Found) -> Result<(), Failure> {
    let mut entries = codchi_fs::read_dir(dir)?;
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let (path, name) = (
            entry.path(),
            entry.file_name().to_string_lossy().into_owned(),
        );
        if entry.file_type()?.is_dir() {
            folder(&path, &format!("{shown}/{name}"), found)?;
        } else if name.ends_with(".rs") {
            found.file = format!("{shown}/{name}");
            found.read(&codchi_fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// The text as a pattern, of a whole message or of the cause that one names after a colon; `None` where it has next to no words of its own.
fn pattern(template: &str) -> Result<Option<Regex>, Failure> {
    let (mut pattern, mut words, mut depth) = (String::from("(?s)^(?:.*: )?"), 0, 0);
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.peek() == Some(&c) => {
                chars.next();
                pattern += if c == '{' { r"\{" } else { r"\}" };
            }
            '{' => {
                depth += 1;
                pattern += ".*";
            }
            '}' => depth -= 1,
            _ if depth > 0 => {}
            c => {
                words += usize::from(c.is_alphabetic());
                let mut bytes = [0; 4];
                pattern += &regex_lite::escape(c.encode_utf8(&mut bytes));
            }
        }
    }
    pattern.push('$');
    Ok(if words >= 4 {
        Some(Regex::new(&pattern)?)
    } else {
        None
    })
}

#[derive(Default)]
struct Found {
    file: String,
    all: Vec<(String, String, bool)>,
}

const INTERNAL: &str = "Failure::internal(";

/// What errors are made with, before their text.
const CALLS: [&str; 5] = [
    INTERNAL,
    "Failure::new(",
    "Failure::failed(",
    "Failure::usage(",
    "#[error(",
];

impl Found {
    /// Adds the text of each call: the first literal between its parentheses. Tests come last in a file.
    fn read(&mut self, source: &str) {
        let source = source
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap_or_default();
        for call in CALLS {
            for (at, _) in source.match_indices(call) {
                if let Some(template) = literal(call, &source[at + call.len()..]) {
                    let line = 1 + source[..at].matches('\n').count();
                    let at = format!("{}:{line}", self.file);
                    self.all.push((template, at, call == INTERNAL));
                }
            }
        }
    }
}

/// The first literal before the parenthesis that closes what is open; as a text of `format!`, whether it is one or not.
fn literal(call: &str, arguments: &str) -> Option<String> {
    let start = arguments.find(['"', ')'])?;
    let (before, rest) = arguments.split_at(start);
    let is_template = before.contains("format!(") || call.starts_with('#');
    let of_another = before.contains("hint(") || before.contains("strip_prefix(");
    if !rest.starts_with('"') || of_another {
        return None;
    }
    let mut text = String::new();
    let mut chars = rest[1..].chars();
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => match chars.next()? {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                // A line that goes on in the next.
                '\n' => chars = chars.as_str().trim_start().chars(),
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
    Some(if is_template {
        text
    } else {
        text.replace('{', "{{").replace('}', "}}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_and_match_what_is_printed() {
        let mut found = Found::default();
        found.read(
            r#"
            a(|e| Failure::new(Kind::Busy, format!("`{name}` is being {what} by \
                {holder}")).hint("try again"));
            Failure::failed(e.to_string()).hint("not this");
            Failure::usage(first.strip_prefix("nor this").unwrap_or(first));
            Failure::internal("nobody gets here");
            Failure::usage("braces { stay");
            #[error("cannot {}: {{}} {source}", what.len())]
            #[cfg(test)]
mod tests { Failure::failed("nor this"); }"#,
        );
        let templates: Vec<&str> = found.all.iter().map(|(t, ..)| t.as_str()).collect();
        assert_eq!(
            templates,
            [
                "nobody gets here",
                "`{name}` is being {what} by {holder}",
                "braces {{ stay",
                "cannot {}: {{}} {source}"
            ]
        );
        let is = |i: usize, said: &str| pattern(templates[i]).unwrap().unwrap().is_match(said);
        assert!(found.all[0].2 && !found.all[1].2);
        assert!(is(1, "`x` is being changed by `codchi stop x`\nand more"));
        assert!(is(2, "braces { stay") && !is(2, "braces { stay here"));
        assert!(is(2, "it failed: braces { stay") && !is(2, "it failed, braces { stay"));
        assert!(is(3, "cannot do: {} it is full") && !is(3, "cannot do: it is full"));
        assert!(pattern("{0}").unwrap().is_none());
    }
}
