//! What a machine of the base runs as `init`, `activate` and `bin/switch-to-configuration`.

fn main() {}
