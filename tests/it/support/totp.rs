//! One-time passwords as an app makes them (RFC 6238), apart from how the service does it.

use countersign::clock::Timestamp;
use ring::hmac;

/// The bytes of a secret as pages show it: base32 in groups.
pub(crate) fn secret(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for c in text.chars().filter(|c| *c != ' ') {
        let value = match c {
            'A'..='Z' => c as u32 - 'A' as u32,
            '2'..='7' => c as u32 - '2' as u32 + 26,
            _ => panic!("{text}"),
        };
        bits = bits << 5 | value;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 255).unwrap());
        }
    }
    bytes
}

/// The code of a moment.
pub(crate) fn code(secret: &[u8], now: Timestamp) -> String {
    let step = u64::try_from(now.seconds()).unwrap() / 30;
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let tag = tag.as_ref();
    let at = usize::from(tag[19] & 15);
    let bytes: [u8; 4] = tag[at..at + 4].try_into().unwrap();
    let number = u32::from_be_bytes(bytes) & 0x7fff_ffff;
    format!("{:06}", number % 1_000_000)
}

/// A code that is none of those that count at a moment.
pub(crate) fn wrong_code(secret: &[u8], now: Timestamp) -> String {
    let near =
        [-30, 0, 30].map(|offset| code(secret, Timestamp::from_seconds(now.seconds() + offset)));
    let all = (0..).map(|number| format!("{number:06}"));
    all.into_iter().find(|code| !near.contains(code)).unwrap()
}
