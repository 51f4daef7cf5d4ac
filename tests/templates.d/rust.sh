cd "$(mktemp -d)"
echo 'fn main() { println!("{}", 6 * 7) }' > answer.rs
rustc answer.rs
[ "$(./answer)" = 42 ]
cargo clippy --version
rustfmt --version
