//! One file per grant; each exports `exchange`.

pub mod client_credentials;
