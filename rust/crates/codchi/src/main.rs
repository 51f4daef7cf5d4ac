//! The codchi command.

fn main() {}
