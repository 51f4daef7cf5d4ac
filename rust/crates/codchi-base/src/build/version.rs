//! Debian's version order (deb-version(7)) and the relations of package fields (deb-control(5)).

use std::cmp::Ordering;

/// Compares two Debian versions.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (ea, ua, ra) = split(a);
    let (eb, ub, rb) = split(b);
    ea.cmp(&eb).then_with(|| part(ua, ub)).then_with(|| part(ra, rb))
}

fn split(v: &str) -> (u64, &str, &str) {
    let (epoch, rest) = match v.split_once(':') {
        Some((e, rest)) => (e.parse().unwrap_or(0), rest),
        None => (0, v),
    };
    match rest.rsplit_once('-') {
        Some((upstream, revision)) => (epoch, upstream, revision),
        None => (epoch, rest, "0"),
    }
}

fn weight(c: Option<&u8>) -> i32 {
    match c {
        None => 0,
        Some(b'~') => -1,
        Some(c) if c.is_ascii_digit() => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

fn part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        loop {
            let (x, y) = (a.first(), b.first());
            let word = |c: Option<&u8>| c.is_some_and(|c| !c.is_ascii_digit());
            if !word(x) && !word(y) {
                break;
            }
            match weight(x).cmp(&weight(y)) {
                Ordering::Equal => {}
                other => return other,
            }
            a = a.get(1..).unwrap_or(&[]);
            b = b.get(1..).unwrap_or(&[]);
        }
        let (x, y) = (digits(&mut a), digits(&mut b));
        match x.len().cmp(&y.len()).then_with(|| x.cmp(y)) {
            Ordering::Equal => {}
            other => return other,
        }
    }
    Ordering::Equal
}

/// Takes the number at the front, without leading zeros.
fn digits<'a>(s: &mut &'a [u8]) -> &'a [u8] {
    let n = s.iter().take_while(|c| c.is_ascii_digit()).count();
    let (number, rest) = s.split_at(n);
    *s = rest;
    let zeros = number.iter().take_while(|c| **c == b'0').count();
    &number[zeros..]
}

/// One alternative of a relation, such as `libc6 (>= 2.36)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// Package name, without an architecture.
    pub name: &'a str,
    /// Operator and version.
    pub version: Option<(&'a str, &'a str)>,
}

impl Relation<'_> {
    /// Whether a version satisfies the relation.
    pub fn accepts(&self, version: &str) -> bool {
        let Some((op, wanted)) = self.version else { return true };
        let order = compare(version, wanted);
        match op {
            "<<" => order.is_lt(),
            "<=" | "<" => order.is_le(),
            "=" => order.is_eq(),
            ">=" | ">" => order.is_ge(),
            ">>" => order.is_gt(),
            _ => false,
        }
    }
}

/// The relations of a field, alternatives flattened.
pub fn relations(field: &str) -> impl Iterator<Item = Relation<'_>> {
    field.split([',', '|']).filter_map(|one| {
        let one = one.trim();
        let end = one.find([' ', '(', '[', '<']).unwrap_or(one.len());
        let name = one[..end].split(':').next().filter(|n| !n.is_empty())?;
        let version = one.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(inside, _)| {
            let inside = inside.trim();
            let at = inside.find(|c: char| !"<>=".contains(c)).unwrap_or(inside.len());
            (&inside[..at], inside[at..].trim())
        });
        Some(Relation { name, version })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        for (a, b) in [
            ("1.0~rc1-1", "1.0-1"),
            ("1.0-1", "1.0-1+deb12u1"),
            ("1.9", "1.10"),
            ("2.36-9", "1:0.1"),
            ("1.0a", "1.0+b"),
            ("252.38-1~deb12u1", "252.38-1"),
            ("1.2", "1.2.0.1"),
        ] {
            assert_eq!(compare(a, b), Ordering::Less, "{a} < {b}");
            assert_eq!(compare(b, a), Ordering::Greater, "{b} > {a}");
        }
        assert_eq!(compare("1.01-0", "1.1"), Ordering::Equal);
    }

    #[test]
    fn a_field_gives_its_relations() {
        let all: Vec<_> = relations("libc6 (>= 2.36), python3:any (<< 3.12) | awk").collect();
        assert_eq!(all[0], Relation { name: "libc6", version: Some((">=", "2.36")) });
        assert_eq!(all[1], Relation { name: "python3", version: Some(("<<", "3.12")) });
        assert_eq!(all[2], Relation { name: "awk", version: None });
        assert!(all[1].accepts("3.11.2-1") && !all[1].accepts("3.12"));
    }
}
