//! The beginning of an X11 connection, with the cookie put in: a machine is never told it.
//!
//! After "X Window System Protocol", chapter 8 (Connection Setup), and the file format of Xauthority(7).

use std::io::{self, Read};

/// The one way of proving who one is that is spoken here.
const NAME: &[u8] = b"MIT-MAGIC-COOKIE-1";
/// Longest name or proof that is believed.
const LIMIT: usize = 1024;

/// The cookie for a display of this computer, out of an Xauthority file.
pub(crate) fn cookie(file: &[u8], display: u32) -> Option<Vec<u8>> {
    let wanted = display.to_string();
    let mut rest = file;
    let mut found = None;
    while let Some((family, after)) = rest.split_first_chunk::<2>() {
        rest = after;
        let mut fields = [&[][..]; 4];
        for field in &mut fields {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let length = usize::from(u16::from_be_bytes(*length));
            (*field, rest) = after.split_at_checked(length)?;
        }
        let [_, number, name, data] = fields;
        // For this computer (256), for any (65535), for an address of it.
        let rank = match u16::from_be_bytes(*family) {
            256 => 3,
            65535 => 2,
            _ => 1,
        };
        let fits = number.is_empty() || number == wanted.as_bytes();
        if name == NAME && fits && found.as_ref().is_none_or(|(best, _)| *best < rank) {
            found = Some((rank, data.to_vec()));
        }
    }
    found.map(|(_, data)| data)
}

/// Reads a client's first message and gives it with the cookie; without one, as it came.
pub(crate) fn authorized(client: &mut impl Read, cookie: Option<Vec<u8>>) -> io::Result<Vec<u8>> {
    let mut head = [0; 12];
    client.read_exact(&mut head)?;
    let big = match head[0] {
        b'B' => true,
        b'l' => false,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let number = |at: usize| {
        let bytes = [head[at], head[at + 1]];
        usize::from(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let padded = |n: usize| n.div_ceil(4) * 4;
    let (name, data) = (number(6), number(8));
    if name > LIMIT || data > LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut proof = vec![0; padded(name) + padded(data)];
    client.read_exact(&mut proof)?;
    let Some(cookie) = cookie else { return Ok([&head[..], &proof].concat()) };
    for (at, value) in [(6, NAME.len()), (8, cookie.len())] {
        let bytes = if big { (value as u16).to_be_bytes() } else { (value as u16).to_le_bytes() };
        head[at..at + 2].copy_from_slice(&bytes);
    }
    let mut out = head.to_vec();
    for part in [NAME, &cookie] {
        out.extend_from_slice(part);
        out.resize(padded(out.len()), 0);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(family: u16, number: &str, name: &[u8], data: &[u8]) -> Vec<u8> {
        let mut out = family.to_be_bytes().to_vec();
        for field in [&b"host"[..], number.as_bytes(), name, data] {
            out.extend_from_slice(&(field.len() as u16).to_be_bytes());
            out.extend_from_slice(field);
        }
        out
    }

    #[test]
    fn the_cookie_of_this_computer_and_display_is_chosen() {
        let file = [
            entry(0, "1", NAME, b"address"),
            entry(256, "2", NAME, b"other display"),
            entry(65535, "1", NAME, b"any"),
            entry(256, "1", b"XDM-AUTHORIZATION-1", b"other way"),
            entry(256, "1", NAME, b"local"),
        ]
        .concat();
        assert_eq!(cookie(&file, 1).as_deref(), Some(&b"local"[..]));
        assert_eq!(cookie(&file, 7), None);
        assert_eq!(cookie(&entry(65535, "", NAME, b"x"), 9).as_deref(), Some(&b"x"[..]));
        assert_eq!(cookie(&file[..file.len() - 1], 1).as_deref(), None);
    }

    #[test]
    fn the_cookie_is_put_in_and_everything_else_stays() {
        // Little endian, version 11.0, a name of 3 bytes and a proof of 5, both padded.
        let mut hello = b"l\0\x0b\0\0\0\x03\0\x05\0\0\0abc\0".to_vec();
        hello.extend_from_slice(b"proof\0\0\0then");
        let mut client = &hello[..];
        let out = authorized(&mut client, Some(vec![7; 16])).unwrap();
        assert_eq!(client, b"then");
        assert_eq!(&out[..12], b"l\0\x0b\0\0\0\x12\0\x10\0\0\0");
        assert_eq!(&out[12..32], b"MIT-MAGIC-COOKIE-1\0\0");
        assert_eq!(out[32..], [7; 16]);
        let mut client = &hello[..];
        assert_eq!(authorized(&mut client, None).unwrap(), hello[..hello.len() - 4]);
        assert!(authorized(&mut &b"GET / HTTP/1"[..], None).is_err());
    }
}
