//! `countersign clients …`

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use countersign_verifier::KeySet;
use serde_json::{Map, Value, json};

use super::{Failure, Reason, client_id, output, secret_id};
use crate::{
    admin::client::{ClientMetadata, created_document, secret_document},
    app::Context,
    domain::{
        client::{AuthMethod, Client, IdTokenAlg, Revision},
        family::RefreshPolicy,
        id::{ClientId, SecretId},
        redirect::RedirectUri,
        resource::ResourceUri,
        scope::Scope,
        secret::ClientSecret,
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List every client
    List,
    /// Show one client
    Show(Show),
    /// Register a client and show its secret, once
    Create(Create),
    /// Change what is given, leave the rest as it is
    Update(Update),
    /// Remove a client
    Delete(Delete),
    /// Give a client a second secret, to exchange the first without a gap
    AddSecret(AddSecret),
    /// Take a secret out of use
    RemoveSecret(RemoveSecret),
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Which one
    #[arg(value_name = "CLIENT_ID", value_parser = client_id)]
    id: ClientId,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// A name for people
    #[arg(long)]
    name: String,
    /// The id to use, instead of one drawn for it
    #[arg(long, value_parser = client_id)]
    client_id: Option<ClientId>,
    /// For the admin interface: may ask tokens for <issuer>/admin
    #[arg(long, requires = "scope", conflicts_with = "public")]
    operator: bool,
    /// Refuse it until it is enabled
    #[arg(long)]
    disabled: bool,
    #[command(flatten)]
    details: Details,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Which one
    #[arg(value_name = "CLIENT_ID", value_parser = client_id)]
    id: ClientId,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    switch: Switch,
    /// Have no default resource any more
    #[arg(long, conflicts_with = "default_resource")]
    no_default_resource: bool,
    /// Have the service's token life again
    #[arg(long, conflicts_with = "ttl")]
    no_ttl: bool,
    /// Change it only if it is still at this revision
    #[arg(long)]
    revision: Option<Revision>,
    #[command(flatten)]
    details: Details,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Which one
    #[arg(value_name = "CLIENT_ID", value_parser = client_id)]
    id: ClientId,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct AddSecret {
    /// Whose
    #[arg(value_name = "CLIENT_ID", value_parser = client_id)]
    id: ClientId,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct RemoveSecret {
    /// Whose
    #[arg(value_name = "CLIENT_ID", value_parser = client_id)]
    id: ClientId,
    /// Which one
    #[arg(value_name = "SECRET_ID", value_parser = secret_id)]
    secret: SecretId,
    #[command(flatten)]
    reason: Reason,
}

/// Whether it is accepted.
#[derive(Debug, Args)]
struct Switch {
    /// Refuse it from now on
    #[arg(long, conflicts_with = "enable")]
    disable: bool,
    /// Accept it again
    #[arg(long)]
    enable: bool,
}

/// What can be said of a client when it is created and when it is changed.
#[derive(Debug, Args)]
struct Details {
    /// A client that keeps no secret; the same as --auth-method none
    #[arg(long, conflicts_with = "auth_method")]
    public: bool,
    /// How it authenticates
    #[arg(long, value_name = "METHOD", value_parser = auth_methods())]
    auth_method: Option<String>,
    /// A file with the public keys that it signs assertions with, a JWK Set
    #[arg(long, value_name = "FILE", conflicts_with = "jwks_uri")]
    jwks: Option<PathBuf>,
    /// Where it publishes the public keys that it signs assertions with
    #[arg(long, value_name = "URL")]
    jwks_uri: Option<String>,
    /// Where its users' browsers may be sent back to with a code; repeat it for all of them
    #[arg(long = "redirect-uri", value_name = "URI")]
    redirect_uris: Vec<String>,
    /// Where they may be sent after a sign-out; repeatable
    #[arg(long = "post-logout-redirect-uri", value_name = "URI")]
    post_logout_redirect_uris: Vec<String>,
    /// Where it is told that its users have been signed out
    #[arg(long, value_name = "URL")]
    backchannel_logout_uri: Option<String>,
    /// Whether it has to be told of which sign-in
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    backchannel_logout_session_required: Option<bool>,
    /// What its ID Tokens and logout tokens are signed with; RS256 needs setting `keys.rs256_id_tokens`
    #[arg(long, value_name = "ALG", value_parser = id_token_algs())]
    id_token_signed_response_alg: Option<String>,
    /// Whether its codes are bound to a verifier; `false` is for clients that authenticate and send a nonce
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    require_pkce: Option<bool>,
    /// Whether a password alone is not enough for anybody to sign in to it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    second_factor_required: Option<bool>,
    /// Every scope token it may be given, separated by spaces
    #[arg(long)]
    scope: Option<String>,
    /// A resource it may ask tokens for; repeat it for all of them
    #[arg(long = "resource", value_name = "URI")]
    resources: Vec<String>,
    /// The resource of requests that name none; one of --resource
    #[arg(long, value_name = "URI")]
    default_resource: Option<String>,
    /// An origin whose pages may call the token endpoint; repeatable
    #[arg(long = "allowed-origin", value_name = "ORIGIN")]
    allowed_origins: Vec<String>,
    /// Life of its access tokens
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
    /// May take its users' credentials itself, and needs no consent of theirs: an app of your own
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    first_party: Option<bool>,
    /// Its pages have access tokens for the session of their browser: a public client on the issuer's site
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    session_tokens: Option<bool>,
    /// Proxies ask in its name who sends a request to the hosts of its redirect URIs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    forward_auth: Option<bool>,
    /// How its refresh tokens rotate
    #[arg(long, value_name = "POLICY", value_parser = refresh_policies())]
    refresh_policy: Option<String>,
    /// Accept that the policy `shared` hides most thieves of refresh tokens
    #[arg(long)]
    acknowledge_refresh_sharing: bool,
}

fn refresh_policies() -> PossibleValuesParser {
    PossibleValuesParser::new(RefreshPolicy::ALL.iter().map(|policy| policy.as_str()))
}

fn id_token_algs() -> PossibleValuesParser {
    PossibleValuesParser::new(IdTokenAlg::ALL.iter().map(|alg| alg.as_str()))
}

fn auth_methods() -> PossibleValuesParser {
    PossibleValuesParser::new(AuthMethod::ALL.iter().map(|method| method.as_str()))
}

impl Command {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        match self {
            Self::List => list(context, json).await,
            Self::Show(show) => shown(&context.clients().show(&show.id).await?, json),
            Self::Create(create) => create.run(context, json).await,
            Self::Update(update) => update.run(context, json).await,
            Self::Delete(delete) => delete.run(context, json).await,
            Self::AddSecret(add) => add.run(context, json).await,
            Self::RemoveSecret(remove) => remove.run(context, json).await,
        }
    }
}

async fn list(context: &Context, json: bool) -> Result<(), Failure> {
    let clients = context.clients().list().await?;
    if json {
        let items: Vec<Value> = clients.iter().map(Client::document).collect();
        return Ok(output::json(
            &json!({ "items": items, "next_cursor": null }),
        )?);
    }
    if clients.is_empty() {
        return Ok(output::line(
            "There are no clients; see: countersign clients create --help",
        )?);
    }
    let row = |client: &Client| {
        [
            client.client_id.to_string(),
            client.client_name.clone(),
            state(client).to_owned(),
            client.auth_method.to_string(),
            client.secrets.len().to_string(),
            words(client.scope.iter()),
        ]
    };
    let rows: Vec<_> = clients.iter().map(row).collect();
    let titles = [
        "CLIENT",
        "NAME",
        "STATE",
        "AUTHENTICATION",
        "SECRETS",
        "SCOPE",
    ];
    Ok(output::table(titles, &rows)?)
}

impl Create {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let mut document = self.details.document()?;
        document.insert("client_name".to_owned(), self.name.into());
        document.insert("disabled".to_owned(), self.disabled.into());
        document.retain(|_, value| !value.is_null());
        let mut metadata: ClientMetadata = serde_json::from_value(document.into())
            .map_err(|error| Failure::message(error.to_string()))?;
        if self.operator {
            metadata.resources.push(format!("{}/admin", context.issuer));
        }
        let (client, secret) = context
            .clients()
            .create(self.client_id, &metadata, false, &self.reason.cause())
            .await?;
        if json {
            output::json(&created_document(&client, secret.as_ref()))?;
        } else {
            output::line("The client is registered.")?;
            match secret {
                Some(secret) => secret_shown(&client.client_id, &secret)?,
                None => output::fields(&[("client_id", client.client_id.to_string())])?,
            }
        }
        warn_of_unknown_scopes(context, &client).await
    }
}

impl Update {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let mut patch = self.details.document()?;
        if let Some(name) = self.name {
            patch.insert("client_name".to_owned(), name.into());
        }
        if self.switch.disable || self.switch.enable {
            patch.insert("disabled".to_owned(), self.switch.disable.into());
        }
        if self.no_default_resource {
            patch.insert("default_resource".to_owned(), Value::Null);
        }
        if self.no_ttl {
            patch.insert("access_token_ttl_seconds".to_owned(), Value::Null);
        }
        if patch.is_empty() {
            return Err(Failure::Usage(
                "nothing is to be changed; see: countersign clients update --help".to_owned(),
            ));
        }
        let client = context
            .clients()
            .update(&self.id, &patch.into(), self.revision, &self.reason.cause())
            .await?;
        shown(&client, json)?;
        warn_of_unknown_scopes(context, &client).await
    }
}

impl Delete {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        context
            .clients()
            .delete(&self.id, &self.reason.cause())
            .await?;
        if !json {
            let id = self.id;
            output::line(&format!(
                "Client {id} is removed; its tokens live on until they expire."
            ))?;
        }
        Ok(())
    }
}

impl AddSecret {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let cause = self.reason.cause();
        let (client, id, secret) = context.clients().add_secret(&self.id, &cause).await?;
        if json {
            return Ok(output::json(&secret_document(&client, id, &secret))?);
        }
        output::line(
            "The client has another secret; the one before stays valid until it is removed.",
        )?;
        secret_shown(&client.client_id, &secret)
    }
}

impl RemoveSecret {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let cause = self.reason.cause();
        let client = context
            .clients()
            .remove_secret(&self.id, self.secret, &cause)
            .await?;
        if !json {
            let left = match client.secrets.len() {
                0 => "the client has none left and cannot authenticate".to_owned(),
                left => format!("the client has {left} left"),
            };
            output::line(&format!("Secret {} is out of use; {left}.", self.secret))?;
        }
        Ok(())
    }
}

impl Details {
    /// What was given, as a part of the document of a client.
    fn document(self) -> Result<Map<String, Value>, Failure> {
        let mut document = Map::new();
        let mut put = |name: &str, value: Value| document.insert(name.to_owned(), value);
        let public = self.public.then(|| AuthMethod::None.to_string());
        if let Some(method) = public.or(self.auth_method) {
            put("token_endpoint_auth_method", method.into());
            // Which grants it may use follows from how it authenticates.
            put("grant_types", Value::Null);
        }
        // Whichever is given takes the place of the other.
        if let Some(path) = self.jwks {
            put("jwks", key_set(&path)?);
            put("jwks_uri", Value::Null);
        }
        if let Some(uri) = self.jwks_uri {
            put("jwks_uri", uri.into());
            put("jwks", Value::Null);
        }
        if !self.redirect_uris.is_empty() {
            put("redirect_uris", self.redirect_uris.into());
        }
        if !self.post_logout_redirect_uris.is_empty() {
            put(
                "post_logout_redirect_uris",
                self.post_logout_redirect_uris.into(),
            );
        }
        if let Some(uri) = self.backchannel_logout_uri {
            put("backchannel_logout_uri", uri.into());
        }
        if let Some(required) = self.backchannel_logout_session_required {
            put("backchannel_logout_session_required", required.into());
        }
        if let Some(alg) = self.id_token_signed_response_alg {
            put("id_token_signed_response_alg", alg.into());
        }
        if let Some(require_pkce) = self.require_pkce {
            put("require_pkce", require_pkce.into());
        }
        if let Some(required) = self.second_factor_required {
            put("second_factor_required", required.into());
        }
        if let Some(scope) = self.scope {
            put("scope", scope.into());
        }
        if !self.resources.is_empty() {
            put("resources", self.resources.into());
        }
        if let Some(uri) = self.default_resource {
            put("default_resource", uri.into());
        }
        if !self.allowed_origins.is_empty() {
            put("allowed_origins", self.allowed_origins.into());
        }
        if let Some(ttl) = self.ttl {
            put("access_token_ttl_seconds", ttl.into());
        }
        if let Some(first_party) = self.first_party {
            put("first_party", first_party.into());
        }
        if let Some(session_tokens) = self.session_tokens {
            put("session_tokens", session_tokens.into());
        }
        if let Some(forward_auth) = self.forward_auth {
            put("forward_auth", forward_auth.into());
        }
        if let Some(policy) = self.refresh_policy {
            put("refresh_policy", policy.into());
        }
        if self.acknowledge_refresh_sharing {
            put("refresh_sharing_acknowledged", true.into());
        }
        Ok(document)
    }
}

fn key_set(path: &Path) -> Result<Value, Failure> {
    let unreadable = |problem: &dyn Display| {
        Failure::message(format!(
            "--jwks: cannot read a JWK Set from {}: {problem}",
            path.display()
        ))
    };
    let text = fs::read_to_string(path).map_err(|error| unreadable(&error))?;
    serde_json::from_str(&text).map_err(|_| unreadable(&"it is no JSON"))
}

fn secret_shown(id: &ClientId, secret: &ClientSecret) -> Result<(), Failure> {
    output::fields(&[
        ("client_id", id.to_string()),
        ("client_secret", secret.expose().to_owned()),
    ])?;
    Ok(output::line("Keep the secret now: it is not shown again.")?)
}

/// Points out scope tokens that no resource of the client knows: they are most likely misspelt.
async fn warn_of_unknown_scopes(context: &Context, client: &Client) -> Result<(), Failure> {
    let mut known = Scope::default();
    for resource in context.resources().list().await? {
        if client.resources.contains(&resource.resource) {
            known.extend(&resource.scopes);
        }
    }
    let unknown: Vec<&str> = client
        .scope
        .iter()
        .filter(|token| !known.iter().any(|known| known == *token))
        .collect();
    if !unknown.is_empty() {
        output::remark(&format!(
            "no resource of this client knows these scope tokens, so that it is not given them: {}",
            unknown.join(" ")
        ));
    }
    Ok(())
}

fn shown(client: &Client, json: bool) -> Result<(), Failure> {
    if json {
        return Ok(output::json(&client.document())?);
    }
    let uris = client.resources.iter().map(ResourceUri::as_str);
    let default = client.default_resource.iter().map(ResourceUri::as_str);
    let grants = client.grant_types.iter().map(|grant| grant.as_str());
    let origins = client.allowed_origins.iter().map(String::as_str);
    let redirects = client.redirect_uris.iter().map(RedirectUri::as_str);
    let after_sign_out = client.post_logout_redirect_uris.iter();
    let life = match client.access_token_ttl_seconds {
        Some(ttl) => format!("{ttl} seconds"),
        None => "the service's".to_owned(),
    };
    let mut fields = vec![
        ("client_id", client.client_id.to_string()),
        ("name", client.client_name.clone()),
        ("state", state(client).to_owned()),
        ("authentication", client.auth_method.to_string()),
        ("grants", words(grants)),
        ("redirect URIs", words(redirects)),
        (
            "after sign-out",
            words(after_sign_out.map(RedirectUri::as_str)),
        ),
        ("ID Tokens signed with", client.id_token_alg.to_string()),
        ("PKCE required", yes_or_no(client.require_pkce).to_owned()),
        (
            "second factor required",
            yes_or_no(client.second_factor_required).to_owned(),
        ),
        ("scope", words(client.scope.iter())),
        ("resources", words(uris)),
        ("default resource", words(default)),
        ("allowed origins", words(origins)),
        ("token life", life),
        ("first party", yes_or_no(client.first_party).to_owned()),
        (
            "session tokens",
            yes_or_no(client.session_tokens).to_owned(),
        ),
        ("forward auth", yes_or_no(client.forward_auth).to_owned()),
        ("refresh policy", client.refresh_policy.to_string()),
        ("revision", client.revision.to_string()),
        ("created", output::utc_seconds(client.created_at)),
        ("changed", output::utc_seconds(client.updated_at)),
    ];
    if let Some(uri) = &client.backchannel_logout_uri {
        let of_which = if client.backchannel_logout_session_required {
            ", of which sign-in"
        } else {
            ""
        };
        fields.push(("told of sign-outs", format!("at {uri}{of_which}")));
    }
    if let Some(jwks) = &client.jwks {
        let keys = KeySet::parse(jwks.to_string().as_bytes()).unwrap_or_default();
        fields.push(("keys", words(keys.kids())));
    }
    if let Some(uri) = &client.jwks_uri {
        fields.push(("keys", format!("at {uri}")));
    }
    for secret in &client.secrets {
        let created = output::utc_seconds(secret.created_at);
        fields.push(("secret", format!("{} of {created}", secret.id)));
    }
    Ok(output::fields(&fields)?)
}

fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn state(client: &Client) -> &'static str {
    if client.disabled {
        "disabled"
    } else {
        "enabled"
    }
}

fn words<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.collect();
    if words.is_empty() {
        return "none".to_owned();
    }
    words.join(" ")
}
