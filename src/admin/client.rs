//! Clients and their secrets.

use std::{collections::HashSet, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AdminError, FieldError, resource};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        client::{AuthMethod, Client, GrantType, MOST_SECRETS, Revision},
        id::{ClientId, SecretId},
        resource::ResourceUri,
        scope::Scope,
        secret::{ClientSecret, StoredSecret},
    },
    entropy::Entropy,
    keys::lifecycle::LONGEST_TOKEN_LIFE,
    store::Store,
};

/// How often a change of secrets is tried again when somebody else was faster.
const ATTEMPTS: u32 = 8;

/// A client as an operator writes it: the writable part of RFC 7591 §2 and our own.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientMetadata {
    /// A name for people.
    pub client_name: String,
    /// How it authenticates; `client_secret_basic` when absent.
    pub token_endpoint_auth_method: Option<String>,
    /// The grants it may use; when absent, all that its way of authenticating allows.
    pub grant_types: Option<Vec<String>>,
    /// Every scope token it may be given, separated by spaces.
    pub scope: String,
    /// Every resource it may ask tokens for.
    pub resources: Vec<String>,
    /// The one that is meant when a request names none.
    pub default_resource: Option<String>,
    /// Origins of its pages.
    pub allowed_origins: Vec<String>,
    /// Life of its access tokens.
    pub access_token_ttl_seconds: Option<u32>,
    /// Whether it is refused.
    pub disabled: bool,
}

/// The use cases about clients.
#[derive(Clone)]
pub struct ClientAdmin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
    /// Draws ids and secrets.
    pub entropy: Entropy,
    /// This issuer's identifier.
    pub issuer: String,
}

impl ClientAdmin {
    /// Every client, by id.
    pub async fn list(&self) -> Result<Vec<Client>, AdminError> {
        Ok(self.store.clients().await?)
    }

    /// One client.
    pub async fn show(&self, id: &ClientId) -> Result<Client, AdminError> {
        self.store
            .client(id)
            .await?
            .ok_or(AdminError::NotFound("client"))
    }

    /// Registers a client, under `id` or one drawn for it. A confidential one gets its first secret,
    /// which is shown here and never again.
    pub async fn create(
        &self,
        id: Option<ClientId>,
        metadata: &ClientMetadata,
        demo: bool,
        cause: &Cause,
    ) -> Result<(Client, Option<ClientSecret>), AdminError> {
        let now = self.clock.now();
        let client_id = match id {
            Some(id) => id,
            None => ClientId::parse(&self.entropy.uuid_v7(now)?.to_string())
                .map_err(|_| AdminError::Conflict("no client id could be drawn".to_owned()))?,
        };
        let mut client = self.check(client_id, metadata, now).await?;
        client.demo = demo;
        let mut secret = None;
        if !client.is_public() {
            let minted = ClientSecret::mint(&self.entropy)?;
            client.secrets.push(self.stored(&minted, now)?);
            secret = Some(minted);
        }
        let revision = self
            .put(&client, None, EventType::ClientCreated, cause, now)
            .await?;
        Ok((Client { revision, ..client }, secret))
    }

    /// Changes a client by a merge patch (RFC 7396) of its [`ClientMetadata`].
    ///
    /// `expected` is the revision that the caller has seen; without it the change is made to
    /// whatever is there.
    pub async fn update(
        &self,
        id: &ClientId,
        patch: &Value,
        expected: Option<Revision>,
        cause: &Cause,
    ) -> Result<Client, AdminError> {
        let before = self.show(id).await?;
        if expected.is_some_and(|expected| expected != before.revision) {
            return Err(AdminError::Conflict(format!(
                "the client is at revision {}; read it again",
                before.revision
            )));
        }
        let now = self.clock.now();
        let mut document = serde_json::to_value(metadata_of(&before)).unwrap_or_default();
        merge(&mut document, patch);
        let metadata: ClientMetadata =
            serde_path_to_error::deserialize(document).map_err(|error| {
                let pointer = format!("/{}", error.path().to_string().replace('.', "/"));
                AdminError::Invalid(vec![FieldError::new(pointer, error.inner().to_string())])
            })?;
        let mut client = self.check(id.clone(), &metadata, now).await?;
        client.demo = before.demo;
        client.created_at = before.created_at;
        if !client.is_public() {
            client.secrets = before.secrets;
        }
        let revision = self
            .put(
                &client,
                Some(before.revision),
                EventType::ClientUpdated,
                cause,
                now,
            )
            .await?;
        Ok(Client { revision, ..client })
    }

    /// Removes a client: its tokens live on until they expire, new ones are refused.
    pub async fn delete(&self, id: &ClientId, cause: &Cause) -> Result<(), AdminError> {
        let expected = self.show(id).await?.revision;
        let client_id = id.clone();
        self.store
            .apply(
                &Change::DeleteClient {
                    client_id,
                    expected,
                },
                cause,
                self.clock.now(),
            )
            .await?;
        Ok(())
    }

    /// Gives a client a second secret, so that the first can be taken out of use afterwards.
    pub async fn add_secret(
        &self,
        id: &ClientId,
        cause: &Cause,
    ) -> Result<(Client, SecretId, ClientSecret), AdminError> {
        let now = self.clock.now();
        let secret = ClientSecret::mint(&self.entropy)?;
        let stored = self.stored(&secret, now)?;
        let client = self
            .change_secrets(id, EventType::ClientSecretCreated, cause, |client| {
                if client.is_public() {
                    return Err(AdminError::Conflict(
                        "a public client has no secrets".to_owned(),
                    ));
                }
                if client.secrets.len() >= MOST_SECRETS {
                    return Err(AdminError::Conflict(format!(
                        "the client has {MOST_SECRETS} secrets already; remove one first"
                    )));
                }
                client.secrets.push(stored.clone());
                Ok(())
            })
            .await?;
        Ok((client, stored.id, secret))
    }

    /// Takes a secret out of use.
    pub async fn remove_secret(
        &self,
        id: &ClientId,
        secret: SecretId,
        cause: &Cause,
    ) -> Result<Client, AdminError> {
        self.change_secrets(id, EventType::ClientSecretDeleted, cause, |client| {
            client
                .secret(secret)
                .ok_or(AdminError::NotFound("secret"))?;
            client.secrets.retain(|other| other.id != secret);
            Ok(())
        })
        .await
    }

    /// Gives a client exactly one secret, one that its owner has kept.
    pub async fn set_secret(
        &self,
        id: &ClientId,
        secret: &ClientSecret,
        cause: &Cause,
    ) -> Result<Client, AdminError> {
        let stored = self.stored(secret, self.clock.now())?;
        self.change_secrets(id, EventType::ClientSecretCreated, cause, |client| {
            client.secrets = vec![stored.clone()];
            Ok(())
        })
        .await
    }

    async fn change_secrets(
        &self,
        id: &ClientId,
        event: EventType,
        cause: &Cause,
        change: impl Fn(&mut Client) -> Result<(), AdminError> + Send,
    ) -> Result<Client, AdminError> {
        let mut attempt = 1;
        loop {
            let before = self.show(id).await?;
            let mut client = before.clone();
            change(&mut client)?;
            match self
                .put(
                    &client,
                    Some(before.revision),
                    event,
                    cause,
                    self.clock.now(),
                )
                .await
            {
                Err(AdminError::Conflict(_)) if attempt < ATTEMPTS => attempt += 1,
                result => {
                    return Ok(Client {
                        revision: result?,
                        ..client
                    });
                }
            }
        }
    }

    async fn put(
        &self,
        client: &Client,
        expected: Option<Revision>,
        event: EventType,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<Revision, AdminError> {
        let change = Change::PutClient {
            client: Box::new(client.clone()),
            expected,
            event,
        };
        Ok(self.store.apply(&change, cause, now).await?.revision)
    }

    fn stored(&self, secret: &ClientSecret, now: Timestamp) -> Result<StoredSecret, AdminError> {
        Ok(StoredSecret {
            id: SecretId::from_uuid(self.entropy.uuid_v7(now)?),
            hash: secret.hash(),
            created_at: now,
        })
    }

    /// Makes a client of what an operator wrote, or says everything that is wrong with it.
    async fn check(
        &self,
        client_id: ClientId,
        written: &ClientMetadata,
        now: Timestamp,
    ) -> Result<Client, AdminError> {
        let registered: HashSet<ResourceUri> = self
            .store
            .resources()
            .await?
            .into_iter()
            .chain(resource::built_in(&self.issuer))
            .map(|resource| resource.resource)
            .collect();
        let mut errors = Vec::new();
        let mut wrong =
            |pointer: String, detail: &str| errors.push(FieldError::new(pointer, detail));

        if let Some(detail) = name_problem(&written.client_name) {
            wrong("/client_name".to_owned(), detail);
        }
        let auth_method = written.token_endpoint_auth_method.as_deref();
        let auth_method = auth_method
            .unwrap_or(AuthMethod::ClientSecretBasic.as_str())
            .parse()
            .unwrap_or_else(|_| {
                wrong(
                    "/token_endpoint_auth_method".to_owned(),
                    "must be client_secret_basic, client_secret_post or none",
                );
                AuthMethod::None
            });
        let mut grant_types = Vec::new();
        match &written.grant_types {
            Some(names) => {
                for (index, name) in names.iter().enumerate() {
                    match name.parse() {
                        Ok(GrantType::ClientCredentials) if auth_method == AuthMethod::None => {
                            wrong(
                                format!("/grant_types/{index}"),
                                "a public client cannot use client_credentials (RFC 6749 §4.4)",
                            )
                        }
                        Ok(grant) if grant_types.contains(&grant) => {}
                        Ok(grant) => grant_types.push(grant),
                        Err(_) => wrong(
                            format!("/grant_types/{index}"),
                            "must be client_credentials",
                        ),
                    }
                }
            }
            None if auth_method == AuthMethod::None => {}
            None => grant_types.extend(GrantType::ALL),
        }
        let scope = Scope::parse(&written.scope).unwrap_or_else(|error| {
            wrong("/scope".to_owned(), &error.to_string());
            Scope::default()
        });
        let mut resources = Vec::new();
        for (index, uri) in written.resources.iter().enumerate() {
            match ResourceUri::parse(uri) {
                Ok(uri) if !registered.contains(&uri) => {
                    wrong(
                        format!("/resources/{index}"),
                        "is not a registered resource",
                    );
                }
                Ok(uri) if resources.contains(&uri) => {}
                Ok(uri) => resources.push(uri),
                Err(error) => wrong(format!("/resources/{index}"), &error.to_string()),
            }
        }
        let default_resource = written.default_resource.as_deref().and_then(|uri| {
            let found = resources
                .iter()
                .find(|resource| resource.as_str() == uri)
                .cloned();
            if found.is_none() {
                wrong("/default_resource".to_owned(), "must be one of resources");
            }
            found
        });
        for (index, origin) in written.allowed_origins.iter().enumerate() {
            let spelled = url::Url::parse(origin).map(|url| url.origin().ascii_serialization());
            if spelled.as_deref() != Ok(origin.as_str()) || origin == "null" {
                wrong(
                    format!("/allowed_origins/{index}"),
                    "must be an origin as browsers send it: scheme, host and port, such as https://app.example",
                );
            }
        }
        let longest = u32::try_from(LONGEST_TOKEN_LIFE.as_secs()).unwrap_or(u32::MAX);
        if written
            .access_token_ttl_seconds
            .is_some_and(|ttl| !(1..=longest).contains(&ttl))
        {
            wrong(
                "/access_token_ttl_seconds".to_owned(),
                "must be between 1 and 3600",
            );
        }
        if !errors.is_empty() {
            return Err(AdminError::Invalid(errors));
        }
        Ok(Client {
            client_id,
            client_name: written.client_name.clone(),
            auth_method,
            grant_types,
            scope,
            resources,
            default_resource,
            allowed_origins: written.allowed_origins.clone(),
            access_token_ttl_seconds: written.access_token_ttl_seconds,
            disabled: written.disabled,
            demo: false,
            secrets: Vec::new(),
            revision: 0,
            created_at: now,
            updated_at: now,
        })
    }
}

/// What is wrong with a name for people, if anything.
pub(super) fn name_problem(name: &str) -> Option<&'static str> {
    let fits = !name.trim().is_empty()
        && name.chars().count() <= 200
        && !name.chars().any(char::is_control);
    (!fits).then_some("must be 1 to 200 characters without control characters")
}

fn metadata_of(client: &Client) -> ClientMetadata {
    ClientMetadata {
        client_name: client.client_name.clone(),
        token_endpoint_auth_method: Some(client.auth_method.to_string()),
        grant_types: Some(client.grant_types.iter().map(ToString::to_string).collect()),
        scope: client.scope.to_string(),
        resources: client.resources.iter().map(ToString::to_string).collect(),
        default_resource: client.default_resource.as_ref().map(ToString::to_string),
        allowed_origins: client.allowed_origins.clone(),
        access_token_ttl_seconds: client.access_token_ttl_seconds,
        disabled: client.disabled,
    }
}

/// JSON Merge Patch (RFC 7396 §2): null removes, an object merges, anything else replaces.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    if let Value::Object(target) = target {
        for (name, value) in patch {
            if value.is_null() {
                target.remove(name);
            } else {
                merge(target.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
    }
}
