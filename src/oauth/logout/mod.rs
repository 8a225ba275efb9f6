//! Signing out: asked for by way of the browser (`OpenID` Connect RP-Initiated Logout 1.0), and told to
//! the clients whose users are signed out (`OpenID` Connect Back-Channel Logout 1.0).

pub mod endpoint;
pub mod notices;
