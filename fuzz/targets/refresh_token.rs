#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| countersign_fuzz::issuer::refresh_token(data));
