//! Debian version numbers, compared as the policy manual (5.6.12) and deb-version(7) say.

use std::cmp::Ordering;

/// Compares two version numbers: epoch, upstream version, revision.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (split(a), split(b));
    a.0.cmp(&b.0).then_with(|| part(a.1, b.1)).then_with(|| part(a.2, b.2))
}

/// Epoch (0 where absent), upstream version, revision (empty where absent, which compares like `0`).
fn split(version: &str) -> (u64, &str, &str) {
    let version = version.trim();
    let (epoch, rest) = match version.split_once(':') {
        // An epoch that is no number is no epoch; one that is too big is bigger than all that are not.
        Some((e, rest)) if !e.is_empty() && e.bytes().all(|b| b.is_ascii_digit()) => {
            (e.parse().unwrap_or(u64::MAX), rest)
        }
        _ => (0, version),
    };
    match rest.rsplit_once('-') {
        Some((upstream, revision)) => (epoch, upstream, revision),
        None => (epoch, rest, ""),
    }
}

/// Order of a character in the non-digit parts: `~` before the end, the end before letters, letters before the rest.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(b) if b.is_ascii_digit() => 0,
        Some(b) if b.is_ascii_alphabetic() => i32::from(*b),
        Some(b) => i32::from(*b) + 256,
    }
}

fn part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        loop {
            let done = |s: &[u8]| s.first().is_none_or(u8::is_ascii_digit);
            if done(a) && done(b) {
                break;
            }
            match weight(a.first()).cmp(&weight(b.first())) {
                // Equal weight means the same character, so both have one.
                Ordering::Equal => (a, b) = (&a[1..], &b[1..]),
                other => return other,
            }
        }
        let (x, y) = (digits(&mut a), digits(&mut b));
        let order = x.len().cmp(&y.len()).then_with(|| x.cmp(y));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Takes the number at the start, without leading zeros; numbers may be longer than any integer.
fn digits<'a>(s: &mut &'a [u8]) -> &'a [u8] {
    let end = s.iter().position(|b| !b.is_ascii_digit()).unwrap_or(s.len());
    let (number, rest) = s.split_at(end);
    *s = rest;
    let zeros = number.iter().take_while(|b| **b == b'0').count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_policy_manual_sort_as_it_says() {
        // 5.6.12: "the parts ~~, ~~a, ~, the empty part, a: sorted from earliest to latest".
        let order = ["~~", "~~a", "~", "", "a"];
        for (i, a) in order.iter().enumerate() {
            for (j, b) in order.iter().enumerate() {
                assert_eq!(part(a, b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
        for (a, want, b) in [
            ("1.0~beta1~svn1245", Ordering::Less, "1.0~beta1"),
            ("1.0~beta1", Ordering::Less, "1.0"),
            ("0:1", Ordering::Equal, "1"),
            ("1:0.4", Ordering::Greater, "10.3"),
            ("1.2.3-0", Ordering::Equal, "1.2.3"),
            ("1.10", Ordering::Greater, "1.9"),
            ("1.010", Ordering::Equal, "1.10"),
            ("1.2-3.1", Ordering::Greater, "1.2-3"),
            ("1.2a", Ordering::Less, "1.2+"),
            ("1.2-1+deb12u1", Ordering::Greater, "1.2-1"),
            ("1.2-1~bpo12+1", Ordering::Less, "1.2-1"),
            ("2:1.0-1-2", Ordering::Less, "2:1.0-2-1"),
            ("1.99999999999999999999999999", Ordering::Greater, "1.99999999999999999999999998"),
        ] {
            assert_eq!(compare(a, b), want, "{a} {b}");
            assert_eq!(compare(b, a), want.reverse(), "{b} {a}");
        }
    }

    const VERSION: &str = "([0-3]:)?[0-9][0-9a-c.+~]{0,6}(-[0-9a-c.+~]{1,4})?";

    fn dpkg(a: &str, op: &str, b: &str) -> Option<bool> {
        let out = Command::new("dpkg").args(["--compare-versions", a, op, b]).output().ok()?;
        Some(out.status.code() == Some(0))
    }

    proptest! {
        #[test]
        fn comparing_is_a_total_order(a in VERSION, b in VERSION, c in VERSION) {
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le());
            }
        }

        #[test]
        fn dpkg_agrees_where_there_is_one(a in VERSION, b in VERSION) {
            let op = match compare(&a, &b) {
                Ordering::Less => "lt",
                Ordering::Equal => "eq",
                Ordering::Greater => "gt",
            };
            if let Some(agrees) = dpkg(&a, op, &b) {
                prop_assert!(agrees, "{} {} {}", a, op, b);
            }
        }

        #[test]
        fn any_text_is_compared_without_a_panic(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
        }
    }
}
