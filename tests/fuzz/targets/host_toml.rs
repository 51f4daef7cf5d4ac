//! Feeds `codchi_fuzz::host_toml`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::host_toml(data));
