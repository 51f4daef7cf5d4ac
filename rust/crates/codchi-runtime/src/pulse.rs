//! The beginning of a PulseAudio connection, with what asks for shared memory taken out: a server that sees the caller's own user
//! agrees to it, and then sends memory that only bytes follow.
//!
//! After PulseAudio's `PROTOCOL` file and src/pulsecore/pstream.c, tagstruct.c: a packet is a descriptor of five numbers, then
//! tagged values. The first of a client is its log-in: the command, a tag, its version with two marks, its cookie.

use std::io::{self, Read};

/// Bytes until the version is over.
const HEAD: usize = 35;
/// Where the descriptor says that this is a packet, and what it says.
const CHANNEL: (usize, u32) = (4, u32::MAX);
/// Where the command is, and which it is.
const COMMAND: (usize, u32) = (21, 8);
/// Where numbers have their mark.
const NUMBERS: [usize; 3] = [20, 25, 30];
/// Where the version has the marks of shared memory, which are all of its upper half.
const MARKS: std::ops::Range<usize> = 31..33;

/// Reads the beginning of a client's first message and gives it without those marks.
pub(crate) fn without_memory(client: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = [0; HEAD];
    client.read_exact(&mut head)?;
    let is = |(at, wanted): (usize, u32)| head[at..at + 4] == wanted.to_be_bytes();
    if !is(CHANNEL) || !is(COMMAND) || NUMBERS.iter().any(|at| head[*at] != b'L') {
        return Err(io::ErrorKind::InvalidData.into());
    }
    head[MARKS].fill(0);
    Ok(head.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_are_taken_out_and_everything_else_stays() {
        // What libpulse 16.1 says first, up to its cookie.
        let hello =
            b"\0\0\x01\x14\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0L\0\0\0\x08L\0\0\0\0L\xc0\0\0#x\0\0\x01\0";
        let mut client = &hello[..];
        let out = without_memory(&mut client).unwrap();
        assert_eq!(client, b"x\0\0\x01\0");
        assert_eq!(out[..31], hello[..31]);
        assert_eq!(out[31..], *b"\0\0\0#");
        assert!(without_memory(&mut &[b'x'; 64][..]).is_err());
        assert!(without_memory(&mut &hello[..30]).is_err());
    }
}
