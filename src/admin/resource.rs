//! Protected resources.

use std::sync::Arc;

use serde::Deserialize;

use super::{AdminError, FieldError};
use crate::{
    clock::AgreedClock,
    domain::{
        change::{Cause, Change},
        id::{ClientId, ResourceId},
        resource::{Resource, ResourceUri},
        scope::Scope,
    },
    entropy::Entropy,
    store::Store,
};

/// Every scope of the admin interface.
const ADMIN_SCOPES: &str = "clients:read clients:write events:read families:read families:write keys:read \
     keys:rotate resources:read resources:write revocations:write users:read users:write";

/// The admin interface as a resource: there without being registered.
pub fn built_in(issuer: &str) -> Option<Resource> {
    Some(Resource {
        id: ResourceId::ADMIN,
        resource: ResourceUri::parse(&format!("{issuer}/admin")).ok()?,
        name: "Countersign admin interface".to_owned(),
        scopes: Scope::parse(ADMIN_SCOPES).ok()?,
        introspection_clients: Vec::new(),
        demo: false,
    })
}

/// A resource as an operator writes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceMetadata {
    /// Its identifier (RFC 8707).
    pub resource: String,
    /// A name for people.
    pub name: String,
    /// The scope tokens it knows.
    pub scopes: Vec<String>,
    /// Clients that may introspect its tokens.
    pub introspection_clients: Vec<String>,
}

/// The use cases about resources.
#[derive(Clone)]
pub struct ResourceAdmin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
    /// Draws ids.
    pub entropy: Entropy,
    /// This issuer's identifier.
    pub issuer: String,
}

impl ResourceAdmin {
    /// Every resource, the built-in one first.
    pub async fn list(&self) -> Result<Vec<Resource>, AdminError> {
        let stored = self.store.resources().await?;
        Ok(built_in(&self.issuer).into_iter().chain(stored).collect())
    }

    /// Registers a resource.
    pub async fn create(
        &self,
        metadata: &ResourceMetadata,
        demo: bool,
        cause: &Cause,
    ) -> Result<Resource, AdminError> {
        let now = self.clock.now();
        let id = ResourceId::from_uuid(self.entropy.uuid_v7(now)?);
        let resource = check(metadata, id, demo).map_err(AdminError::Invalid)?;
        let taken = self
            .list()
            .await?
            .iter()
            .any(|other| other.resource == resource.resource);
        if taken {
            return Err(AdminError::Conflict(format!(
                "the resource {} is registered already",
                resource.resource
            )));
        }
        self.store
            .apply(&Change::CreateResource(resource.clone()), cause, now)
            .await?;
        Ok(resource)
    }

    /// Removes a resource: no more tokens are issued for it. Clients keep its name, without effect.
    pub async fn delete(&self, id: ResourceId, cause: &Cause) -> Result<(), AdminError> {
        let found = self
            .list()
            .await?
            .into_iter()
            .any(|resource| resource.id == id);
        if !found {
            return Err(AdminError::NotFound("resource"));
        }
        if id == ResourceId::ADMIN {
            return Err(AdminError::Conflict(
                "the admin interface is built in".to_owned(),
            ));
        }
        self.store
            .apply(&Change::DeleteResource(id), cause, self.clock.now())
            .await?;
        Ok(())
    }
}

fn check(
    metadata: &ResourceMetadata,
    id: ResourceId,
    demo: bool,
) -> Result<Resource, Vec<FieldError>> {
    let mut errors = Vec::new();
    let resource = ResourceUri::parse(&metadata.resource);
    if let Err(error) = &resource {
        errors.push(FieldError::new("/resource", error.to_string()));
    }
    if let Some(detail) = super::client::name_problem(&metadata.name) {
        errors.push(FieldError::new("/name", detail));
    }
    let scopes = Scope::parse(&metadata.scopes.join(" "));
    if let Err(error) = &scopes {
        errors.push(FieldError::new("/scopes", error.to_string()));
    }
    let mut introspection_clients = Vec::new();
    for (index, client) in metadata.introspection_clients.iter().enumerate() {
        match ClientId::parse(client) {
            Ok(client) => introspection_clients.push(client),
            Err(_) => {
                errors.push(FieldError::new(
                    format!("/introspection_clients/{index}"),
                    "is no client id",
                ));
            }
        }
    }
    match (resource, scopes) {
        (Ok(resource), Ok(scopes)) if errors.is_empty() => Ok(Resource {
            id,
            resource,
            name: metadata.name.clone(),
            scopes,
            introspection_clients,
            demo,
        }),
        _ => Err(errors),
    }
}
