//! Runs commands in a machine for its host.

fn main() {}
