//! Nix attribute paths and string literals.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An attribute path, such as `nixosModules.default`; each name may be any Nix name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttrPath(Vec<String>);

/// Why an attribute path is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` is not an attribute path: {reason}")]
pub struct AttrPathError {
    given: String,
    reason: &'static str,
}

impl AttrPath {
    /// A path of these names; none where there are no names or one is empty.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Option<AttrPath> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        (!names.is_empty() && names.iter().all(|n| !n.is_empty())).then_some(AttrPath(names))
    }
    /// Its names.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for AttrPath {
    type Err = AttrPathError;

    /// Parses `a.b` and `a."b.c"`.
    fn from_str(s: &str) -> Result<Self, AttrPathError> {
        let refuse = |reason| AttrPathError { given: s.into(), reason };
        let mut names = Vec::new();
        let mut chars = s.chars().peekable();
        loop {
            let mut name = String::new();
            if chars.peek() == Some(&'"') {
                chars.next();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => name.push(chars.next().ok_or_else(|| refuse("a quote is not closed"))?),
                        Some('$') if chars.peek() == Some(&'{') => {
                            return Err(refuse("it may not be computed"));
                        }
                        Some(c) => name.push(c),
                        None => return Err(refuse("a quote is not closed")),
                    }
                }
                if !matches!(chars.peek(), None | Some('.')) {
                    return Err(refuse("a dot is missing after a quote"));
                }
            } else {
                while let Some(c) = chars.next_if(|c| *c != '.') {
                    if c.is_whitespace() || c.is_control() || "\"${}()[];=#".contains(c) {
                        return Err(refuse("a name with that character needs quotes"));
                    }
                    name.push(c);
                }
            }
            if name.is_empty() {
                return Err(refuse("a name is empty"));
            }
            names.push(name);
            match chars.next() {
                None => return Ok(AttrPath(names)),
                Some(_) => continue,
            }
        }
    }
}

impl fmt::Display for AttrPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            f.write_str(&attr_name(name))?;
        }
        Ok(())
    }
}

impl TryFrom<String> for AttrPath {
    type Error = AttrPathError;
    fn try_from(s: String) -> Result<Self, AttrPathError> {
        s.parse()
    }
}

impl From<AttrPath> for String {
    fn from(p: AttrPath) -> String {
        p.to_string()
    }
}

/// An attribute name as Nix source: quoted where it must be.
pub fn attr_name(name: &str) -> String {
    const KEYWORDS: [&str; 10] =
        ["if", "then", "else", "assert", "with", "let", "in", "rec", "inherit", "or"];
    let mut chars = name.chars();
    let plain = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || "_-'".contains(c))
        && !KEYWORDS.contains(&name);
    if plain { name.into() } else { string(name) }
}

/// A string as Nix source, in quotes.
pub fn string(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            // `${` would be computed; a dollar with a backslash is a dollar.
            '$' => out.push_str("\\$"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_paths_parse_as_nix_reads_them() {
        assert_eq!("a.b-c".parse::<AttrPath>().unwrap().names(), ["a", "b-c"]);
        assert_eq!(r#"a."b.c\"d""#.parse::<AttrPath>().unwrap().names(), ["a", "b.c\"d"]);
        for bad in ["", ".", "a.", "a..b", "a b", "\"a", "\"a\"b", "a;b", "\"${x}\""] {
            assert!(bad.parse::<AttrPath>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_name_survives_printing_and_parsing(names in proptest::collection::vec("[^\\p{Cc}]{1,8}", 1..4)) {
            let path = AttrPath::new(names.clone()).unwrap();
            let again: AttrPath = path.to_string().parse().unwrap();
            assert_eq!(again.names(), names);
        }

        #[test]
        fn a_string_never_computes_anything(s in ".*") {
            assert!(!string(&s).replace("\\$", "").contains("${"));
        }
    }
}
