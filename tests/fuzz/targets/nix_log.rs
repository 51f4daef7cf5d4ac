//! Feeds `codchi_fuzz::nix_log`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::nix_log(data));
