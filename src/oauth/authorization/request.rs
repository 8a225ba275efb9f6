//! Authorization requests (RFC 6749 §4.1.1, `OpenID` Connect Core §3.1.2.1): what an app asks for by
//! way of its user's browser.
//!
//! A request is read anew, from the same text, at each step that its user takes: what client and
//! resources are by then is what counts, and nothing is stored for who never signs in.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use super::claims::ClaimsParameter;
use crate::{
    clock::Timestamp,
    domain::{
        browser_session::BrowserSession,
        claims::RequestedClaims,
        client::Client,
        consent::Permission,
        factor::{ACR_VALUES, TWO_FACTORS, acr},
        id::ClientId,
        name::named,
        profile,
        resource::ResourceUri,
        scope::{OPENID, Scope},
    },
    oauth::{
        access_token::{Target, asks_openid},
        codes,
        error::{ErrorCode, OAuthError},
        form::Form,
        id_token::{Hint, InvalidHint},
    },
    registry::Registry,
};

/// The longest `state` that is given back, in bytes.
const LONGEST_STATE: usize = 4096;

/// The longest `nonce`, in bytes.
const LONGEST_NONCE: usize = 512;

/// The longest text that is only looked at, in bytes.
const LONGEST_HINT: usize = 1024;

named!(
    /// How an answer goes back through the browser (OAuth 2.0 Multiple Response Type Encoding
    /// Practices §2.1, OAuth 2.0 Form Post Response Mode).
    ResponseMode {
        /// In a form that the browser posts.
        FormPost = "form_post",
        /// In the query of the redirect URI.
        Query = "query",
    }
);

named!(
    /// What the user is to be asked, whatever is known already (`OpenID` Connect Core §3.1.2.1).
    Prompt {
        /// To consent.
        Consent = "consent",
        /// To sign in.
        Login = "login",
        /// Nothing at all.
        None = "none",
        /// Which account to take: here, to sign in.
        SelectAccount = "select_account",
    }
);

/// Where an answer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnAddress {
    /// As the request named it, which the client has registered.
    pub redirect_uri: String,
    /// How.
    pub mode: ResponseMode,
    /// What the client wants back with it, exactly.
    pub state: Option<String>,
}

impl ReturnAddress {
    /// The parameters of an answer (RFC 6749 §4.1.2), with the issuer that gives it (RFC 9207 §2).
    pub fn parameters<'a>(
        &'a self,
        issuer: &'a str,
        answer: &[(&'static str, &'a str)],
    ) -> Vec<(&'static str, &'a str)> {
        let state = self.state.iter().map(|state| ("state", state.as_str()));
        let answer = answer.iter().copied();
        answer.chain(state).chain([("iss", issuer)]).collect()
    }

    /// The redirect URI with the parameters in its query; what it has there already stays
    /// (RFC 6749 §3.1.2).
    pub fn location(&self, parameters: &[(&str, &str)]) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(parameters);
        let join = if self.redirect_uri.contains('?') {
            '&'
        } else {
            '?'
        };
        format!("{}{join}{}", self.redirect_uri, query.finish())
    }
}

/// Reads the ID Tokens that come back as hints.
pub type Hints<'a> = dyn Fn(&str) -> Result<Hint, InvalidHint> + 'a;

/// Why a request is refused, and who is told.
#[derive(Debug)]
pub enum Rejection {
    /// The user: nobody knows that the client asks, or that the place is its own (RFC 6749
    /// §4.1.2.1, RFC 9700 §4.11).
    Shown(OAuthError),
    /// The client.
    Returned(Box<ReturnAddress>, OAuthError),
}

/// A request whose answer has a place to go to.
pub struct AuthorizationRequest {
    /// Who asks.
    pub client: Arc<Client>,
    /// Where the answer goes.
    pub return_address: ReturnAddress,
    /// Whether the request named that place: then the exchange of the code must do so, too.
    pub names_redirect_uri: bool,
    /// What for.
    pub asked: Asked,
}

/// What a client asks for.
pub struct Asked {
    /// The scope: of the request, else all the client has at the resources.
    pub scope: Scope,
    /// The resources: of the request, else the client's default.
    pub resources: Vec<ResourceUri>,
    /// The S256 transformation of the client's verifier (RFC 7636 §4.3); none where the nonce has to do.
    pub code_challenge: Option<String>,
    /// What the ID Token is to repeat.
    pub nonce: Option<String>,
    /// What the user is to be asked in any case.
    pub prompts: Vec<Prompt>,
    /// How long ago the user may have authenticated.
    pub max_age: Option<Duration>,
    /// Whether the client would rather have two factors than one (`acr_values`).
    pub two_factors: bool,
    /// Whom the client expects.
    pub login_hint: Option<String>,
    /// Who the user has to be, by an ID Token that the client has or by name: each of them.
    pub subjects: Vec<String>,
    /// One of these is what the user has to have authenticated by, if there are any.
    pub essential_acr: Vec<String>,
    /// Claims that are asked for by name.
    pub claims: RequestedClaims,
}

impl fmt::Debug for AuthorizationRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizationRequest")
            .field("client", &self.client.client_id)
            .field("return_address", &self.return_address.redirect_uri)
            .finish_non_exhaustive()
    }
}

/// What a scope at these resources needs leave for, line by line.
pub(in crate::oauth) fn permissions(
    scope: &Scope,
    resources: &[ResourceUri],
    registry: &Registry,
) -> BTreeSet<Permission> {
    let mut permissions = BTreeSet::new();
    for uri in resources {
        let scopes = registry.resource(uri).map(|resource| &resource.scopes);
        let known = scopes.map(|scopes| scope.intersection(scopes));
        let known = known.unwrap_or_default();
        if known.is_empty() {
            permissions.insert((uri.clone(), String::new()));
        }
        permissions.extend(known.iter().map(|token| (uri.clone(), token.to_owned())));
    }
    permissions
}

impl AuthorizationRequest {
    /// Reads a request.
    ///
    /// # Security
    /// Whoever sends a browser here chooses all of `form`. As long as client and redirect URI are not
    /// known to belong together, the answer goes nowhere but to the user's screen.
    pub fn read(form: &Form, registry: &Registry, hints: &Hints<'_>) -> Result<Self, Rejection> {
        let client = client(form, registry).map_err(Rejection::Shown)?;
        let (redirect_uri, names_redirect_uri) =
            redirect_uri(form, &client).map_err(Rejection::Shown)?;
        let mut return_address = ReturnAddress {
            redirect_uri,
            mode: ResponseMode::Query,
            state: None,
        };
        // How the client wants its answer comes first, so that errors go there in the same way.
        let asked = answer_of(form, &mut return_address)
            .and_then(|()| Asked::read(form, registry, hints, &client, names_redirect_uri));
        match asked {
            Ok(asked) => Ok(Self {
                client,
                return_address,
                names_redirect_uri,
                asked,
            }),
            Err(error) => Err(Rejection::Returned(Box::new(return_address), error)),
        }
    }
}

impl Asked {
    fn read(
        form: &Form,
        registry: &Registry,
        hints: &Hints<'_>,
        client: &Client,
        names_redirect_uri: bool,
    ) -> Result<Self, OAuthError> {
        not_supported(form)?;
        // Whatever is known comes once, also where it asks for what there is not (RFC 6749 §3.1).
        for name in ["display", "ui_locales", "claims_locales"] {
            form.one(name)?;
        }
        match form.one("response_type")? {
            Some("code") => {}
            Some(_) => return Err(codes::not_a_code()),
            None => return Err(OAuthError::malformed("response_type is missing")),
        }
        codes::check_client(client)?;
        let Target { resources, scope } = Target::for_users(client, registry, form)?;
        let nonce = text(form, "nonce", LONGEST_NONCE)?;
        let is_openid = scope.contains(OPENID);
        let may_have_none = !client.require_pkce && !client.is_public() && is_openid;
        let has_none = |name| Ok::<_, OAuthError>(form.one(name)?.is_none());
        let code_challenge =
            if may_have_none && has_none("code_challenge")? && has_none("code_challenge_method")? {
                // The client compares it with that of the ID Token, and names the URI once more when it
                // exchanges the code (RFC 9700 §2.1.1, §4.5.3).
                if nonce.is_none() || !names_redirect_uri {
                    return Err(OAuthError::malformed(
                        "without a code_challenge there have to be a nonce and a redirect_uri",
                    ));
                }
                None
            } else {
                Some(codes::code_challenge(form)?)
            };
        let claims = match form.one("claims")? {
            Some(claims) if is_openid => ClaimsParameter::parse(claims, client)?,
            _ => ClaimsParameter::default(),
        };
        let mut subjects = claims.subjects;
        if let Some(hint) = form.one("id_token_hint")? {
            let hint = hints(hint).map_err(|_| {
                OAuthError::new(
                    ErrorCode::InvalidRequest,
                    "id_token_hint",
                    "the id_token_hint is no ID Token of this service, or its key was revoked",
                )
            })?;
            subjects.push(hint.subject.to_string());
        }
        Ok(Self {
            scope,
            resources,
            code_challenge,
            nonce,
            prompts: prompts(form)?,
            max_age: max_age(form)?,
            two_factors: two_factors(form, &claims.acr)?,
            login_hint: text(form, "login_hint", LONGEST_HINT)?,
            subjects,
            essential_acr: if claims.is_acr_essential {
                claims.acr
            } else {
                Vec::new()
            },
            claims: claims.names,
        })
    }

    /// Whether the user is to be asked nothing.
    pub fn is_silent(&self) -> bool {
        self.asks_for(Prompt::None)
    }

    /// Whether the user is to be asked this.
    pub fn asks_for(&self, prompt: Prompt) -> bool {
        self.prompts.contains(&prompt)
    }

    /// Whether this is a request of `OpenID` Connect.
    pub fn is_openid(&self) -> bool {
        self.scope.contains(OPENID)
    }

    /// Whether a session is of whom the client expects, who has authenticated as it demands.
    fn expects(&self, session: &BrowserSession) -> bool {
        let subject = session.subject.to_string();
        let has_acr = self.essential_acr.is_empty()
            || self.essential_acr.iter().any(|it| it == acr(&session.amr));
        has_acr && self.subjects.iter().all(|expected| *expected == subject)
    }

    /// Whether a user who authenticated at `auth_time` need not do so again. Whoever has done so since
    /// the request came (`begun_at`) has done what it asked for.
    fn accepts(&self, auth_time: Timestamp, begun_at: Timestamp, now: Timestamp) -> bool {
        let asks_anew = self.asks_for(Prompt::Login) || self.asks_for(Prompt::SelectAccount);
        let is_recent = self
            .max_age
            .is_none_or(|max_age| now.since(auth_time) <= max_age);
        begun_at <= auth_time || !asks_anew && is_recent
    }
}

/// What is left to do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The user has to sign in.
    SignIn,
    /// The user has to say whether the client may have what it asks for.
    Consent,
    /// The client gets its code.
    Issue,
}

/// What is known of a user when a request is judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// The session of the browser, which lives.
    pub session: Option<&'a BrowserSession>,
    /// Whether its user has allowed the client all that it asks for.
    pub is_allowed: bool,
    /// Whether the user has just been asked for that, in this request, and allowed it.
    pub has_consented: bool,
}

impl AuthorizationRequest {
    /// What the client asks for, line by line.
    pub fn permissions(&self, registry: &Registry) -> BTreeSet<Permission> {
        let mut permissions = permissions(&self.asked.scope, &self.asked.resources, registry);
        // What is asked for by name is asked for all the same.
        let userinfo = registry.userinfo().map(|userinfo| &userinfo.resource);
        let claims = &self.asked.claims;
        let named = claims.id_token.iter().chain(&claims.userinfo);
        let scopes = named.filter_map(|name| profile::scope_of(name));
        let lines = scopes.filter_map(|scope| Some((userinfo?.clone(), scope.to_owned())));
        permissions.extend(lines);
        permissions
    }

    /// What is left to do, for a request that came at `begun_at`.
    ///
    /// # Errors
    /// `login_required` or `consent_required` for a client that wants nobody asked.
    pub fn next(
        &self,
        known: Known<'_>,
        begun_at: Timestamp,
        now: Timestamp,
    ) -> Result<Step, OAuthError> {
        let is_silent = self.asked.is_silent();
        // For this request, that is.
        let has_signed_in = known
            .session
            .is_some_and(|session| begun_at <= session.auth_time);
        let is_expected = known.session.is_some_and(|session| {
            self.asked.expects(session) && self.asked.accepts(session.auth_time, begun_at, now)
        });
        if !is_expected {
            // "otherwise, it MUST return an error" (OpenID Connect Core §3.1.2.1): whoever has just
            // signed in is not who was to.
            return if is_silent || has_signed_in {
                Err(OAuthError::new(
                    ErrorCode::LoginRequired,
                    "login_required",
                    "the user has to sign in, as who is expected and in the way that is asked for",
                ))
            } else {
                Ok(Step::SignIn)
            };
        }
        // Nobody knows which program asks under the name of a client that has no secret and no
        // server: it gets nothing "without user consent or interaction" (RFC 8252 §8.6). Whoever has
        // just signed in for an app of the same house has interacted.
        let is_anybody =
            self.client.is_public() && !self.return_address.redirect_uri.starts_with("https://");
        let is_known = !is_anybody || self.client.first_party && has_signed_in;
        let asks_anew = self.asked.asks_for(Prompt::Consent) || !is_known;
        // Apps of the same house need no leave otherwise.
        let is_allowed = known.is_allowed || self.client.first_party;
        let is_needed = !known.has_consented && (asks_anew || !is_allowed);
        match (is_needed, is_silent) {
            (false, _) => Ok(Step::Issue),
            (true, false) => Ok(Step::Consent),
            (true, true) => Err(OAuthError::new(
                ErrorCode::ConsentRequired,
                "consent_required",
                "the user has to allow the client what it asks for",
            )),
        }
    }
}

/// "Requested Authentication Context Class Reference values … in order of preference" (`OpenID`
/// Connect Core §3.1.2.1): the first one that is known decides.
fn two_factors(form: &Form, claimed: &[String]) -> Result<bool, OAuthError> {
    let values = form.one("acr_values")?.unwrap_or_default().split(' ');
    let mut values = values.chain(claimed.iter().map(String::as_str));
    let known = values.find(|value| ACR_VALUES.contains(value));
    Ok(known == Some(TWO_FACTORS))
}

fn client(form: &Form, registry: &Registry) -> Result<Arc<Client>, OAuthError> {
    let id = form
        .one("client_id")?
        .ok_or_else(|| OAuthError::malformed("client_id is missing"))?;
    let client = ClientId::parse(id).ok();
    let client = client.and_then(|id| registry.client(&id).cloned());
    client
        .filter(|client| !client.disabled)
        .ok_or(OAuthError::new(
            ErrorCode::InvalidRequest,
            "unknown_client",
            "the client_id is none of this service, or its client is disabled",
        ))
}

/// Where the answer goes, and whether the request says so.
fn redirect_uri(form: &Form, client: &Client) -> Result<(String, bool), OAuthError> {
    let Some(presented) = form.one("redirect_uri")? else {
        // "if only one has been registered" (RFC 6749 §3.1.2.3); OpenID Connect Core §3.1.2.1
        // requires it in any case.
        let scope = form.one("scope").ok().flatten();
        return match client.redirect_uris.as_slice() {
            [only] if !scope.is_some_and(asks_openid) => Ok((only.as_str().to_owned(), false)),
            _ => Err(OAuthError::new(
                ErrorCode::InvalidRequest,
                "redirect_uri",
                "redirect_uri is missing",
            )),
        };
    };
    if client.redirect_uris.iter().any(|uri| uri.admits(presented)) {
        Ok((presented.to_owned(), true))
    } else {
        Err(OAuthError::new(
            ErrorCode::InvalidRequest,
            "redirect_uri",
            "the redirect_uri is not registered for this client",
        ))
    }
}

/// How the client wants its answer.
fn answer_of(form: &Form, address: &mut ReturnAddress) -> Result<(), OAuthError> {
    address.state = text(form, "state", LONGEST_STATE)?;
    // Pages would bring line breaks back as others (RFC 6749 Appendix A.5).
    if address
        .state
        .iter()
        .flat_map(|state| state.chars())
        .any(char::is_control)
    {
        address.state = None;
        return Err(OAuthError::malformed("state has control characters"));
    }
    if let Some(mode) = form.one("response_mode")? {
        address.mode = mode.parse().map_err(|_| {
            OAuthError::new(
                ErrorCode::InvalidRequest,
                "response_mode",
                "the response_mode must be query or form_post",
            )
        })?;
    }
    Ok(())
}

/// Refuses what would change the meaning of the request if it were passed over (RFC 9101 §4,
/// `OpenID` Connect Core §3.1.2.6).
fn not_supported(form: &Form) -> Result<(), OAuthError> {
    for (name, code, description) in [
        (
            "request",
            ErrorCode::RequestNotSupported,
            "request objects are not supported",
        ),
        (
            "request_uri",
            ErrorCode::RequestUriNotSupported,
            "request_uri is not supported",
        ),
    ] {
        if form.one(name)?.is_some() {
            return Err(OAuthError::new(code, name, description));
        }
    }
    Ok(())
}

fn prompts(form: &Form) -> Result<Vec<Prompt>, OAuthError> {
    let text = form.one("prompt")?.unwrap_or_default();
    // What is not known asks for nothing.
    let prompts: Vec<Prompt> = text
        .split(' ')
        .filter_map(|name| name.parse().ok())
        .collect();
    if prompts.contains(&Prompt::None) && text.split(' ').count() > 1 {
        return Err(OAuthError::malformed(
            "prompt=none stands for itself or not at all",
        ));
    }
    Ok(prompts)
}

fn max_age(form: &Form) -> Result<Option<Duration>, OAuthError> {
    let Some(seconds) = form.one("max_age")? else {
        return Ok(None);
    };
    let is_number = seconds.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = seconds.parse::<u64>().ok().filter(|_| is_number);
    seconds
        .map(|seconds| Some(Duration::from_secs(seconds)))
        .ok_or_else(|| OAuthError::malformed("max_age is not a number of seconds"))
}

/// A parameter that may be of any characters, but no longer than this.
fn text(form: &Form, name: &'static str, longest: usize) -> Result<Option<String>, OAuthError> {
    let text = form.one(name)?;
    if text.is_some_and(|text| text.len() > longest) {
        return Err(OAuthError::new(
            ErrorCode::InvalidRequest,
            "too_long",
            "state, nonce or login_hint is too long",
        ));
    }
    Ok(text.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{
        client::{AuthMethod, GrantType, IdTokenAlg},
        family::{Party, RefreshPolicy},
        id::{FamilyId, ResourceId, SessionId, UserId},
        redirect::RedirectUri,
        resource::Resource,
    };
    use crate::oauth::userinfo;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    const ISSUER: &str = "https://issuer.example";
    const USERINFO: &str = "https://issuer.example/oauth2/userinfo";

    fn client(id: &str) -> Client {
        let uri = |text| RedirectUri::parse(text).unwrap();
        Client {
            client_id: ClientId::parse(id).unwrap(),
            client_name: id.to_owned(),
            auth_method: AuthMethod::None,
            grant_types: vec![GrantType::AuthorizationCode],
            scope: Scope::parse("openid email read write").unwrap(),
            resources: vec![ResourceUri::parse("urn:api").unwrap()],
            default_resource: Some(ResourceUri::parse("urn:api").unwrap()),
            redirect_uris: vec![
                uri("https://app.example/cb?tenant=1"),
                uri("http://127.0.0.1/cb"),
            ],
            post_logout_redirect_uris: Vec::new(),
            backchannel_logout_uri: None,
            backchannel_logout_session_required: false,
            id_token_alg: IdTokenAlg::Es256,
            require_pkce: true,
            second_factor_required: false,
            allowed_origins: Vec::new(),
            access_token_ttl_seconds: None,
            first_party: false,
            session_tokens: false,
            forward_auth: false,
            refresh_policy: RefreshPolicy::Standard,
            refresh_sharing_acknowledged: false,
            session_epoch: 1,
            disabled: false,
            demo: false,
            jwks: None,
            jwks_uri: None::<String>,
            tokens_not_before: None,
            secrets: Vec::new(),
            revision: 1,
            created_at: NOW,
            updated_at: NOW,
        }
    }

    fn registry() -> Registry {
        let confidential = |id| Client {
            auth_method: AuthMethod::ClientSecretBasic,
            require_pkce: false,
            redirect_uris: vec![RedirectUri::parse("https://app.example/cb").unwrap()],
            ..client(id)
        };
        let clients = [
            client("app"),
            confidential("relaxed"),
            Client {
                auth_method: AuthMethod::None,
                ..confidential("public")
            },
            Client {
                default_resource: Some(ResourceUri::parse(USERINFO).unwrap()),
                ..confidential("bare")
            },
            Client {
                disabled: true,
                ..client("disabled")
            },
            Client {
                grant_types: vec![GrantType::RefreshToken],
                ..client("without")
            },
        ];
        let resource = Resource {
            id: ResourceId::from_uuid(Uuid::from_u128(2)),
            resource: ResourceUri::parse("urn:api").unwrap(),
            name: "API".to_owned(),
            scopes: Scope::parse("read write").unwrap(),
            scope_descriptions: std::collections::BTreeMap::new(),
            introspection_clients: Vec::new(),
            demo: false,
        };
        let userinfo = userinfo::resource(ISSUER).unwrap();
        Registry::new(clients, [resource, userinfo])
    }

    /// A request that is in order.
    const GOOD: [(&str, &str); 7] = [
        ("client_id", "app"),
        ("redirect_uri", "https://app.example/cb?tenant=1"),
        ("response_type", "code"),
        ("state", "a b&c=d"),
        ("scope", "openid read"),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];

    /// The same, with some parameters replaced, added, or left out where they are empty.
    fn read(changes: &[(&str, &str)]) -> Result<AuthorizationRequest, Rejection> {
        let kept = GOOD
            .iter()
            .filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(kept.chain(changes));
        AuthorizationRequest::read(
            &Form::parse(query.finish().as_bytes()).unwrap(),
            &registry(),
            &|text| {
                let subject = text.parse().map_err(|_| InvalidHint::Unknown)?;
                Ok(Hint {
                    subject: UserId::from_uuid(Uuid::from_u128(subject)),
                    client_id: ClientId::parse("app").unwrap(),
                    family: FamilyId::from_uuid(Uuid::nil()),
                })
            },
        )
    }

    fn shown(changes: &[(&str, &str)]) -> &'static str {
        match read(changes) {
            Err(Rejection::Shown(error)) => error.reason(),
            other => panic!("{changes:?} led to {other:?}"),
        }
    }

    fn returned(changes: &[(&str, &str)]) -> (&'static str, &'static str) {
        match read(changes) {
            Err(Rejection::Returned(to, error)) => {
                assert_eq!(to.redirect_uri, "https://app.example/cb?tenant=1");
                (error.code().as_str(), error.reason())
            }
            other => panic!("{changes:?} led to {other:?}"),
        }
    }

    #[test]
    fn a_request_asks_for_what_it_says() {
        let more = [
            ("nonce", "n"),
            ("prompt", "login consent other"),
            ("max_age", "60"),
            ("login_hint", "ada"),
            ("response_mode", "form_post"),
            ("acr_values", "whatever"),
            ("unheard_of", "1"),
        ];
        let request = read(&more).unwrap();
        let asked = &request.asked;
        assert_eq!(request.client.client_id.as_str(), "app");
        assert!(request.names_redirect_uri);
        assert_eq!(request.return_address.mode, ResponseMode::FormPost);
        assert_eq!(request.return_address.state.as_deref(), Some("a b&c=d"));
        assert_eq!(asked.scope.to_string(), "openid read");
        assert_eq!(asked.resources[0].as_str(), "urn:api");
        assert_eq!(asked.resources[1].as_str(), USERINFO);
        assert_eq!(asked.code_challenge.as_deref(), Some(CHALLENGE));
        assert_eq!(asked.nonce.as_deref(), Some("n"));
        assert_eq!(asked.prompts, [Prompt::Login, Prompt::Consent]);
        assert_eq!(asked.max_age, Some(Duration::from_mins(1)));
        assert_eq!(asked.login_hint.as_deref(), Some("ada"));
        assert!(asked.is_openid());
    }

    /// RFC 6749 §4.1.2.1: "the authorization server SHOULD inform the resource owner of the error and
    /// MUST NOT automatically redirect the user-agent to the invalid redirection URI."
    #[test]
    fn nobody_is_sent_to_where_the_client_has_not_registered() {
        for (changes, reason) in [
            (&[("client_id", "")][..], "malformed"),
            (&[("client_id", "nobody")], "unknown_client"),
            (&[("client_id", "a b")], "unknown_client"),
            (&[("client_id", "disabled")], "unknown_client"),
            (
                &[("client_id", "app"), ("client_id", "app")],
                "repeated_parameter",
            ),
            (&[("redirect_uri", "")], "redirect_uri"),
            (
                &[("redirect_uri", "https://app.example/cb")],
                "redirect_uri",
            ),
            (
                &[("redirect_uri", "https://app.example/cb?tenant=1&a=b")],
                "redirect_uri",
            ),
            (
                &[("redirect_uri", "https://app.example/cb?tenant=1#")],
                "redirect_uri",
            ),
            (
                &[("redirect_uri", "https://good@evil.example/cb")],
                "redirect_uri",
            ),
            (&[("redirect_uri", "http://localhost/cb")], "redirect_uri"),
            (
                &[
                    ("redirect_uri", "https://app.example/cb?tenant=1"),
                    ("redirect_uri", "https://evil.example/"),
                ],
                "repeated_parameter",
            ),
        ] {
            assert_eq!(shown(changes), reason, "{changes:?}");
        }
        let request = read(&[("redirect_uri", "http://127.0.0.1:49152/cb")]).unwrap();
        let named = request.return_address.redirect_uri;
        assert_eq!(named, "http://127.0.0.1:49152/cb");
    }

    /// The URI need not be named where there is one only, but for `OpenID` Connect.
    #[test]
    fn a_redirect_uri_that_is_left_out_is_the_only_one() {
        let relaxed = |scope| {
            read(&[
                ("client_id", "relaxed"),
                ("redirect_uri", ""),
                ("scope", scope),
            ])
        };
        let request = relaxed("read").unwrap();
        assert_eq!(
            request.return_address.redirect_uri,
            "https://app.example/cb"
        );
        assert!(!request.names_redirect_uri);
        assert!(matches!(relaxed("openid"), Err(Rejection::Shown(_))));
    }

    #[test]
    fn what_else_is_wrong_is_told_to_the_client() {
        let long = "x".repeat(5000);
        for (changes, code, reason) in [
            (&[("response_type", "")][..], "invalid_request", "malformed"),
            (
                &[("response_type", "token")],
                "unsupported_response_type",
                "response_type",
            ),
            (
                &[("response_type", "code id_token")],
                "unsupported_response_type",
                "response_type",
            ),
            (
                &[("response_mode", "fragment")],
                "invalid_request",
                "response_mode",
            ),
            (
                &[("client_id", "without")],
                "unauthorized_client",
                "grant_type",
            ),
            (&[("scope", "admin")], "invalid_scope", "scope"),
            (&[("scope", "read  write")], "invalid_scope", "scope"),
            (&[("resource", "urn:other")], "invalid_target", "resource"),
            (&[("code_challenge", "")], "invalid_request", "malformed"),
            (
                &[("code_challenge", "short")],
                "invalid_request",
                "malformed",
            ),
            (
                &[("code_challenge_method", "")],
                "invalid_request",
                "malformed",
            ),
            (
                &[("code_challenge_method", "plain")],
                "invalid_request",
                "malformed",
            ),
            (
                &[("code_challenge", ""), ("code_challenge_method", "")],
                "invalid_request",
                "malformed",
            ),
            (&[("prompt", "none login")], "invalid_request", "malformed"),
            (&[("max_age", "-1")], "invalid_request", "malformed"),
            (&[("max_age", "+1")], "invalid_request", "malformed"),
            (&[("max_age", "soon")], "invalid_request", "malformed"),
            (&[("state", &long)], "invalid_request", "too_long"),
            (&[("state", "a\r\nb")], "invalid_request", "malformed"),
            (&[("state", "a\0")], "invalid_request", "malformed"),
            (&[("nonce", &long)], "invalid_request", "too_long"),
            (
                &[("state", "a"), ("state", "b")],
                "invalid_request",
                "repeated_parameter",
            ),
            (
                &[("display", "page"), ("display", "popup")],
                "invalid_request",
                "repeated_parameter",
            ),
            (&[("request", "x")], "request_not_supported", "request"),
            (
                &[("request_uri", "https://app.example/r")],
                "request_uri_not_supported",
                "request_uri",
            ),
        ] {
            assert_eq!(returned(changes), (code, reason), "{changes:?}");
        }
    }

    /// RFC 9700 §2.1.1: a nonce may stand for PKCE where it is compared with that of an ID Token, by a
    /// client that authenticates.
    #[test]
    fn nobody_does_without_a_challenge_but_who_has_a_nonce_and_may() {
        let without = |changes: &[(&str, &str)]| {
            let none = [("code_challenge", ""), ("code_challenge_method", "")];
            read(&[&none[..], changes].concat()).map(|request| request.asked.code_challenge)
        };
        let relaxed = ("client_id", "relaxed");
        let uri = ("redirect_uri", "https://app.example/cb");
        let nonce = ("nonce", "n");
        assert_eq!(without(&[relaxed, uri, nonce]).unwrap(), None);
        for changes in [
            &[nonce][..],
            &[relaxed, uri],
            &[relaxed, uri, nonce, ("scope", "read")],
            &[relaxed, uri, nonce, ("code_challenge_method", "S256")],
            &[("client_id", "public"), uri, nonce],
            // It gets openid without having said so, nor where the answer goes.
            &[
                ("client_id", "bare"),
                nonce,
                ("scope", ""),
                ("redirect_uri", ""),
            ],
        ] {
            let refused = without(changes);
            assert!(
                matches!(refused, Err(Rejection::Returned(..))),
                "{changes:?}"
            );
        }
        // One that is sent counts.
        let with = read(&[relaxed, uri, nonce]).unwrap();
        assert_eq!(with.asked.code_challenge.as_deref(), Some(CHALLENGE));
    }

    /// RFC 9207 §2, RFC 6749 §4.1.2.
    #[test]
    fn an_answer_keeps_the_query_and_names_its_issuer() {
        let request = read(&[]).unwrap();
        let parameters = request
            .return_address
            .parameters(ISSUER, &[("code", "cs_ac_x")]);
        assert_eq!(
            request.return_address.location(&parameters),
            "https://app.example/cb?tenant=1&code=cs_ac_x&state=a+b%26c%3Dd&iss=https%3A%2F%2Fissuer.example"
        );
        let bare = ReturnAddress {
            redirect_uri: "com.example.app:/cb".to_owned(),
            mode: ResponseMode::Query,
            state: None,
        };
        let parameters = bare.parameters(ISSUER, &[("error", "access_denied")]);
        assert_eq!(
            bare.location(&parameters),
            "com.example.app:/cb?error=access_denied&iss=https%3A%2F%2Fissuer.example"
        );
    }

    proptest! {
        /// Whatever the state is, it comes back as it was and breaks out of nothing.
        #[test]
        fn state_comes_back_exactly(state in "\\PC{1,200}") {
            let request = read(&[("state", &state)]).unwrap();
            let parameters = request.return_address.parameters(ISSUER, &[("code", "c")]);
            let location = request.return_address.location(&parameters);
            prop_assert!(location.bytes().all(|byte| byte.is_ascii_graphic()), "{location}");
            let uri = url::Url::parse(&location).unwrap();
            let pairs: Vec<_> = uri.query_pairs().into_owned().collect();
            let expected = [("tenant", "1"), ("code", "c"), ("state", &state), ("iss", ISSUER)];
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            prop_assert_eq!(pairs, expected);
        }
    }

    fn session(ago: i64) -> BrowserSession {
        let auth_time = Timestamp::from_seconds(NOW.seconds() - ago);
        BrowserSession {
            id: SessionId::from_uuid(Uuid::from_u128(7)),
            subject: UserId::from_uuid(Uuid::from_u128(1)),
            user_epoch: 1,
            auth_time,
            amr: Vec::new(),
            seen_at: NOW,
            expires_at: NOW.plus(Duration::from_hours(1)),
            ended_at: None,
            first: Party::default(),
            last: Party::default(),
        }
    }

    /// What is left to do for a request that came ten seconds ago.
    fn next(changes: &[(&str, &str)], known: Known<'_>) -> Result<Step, &'static str> {
        let begun_at = Timestamp::from_seconds(NOW.seconds() - 10);
        let next = read(changes).unwrap().next(known, begun_at, NOW);
        next.map_err(|error| error.code().as_str())
    }

    fn known(session: &BrowserSession) -> Known<'_> {
        Known {
            session: Some(session),
            is_allowed: true,
            has_consented: false,
        }
    }

    #[test]
    fn a_user_signs_in_and_consents_once() {
        let session = session(3600);
        let nobody = Known::default();
        let stranger = Known {
            is_allowed: false,
            ..known(&session)
        };
        let consented = Known {
            has_consented: true,
            ..stranger
        };
        assert_eq!(next(&[], nobody), Ok(Step::SignIn));
        assert_eq!(next(&[], stranger), Ok(Step::Consent));
        assert_eq!(next(&[], consented), Ok(Step::Issue));
        assert_eq!(next(&[], known(&session)), Ok(Step::Issue));
        let silent = [("prompt", "none")];
        assert_eq!(next(&silent, nobody), Err("login_required"));
        assert_eq!(next(&silent, stranger), Err("consent_required"));
        assert_eq!(next(&silent, known(&session)), Ok(Step::Issue));
    }

    /// RFC 8252 §8.6: any program may pose as a client that has no secret and no server.
    #[test]
    fn a_user_is_asked_each_time_which_nobody_can_tell_who_asks() {
        let session = session(3600);
        let native = [("redirect_uri", "http://127.0.0.1:4000/cb")];
        assert_eq!(next(&native, known(&session)), Ok(Step::Consent));
        let silent = [native[0], ("prompt", "none")];
        assert_eq!(next(&silent, known(&session)), Err("consent_required"));
        let consented = Known {
            has_consented: true,
            ..known(&session)
        };
        assert_eq!(next(&native, consented), Ok(Step::Issue));
        // Of the same house: once somebody has signed in for that, and never without anybody there.
        let own = |session: &BrowserSession, changes: &[(&str, &str)]| {
            let mut request = read(changes).unwrap();
            let client = Client {
                first_party: true,
                ..Client::clone(&request.client)
            };
            request.client = Arc::new(client);
            request
                .next(
                    known(session),
                    Timestamp::from_seconds(NOW.seconds() - 10),
                    NOW,
                )
                .map_err(|error| error.reason())
        };
        let fresh = self::session(0);
        assert_eq!(own(&session, &native), Ok(Step::Consent));
        assert_eq!(own(&session, &silent), Err("consent_required"));
        assert_eq!(own(&fresh, &native), Ok(Step::Issue));
        assert_eq!(own(&fresh, &[]), Ok(Step::Issue));
        assert_eq!(next(&native, known(&fresh)), Ok(Step::Consent));
    }

    #[test]
    fn who_is_to_be_asked_again_is_asked_once() {
        let (old, fresh) = (session(3600), session(5));
        for (changes, expected) in [
            (&[("prompt", "login")][..], Step::SignIn),
            (&[("prompt", "select_account")], Step::SignIn),
            (&[("max_age", "3599")], Step::SignIn),
            (&[("max_age", "0")], Step::SignIn),
            (&[("max_age", "3600")], Step::Issue),
            (&[("max_age", "18446744073709551615")], Step::Issue),
        ] {
            assert_eq!(next(changes, known(&old)), Ok(expected), "{changes:?}");
            // After the request came.
            assert_eq!(next(changes, known(&fresh)), Ok(Step::Issue), "{changes:?}");
        }
        let consents = [("prompt", "consent")];
        assert_eq!(next(&consents, known(&old)), Ok(Step::Consent));
        let consented = Known {
            has_consented: true,
            ..known(&old)
        };
        assert_eq!(next(&consents, consented), Ok(Step::Issue));
        let silent = [("prompt", "none"), ("max_age", "1")];
        assert_eq!(next(&silent, known(&old)), Err("login_required"));
    }

    /// `OpenID` Connect Core §3.1.2.1, §5.5.1: the answer is about whom the client expects, or an error.
    #[test]
    fn nobody_gets_in_for_somebody_else() {
        let (old, fresh) = (session(3600), session(5));
        let mine = old.subject.to_string();
        let by_name =
            |subject: &str| format!(r#"{{"id_token":{{"sub":{{"value":"{subject}"}}}}}}"#);
        let (me, other) = (by_name(&mine), by_name("somebody"));
        for expected in [("id_token_hint", "1"), ("claims", &me)] {
            for silent in ["", "none"] {
                let changes = [expected, ("prompt", silent)];
                assert_eq!(next(&changes, known(&old)), Ok(Step::Issue), "{expected:?}");
            }
        }
        for expected in [("id_token_hint", "2"), ("claims", &other)] {
            let silent = [expected, ("prompt", "none")];
            assert_eq!(next(&silent, known(&old)), Err("login_required"));
            assert_eq!(next(&[expected], known(&old)), Ok(Step::SignIn));
            // Somebody else has signed in.
            assert_eq!(next(&[expected], known(&fresh)), Err("login_required"));
        }
        let both = [("id_token_hint", "1"), ("claims", other.as_str())];
        assert_eq!(next(&both, known(&old)), Ok(Step::SignIn));
        assert_eq!(
            returned(&[("id_token_hint", "x")]),
            ("invalid_request", "id_token_hint")
        );
    }

    /// `OpenID` Connect Core §5.5.1.1: an essential `acr` that is not met is a failed authentication.
    #[test]
    fn an_essential_acr_is_met_or_nobody_gets_in() {
        let (old, fresh) = (session(3600), session(5));
        let claim = |acr: &str| format!(r#"{{"id_token":{{"acr":{acr}}}}}"#);
        let one = acr::<String>(&[]);
        for (wanted, of_old, of_fresh) in [
            ("null".to_owned(), Ok(Step::Issue), Ok(Step::Issue)),
            (
                r#"{"values":["x"]}"#.to_owned(),
                Ok(Step::Issue),
                Ok(Step::Issue),
            ),
            (
                format!(r#"{{"essential":true,"values":["x","{one}"]}}"#),
                Ok(Step::Issue),
                Ok(Step::Issue),
            ),
            (
                r#"{"essential":true,"value":"x"}"#.to_owned(),
                Ok(Step::SignIn),
                Err("login_required"),
            ),
        ] {
            let claims = claim(&wanted);
            let changes = [("claims", claims.as_str())];
            assert_eq!(next(&changes, known(&old)), of_old, "{wanted}");
            assert_eq!(next(&changes, known(&fresh)), of_fresh, "{wanted}");
        }
    }

    /// `OpenID` Connect Core §5.5.
    #[test]
    fn claims_are_asked_for_by_name() {
        let asked = |claims: &str| read(&[("claims", claims)]).unwrap();
        let request = asked(
            r#"{"userinfo":{"email":{"essential":true},"given_name":null,"http://x/claim":null},
                "id_token":{"auth_time":{"essential":true},"email_verified":{"value":true},
                            "phone_number":null},"unheard_of":7}"#,
        );
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let claims = &request.asked.claims;
        // What the client is not registered for is passed over.
        assert_eq!(claims.userinfo, names(&["email"]));
        assert_eq!(claims.id_token, names(&["email_verified"]));
        // And it is told to the user.
        let uri = ResourceUri::parse(USERINFO).unwrap();
        let lines = request.permissions(&registry());
        assert!(lines.contains(&(uri, "email".to_owned())), "{lines:?}");
        assert!(asked("{}").asked.claims.is_empty());
        let deep = "[".repeat(100);
        let deep = format!(r#"{{"userinfo":{{"email":{{"value":{deep}"#);
        let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(5000));
        for (bad, reason) in [
            ("[]", "malformed"),
            ("null", "malformed"),
            ("{", "malformed"),
            (r#"{"userinfo":[]}"#, "malformed"),
            (r#"{"id_token":null}"#, "malformed"),
            (r#"{"userinfo":{"email":"x"}}"#, "malformed"),
            (r#"{"userinfo":{"email":{"essential":"yes"}}}"#, "malformed"),
            (r#"{"userinfo":{"email":{"values":"yes"}}}"#, "malformed"),
            (r#"{"id_token":{"sub":{"value":1}}}"#, "malformed"),
            (r#"{"userinfo":{},"userinfo":{}}"#, "malformed"),
            (&deep, "malformed"),
            (&long, "too_long"),
        ] {
            assert_eq!(
                returned(&[("claims", bad)]),
                ("invalid_request", reason),
                "{bad}"
            );
        }
        // Without openid there is nothing that they could be in.
        let plain = read(&[("scope", "read"), ("claims", "[]")]).unwrap();
        assert!(plain.asked.claims.is_empty());
    }

    #[test]
    fn what_is_asked_for_is_told_line_by_line() {
        let line = |token: &str| {
            let uri = ResourceUri::parse("urn:api").unwrap();
            (uri, token.to_owned())
        };
        let lines = |changes| read(changes).unwrap().permissions(&registry());
        let openid = (ResourceUri::parse(USERINFO).unwrap(), "openid".to_owned());
        assert_eq!(lines(&[]), [openid, line("read")].into());
        assert_eq!(lines(&[("scope", "write")]), [line("write")].into());
        // A resource without any is a line, too.
        let bare = AuthorizationRequest {
            asked: Asked {
                scope: Scope::default(),
                ..read(&[("scope", "read")]).unwrap().asked
            },
            ..read(&[]).unwrap()
        };
        assert_eq!(bare.permissions(&registry()), [line("")].into());
    }
}
