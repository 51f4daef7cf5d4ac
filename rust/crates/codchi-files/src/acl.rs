//! POSIX ACLs: the kernel's form, and the text that tars carry (`SCHILY.acl.access`, as GNU tar, bsdtar and star write it).
//!
//! See acl(5) and linux/posix_acl_xattr.h.

const VERSION: u32 = 2;
const NOBODY: u32 = u32::MAX;

/// Tags in the order in which the kernel wants them, with the name in text.
const TAGS: [(u16, &str); 6] =
    [(0x01, "user"), (0x02, "user"), (0x04, "group"), (0x08, "group"), (0x10, "mask"), (0x20, "other")];

/// The text of an ACL in the kernel's form; none where it is not one. Users and groups go through a function each.
pub(crate) fn to_text(
    value: &[u8],
    user: &dyn Fn(u32) -> u32,
    group: &dyn Fn(u32) -> u32,
) -> Option<Vec<u8>> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut lines = Vec::new();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let permissions = u16::from_le_bytes([entry[2], entry[3]]);
        let owner = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let name = TAGS.iter().find(|(t, _)| *t == tag)?.1;
        let who = match tag {
            0x02 => user(owner).to_string(),
            0x08 => group(owner).to_string(),
            _ => String::new(),
        };
        let bit = |b: u16, c: char| if permissions & b == 0 { '-' } else { c };
        lines.push(format!("{name}:{who}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x')));
    }
    Some(lines.join(",").into_bytes())
}

/// The kernel's form of an ACL in text; none where it is not one that can be understood.
pub(crate) fn from_text(text: &[u8], id: &dyn Fn(u32) -> u32) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries: Vec<(u16, u32, u16)> = Vec::new();
    for line in text.split([',', '\n']).map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut fields = line.split(':');
        let (name, who, permissions) = (fields.next()?, fields.next()?, fields.next()?);
        let number = fields.next();
        let (tag, owner) = match (name, who) {
            ("user" | "u", "") => (0x01, NOBODY),
            ("group" | "g", "") => (0x04, NOBODY),
            ("mask" | "m", "") => (0x10, NOBODY),
            ("other" | "o", "") => (0x20, NOBODY),
            // A name means nothing here; star writes the number after it.
            ("user" | "u", who) => (0x02, id(number.unwrap_or(who).parse().ok()?)),
            ("group" | "g", who) => (0x08, id(number.unwrap_or(who).parse().ok()?)),
            _ => return None,
        };
        let mut bits = 0;
        for c in permissions.chars() {
            bits |= match c {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                '-' => 0,
                _ => return None,
            };
        }
        entries.push((tag, owner, bits));
    }
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, owner, bits) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(owner.to_le_bytes());
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_other_programs_write_and_read() {
        let text = b"user::rwx,user:1000:r--,group::r-x,group:7:-w-,mask::rwx,other::--x";
        let value = from_text(text, &|i| i).unwrap();
        assert_eq!(to_text(&value, &|i| i, &|i| i).unwrap(), text);
        let star = b"user::rwx\nuser:joe:r--:1000\ngroup::r-x\ngroup:wheel:-w-:7\nmask::rwx\nother::--x\n";
        assert_eq!(from_text(star, &|i| i).unwrap(), value);
        assert_eq!(from_text(b"user:joe:r--", &|i| i), None);
        assert_eq!(from_text(b"user::rwz", &|i| i), None);
        assert_eq!(to_text(b"\x02\0\0\0\x01", &|i| i, &|i| i), None);
        assert_eq!(
            to_text(&from_text(b"user:5:rwx,group:5:r--", &|i| i + 1).unwrap(), &|i| i * 2, &|i| i).unwrap(),
            b"user:12:rwx,group:6:r--"
        );
    }
}
