//! Feeds `codchi_fuzz::packages`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::packages(data));
