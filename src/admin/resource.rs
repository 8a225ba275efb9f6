//! Protected resources.

use std::{collections::BTreeMap, sync::Arc};

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    AdminError, FieldError, document,
    page::{Page, PageRequest},
};
use crate::{
    clock::AgreedClock,
    domain::{
        change::{Cause, Change},
        id::{ClientId, ResourceId},
        resource::{Resource, ResourceUri},
        scope::Scope,
        words::problem_of_text,
    },
    entropy::Entropy,
    oauth::userinfo,
    store::{Store, StoreError},
};

/// Every scope of the admin interface.
const ADMIN_SCOPES: &str = "clients:read clients:write events:read families:read families:write keys:read \
     keys:rotate resources:read resources:write revocations:write users:read users:write";

/// The resources that are there without being registered.
pub fn built_in(issuer: &str) -> impl Iterator<Item = Resource> {
    [admin(issuer), userinfo::resource(issuer)]
        .into_iter()
        .flatten()
}

/// The admin interface as a resource.
pub fn admin(issuer: &str) -> Option<Resource> {
    Some(Resource {
        id: ResourceId::ADMIN,
        resource: ResourceUri::parse(&format!("{issuer}/admin")).ok()?,
        name: "Countersign admin interface".to_owned(),
        scopes: Scope::parse(ADMIN_SCOPES).ok()?,
        scope_descriptions: BTreeMap::new(),
        introspection_clients: Vec::new(),
        demo: false,
    })
}

/// A resource as an operator writes it.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceMetadata {
    /// Its identifier (RFC 8707): an absolute URI without a fragment.
    #[schema(required, min_length = 1, max_length = 512)]
    pub resource: String,
    /// A name for people.
    #[schema(required, min_length = 1, max_length = 200)]
    pub name: String,
    /// The scope tokens it knows.
    pub scopes: Vec<String>,
    /// What they mean to people, by scope token: users who are asked for consent read it. Of a token that is
    /// not here they see the token.
    pub scope_descriptions: BTreeMap<String, String>,
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
    /// Every resource, those that are built in first.
    pub async fn list(&self) -> Result<Vec<Resource>, AdminError> {
        let stored = self.store.resources().await?;
        Ok(built_in(&self.issuer).chain(stored).collect())
    }

    /// A part of the list of resources, by id: those that are built in first, then the oldest.
    pub async fn page(&self, request: &PageRequest) -> Result<Page<Resource>, AdminError> {
        let resources = self.list().await?;
        Ok(request.part_of(resources, |resource| resource.id.to_string()))
    }

    /// Registers the resource of a document: [`ResourceMetadata`].
    pub async fn register(
        &self,
        members: Map<String, Value>,
        cause: &Cause,
    ) -> Result<Resource, AdminError> {
        let (metadata, errors) = document::read(members);
        self.create_read(&metadata, errors, false, cause).await
    }

    /// Registers a resource.
    pub async fn create(
        &self,
        metadata: &ResourceMetadata,
        demo: bool,
        cause: &Cause,
    ) -> Result<Resource, AdminError> {
        self.create_read(metadata, Vec::new(), demo, cause).await
    }

    async fn create_read(
        &self,
        metadata: &ResourceMetadata,
        unread: Vec<FieldError>,
        demo: bool,
        cause: &Cause,
    ) -> Result<Resource, AdminError> {
        let now = self.clock.now();
        let id = ResourceId::from_uuid(self.entropy.uuid_v7(now)?);
        let checked = check(metadata, id, demo).and_then(|resource| {
            if is_taken_for_built_in(&resource.resource, &self.issuer) {
                let detail = "is one of the service itself, or could be taken for it";
                return Err(vec![FieldError::new("/resource", detail)]);
            }
            Ok(resource)
        });
        let resource = match checked {
            Ok(resource) if unread.is_empty() => resource,
            checked => {
                let also = checked.err().unwrap_or_default();
                return Err(AdminError::Invalid(document::all_wrong(unread, also)));
            }
        };
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
        if built_in(&self.issuer).any(|resource| resource.id == id) {
            return Err(AdminError::Conflict("the resource is built in".to_owned()));
        }
        let change = Change::DeleteResource(id);
        match self.store.apply(&change, cause, self.clock.now()).await {
            Err(StoreError::Conflict) => Err(AdminError::NotFound("resource")),
            deleted => Ok(deleted.map(drop)?),
        }
    }
}

/// Whether somebody could take this for the identifier of a resource that is built in: the same URL,
/// written in another way. Tokens name it letter by letter; people and other programs do not look as
/// closely.
fn is_taken_for_built_in(uri: &ResourceUri, issuer: &str) -> bool {
    let spelled = |text: &str| {
        let url = url::Url::parse(text).ok()?;
        let path = percent_decode_str(url.path()).decode_utf8_lossy();
        let path = path.trim_end_matches('/').to_ascii_lowercase();
        Some((
            url.host_str()?.to_owned(),
            url.port_or_known_default(),
            path,
        ))
    };
    let is_taken = |other: &str| {
        uri.as_str() == other
            || (spelled(uri.as_str()).is_some() && spelled(uri.as_str()) == spelled(other))
    };
    built_in(issuer).any(|resource| is_taken(resource.resource.as_str()))
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
    if let Some(detail) = problem_of_text(&metadata.name) {
        errors.push(FieldError::new("/name", detail));
    }
    let scopes = Scope::parse(&metadata.scopes.join(" "));
    if let Err(error) = &scopes {
        errors.push(FieldError::new("/scopes", error.to_string()));
    }
    for (index, token) in metadata.scopes.iter().enumerate() {
        if token.contains(' ') {
            let detail = "is more than one scope token";
            errors.push(FieldError::new(format!("/scopes/{index}"), detail));
        }
    }
    for (token, text) in &metadata.scope_descriptions {
        let problem = match &scopes {
            Ok(scopes) if !scopes.iter().any(|scope| scope == token) => {
                Some("is no scope of the resource")
            }
            _ => problem_of_text(text),
        };
        let pointer = || format!("/scope_descriptions{}", document::pointer_to(token));
        errors.extend(problem.map(|detail| FieldError::new(pointer(), detail)));
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
            scope_descriptions: metadata.scope_descriptions.clone(),
            introspection_clients,
            demo,
        }),
        _ => Err(errors),
    }
}
