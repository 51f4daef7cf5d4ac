//! Dependency fields, as the policy manual (7.1) writes them.

use std::cmp::Ordering;

use crate::version;

/// How a version must relate to the one named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `<<`
    Less,
    /// `<=` (and the obsolete `<`)
    LessEqual,
    /// `=`
    Equal,
    /// `>=` (and the obsolete `>`)
    GreaterEqual,
    /// `>>`
    Greater,
}

impl Relation {
    /// Whether `have` stands in this relation to `wanted`.
    pub fn holds(self, have: &str, wanted: &str) -> bool {
        let order = version::compare(have, wanted);
        match self {
            Relation::Less => order == Ordering::Less,
            Relation::LessEqual => order != Ordering::Greater,
            Relation::Equal => order == Ordering::Equal,
            Relation::GreaterEqual => order != Ordering::Less,
            Relation::Greater => order == Ordering::Greater,
        }
    }
}

/// One alternative: a package, perhaps of an architecture, perhaps with a condition on its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atom<'a> {
    /// The package.
    pub name: &'a str,
    /// The architecture qualifier: `any`, `native`, or an architecture.
    pub arch: Option<&'a str>,
    /// The condition on the version.
    pub version: Option<(Relation, &'a str)>,
}

impl<'a> Atom<'a> {
    /// Parses one alternative; `None` when the text is none.
    pub fn parse(text: &'a str) -> Option<Atom<'a>> {
        let text = text.trim();
        let end =
            text.find(|c: char| c.is_whitespace() || matches!(c, '(' | '[' | '<')).unwrap_or(text.len());
        let (name, mut rest) = text.split_at(end);
        let (name, arch) = match name.split_once(':') {
            Some((n, a)) if !a.is_empty() => (n, Some(a)),
            Some(_) => return None,
            None => (name, None),
        };
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.' | b'_');
        if name.is_empty() || !name.bytes().all(valid) {
            return None;
        }
        rest = rest.trim_start();
        let mut condition = None;
        if let Some(inside) = rest.strip_prefix('(') {
            let (inside, after) = inside.split_once(')')?;
            let inside = inside.trim();
            let end = inside.find(|c| !matches!(c, '<' | '>' | '=')).unwrap_or(inside.len());
            let (relation, number) = inside.split_at(end);
            let relation = match relation {
                "<<" => Relation::Less,
                "<=" | "<" => Relation::LessEqual,
                "=" | "" => Relation::Equal,
                ">=" | ">" => Relation::GreaterEqual,
                ">>" => Relation::Greater,
                _ => return None,
            };
            let number = number.trim();
            if number.is_empty() {
                return None;
            }
            condition = Some((relation, number));
            rest = after.trim_start();
        }
        // Architecture and profile restrictions are of source packages; in a binary's they are ignored, as apt does.
        let known = rest.is_empty() || rest.starts_with('[') || rest.starts_with('<');
        known.then_some(Atom { name, arch, version: condition })
    }
}

/// The clauses of a field.
pub fn split(field: &str) -> impl Iterator<Item = &str> {
    field.split(',').map(str::trim).filter(|c| !c.is_empty())
}

/// The alternatives of a clause; `None` when the text is no dependency.
pub fn alternatives(clause: &str) -> Option<Vec<Atom<'_>>> {
    clause.split('|').map(Atom::parse).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn atom<'a>(name: &'a str, arch: Option<&'a str>, version: Option<(Relation, &'a str)>) -> Atom<'a> {
        Atom { name, arch, version }
    }

    #[test]
    fn the_forms_of_the_policy_manual_parse() {
        let got: Vec<_> = split(
            "libc6 (>= 2.2.1), default-mta | mail-transport-agent,\n python3:any (<< 3.12) | x(=1:2-3)",
        )
        .map(|clause| alternatives(clause).unwrap())
        .collect();
        assert_eq!(
            got,
            [
                vec![atom("libc6", None, Some((Relation::GreaterEqual, "2.2.1")))],
                vec![atom("default-mta", None, None), atom("mail-transport-agent", None, None)],
                vec![
                    atom("python3", Some("any"), Some((Relation::Less, "3.12"))),
                    atom("x", None, Some((Relation::Equal, "1:2-3")))
                ],
            ]
        );
        assert_eq!(split(" , ,").count(), 0);
        assert!(alternatives("foo [amd64] <!nocheck>").is_some());
    }

    #[test]
    fn text_that_is_no_dependency_is_none() {
        for bad in ["a b", "(>= 1)", "a (1", "a (>> )", "a (=> 1)", "a:", "ä", "a | | b"] {
            assert_eq!(alternatives(bad), None, "{bad}");
        }
    }

    #[test]
    fn relations_compare_versions_not_text() {
        assert!(Relation::GreaterEqual.holds("1.10", "1.9"));
        assert!(!Relation::Less.holds("1.10", "1.9"));
        assert!(Relation::Equal.holds("1.0-0", "1.0"));
        assert!(Relation::Greater.holds("1.0", "1.0~rc1"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(names in prop::collection::vec(("[a-z0-9][a-z0-9+.-]{1,8}", 0..6usize), 1..5)) {
            let relations = ["<<", "<=", "=", ">=", ">>"];
            let text: Vec<String> = names.iter().map(|(n, r)| match relations.get(*r) {
                Some(r) => format!("{n} ({r} 1:2.0~x-1)"),
                None => n.clone(),
            }).collect();
            let field = text.join(" | ");
            let parsed = alternatives(&field).unwrap();
            prop_assert_eq!(parsed.len(), names.len());
            for (atom, (name, relation)) in parsed.iter().zip(&names) {
                prop_assert_eq!(atom.name, name);
                prop_assert_eq!(atom.version.is_some(), relations.get(*relation).is_some());
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,40}") {
            let _ = split(&text).map(alternatives).count();
        }
    }
}
