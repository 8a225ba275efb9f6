//! The userinfo endpoint (`OpenID` Connect Core §5.3).

use crate::domain::{
    id::ResourceId,
    resource::{Resource, ResourceUri},
    scope::Scope,
};

/// Where clients ask who has signed in, below the issuer.
pub const USERINFO_PATH: &str = "/oauth2/userinfo";

/// The scopes of `OpenID` Connect (Core §3.1.2.1, §5.4, §11).
const SCOPES: &str = "address email offline_access openid phone profile";

/// The endpoint as a resource: there without being registered, for every client that may ask for
/// `openid`.
pub fn resource(issuer: &str) -> Option<Resource> {
    Some(Resource {
        id: ResourceId::USERINFO,
        resource: ResourceUri::parse(&format!("{issuer}{USERINFO_PATH}")).ok()?,
        name: "Your account".to_owned(),
        scopes: Scope::parse(SCOPES).ok()?,
        introspection_clients: Vec::new(),
        demo: false,
    })
}
