//! Feeds `codchi_fuzz::source`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::source(data));
