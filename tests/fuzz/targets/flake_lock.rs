//! Feeds `codchi_fuzz::flake_lock`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::flake_lock(data));
