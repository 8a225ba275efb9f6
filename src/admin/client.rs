//! Clients and their secrets.

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    AdminError, FieldError, client_keys, document,
    operator::Authority,
    page::{Page, PageRequest},
    resource,
};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        client::{
            AuthMethod, CALLBACK_PATH, Client, GrantType, IdTokenAlg, MOST_REDIRECT_URIS,
            MOST_SECRETS, Revision, texts,
        },
        family::RefreshPolicy,
        id::{ClientId, SecretId, UserId},
        redirect::RedirectUri,
        resource::ResourceUri,
        scope::Scope,
        secret::{ClientSecret, StoredSecret},
        words::problem_of_text,
    },
    entropy::Entropy,
    keys::lifecycle::LONGEST_TOKEN_LIFE,
    store::{Store, StoreError},
};

/// Members of a client's document that nobody can write.
const SHOWN_ONLY: [&str; 4] = ["client_id", "created_at", "secrets", "updated_at"];

/// How often a change of secrets is tried again when somebody else was faster.
const ATTEMPTS: u32 = 8;

/// A client as an operator writes it: the writable part of RFC 7591 §2 and our own.
#[expect(
    clippy::struct_excessive_bools,
    reason = "describes a document, whose members they are"
)]
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientMetadata {
    /// A name for people.
    #[schema(required, min_length = 1, max_length = 200)]
    pub client_name: String,
    /// How it authenticates; `client_secret_basic` when absent.
    pub token_endpoint_auth_method: Option<String>,
    /// Its public keys, for `private_key_jwt`: a JWK Set (RFC 7517 §5) …
    #[schema(value_type = Option<Object>)]
    pub jwks: Option<Value>,
    /// … or where it publishes them.
    pub jwks_uri: Option<String>,
    /// The grants it may use; when absent, all that its way of authenticating allows.
    pub grant_types: Option<Vec<String>>,
    /// What it may get from the authorization endpoint: `code`. When absent, that follows from its
    /// grants and redirect URIs.
    pub response_types: Option<Vec<String>>,
    /// Where its users' browsers may be sent back to with a code: at most 50, compared exactly.
    pub redirect_uris: Vec<String>,
    /// Where they may be sent after a sign-out.
    pub post_logout_redirect_uris: Vec<String>,
    /// Where it is told that its users have been signed out.
    pub backchannel_logout_uri: Option<String>,
    /// Whether it has to be told of which sign-in: the `sid` of its tokens.
    pub backchannel_logout_session_required: bool,
    /// What its ID Tokens and logout tokens are signed with; `ES256` when absent. `RS256` needs the
    /// setting `keys.rs256_id_tokens`.
    #[schema(pattern = "^(ES256|RS256)$")]
    pub id_token_signed_response_alg: Option<String>,
    /// Whether its codes are bound to a verifier; true when absent. Only a confidential client with the
    /// scope `openid` may do without: it then has to send a `nonce`.
    pub require_pkce: Option<bool>,
    /// Whether a password alone is not enough for anybody to sign in to it.
    pub second_factor_required: bool,
    /// Every scope token it may be given, separated by spaces.
    pub scope: String,
    /// Every resource it may ask tokens for.
    pub resources: Vec<String>,
    /// The one that is meant when a request names none.
    pub default_resource: Option<String>,
    /// Origins of its pages.
    pub allowed_origins: Vec<String>,
    /// Life of its access tokens.
    #[schema(minimum = 1, maximum = 3600)]
    pub access_token_ttl_seconds: Option<u32>,
    /// Whether it may take its users' credentials itself, without a browser, and has what it asks for
    /// without their consent.
    pub first_party: bool,
    /// Whether its pages have access tokens for the session of their browser, without a code: for
    /// public clients on the site of the issuer.
    pub session_tokens: bool,
    /// Whether proxies ask in its name who sends a request to the hosts that they stand before: each
    /// `https` host of a redirect URI with the path `/session/callback`.
    pub forward_auth: bool,
    /// How its refresh tokens rotate; `standard` when absent.
    #[schema(pattern = "^(none|shared|standard|strict)$")]
    pub refresh_policy: Option<String>,
    /// Says that processes may share its refresh tokens, although that hides thieves.
    pub refresh_sharing_acknowledged: bool,
    /// Whether it is refused.
    pub disabled: bool,
}

/// A client as shown to whoever registers it: with its secret, this once.
pub fn created_document(client: &Client, secret: Option<&ClientSecret>) -> Value {
    let mut document = client.document();
    if let (Some(secret), Some(members)) = (secret, document.as_object_mut()) {
        members.insert("client_secret".to_owned(), secret.expose().into());
    }
    document
}

/// A secret as shown to whoever adds it, this once.
pub fn secret_document(client: &Client, id: SecretId, secret: &ClientSecret) -> Value {
    let created_at = client.secret(id).map(|secret| secret.created_at.seconds());
    json!({
        "id": id.to_string(),
        "created_at": created_at,
        "client_secret": secret.expose(),
    })
}

/// What could be read of a document, and what could not.
type Written<'a> = (&'a ClientMetadata, Vec<FieldError>);

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
    /// `keys.rs256_id_tokens`.
    pub rs256_id_tokens: bool,
    /// How long after its issue a token may still be accepted somewhere.
    pub token_retention: Duration,
    /// What whoever asks may do.
    pub authority: Authority,
}

impl ClientAdmin {
    /// The same for somebody of this authority.
    #[must_use]
    pub fn with_authority(&self, authority: Authority) -> Self {
        Self {
            authority,
            ..self.clone()
        }
    }

    /// Every client, by id.
    pub async fn list(&self) -> Result<Vec<Client>, AdminError> {
        Ok(self.store.clients().await?)
    }

    /// A part of the list of clients.
    pub async fn page(&self, request: &PageRequest) -> Result<Page<Client>, AdminError> {
        let clients = self.store.clients().await?;
        Ok(request.part_of(clients, |client| client.client_id.to_string()))
    }

    /// One client.
    pub async fn show(&self, id: &ClientId) -> Result<Client, AdminError> {
        self.store
            .client(id)
            .await?
            .ok_or(AdminError::NotFound("client"))
    }

    /// Registers the client of a document: [`ClientMetadata`], and perhaps a `client_id`.
    pub async fn register(
        &self,
        mut members: Map<String, Value>,
        cause: &Cause,
    ) -> Result<(Client, Option<ClientSecret>), AdminError> {
        let id = members.remove("client_id").map(|id| {
            let id = id.as_str().and_then(|id| ClientId::parse(id).ok());
            id.ok_or_else(|| {
                FieldError::new(
                    "/client_id",
                    "must be 1 to 64 characters of A-Z a-z 0-9 . _ ~ -",
                )
            })
        });
        let (metadata, mut errors) = document::read(members);
        let id = id.transpose().unwrap_or_else(|error| {
            errors.push(error);
            None
        });
        self.create_read(id, (&metadata, errors), false, cause)
            .await
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
        self.create_read(id, (metadata, Vec::new()), demo, cause)
            .await
    }

    async fn create_read(
        &self,
        id: Option<ClientId>,
        written: Written<'_>,
        demo: bool,
        cause: &Cause,
    ) -> Result<(Client, Option<ClientSecret>), AdminError> {
        let now = self.clock.now();
        let client_id = match id {
            // The audit trail calls the service itself so.
            Some(id) if id.as_str() == Cause::system().actor => {
                return Err(AdminError::Invalid(vec![FieldError::new(
                    "/client_id",
                    "is the name of the service itself; choose another",
                )]));
            }
            // Tokens would have its `sub` (RFC 9068 §5).
            Some(id) if self.is_a_users(&id).await? => {
                return Err(AdminError::Invalid(vec![FieldError::new(
                    "/client_id",
                    "is the id of a user; choose another",
                )]));
            }
            Some(id) => id,
            None => ClientId::parse(&self.entropy.uuid_v7(now)?.to_string())
                .map_err(|_| AdminError::Conflict("no client id could be drawn".to_owned()))?,
        };
        let mut client = self.check(client_id, written, None, now).await?;
        self.authority.permits(&self.issuer, [&client])?;
        client.demo = demo;
        let mut secret = None;
        if client.has_secrets() {
            let minted = ClientSecret::mint(&self.entropy)?;
            client.secrets.push(self.stored(&minted, now)?);
            secret = Some(minted);
        }
        let created = self.put(&client, None, EventType::ClientCreated, cause, now);
        let revision = created.await.map_err(|error| match error {
            AdminError::Conflict(_) => AdminError::Conflict(format!(
                "a client {} exists already; choose another id",
                client.client_id
            )),
            other => other,
        })?;
        Ok((Client { revision, ..client }, secret))
    }

    async fn is_a_users(&self, id: &ClientId) -> Result<bool, AdminError> {
        match UserId::parse(id.as_str()) {
            Ok(id) => Ok(self.store.user(id).await?.is_some()),
            Err(_) => Ok(false),
        }
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
        let mut attempt = 1;
        loop {
            match self.update_once(id, patch, expected, cause).await {
                Err(AdminError::Conflict(_)) if expected.is_none() && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn update_once(
        &self,
        id: &ClientId,
        patch: &Value,
        expected: Option<Revision>,
        cause: &Cause,
    ) -> Result<Client, AdminError> {
        // Judged at the revision that the change is made to.
        let before = self.within_authority(id).await?;
        if expected.is_some_and(|expected| expected != before.revision) {
            return Err(AdminError::Conflict(format!(
                "the client is at revision {} by now; look at it again",
                before.revision
            )));
        }
        let now = self.clock.now();
        let (metadata, errors) = patched(&before, patch);
        let mut client = self
            .check(id.clone(), (&metadata, errors), Some(&before), now)
            .await?;
        self.authority.permits(&self.issuer, [&client])?;
        client.demo = before.demo;
        client.created_at = before.created_at;
        if client.has_secrets() {
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

    /// Removes a client and revokes its tokens.
    pub async fn delete(&self, id: &ClientId, cause: &Cause) -> Result<(), AdminError> {
        let mut attempt = 1;
        loop {
            let expected = self.within_authority(id).await?.revision;
            let now = self.clock.now();
            let change = Change::DeleteClient {
                client_id: id.clone(),
                expected,
                tokens_die_at: now.plus(self.token_retention),
            };
            match self.store.apply(&change, cause, now).await {
                // Somebody else was faster: to change it, or to remove it.
                Err(StoreError::Conflict) if attempt < ATTEMPTS => attempt += 1,
                applied => return Ok(applied.map(drop)?),
            }
        }
    }

    /// A client that whoever asks may act on.
    pub async fn within_authority(&self, id: &ClientId) -> Result<Client, AdminError> {
        let client = self.show(id).await?;
        self.authority.permits(&self.issuer, [&client])?;
        Ok(client)
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
                if !client.has_secrets() {
                    return Err(AdminError::Conflict(format!(
                        "a client that authenticates by {} has no secrets",
                        client.auth_method
                    )));
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
            let before = self.within_authority(id).await?;
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
            tokens_die_at: now.plus(self.token_retention),
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
    ///
    /// What it had `before`, and could not get any more, is no reason to refuse another change: a
    /// resource that was deleted since, an algorithm that the settings no longer allow.
    async fn check(
        &self,
        client_id: ClientId,
        (written, unread): Written<'_>,
        before: Option<&Client>,
        now: Timestamp,
    ) -> Result<Client, AdminError> {
        let stored = self.store.resources().await?;
        let registered = stored.into_iter().chain(resource::built_in(&self.issuer));
        let mut review = Review::default();
        review.client_name(&written.client_name);
        let auth_method = review.auth_method(written.token_endpoint_auth_method.as_deref());
        review.keys(
            auth_method,
            written.jwks.as_ref(),
            written.jwks_uri.as_deref(),
        );
        let grant_types = review.grant_types(written.grant_types.as_deref(), auth_method);
        review.response_types(written.response_types.as_deref());
        let redirect_uris = review.redirect_uris("redirect_uris", &written.redirect_uris);
        let post_logout_redirect_uris = review.redirect_uris(
            "post_logout_redirect_uris",
            &written.post_logout_redirect_uris,
        );
        review.backchannel_logout(written);
        let allows_rs256 = self.rs256_id_tokens
            || before.is_some_and(|before| before.id_token_alg == IdTokenAlg::Rs256);
        let id_token_alg = review.id_token_alg(
            written.id_token_signed_response_alg.as_deref(),
            allows_rs256,
        );
        let scope = review.scope(&written.scope);
        let require_pkce = written.require_pkce.unwrap_or(true);
        if !require_pkce {
            review.codes_without_pkce(auth_method, &scope);
        }
        let registered = registered
            .map(|resource| resource.resource)
            .chain(
                before
                    .map(|before| before.resources.clone())
                    .unwrap_or_default(),
            )
            .collect();
        let resources = review.resources(&written.resources, &registered);
        let default_resource = written
            .default_resource
            .as_deref()
            .and_then(|uri| review.default_resource(uri, &resources));
        review.allowed_origins(&written.allowed_origins);
        review.access_token_ttl(written.access_token_ttl_seconds);
        review.session_tokens(written, auth_method);
        review.forward_auth(written, auth_method, &grant_types);
        let refresh_policy = review.refresh_policy(written, auth_method);
        let errors = document::all_wrong(unread, review.errors);
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
            redirect_uris,
            post_logout_redirect_uris,
            backchannel_logout_uri: written.backchannel_logout_uri.clone(),
            backchannel_logout_session_required: written.backchannel_logout_session_required,
            id_token_alg,
            require_pkce,
            second_factor_required: written.second_factor_required,
            allowed_origins: written.allowed_origins.clone(),
            access_token_ttl_seconds: written.access_token_ttl_seconds,
            first_party: written.first_party,
            session_tokens: written.session_tokens,
            forward_auth: written.forward_auth,
            refresh_policy,
            refresh_sharing_acknowledged: written.refresh_sharing_acknowledged,
            // The store keeps the one there is, or draws one.
            session_epoch: 0,
            disabled: written.disabled,
            jwks: written.jwks.clone(),
            jwks_uri: written.jwks_uri.clone(),
            tokens_not_before: None,
            demo: false,
            secrets: Vec::new(),
            revision: 0,
            created_at: now,
            updated_at: now,
        })
    }
}

/// Looks at every field and keeps what is wrong; what a wrong field returns is not used.
#[derive(Default)]
struct Review {
    errors: Vec<FieldError>,
}

impl Review {
    fn wrong(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.errors.push(FieldError::new(pointer, detail));
    }

    fn client_name(&mut self, name: &str) {
        if let Some(detail) = problem_of_text(name) {
            self.wrong("/client_name", detail);
        }
    }

    fn auth_method(&mut self, name: Option<&str>) -> AuthMethod {
        let Some(name) = name else {
            // The default of RFC 7591 §2.
            return AuthMethod::ClientSecretBasic;
        };
        name.parse().unwrap_or_else(|_| {
            self.wrong(
                "/token_endpoint_auth_method",
                "must be client_secret_basic, client_secret_post, none or private_key_jwt",
            );
            AuthMethod::None
        })
    }

    fn keys(&mut self, method: AuthMethod, jwks: Option<&Value>, jwks_uri: Option<&str>) {
        if method != AuthMethod::PrivateKeyJwt {
            for (pointer, is_there) in
                [("/jwks", jwks.is_some()), ("/jwks_uri", jwks_uri.is_some())]
            {
                if is_there {
                    self.wrong(pointer, "is for clients that use private_key_jwt");
                }
            }
            return;
        }
        match (jwks, jwks_uri) {
            (None, None) => self.wrong(
                "/token_endpoint_auth_method",
                "private_key_jwt needs jwks or jwks_uri",
            ),
            // RFC 7591 §2: "The "jwks_uri" and "jwks" parameters MUST NOT both be present".
            (Some(_), Some(_)) => self.wrong("/jwks_uri", "must be absent where jwks is given"),
            (Some(jwks), None) => self.errors.extend(client_keys::problems(jwks)),
            (None, Some(uri)) => {
                if let Some(detail) = client_keys::uri_problem(uri) {
                    self.wrong("/jwks_uri", detail);
                }
            }
        }
    }

    fn grant_types(&mut self, names: Option<&[String]>, auth_method: AuthMethod) -> Vec<GrantType> {
        let is_public = auth_method == AuthMethod::None;
        let Some(names) = names else {
            let mut grants = GrantType::ALL.to_vec();
            grants.retain(|grant| !is_public || grant.is_for_public_clients());
            return grants;
        };
        let mut grants = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let pointer = format!("/grant_types/{index}");
            match name.parse() {
                Ok(grant) if is_public && !GrantType::is_for_public_clients(grant) => {
                    self.wrong(
                        pointer,
                        "a public client cannot use client_credentials (RFC 6749 §4.4)",
                    );
                }
                Ok(grant) if grants.contains(&grant) => {}
                Ok(grant) => grants.push(grant),
                Err(_) => self.wrong(
                    pointer,
                    "must be authorization_code, client_credentials or refresh_token",
                ),
            }
        }
        grants
    }

    fn response_types(&mut self, names: Option<&[String]>) {
        for (index, name) in names.unwrap_or_default().iter().enumerate() {
            if name != "code" {
                // "implicit" and hybrids bring tokens through the browser (RFC 9700 §2.1.2).
                self.wrong(format!("/response_types/{index}"), "must be code");
            }
        }
    }

    fn backchannel_logout(&mut self, written: &ClientMetadata) {
        match written.backchannel_logout_uri.as_deref() {
            Some(uri) => {
                if let Some(detail) = client_keys::uri_problem(uri) {
                    self.wrong("/backchannel_logout_uri", detail);
                }
            }
            None if written.backchannel_logout_session_required => self.wrong(
                "/backchannel_logout_session_required",
                "is for clients that have a backchannel_logout_uri",
            ),
            None => {}
        }
    }

    fn id_token_alg(&mut self, name: Option<&str>, allows_rs256: bool) -> IdTokenAlg {
        let alg = name.map_or(Ok(IdTokenAlg::Es256), str::parse);
        let problem = match alg {
            Ok(IdTokenAlg::Rs256) if !allows_rs256 => {
                Some("RS256 is for services whose setting keys.rs256_id_tokens is true")
            }
            Ok(_) => None,
            Err(_) => Some("must be ES256 or RS256"),
        };
        if let Some(problem) = problem {
            self.wrong("/id_token_signed_response_alg", problem);
        }
        alg.unwrap_or(IdTokenAlg::Es256)
    }

    fn redirect_uris(&mut self, field: &str, uris: &[String]) -> Vec<RedirectUri> {
        if uris.len() > MOST_REDIRECT_URIS {
            self.wrong(
                format!("/{field}"),
                format!("must be {MOST_REDIRECT_URIS} at most"),
            );
        }
        let mut read = Vec::new();
        for (index, uri) in uris.iter().enumerate() {
            match RedirectUri::parse(uri) {
                Ok(uri) if read.contains(&uri) => {}
                Ok(uri) => read.push(uri),
                Err(error) => self.wrong(format!("/{field}/{index}"), error.to_string()),
            }
        }
        read
    }

    /// RFC 9700 §2.1.1: public clients must use PKCE; others may rely on the `nonce` of `OpenID`
    /// Connect instead.
    fn codes_without_pkce(&mut self, auth_method: AuthMethod, scope: &Scope) {
        if auth_method == AuthMethod::None || !scope.iter().any(|token| token == "openid") {
            self.wrong(
                "/require_pkce",
                "must be true, but for a client that authenticates and has the scope openid",
            );
        }
    }

    fn scope(&mut self, text: &str) -> Scope {
        Scope::parse(text).unwrap_or_else(|error| {
            self.wrong("/scope", error.to_string());
            Scope::default()
        })
    }

    fn resources(
        &mut self,
        uris: &[String],
        registered: &HashSet<ResourceUri>,
    ) -> Vec<ResourceUri> {
        let mut resources = Vec::new();
        for (index, uri) in uris.iter().enumerate() {
            let pointer = format!("/resources/{index}");
            match ResourceUri::parse(uri) {
                Ok(uri) if !registered.contains(&uri) => {
                    self.wrong(
                        pointer,
                        "is not registered as a resource; register it first",
                    );
                }
                Ok(uri) if resources.contains(&uri) => {}
                Ok(uri) => resources.push(uri),
                Err(error) => self.wrong(pointer, error.to_string()),
            }
        }
        resources
    }

    fn default_resource(&mut self, uri: &str, resources: &[ResourceUri]) -> Option<ResourceUri> {
        let found = resources
            .iter()
            .find(|resource| resource.as_str() == uri)
            .cloned();
        if found.is_none() {
            self.wrong("/default_resource", "must be one of resources");
        }
        found
    }

    fn allowed_origins(&mut self, origins: &[String]) {
        for (index, origin) in origins.iter().enumerate() {
            let spelled = url::Url::parse(origin).map(|url| url.origin().ascii_serialization());
            if spelled.as_deref() != Ok(origin.as_str()) || origin == "null" {
                self.wrong(
                    format!("/allowed_origins/{index}"),
                    "must be an origin as browsers send it, such as https://app.example",
                );
            }
        }
    }

    /// What is sent with cookies is taken of pages alone, and of those that are known.
    fn session_tokens(&mut self, written: &ClientMetadata, auth_method: AuthMethod) {
        if !written.session_tokens {
            return;
        }
        let problem = if auth_method != AuthMethod::None {
            "is for public clients: token_endpoint_auth_method none"
        } else if written.allowed_origins.is_empty() {
            "needs the origins of its pages in allowed_origins"
        } else {
            // Whoever is on the way could put a script into a page that came without TLS.
            for (index, origin) in written.allowed_origins.iter().enumerate() {
                if !is_secure(origin) {
                    self.wrong(
                        format!("/allowed_origins/{index}"),
                        "must be https for a client with session_tokens, but for this machine",
                    );
                }
            }
            return;
        };
        self.wrong("/session_tokens", problem);
    }

    fn forward_auth(
        &mut self,
        written: &ClientMetadata,
        auth_method: AuthMethod,
        grant_types: &[GrantType],
    ) {
        if !written.forward_auth {
            return;
        }
        // Hosts are compared with the text of the URI: one that is spelled otherwise is no host's.
        let mut protects = false;
        for (index, uri) in written.redirect_uris.iter().enumerate() {
            let parsed = url::Url::parse(uri).ok();
            let Some(url) = parsed.filter(|url| url.path() == CALLBACK_PATH) else {
                continue;
            };
            let origin = url.origin().ascii_serialization();
            if url.scheme() == "https" && *uri == format!("{origin}{CALLBACK_PATH}") {
                protects = true;
            } else {
                self.wrong(
                    format!("/redirect_uris/{index}"),
                    "must be https://<host>/session/callback, in lower case, to protect a host",
                );
            }
        }
        let problem = if auth_method != AuthMethod::ClientSecretBasic {
            "needs token_endpoint_auth_method client_secret_basic: the proxy authenticates so"
        } else if !grant_types.contains(&GrantType::AuthorizationCode) {
            "needs the grant authorization_code"
        } else if written.default_resource.is_none() {
            "needs a default_resource: what the tokens of the hosts are for"
        } else if !protects {
            "needs a redirect URI https://<host>/session/callback for each host"
        } else {
            return;
        };
        self.wrong("/forward_auth", problem);
    }

    fn refresh_policy(
        &mut self,
        written: &ClientMetadata,
        auth_method: AuthMethod,
    ) -> RefreshPolicy {
        let Some(name) = written.refresh_policy.as_deref() else {
            return RefreshPolicy::Standard;
        };
        let policy = name.parse();
        let problem = match policy {
            Ok(RefreshPolicy::None) if auth_method == AuthMethod::None => {
                // RFC 9700 §2.2.2.
                Some(
                    "none is for clients that authenticate: the tokens of a public client must rotate",
                )
            }
            Ok(RefreshPolicy::Shared) if !written.refresh_sharing_acknowledged => Some(
                "shared hides most thieves of refresh tokens; set refresh_sharing_acknowledged to accept that",
            ),
            Ok(_) => None,
            Err(_) => Some("must be none, shared, standard or strict"),
        };
        if let Some(problem) = problem {
            self.wrong("/refresh_policy", problem);
        }
        policy.unwrap_or(RefreshPolicy::Standard)
    }

    fn access_token_ttl(&mut self, ttl: Option<u32>) {
        let longest = LONGEST_TOKEN_LIFE.as_secs();
        if ttl.is_some_and(|ttl| !(1..=longest).contains(&u64::from(ttl))) {
            self.wrong(
                "/access_token_ttl_seconds",
                format!("must be between 1 and {longest}"),
            );
        }
    }
}

/// Whether nobody on the way can change a page of this origin.
fn is_secure(origin: &str) -> bool {
    url::Url::parse(origin).is_ok_and(|url| {
        let is_of_this_machine = match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        url.scheme() == "https" || is_of_this_machine
    })
}

fn metadata_of(client: &Client) -> ClientMetadata {
    ClientMetadata {
        client_name: client.client_name.clone(),
        token_endpoint_auth_method: Some(client.auth_method.to_string()),
        jwks: client.jwks.clone(),
        jwks_uri: client.jwks_uri.clone(),
        grant_types: Some(texts(&client.grant_types)),
        // It follows from the rest, and does so again.
        response_types: None,
        redirect_uris: texts(&client.redirect_uris),
        post_logout_redirect_uris: texts(&client.post_logout_redirect_uris),
        backchannel_logout_uri: client.backchannel_logout_uri.clone(),
        backchannel_logout_session_required: client.backchannel_logout_session_required,
        id_token_signed_response_alg: Some(client.id_token_alg.to_string()),
        require_pkce: Some(client.require_pkce),
        second_factor_required: client.second_factor_required,
        scope: client.scope.to_string(),
        resources: texts(&client.resources),
        default_resource: client.default_resource.as_ref().map(ToString::to_string),
        allowed_origins: client.allowed_origins.clone(),
        access_token_ttl_seconds: client.access_token_ttl_seconds,
        first_party: client.first_party,
        session_tokens: client.session_tokens,
        forward_auth: client.forward_auth,
        refresh_policy: Some(client.refresh_policy.to_string()),
        refresh_sharing_acknowledged: client.refresh_sharing_acknowledged,
        disabled: client.disabled,
    }
}

/// Keys that the patch does not name go with the way of authenticating that they were for.
fn drop_keys_of_before(document: &mut Value, patch: &Value, before: &Client) {
    let method = document.get("token_endpoint_auth_method");
    if before.auth_method != AuthMethod::PrivateKeyJwt
        || method.and_then(Value::as_str) == Some(before.auth_method.as_str())
    {
        return;
    }
    if let Value::Object(document) = document {
        document.retain(|name, _| {
            !matches!(name.as_str(), "jwks" | "jwks_uri") || patch.get(name).is_some()
        });
    }
}

/// A client's metadata after a merge patch, as far as that can be read, and what cannot.
fn patched(client: &Client, patch: &Value) -> (ClientMetadata, Vec<FieldError>) {
    let mut document = serde_json::to_value(metadata_of(client)).unwrap_or_default();
    let patch = document::without_shown(patch, &client.document(), &SHOWN_ONLY);
    document::merge(&mut document, &patch);
    drop_keys_of_before(&mut document, &patch, client);
    document::read_patched(document, &patch)
}
