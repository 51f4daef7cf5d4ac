//! PID 1 of a container before its init.

fn main() {}
