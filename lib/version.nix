# The release these sources belong to; a test compares it with rust/Cargo.toml.
"0.1.0"
