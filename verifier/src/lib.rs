//! Verifies RFC 9068 access tokens locally, with nothing of the issuer in it.
//!
//! A resource server needs three things: the issuer's keys as a [`KeySet`], an [`Expectation`] of
//! who issued the token and for whom, and the current time. [`verify()`] then answers with
//! the token's claims or with the first rule that it breaks; [`inspect()`] explains every rule.
//! Nothing here does I/O, reads a clock or keeps global state.
//!
//! ```
//! use countersign_verifier::{Expectation, KeySet, VerifyError, verify};
//!
//! fn authenticate(token: &str, keys: &KeySet, now: u64) -> Result<String, VerifyError> {
//!     let expected = Expectation {
//!         issuer: "https://issuer.example".to_owned(),
//!         audience: Some("https://api.example".to_owned()),
//!         leeway_seconds: 30,
//!     };
//!     Ok(verify(token, keys, &expected, now)?.sub.into_owned())
//! }
//! ```
//!
//! The modules, from bytes to meaning; each uses only those before it:
//! [`base64url`] and [`json`] decode strictly, [`jwk`] holds keys, [`jws`] parses and checks
//! signatures, [`claims`] is the content, [`mod@verify`] and [`mod@inspect`] judge it.
//!
//! To check another claim, add it to the rules of [`mod@verify`]; `inspect` follows by itself.

pub mod base64url;
pub mod claims;
pub mod inspect;
pub mod json;
pub mod jwk;
pub mod jws;
pub mod verify;

pub use claims::{AccessTokenClaims, Audience};
pub use inspect::{Finding, inspect};
pub use jwk::{KeySet, PublicKey};
pub use verify::{Expectation, VerifyError, verify};
