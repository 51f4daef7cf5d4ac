//! Feeds `codchi_fuzz::release`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::release(data));
