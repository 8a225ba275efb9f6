//! Protected resources: what access tokens are for (RFC 8707).

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use super::{
    id::{ClientId, ResourceId},
    scope::Scope,
};

/// The longest resource identifier taken, in bytes.
const LONGEST: usize = 512;

/// The text is no resource identifier.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a resource is an absolute URI without a fragment, at most 512 characters (RFC 8707 §2)")]
pub struct InvalidResource;

/// The identifier of a protected resource: an absolute URI without a fragment (RFC 8707 §2).
///
/// Kept and compared exactly as it was registered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceUri(String);

impl ResourceUri {
    /// Reads a resource identifier.
    pub fn parse(text: &str) -> Result<Self, InvalidResource> {
        let printable = text
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
        if text.len() > LONGEST
            || !printable
            || text.contains('#')
            || url::Url::parse(text).is_err()
        {
            return Err(InvalidResource);
        }
        Ok(Self(text.to_owned()))
    }

    /// The identifier as it stands in requests and in `aud`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A registered protected resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Names the resource in the admin interfaces.
    pub id: ResourceId,
    /// What clients ask for and tokens carry in `aud`.
    pub resource: ResourceUri,
    /// A name for people.
    pub name: String,
    /// Every scope token that means something at this resource.
    pub scopes: Scope,
    /// What some of them mean to people, by scope token.
    pub scope_descriptions: BTreeMap<String, String>,
    /// Clients that may introspect tokens of this resource.
    pub introspection_clients: Vec<ClientId>,
    /// Made by the development start; production refuses a database that holds one.
    pub demo: bool,
}

impl Resource {
    /// Everything about the resource, as the admin interfaces show it.
    pub fn document(&self) -> Value {
        json!({
            "id": self.id.to_string(),
            "resource": self.resource.as_str(),
            "name": self.name,
            "scopes": self.scopes.iter().collect::<Vec<_>>(),
            "scope_descriptions": self.scope_descriptions,
            "introspection_clients":
                self.introspection_clients.iter().map(ClientId::as_str).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_an_absolute_uri_without_a_fragment() {
        for good in [
            "https://api.example.com",
            "https://a/b?c=d",
            "urn:example:api",
            "http://127.0.0.1:8080/demo",
        ] {
            assert_eq!(ResourceUri::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "api",
            "/api",
            "https://a/#b",
            "https://a/#",
            "https://a b",
            "https://ä/",
            "https://a/\"",
            "https://a\n",
        ] {
            assert_eq!(ResourceUri::parse(bad), Err(InvalidResource), "{bad:?}");
        }
        assert!(ResourceUri::parse(&format!("https://a/{}", "x".repeat(600))).is_err());
    }
}
