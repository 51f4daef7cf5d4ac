//! Feeds `codchi_fuzz::nix_trace`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::nix_trace(data));
