//! One file per grant; each exports `exchange`. What the tokens of a sign-in have in common is in
//! `sign_in`.

pub mod authorization_code;
pub mod client_credentials;
pub mod refresh_token;
pub(in crate::oauth) mod sign_in;
