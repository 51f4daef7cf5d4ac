//! Feeds `codchi_fuzz::flake_edit`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::flake_edit(data));
