//! Feeds `codchi_fuzz::tar`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::tar(data));
