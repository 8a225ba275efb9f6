//! Claims about its user that a client asks for by name (`OpenID` Connect Core §5.5).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The claims that a client was granted by name, and where it wants them.
///
/// Names alone, each of a standard claim: what a request says of their values counts when it is
/// judged, and is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct RequestedClaims {
    /// In ID Tokens.
    pub id_token: BTreeSet<String>,
    /// At the userinfo endpoint.
    pub userinfo: BTreeSet<String>,
}

impl RequestedClaims {
    /// Whether none is asked for.
    pub fn is_empty(&self) -> bool {
        self.id_token.is_empty() && self.userinfo.is_empty()
    }

    /// The stored form; none where none is asked for.
    pub fn to_text(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        serde_json::to_string(self).ok()
    }

    /// Reads the stored form; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_reads_back() {
        let claims = RequestedClaims {
            id_token: ["email".to_owned()].into(),
            userinfo: ["name".to_owned(), "picture".to_owned()].into(),
        };
        let text = claims.to_text().unwrap();
        assert_eq!(RequestedClaims::parse(&text), Some(claims));
        assert_eq!(RequestedClaims::default().to_text(), None);
        assert_eq!(RequestedClaims::parse("[]"), None);
    }
}
