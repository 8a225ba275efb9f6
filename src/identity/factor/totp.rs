//! One-time passwords by time (RFC 6238): six digits, a new one each 30 seconds, by HMAC-SHA-1,
//! which is what apps know.

use qrcode::{EcLevel, QrCode, render::svg};
use subtle::ConstantTimeEq as _;
use totp_rs::{Builder, Totp};
use zeroize::Zeroizing;

use crate::{
    clock::Timestamp,
    entropy::{Entropy, EntropyError},
};

/// The length of a secret, in bytes: "RECOMMENDED" (RFC 4226 §4), and that of the hash.
const SECRET_LEN: usize = 20;

/// How long a code is shown, in seconds (RFC 6238 §5.2).
const STEP: u64 = 30;

/// The longest name in the label of an app, in characters: more makes a picture that no camera reads.
const LONGEST_LABEL: usize = 60;

/// A secret that an app and the service share.
///
/// Not printable.
pub struct TotpSecret(Zeroizing<Vec<u8>>);

impl TotpSecret {
    /// Draws a secret.
    pub fn draw(entropy: &Entropy) -> Result<Self, EntropyError> {
        let bytes = Zeroizing::new(entropy.bytes::<SECRET_LEN>()?);
        Ok(Self(Zeroizing::new(bytes.to_vec())))
    }

    /// Takes on a secret that was drawn before.
    pub fn kept(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sealed.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is this one. Told in constant time.
    pub fn is(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
    }

    /// The step at which a code counts, be it that of `now`, the one before or the one after: clocks
    /// differ, and people take their time (RFC 6238 §5.2).
    ///
    /// # Security
    /// Whoever sends a request chooses `code`. Codes are compared in constant time.
    pub fn step_of(&self, code: &str, now: Timestamp) -> Option<i64> {
        let now = u64::try_from(now.seconds()).ok()?;
        let step = self.generator("", None)?.check(code, now)?;
        i64::try_from(step).ok()
    }

    /// What is typed into an app that cannot read the picture: base32 in groups of four.
    pub fn text(&self) -> String {
        let Some(generator) = self.generator("", None) else {
            return String::new();
        };
        let text = generator.secret().to_base32();
        let groups: Vec<&str> = text
            .as_bytes()
            .chunks(4)
            .filter_map(|group| str::from_utf8(group).ok())
            .collect();
        groups.join(" ")
    }

    /// What apps are told all of this by: `otpauth://totp/…`, for an account at a service of this name.
    pub fn url(&self, service: &str, username: &str) -> Option<String> {
        self.generator(&label(username), Some(&label(service)))?
            .to_url()
            .ok()
    }

    fn generator(&self, account: &str, service: Option<&str>) -> Option<Totp> {
        Builder::new()
            .with_secret(self.0.as_slice())
            .with_digits(6)
            .with_step_duration(STEP)
            .with_skew(1)
            .with_account_name(account)
            .with_issuer(service)
            .build()
            .ok()
    }
}

/// A name as a label holds it: a colon would end it.
fn label(name: &str) -> String {
    let kept = name.chars().take(LONGEST_LABEL);
    kept.map(|c| if c == ':' { ' ' } else { c }).collect()
}

/// The same as a picture for cameras: SVG, black on white whatever the page's colours are.
pub fn picture(url: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(url, EcLevel::M).ok()?;
    let drawn = code
        .render::<svg::Color<'_>>()
        .min_dimensions(200, 200)
        .dark_color(svg::Color("#000"))
        .light_color(svg::Color("#fff"))
        .build();
    // For a page: without the declaration of a document.
    drawn.find("<svg").map(|start| drawn[start..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> TotpSecret {
        TotpSecret::kept(Zeroizing::new(b"12345678901234567890".to_vec()))
    }

    /// RFC 6238 Appendix B, of which an app shows the last six digits.
    #[test]
    fn codes_are_those_of_the_rfc() {
        for (seconds, code) in [
            (59, "94287082"),
            (1_111_111_109, "07081804"),
            (1_111_111_111, "14050471"),
            (1_234_567_890, "89005924"),
            (2_000_000_000, "69279037"),
            (20_000_000_000, "65353130"),
        ] {
            let now = Timestamp::from_seconds(seconds);
            let step = secret().step_of(&code[2..], now);
            assert_eq!(step, Some(seconds / 30), "{seconds}");
        }
    }

    #[test]
    fn a_code_counts_one_step_early_and_one_step_late() {
        let at = |seconds| secret().step_of("050471", Timestamp::from_seconds(seconds));
        let step = 1_111_111_111 / 30;
        for (seconds, expected) in [
            (step * 30 - 31, None),
            (step * 30 - 30, Some(step)),
            (step * 30 + 59, Some(step)),
            (step * 30 + 60, None),
        ] {
            assert_eq!(at(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn what_is_no_code_of_six_digits_is_none() {
        let now = Timestamp::from_seconds(1_111_111_111);
        for code in [
            "", "50471", "0050471", "14050471", "05047x", "+50471", "０50471", "050472",
        ] {
            assert_eq!(secret().step_of(code, now), None, "{code}");
        }
    }

    #[test]
    fn an_app_is_told_everything_by_a_url() {
        let url = secret()
            .url("Acme: Login", "ada:lovelace@example.com")
            .unwrap();
        let url = url::Url::parse(&url).unwrap();
        assert_eq!((url.scheme(), url.host_str()), ("otpauth", Some("totp")));
        let query: Vec<_> = url.query_pairs().into_owned().collect();
        let has = |name: &str, value: &str| {
            assert!(
                query.contains(&(name.to_owned(), value.to_owned())),
                "{query:?}"
            );
        };
        has("secret", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
        has("issuer", "Acme  Login");
        assert_eq!(secret().text(), "GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ");
        let drawn = picture(url.as_str()).unwrap();
        assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>"));
        assert!(!drawn.contains("style="), "no inline style");
        assert!(secret().url(&"x".repeat(300), &"ä".repeat(254)).is_some());
    }

    #[test]
    fn a_drawn_secret_is_as_long_as_its_hash() {
        let secret = TotpSecret::draw(&Entropy::new()).unwrap();
        assert_eq!(secret.expose().len(), 20);
    }
}
