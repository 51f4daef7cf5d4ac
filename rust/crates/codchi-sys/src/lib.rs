//! The one place with unsafe code: system calls that rustix does not wrap.
#![allow(unsafe_code)]

pub mod signal;
pub mod spawn;
