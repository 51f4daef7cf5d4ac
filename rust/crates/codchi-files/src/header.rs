//! Headers of tars: the ustar block and the extended header of POSIX.1-2001 ("pax"), with the keys that star and GNU tar added
//! for attributes, ACLs and holes.

use crate::error::{FilesError, Result};

pub(crate) const BLOCK: usize = 512;

/// Records of an extended header.
pub(crate) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// What a block says, as far as it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub name: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Bytes that follow, before they are filled up to a block.
    pub size: u64,
    pub modified: i64,
    pub kind: u8,
    pub link: Vec<u8>,
    pub device: (u32, u32),
}

impl Header {
    /// The block, preceded by an extended header that says what has no room in it and `more`.
    pub fn write(&self, mut more: Records, out: &mut Vec<u8>) {
        let mut put = |key: &str, value: Vec<u8>| more.push((key.into(), value));
        let short = |v: &[u8]| v.len() <= 100;
        if !short(&self.name) {
            put("path", self.name.clone());
        }
        if !short(&self.link) {
            put("linkpath", self.link.clone());
        }
        for (key, value, digits) in [("size", self.size, 11), ("uid", self.uid, 7), ("gid", self.gid, 7)] {
            if value >> (3 * digits) != 0 {
                put(key, value.to_string().into_bytes());
            }
        }
        if !more.is_empty() {
            let mut text = Vec::new();
            for (key, value) in &more {
                record(key, value, &mut text);
            }
            let base = self.name.rsplit(|c| *c == b'/').find(|n| !n.is_empty()).unwrap_or_default();
            let name = [b"PaxHeaders/", &base[..base.len().min(80)]].concat();
            let extended =
                Header { name, mode: 0o644, size: text.len() as u64, kind: b'x', ..Header::default() };
            extended.block(out);
            out.extend_from_slice(&text);
            fill(out, text.len() as u64);
        }
        self.block(out);
    }

    fn block(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + BLOCK, 0);
        let block = &mut out[start..];
        let text = |at: &mut [u8], v: &[u8]| {
            let n = v.len().min(at.len());
            at[..n].copy_from_slice(&v[..n]);
        };
        let octal = |at: &mut [u8], v: u64| {
            let digits = at.len() - 1;
            let v = if digits < 21 && v >> (3 * digits) != 0 { 0 } else { v };
            at[..digits].copy_from_slice(format!("{v:0digits$o}").as_bytes());
        };
        text(&mut block[0..100], &self.name);
        octal(&mut block[100..108], self.mode.into());
        octal(&mut block[108..116], self.uid);
        octal(&mut block[116..124], self.gid);
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], u64::try_from(self.modified).unwrap_or(0));
        block[148..156].fill(b' ');
        block[156] = self.kind;
        text(&mut block[157..257], &self.link);
        text(&mut block[257..265], b"ustar\x0000");
        octal(&mut block[329..337], self.device.0.into());
        octal(&mut block[337..345], self.device.1.into());
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    /// Reads a block.
    pub fn read(block: &[u8; BLOCK]) -> Result<Header> {
        let bad = |what: &str| FilesError::Tar(format!("a header has no valid {what}"));
        let sum = number(&block[148..156]).ok_or_else(|| bad("checksum"))?;
        let got: u64 = block.iter().map(|b| u64::from(*b)).sum::<u64>()
            - block[148..156].iter().map(|b| u64::from(*b)).sum::<u64>()
            + 8 * u64::from(b' ');
        if sum != got as i64 {
            return Err(bad("checksum"));
        }
        let text = |r: std::ops::Range<usize>| {
            let field = &block[r];
            field[..field.iter().position(|c| *c == 0).unwrap_or(field.len())].to_vec()
        };
        let positive = |r: std::ops::Range<usize>, what: &str| {
            number(&block[r]).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| bad(what))
        };
        let mut name = text(0..100);
        // GNU tar's older form has other things where the standard has the prefix.
        if &block[257..263] == b"ustar\0" {
            let prefix = text(345..500);
            if !prefix.is_empty() {
                name = [prefix.as_slice(), b"/", &name].concat();
            }
        }
        let device = |r| positive(r, "device").map(|n| u32::try_from(n).unwrap_or(0));
        Ok(Header {
            name,
            mode: (positive(100..108, "mode")? & 0o7777) as u32,
            uid: positive(108..116, "owner")?,
            gid: positive(116..124, "group")?,
            size: positive(124..136, "size")?,
            modified: number(&block[136..148]).ok_or_else(|| bad("time"))?,
            kind: block[156],
            link: text(157..257),
            device: match block[156] {
                b'3' | b'4' => (device(329..337)?, device(337..345)?),
                _ => (0, 0),
            },
        })
    }
}

/// Octal digits, or GNU tar's binary form of what has no room.
fn number(field: &[u8]) -> Option<i64> {
    if let Some((first, rest)) = field.split_first().filter(|(f, _)| *f & 0x80 != 0) {
        let negative = first & 0x40 != 0;
        let start = if negative { -1i64 } else { i64::from(first & 0x3f) };
        return rest.iter().try_fold(start, |n, b| n.checked_mul(256).map(|n| n | i64::from(*b)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() }
}

/// Zeros up to the end of a block.
pub(crate) fn fill(out: &mut Vec<u8>, size: u64) {
    out.resize(out.len() + filling(size), 0);
}

/// How many bytes that takes.
pub(crate) fn filling(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The records of an extended header.
pub(crate) fn records(mut text: &[u8]) -> Result<Records> {
    let bad = || FilesError::Tar("an extended header cannot be read".into());
    let mut all = Vec::new();
    while !text.is_empty() {
        let blank = text.iter().take(20).position(|c| *c == b' ').ok_or_else(bad)?;
        let length: usize =
            std::str::from_utf8(&text[..blank]).ok().and_then(|t| t.parse().ok()).ok_or_else(bad)?;
        let record = text.get(blank + 1..length).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|c| *c == b'=').ok_or_else(bad)?;
        all.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        text = &text[length..];
    }
    Ok(all)
}

/// An attribute's name as it stands in a key: what would end the key is written otherwise, as GNU tar does.
pub(crate) fn attribute_key(name: &[u8]) -> Vec<u8> {
    let mut key = b"SCHILY.xattr.".to_vec();
    for c in name {
        match c {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            c => key.push(*c),
        }
    }
    key
}

/// The other way round.
pub(crate) fn attribute_name(key: &[u8]) -> Option<Vec<u8>> {
    let mut rest = key.strip_prefix(b"SCHILY.xattr.")?;
    let mut name = Vec::new();
    while let Some((mut c, more)) = rest.split_first() {
        (c, rest) = match more {
            [b'3', b'D', more @ ..] if *c == b'%' => (&b'=', more),
            [b'2', b'5', more @ ..] if *c == b'%' => (&b'%', more),
            more => (c, more),
        };
        name.push(*c);
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for n in 0..1200 {
            let mut out = Vec::new();
            record(b"k", &vec![b'v'; n], &mut out);
            assert_eq!(records(&out).unwrap(), [(b"k".to_vec(), vec![b'v'; n])]);
        }
    }

    #[test]
    fn numbers_are_read_in_both_forms() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 644 \0\0\0"), Some(0o644));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x10\0\0\0\0"), Some(0x10_0000_0000));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(number(b"9"), None);
    }

    #[test]
    fn an_attribute_may_have_any_name() {
        for name in [&b"user.a"[..], b"user.a=b", b"user.100%", b"user.%3D%25"] {
            assert_eq!(attribute_name(&attribute_key(name)).unwrap(), name);
        }
    }

    proptest::proptest! {
        #[test]
        fn a_header_is_read_back_as_written(name in proptest::collection::vec(1u8.., 1..100), mode in 0u32..0o10000, uid in 0u64..65536, size in 0u64..1 << 33, modified in 0i64..1 << 33) {
            let header = Header { name, mode, uid, gid: uid, size, modified, kind: b'0', link: b"x".to_vec(), device: (0, 0) };
            let mut out = Vec::new();
            header.write(Vec::new(), &mut out);
            let block: &[u8; BLOCK] = out[out.len() - BLOCK..].try_into().unwrap();
            assert_eq!(Header::read(block).unwrap(), header);
        }
    }
}
