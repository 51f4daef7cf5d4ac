//! Small things about text that a person reads.

/// Makes text from a machine, a module or a server safe for a terminal: control characters are shown, not obeyed. Line breaks and
/// tabs stay.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            // Bidirectional controls reorder what a person sees.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.extend(c.escape_unicode()),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// The same on one line: line breaks and tabs are shown as well.
pub fn printable_line(text: &str) -> String {
    printable(text).replace('\n', "\\n").replace('\t', "\\t")
}

/// Bytes for people, in powers of 1024.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// A difference in bytes, with its sign.
pub fn signed_bytes(n: i64) -> String {
    let sign = if n < 0 { '-' } else { '+' };
    format!("{sign}{}", bytes(n.unsigned_abs()))
}

/// A number and its noun.
pub fn count(n: u64, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

/// Seconds for people.
pub fn seconds(s: u64) -> String {
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

/// An age such as `90m`, `12h`, `30d` or `2w`, in seconds.
pub fn age(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return None,
    };
    text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(unit)
}

/// The date and time of a Unix time in UTC, such as `2026-11-20 22:30`.
pub fn timestamp(unix: u64) -> String {
    // Days to a civil date, after Howard Hinnant's published algorithm.
    let days = (unix / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let doe = days.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let s = unix % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", s / 3600, s / 60 % 60)
}

/// What differs between two texts, line by line: `-` and `+`, with two lines round each change and nothing where they are equal.
pub fn difference(old: &str, new: &str) -> Vec<String> {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // The longest common subsequence; machine flakes are short.
    let mut common = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] =
                if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut all) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            all.push((' ', a[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || common[i + 1][j] >= common[i][j + 1]) {
            all.push(('-', a[i]));
            i += 1;
        } else {
            all.push(('+', b[j]));
            j += 1;
        }
    }
    const ROUND: usize = 2;
    let near = |n: usize| {
        all[n.saturating_sub(ROUND)..(n + ROUND + 1).min(all.len())].iter().any(|(m, _)| *m != ' ')
    };
    (0..all.len()).filter(|n| near(*n)).map(|n| format!("{} {}", all[n].0, all[n].1)).collect()
}

/// How many single-character edits (insert, delete, replace, swap of neighbours) lead from one word to the other.
pub fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

/// The candidates a person may have meant, best first, at most `limit`.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, limit: usize) -> Vec<&'a str> {
    let allowed = (word.chars().count() / 3).clamp(1, 4);
    let lower = word.to_lowercase();
    let mut found: Vec<(usize, &str)> = candidates
        .into_iter()
        .filter(|c| c.len().abs_diff(word.len()) <= allowed + 8)
        .filter_map(|c| {
            let low = c.to_lowercase();
            let d = distance(&lower, &low);
            // A word that contains the other is near, but less so than a typing mistake.
            let contains =
                word.len() >= 3 && (low.starts_with(&lower) || lower.starts_with(&low) && low.len() >= 3);
            if d <= allowed { Some((d, c)) } else { contains.then_some((allowed + d, c)) }
        })
        .collect();
    found.sort();
    found.into_iter().take(limit).map(|(_, c)| c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_a_unit() {
        assert_eq!(age("30d"), Some(30 * 86_400));
        assert_eq!((age("2w"), age("0h"), age("90m")), (Some(14 * 86_400), Some(0), Some(5400)));
        for odd in ["", "d", "30", "-1d", "1y", "99999999999999999w", "3 d"] {
            assert_eq!(age(odd), None, "{odd}");
        }
    }

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(printable("a\x1b[31mb\r\n\tc\u{202e}"), "a\\u{1b}[31mb\\r\n\tc\\u{202e}");
        assert_eq!(printable_line("a\nb"), "a\\nb");
    }

    #[test]
    fn sizes_read_well() {
        for (n, s) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10 * 1024, "10 KiB"),
            (1048575, "1.0 MiB"),
            (92 << 20, "92 MiB"),
        ] {
            assert_eq!(bytes(n), s);
        }
        assert_eq!(signed_bytes(-2048), "-2.0 KiB");
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(timestamp(0), "1970-01-01 00:00");
        assert_eq!(timestamp(1_709_164_800), "2024-02-29 00:00");
        assert_eq!(timestamp(1_789_749_394), "2026-09-18 16:36");
    }

    #[test]
    fn a_difference_shows_what_changed_and_what_is_round_it() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), [""; 0]);
        assert_eq!(
            difference("1\n2\n3\n4\n5\n6\n7", "1\n2\n3\n4\nfive\n6\n7"),
            ["  3", "  4", "- 5", "+ five", "  6", "  7"]
        );
        assert_eq!(difference("", "x"), ["+ x"]);
    }

    #[test]
    fn the_nearest_word_is_suggested_first() {
        let commands = ["start", "status", "stop", "store", "restart"];
        assert_eq!(nearest("stauts", commands, 2), ["status", "start"]);
        assert_eq!(nearest("xyz", commands, 2), [""; 0]);
        assert_eq!(nearest("postgres", ["postgresql", "progress"], 1), ["postgresql"]);
    }

    proptest::proptest! {
        #[test]
        fn nothing_printable_holds_an_escape(s in "\\PC*|.*") {
            assert!(printable_line(&s).chars().all(|c| !c.is_control()));
        }

        #[test]
        fn distance_is_symmetric_and_zero_for_the_same(a in "[a-d]{0,6}", b in "[a-d]{0,6}") {
            assert_eq!(distance(&a, &b), distance(&b, &a));
            assert_eq!(distance(&a, &b) == 0, a == b);
        }
    }
}
