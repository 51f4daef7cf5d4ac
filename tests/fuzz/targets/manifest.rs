//! Feeds `codchi_fuzz::manifest`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::manifest(data));
