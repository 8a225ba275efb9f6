//! The handlers of hosts behind a proxy: who sends a request there, and how somebody who has signed in
//! comes back.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        StatusCode,
        header::{self, HeaderValue},
    },
    web::{Data, ReqData},
};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use url::Url;

use super::{Services, browser, cookie::cookie, error, pages};
use crate::{
    domain::change::Origin,
    oauth::{
        error::{ErrorCode, OAuthError},
        session::hosts::{HostRequest, Known, SignInUrl, Taken, Verdict},
    },
};

/// The cookie of a host, which is good there alone.
const HOST: &str = "__Host-countersign-host";

/// What tells a browser again that has begun to sign in at a host.
const START: &str = "__Host-countersign-start";

/// How a proxy asks for an answer that it can hand on as it is.
const REDIRECT: &str = "unauthenticated=redirect";

/// What is escaped in headers, besides whatever is not ASCII.
const ESCAPED: AsciiSet = CONTROLS.add(b'%');

/// What a proxy says of a request.
struct Told {
    host: String,
    path: String,
    cookie: Option<String>,
    start: Option<String>,
    authorization: Option<String>,
}

impl Told {
    /// Reads what the proxy says: `X-Original-URL`, or `X-Forwarded-Host` and `X-Forwarded-Uri`.
    fn of(request: &HttpRequest) -> Result<Self, OAuthError> {
        let headers = Headers(request);
        let forwarded = headers.told("x-forwarded-host")?;
        let forwarded = forwarded.map(str::to_ascii_lowercase);
        let (host, path) = if let Some(url) = headers.told("x-original-url")? {
            let url = Url::parse(url).map_err(|_| untold())?;
            let host = url.host_str().ok_or_else(untold)?;
            let host = match url.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            };
            // Where one of them was handed on as it came from outside.
            if forwarded.is_some_and(|forwarded| forwarded != host) {
                return Err(untold());
            }
            let path = match url.query() {
                Some(query) => format!("{}?{query}", url.path()),
                None => url.path().to_owned(),
            };
            (host, path)
        } else {
            // Envoy puts it behind the address that it asks at.
            let asked_at = request.query_string().split_once("&path=");
            let path = headers.one("x-forwarded-uri");
            let path = path.or(asked_at.map(|(_, path)| path)).unwrap_or("/");
            (forwarded.ok_or_else(untold)?, path.to_owned())
        };
        Ok(Self {
            host,
            path,
            cookie: cookie(request, HOST).map(str::to_owned),
            start: cookie(request, START).map(str::to_owned),
            authorization: headers.one("authorization").map(str::to_owned),
        })
    }

    fn request<'a>(&'a self, origin: &'a Origin) -> HostRequest<'a> {
        HostRequest {
            authorization: self.authorization.as_deref(),
            host: &self.host,
            cookie: self.cookie.as_deref(),
            start: self.start.as_deref(),
            origin,
        }
    }
}

/// The headers of a request, each of which has one value.
struct Headers<'a>(&'a HttpRequest);

impl<'a> Headers<'a> {
    fn one(&self, name: &str) -> Option<&'a str> {
        let mut values = self.0.headers().get_all(name);
        let value = values.next().and_then(|value| value.to_str().ok());
        value.filter(|_| values.next().is_none())
    }

    /// What a proxy says under this name, if it does.
    ///
    /// # Security
    /// Part of it may be a visitor's. If what cannot be read counted as nothing, a visitor could have
    /// another host asked about than the one that the proxy stands before.
    fn told(&self, name: &str) -> Result<Option<&'a str>, OAuthError> {
        let is_there = self.0.headers().contains_key(name);
        match self.one(name) {
            None if is_there => Err(untold()),
            value => Ok(value),
        }
    }
}

const fn untold() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidRequest,
        "host",
        "the proxy must say which one host is asked for, in X-Forwarded-Host or X-Original-URL",
    )
}

/// `/session/verify`, whatever the method: who sends a request to a host.
///
/// Whoever is not known is answered 401, with the way to the sign-in page in `Location`; 302 where the
/// query says `unauthenticated=redirect`, for proxies that hand answers on as they are.
pub(super) async fn verify(
    request: HttpRequest,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let told = match Told::of(&request) {
        Ok(told) => told,
        Err(refused) => return refusal(&refused),
    };
    let asked = told.request(&origin);
    let mut response = match services.hosts.verify(asked, &told.path).await {
        Ok(Verdict::Known(known)) => identity(&known),
        Ok(Verdict::SignIn(sign_in)) => {
            let redirects = request.query_string().split('&').next() == Some(REDIRECT);
            away(&sign_in, redirects && is_visit(&request))
        }
        Err(refused) => refusal(&refused),
    };
    let no_store = HeaderValue::from_static("no-store");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, no_store);
    response
}

/// Whether a user would see where the browser is sent: not for what scripts ask for.
fn is_visit(request: &HttpRequest) -> bool {
    let header = |name| request.headers().get(name).map(HeaderValue::as_bytes);
    // Proxies that do not tell the method ask with it.
    let asked_with = request.method().as_str().as_bytes();
    let method = header("x-forwarded-method").unwrap_or(asked_with);
    (method == b"GET" || method == b"HEAD")
        && header("sec-fetch-mode").is_none_or(|mode| mode == b"navigate")
}

fn identity(known: &Known) -> HttpResponse {
    let username = utf8_percent_encode(&known.live.user.username, &ESCAPED);
    HttpResponse::Ok()
        .insert_header((
            header::AUTHORIZATION,
            format!("Bearer {}", known.token.token),
        ))
        .insert_header(("x-auth-subject", known.live.session.subject.to_string()))
        .insert_header(("x-auth-username", username.to_string()))
        .insert_header(("x-auth-scope", known.scope.to_string()))
        .finish()
}

fn away(sign_in: &SignInUrl, redirects: bool) -> HttpResponse {
    let mut response = if redirects {
        HttpResponse::new(StatusCode::FOUND)
    } else {
        error::oauth(&sign_in.why, false)
    };
    *response.status_mut() = if redirects {
        StatusCode::FOUND
    } else {
        StatusCode::UNAUTHORIZED
    };
    if let Ok(url) = HeaderValue::from_str(&sign_in.url) {
        response.headers_mut().insert(header::LOCATION, url);
    }
    browser::set(
        &mut response,
        &browser::cookie_of(START, sign_in.start.clone()),
    );
    response
}

/// The answer to a proxy that asks for what it may not: never 401, which would be taken for the
/// user's.
fn refusal(refused: &OAuthError) -> HttpResponse {
    let mut response = error::oauth(refused, false);
    if matches!(
        refused.code(),
        ErrorCode::InvalidClient | ErrorCode::AccessDenied
    ) {
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    response
}

fn onward(location: &str) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((header::LOCATION, location))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .finish()
}

/// `GET /session/callback`, at a host: the way back from signing in.
pub(super) async fn callback(
    request: HttpRequest,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let told = match Told::of(&request) {
        Ok(told) => told,
        Err(refused) => return refusal(&refused),
    };
    let asked = told.request(&origin);
    let (brand, issuer, id) = (&services.brand, &services.hosts.issuer, &origin.request_id);
    match services.hosts.take(asked, request.query_string()).await {
        // What tells the browser again stays: other tabs have begun with it, and it grants nothing.
        Ok(Taken::SignedIn(signed_in)) => {
            let mut response = onward(&signed_in.path);
            browser::set(&mut response, &browser::cookie_of(HOST, signed_in.cookie));
            response
        }
        Ok(Taken::Stale(path)) => onward(&path),
        Ok(Taken::SignIn(sign_in)) => {
            let mut response = onward(&sign_in.url);
            let start = browser::cookie_of(START, sign_in.start);
            browser::set(&mut response, &start);
            response
        }
        Ok(Taken::NotSignedIn { error, path }) => {
            pages::refused_elsewhere(brand, issuer, &error, (id, Some(path)))
        }
        Err(refused) if refused.code() == ErrorCode::InvalidClient => refusal(&refused),
        Err(refused) => pages::refused_elsewhere(brand, issuer, &refused, (id, None)),
    }
}
