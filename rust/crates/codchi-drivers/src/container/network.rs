//! A machine's addresses, read from the kernel's tables of its network namespace.

/// IPv4 addresses of the machine whose PID 1 is `leader`, the loopback left out.
pub fn addresses(leader: u32) -> Vec<String> {
    let table = codchi_fs::read_to_string(format!("/proc/{leader}/net/fib_trie")).unwrap_or_default();
    parse(&table)
}

/// The local addresses of a `fib_trie` (proc(5)): each is named on the line before `/32 host LOCAL`.
fn parse(table: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut last = "";
    for line in table.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address;
        } else if line == "/32 host LOCAL" && !last.starts_with("127.") && !found.iter().any(|f| f == last) {
            found.push(last.into());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_found_once_and_the_loopback_is_left_out() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.2.0\n        /24 link UNICAST\n     |-- 10.0.2.15\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 10.0.2.15\n        /32 host LOCAL\n";
        assert_eq!(parse(table), ["10.0.2.15"]);
    }
}
