//! Signing in by way of a browser (RFC 6749 §4.1, `OpenID` Connect Core §3.1).
//!
//! Nothing is stored for a request before its user has signed in: its text goes to the browser and
//! back, sealed, and is read anew at each step.

mod claims;
pub mod endpoint;
mod flow;
pub mod request;
pub mod second_factor;
