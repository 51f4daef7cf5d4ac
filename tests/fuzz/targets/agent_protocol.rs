//! Feeds `codchi_fuzz::agent_protocol`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codchi_fuzz::agent_protocol(data));
