//! The one place with unsafe code: system calls that rustix does not wrap.
