//! Signing out: asked for by way of the browser (`OpenID` Connect RP-Initiated Logout 1.0).

pub mod endpoint;
