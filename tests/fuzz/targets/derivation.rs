//! Feeds `codchi_fuzz::derivation`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::derivation(data));
