//! Feeds `codchi_fuzz::deb`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::deb(data));
