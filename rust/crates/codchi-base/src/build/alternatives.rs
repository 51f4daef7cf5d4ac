//! Which `update-alternatives` links a maintainer script would register.
//!
//! Maintainer scripts never run here. They are read: continuation lines, simple variables and `for` loops over words are
//! followed, which covers how packages write these calls; what stays unexpanded is left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One link of an alternative.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// The generic path, such as `/usr/bin/awk`.
    pub link: String,
    /// The program it leads to.
    pub target: String,
    /// The higher wins; a slave has its master's.
    pub priority: i64,
}

/// Reads the alternatives out of a maintainer script.
pub fn parse(script: &str) -> Vec<Alternative> {
    let joined = script.replace("\\\n", " ");
    let lines: Vec<&str> = joined
        .lines()
        .flat_map(|l| l.split(';'))
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .collect();
    let mut found = Vec::new();
    walk(&lines, &mut BTreeMap::new(), &mut found);
    found
}

fn walk(lines: &[&str], vars: &mut BTreeMap<String, String>, found: &mut Vec<Alternative>) {
    let mut i = 0;
    while i < lines.len() {
        let line = strip_keywords(lines[i]);
        i += 1;
        if let Some((name, words)) = line.strip_prefix("for ").and_then(|l| l.split_once(" in ")) {
            let (body, next) = loop_body(lines, i);
            let words = expand(words, vars);
            for word in words.split_whitespace() {
                vars.insert(name.trim().to_owned(), word.to_owned());
                walk(body, vars, found);
            }
            i = next;
        } else if let Some(at) = line.find("update-alternatives ") {
            call(&expand(&line[at..], vars), found);
        } else if let Some((name, value)) = line.split_once('=') {
            let plain = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
            if plain && !value.contains("$(") && !value.contains('`') {
                let value = expand(value, vars);
                vars.insert(name.to_owned(), value.trim_matches(['"', '\'']).to_owned());
            }
        }
    }
}

fn strip_keywords(mut line: &str) -> &str {
    while let Some(rest) = ["do ", "then ", "else ", "if "].iter().find_map(|k| line.strip_prefix(k)) {
        line = rest.trim_start();
    }
    line
}

/// The lines up to the matching `done`, and where to go on.
fn loop_body<'a, 'b>(lines: &'b [&'a str], start: usize) -> (&'b [&'a str], usize) {
    let mut depth = 1;
    for (i, line) in lines.iter().enumerate().skip(start) {
        let line = line.strip_prefix("do ").unwrap_or(line).trim();
        if line.starts_with("for ") || line.starts_with("while ") {
            depth += 1;
        } else if line == "done" || line.starts_with("done ") {
            depth -= 1;
        }
        if depth == 0 {
            return (&lines[start..i], i + 1);
        }
    }
    (&lines[start..], lines.len())
}

fn expand(text: &str, vars: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, next) = match after.strip_prefix('{') {
            Some(inner) => match inner.split_once('}') {
                Some((name, next)) => (name, next),
                None => (inner, ""),
            },
            None => {
                let n = after.bytes().take_while(|c| c.is_ascii_alphanumeric() || *c == b'_').count();
                after.split_at(n)
            }
        };
        match vars.get(name) {
            Some(value) => out.push_str(value),
            None => out.push('$'),
        }
        rest = next;
    }
    out.push_str(rest);
    out
}

fn call(line: &str, found: &mut Vec<Alternative>) {
    let words: Vec<&str> = line.split_whitespace().map(|w| w.trim_matches(['"', '\''])).collect();
    let mut priority = 0;
    let mut i = 0;
    while i < words.len() {
        let slave = words[i] == "--slave";
        if !slave && words[i] != "--install" {
            i += 1;
            continue;
        }
        let Some([link, _, target]) = words.get(i + 1..i + 4) else { return };
        if !slave {
            priority = words.get(i + 4).and_then(|p| p.parse().ok()).unwrap_or(0);
        }
        if link.starts_with('/') && target.starts_with('/') && !link.contains('$') && !target.contains('$') {
            found.push(Alternative { link: (*link).into(), target: (*target).into(), priority });
        }
        i += if slave { 4 } else { 5 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(script: &str) -> Vec<(String, String, i64)> {
        parse(script).into_iter().map(|a| (a.link, a.target, a.priority)).collect()
    }

    #[test]
    fn a_call_with_slaves_over_several_lines_is_followed() {
        let script = "case $1 in\nconfigure)\n update-alternatives --quiet \\\n  --install /usr/bin/awk awk /usr/bin/mawk 5 \\\n  --slave /usr/bin/nawk nawk /usr/bin/mawk\n;;\nesac";
        assert_eq!(
            links(script),
            [
                ("/usr/bin/awk".into(), "/usr/bin/mawk".into(), 5),
                ("/usr/bin/nawk".into(), "/usr/bin/mawk".into(), 5)
            ]
        );
    }

    #[test]
    fn loops_and_variables_are_expanded() {
        let script = "basedir=/usr/lib/jvm/j\npriority=1711\nfor i in java keytool; do\n  if [ -x $basedir ]; then update-alternatives --install /usr/bin/$i $i $basedir/bin/$i $priority; fi\ndone";
        assert_eq!(
            links(script),
            [
                ("/usr/bin/java".into(), "/usr/lib/jvm/j/bin/java".into(), 1711),
                ("/usr/bin/keytool".into(), "/usr/lib/jvm/j/bin/keytool".into(), 1711)
            ]
        );
    }

    #[test]
    fn what_cannot_be_expanded_is_left_out() {
        assert!(links("update-alternatives --install /usr/bin/x x $(which y) 10").is_empty());
        assert!(links("update-alternatives --remove x /usr/bin/y").is_empty());
    }
}
