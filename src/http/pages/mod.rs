//! Pages for people: drawn here, without scripts, in their own style sheet.
//!
//! To add a page: a template, its struct, and a test that looks at it in a browser.

mod brand;

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{self, HeaderName, HeaderValue},
    },
};
use askama::Template;

pub use self::brand::Brand;
use super::{account, body::BodyError, error, logout};
use crate::{
    account::{
        page::{AccountPage, Allowed, Part},
        security::{EnrolmentPage, PasskeyPage},
    },
    identity::factor::recovery::RecoveryCode,
    oauth::{
        authorization::{
            endpoint::{ConsentPage, SignInPage},
            request::ReturnAddress,
            second_factor::{CodesPage, EnrolPage, FactorPage},
        },
        error::{ErrorCode, OAuthError},
        logout::endpoint::SignOutPage,
        seals::is_over,
    },
    registry::Told,
};

/// Where the style of all pages is, below the issuer.
pub(super) const STYLE_PATH: &str = "/assets/style.css";

/// What posts an answer to a client.
pub(super) const FORM_POST: &str = include_str!("form_post.js");

/// Where it is, below the issuer.
pub(super) const FORM_POST_PATH: &str = "/assets/form_post.js";

/// What asks browsers for passkeys.
pub(super) const PASSKEY: &str = include_str!("passkey.js");

/// Where it is, below the issuer.
pub(super) const PASSKEY_PATH: &str = "/assets/passkey.js";

/// What lets it be loaded.
const WITH_SCRIPT: &str = "script-src 'self'; ";

/// What a template needs of the brand.
struct Frame<'a> {
    name: &'a str,
    logo: Option<&'a str>,
    style: String,
}

impl Brand {
    /// Where the issuer's paths begin: without a slash at the end.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// A link to where everything begins.
    fn to_account(&self) -> (&'static str, String) {
        (
            "Go to your account",
            format!("{}{}", self.base, account::PATH),
        )
    }

    fn frame(&self) -> Frame<'_> {
        Frame {
            name: &self.name,
            logo: self.logo.as_deref(),
            style: format!("{}{STYLE_PATH}", self.base),
        }
    }
}

/// The form of a passkey, and the script that fills it in.
#[derive(Template)]
#[template(path = "passkey.html")]
struct PasskeyForm<'a> {
    script: String,
    base: &'a str,
    options: &'a str,
    /// Whether it is for a user who is known.
    has_other: bool,
    /// Whether it stands before everything else that the page asks for.
    is_first: bool,
    flow: &'a str,
}

impl Brand {
    fn passkey<'a>(
        &'a self,
        options: Option<&'a str>,
        (has_other, is_first): (bool, bool),
        flow: &'a str,
    ) -> Option<PasskeyForm<'a>> {
        Some(PasskeyForm {
            script: format!("{}{PASSKEY_PATH}", self.base),
            base: &self.base,
            options: options?,
            has_other,
            is_first,
            flow,
        })
    }
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignIn<'a> {
    brand: Frame<'a>,
    passkey: Option<PasskeyForm<'a>>,
    base: &'a str,
    client: Option<&'a str>,
    username: &'a str,
    problem: Option<&'a str>,
    /// Whether it is about what was typed.
    is_wrong: bool,
    flow: &'a str,
}

/// Something that a client asks for, in words.
struct Granted<'a> {
    words: &'a str,
    /// The scope token, where the words are others.
    token: Option<&'a str>,
    resource: &'a str,
}

#[derive(Template)]
#[template(path = "consent.html")]
struct Consent<'a> {
    brand: Frame<'a>,
    base: &'a str,
    client: &'a str,
    initial: String,
    username: &'a str,
    host: &'a str,
    grants: Vec<Granted<'a>>,
    flow: &'a str,
}

#[derive(Template)]
#[template(path = "account.html")]
struct Account<'a> {
    brand: Frame<'a>,
    action: String,
    more: String,
    page: &'a AccountPage,
    /// What apps are allowed, in words.
    allowed: Vec<(&'a Allowed, Vec<Granted<'a>>)>,
    password_problem: Option<(Part, &'a str)>,
}

#[derive(Template)]
#[template(path = "sign_out.html")]
struct SignOut<'a> {
    brand: Frame<'a>,
    action: String,
    username: &'a str,
    client: Option<&'a str>,
    form: &'a str,
}

#[derive(Template)]
#[template(path = "signed_out.html")]
struct SignedOut<'a> {
    brand: Frame<'a>,
    account: String,
}

#[derive(Template)]
#[template(path = "factor.html")]
struct Factor<'a> {
    brand: Frame<'a>,
    passkey: Option<PasskeyForm<'a>>,
    base: &'a str,
    username: &'a str,
    has_app: bool,
    has_codes: bool,
    problem: Option<&'a str>,
    flow: &'a str,
}

#[derive(Template)]
#[template(path = "enrol.html")]
struct Enrol<'a> {
    brand: Frame<'a>,
    base: &'a str,
    /// The script that has a passkey made, and what it asks the browser for.
    passkey: Option<(String, &'a str)>,
    /// Whether it was the code that was wrong.
    is_wrong: bool,
    username: &'a str,
    secret: &'a str,
    url: &'a str,
    picture: &'a str,
    problem: Option<&'a str>,
    flow: &'a str,
}

#[derive(Template)]
#[template(path = "codes.html")]
struct RecoveryCodes<'a> {
    brand: Frame<'a>,
    codes: Vec<&'a str>,
    action: String,
    /// None where nothing is to be gone on with.
    flow: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "account_passkey.html")]
struct AccountPasskey<'a> {
    brand: Frame<'a>,
    script: String,
    action: String,
    account: String,
    options: &'a str,
    problem: Option<&'a str>,
    form: &'a str,
}

#[derive(Template)]
#[template(path = "account_enrol.html")]
struct AccountEnrolment<'a> {
    brand: Frame<'a>,
    action: String,
    account: String,
    secret: &'a str,
    url: &'a str,
    picture: &'a str,
    problem: Option<&'a str>,
    form: &'a str,
}

#[derive(Template)]
#[template(path = "error.html")]
struct Refused<'a> {
    brand: Frame<'a>,
    title: &'a str,
    what: &'a str,
    advice: &'a str,
    /// What a link says, and where it leads.
    way_on: Option<(&'a str, String)>,
    /// For whoever runs the app: a stable word, a sentence, and the id of the request.
    detail: Option<(&'a str, &'a str, &'a str)>,
}

#[derive(Template)]
#[template(path = "form_post.html")]
struct FormPost<'a> {
    brand: Frame<'a>,
    script: String,
    action: &'a str,
    parameters: &'a [(&'a str, &'a str)],
}

/// The page on which users sign in.
pub(super) fn sign_in(brand: &Brand, page: &SignInPage) -> HttpResponse {
    let problem = page.problem.as_ref();
    let template = SignIn {
        brand: brand.frame(),
        passkey: brand.passkey(page.passkey.as_deref(), (false, false), &page.flow),
        base: &brand.base,
        client: page.client_name.as_deref(),
        username: &page.username,
        problem: problem.map(OAuthError::description),
        is_wrong: problem.is_some_and(|problem| problem.reason() == "credentials"),
        flow: &page.flow,
    };
    let script = page.passkey.as_ref().map_or("", |_| WITH_SCRIPT);
    asked(
        brand,
        &template,
        script,
        problem,
        page.client_name.is_some(),
    )
}

/// Draws a page on which something may have been wrong with the last try.
fn asked(
    brand: &Brand,
    template: &impl Template,
    script: &str,
    problem: Option<&OAuthError>,
    for_client: bool,
) -> HttpResponse {
    let status = problem.map_or(StatusCode::OK, status_of);
    let response = drawn(brand, status, template, script, for_client);
    match problem {
        Some(problem) => error::explained(response, problem),
        None => response,
    }
}

/// The page on which users prove a second factor.
pub(super) fn factor(brand: &Brand, page: &FactorPage) -> HttpResponse {
    let template = Factor {
        brand: brand.frame(),
        passkey: brand.passkey(page.passkey.as_deref(), (true, !page.has_app), &page.flow),
        base: &brand.base,
        username: &page.username,
        has_app: page.has_app,
        has_codes: page.has_codes,
        problem: page.problem.as_ref().map(OAuthError::description),
        flow: &page.flow,
    };
    let script = page.passkey.as_ref().map_or("", |_| WITH_SCRIPT);
    asked(
        brand,
        &template,
        script,
        page.problem.as_ref(),
        page.for_client,
    )
}

/// The page on which users enrol an app, or a passkey, because they have to.
pub(super) fn enrol(brand: &Brand, page: &EnrolPage) -> HttpResponse {
    let passkey = page.passkey.as_deref();
    let reason = page.problem.as_ref().map(OAuthError::reason);
    let template = Enrol {
        brand: brand.frame(),
        base: &brand.base,
        passkey: passkey.map(|asked| (format!("{}{PASSKEY_PATH}", brand.base), asked)),
        is_wrong: reason == Some("second_factor"),
        username: &page.username,
        secret: &page.secret,
        url: &page.url,
        picture: &page.picture,
        problem: page.problem.as_ref().map(OAuthError::description),
        flow: &page.flow,
    };
    let script = passkey.map_or("", |_| WITH_SCRIPT);
    asked(
        brand,
        &template,
        script,
        page.problem.as_ref(),
        page.for_client,
    )
}

/// The page that shows recovery codes, once; its form goes to `action`.
pub(super) fn codes(brand: &Brand, page: &CodesPage, action: &str) -> HttpResponse {
    let template = RecoveryCodes {
        brand: brand.frame(),
        codes: page.codes.iter().map(RecoveryCode::expose).collect(),
        action: format!("{}{action}", brand.base),
        flow: Some(&page.flow),
    };
    drawn(brand, StatusCode::OK, &template, "", page.for_client)
}

/// The page on which users consent.
pub(super) fn consent(brand: &Brand, page: &ConsentPage) -> HttpResponse {
    let initial = page.client_name.chars().find(|c| c.is_alphanumeric());
    let template = Consent {
        brand: brand.frame(),
        base: &brand.base,
        client: &page.client_name,
        initial: initial.map_or_else(String::new, |it| it.to_uppercase().to_string()),
        username: &page.username,
        host: &page.host,
        grants: granted(&page.grants),
        flow: &page.flow,
    };
    drawn(brand, StatusCode::OK, &template, "", true)
}

/// What clients may do, in words: those that the resource has for its scope tokens, or the tokens.
fn granted(grants: &[Told]) -> Vec<Granted<'_>> {
    let grants = grants.iter().map(|it| {
        let (words, token) = match (&*it.token, it.description.as_deref()) {
            ("", _) => ("Use your account", None),
            (token, Some(words)) => (words, Some(token)),
            (token, None) => (token, None),
        };
        Granted {
            words,
            token,
            resource: &it.resource,
        }
    });
    grants.collect()
}

/// The page of a user's own account.
pub(super) fn account(brand: &Brand, page: &AccountPage) -> HttpResponse {
    let base = &brand.base;
    let problem = page.problem.as_ref();
    let of_password = problem.filter(|problem| problem.part != Part::Page);
    let allowed = page.allowed.iter();
    let template = Account {
        brand: brand.frame(),
        action: format!("{base}{}", account::FORMS_PATH),
        more: format!("{base}{}?{}", account::PATH, account::IN_FULL),
        page,
        allowed: allowed.map(|it| (it, granted(&it.grants))).collect(),
        password_problem: of_password.map(|problem| (problem.part, &*problem.text)),
    };
    let status = problem.map_or(StatusCode::OK, |problem| status_of(&problem.error));
    let response = drawn(brand, status, &template, "", false);
    match problem {
        Some(problem) => error::explained(response, &problem.error),
        None => response,
    }
}

/// The page on which a user enrols an app at its account.
pub(super) fn account_enrolment(brand: &Brand, page: &EnrolmentPage) -> HttpResponse {
    let template = AccountEnrolment {
        brand: brand.frame(),
        action: format!("{}{}", brand.base, account::FORMS_PATH),
        account: format!("{}{}", brand.base, account::PATH),
        secret: &page.secret,
        url: &page.url,
        picture: &page.picture,
        problem: page.problem.as_ref().map(OAuthError::description),
        form: &page.form,
    };
    asked(brand, &template, "", page.problem.as_ref(), false)
}

/// The page on which a user adds a passkey at its account.
pub(super) fn account_passkey(brand: &Brand, page: &PasskeyPage) -> HttpResponse {
    let template = AccountPasskey {
        brand: brand.frame(),
        script: format!("{}{PASSKEY_PATH}", brand.base),
        action: format!("{}{}", brand.base, account::FORMS_PATH),
        account: format!("{}{}", brand.base, account::PATH),
        options: &page.options,
        problem: page.problem.as_ref().map(OAuthError::description),
        form: &page.form,
    };
    asked(brand, &template, WITH_SCRIPT, page.problem.as_ref(), false)
}

/// The page that shows recovery codes, once, on the way back to the account.
pub(super) fn account_codes(brand: &Brand, codes: &[RecoveryCode]) -> HttpResponse {
    let template = RecoveryCodes {
        brand: brand.frame(),
        codes: codes.iter().map(RecoveryCode::expose).collect(),
        action: format!("{}{}", brand.base, account::PATH),
        flow: None,
    };
    drawn(brand, StatusCode::OK, &template, "", false)
}

/// The page on which users are asked whether they want to sign out.
pub(super) fn sign_out(brand: &Brand, page: &SignOutPage) -> HttpResponse {
    let template = SignOut {
        brand: brand.frame(),
        action: format!("{}{}", brand.base, logout::DECISION_PATH),
        username: &page.username,
        client: page.client_name.as_deref(),
        form: &page.form,
    };
    drawn(brand, StatusCode::OK, &template, "", true)
}

/// The page that tells that nobody is signed in any more.
pub(super) fn signed_out(brand: &Brand) -> HttpResponse {
    let template = SignedOut {
        brand: brand.frame(),
        account: format!("{}{}", brand.base, account::PATH),
    };
    drawn(brand, StatusCode::OK, &template, "", false)
}

/// The page that tells what is wrong, and sends nobody anywhere.
pub(super) fn refused(brand: &Brand, error: &OAuthError, request_id: &str) -> HttpResponse {
    let way_on = is_over(error).then(|| brand.to_account());
    let frame = (brand.frame(), "'self'");
    refused_with(brand, frame, error, request_id, way_on)
}

/// The same of a page that is over, with a link to where its user may begin anew.
pub(super) fn over(
    brand: &Brand,
    error: &OAuthError,
    request_id: &str,
    anew: &str,
) -> HttpResponse {
    let way_on = ("Begin anew", anew.to_owned());
    let frame = (brand.frame(), "'self'");
    refused_with(brand, frame, error, request_id, Some(way_on))
}

/// The page that tells what is wrong at a host of somebody else, where the style is that of the issuer;
/// with the path there by which it may be tried again, if there is one.
pub(super) fn refused_elsewhere(
    brand: &Brand,
    issuer: &str,
    error: &OAuthError,
    (request_id, again): (&str, Option<String>),
) -> HttpResponse {
    let style = format!("{issuer}{STYLE_PATH}");
    let frame = Frame {
        style: style.clone(),
        ..brand.frame()
    };
    let way_on = again.map(|path| ("Try again", path));
    refused_with(brand, (frame, &style), error, request_id, way_on)
}

/// Draws that page; its style may come from `style_source`.
fn refused_with(
    brand: &Brand,
    (frame, style_source): (Frame<'_>, &str),
    error: &OAuthError,
    request_id: &str,
    way_on: Option<(&str, String)>,
) -> HttpResponse {
    let status = status_of(error);
    let (title, what, advice) = match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => (
            "Not right now",
            "Signing in does not work at the moment.",
            "Try again in a moment.",
        ),
        StatusCode::INTERNAL_SERVER_ERROR => (
            "Something went wrong",
            "That was our fault, not yours.",
            "Try again. If it happens again, tell whoever runs this service.",
        ),
        _ if is_over(error) => (
            "This does not work",
            "This page was open for too long, or comes from another browser.",
            "Nothing has happened. You can begin anew.",
        ),
        _ if error.code() == ErrorCode::AccessDenied && way_on.is_some() => (
            "You are not signed in",
            "The sign-in was not gone through with.",
            "If that was not meant, you can begin anew.",
        ),
        _ => (
            "This does not work",
            "What you were sent here with is not in order.",
            "Go back to the app and try again. If it happens again, tell whoever runs the app.",
        ),
    };
    if status.is_server_error() {
        let cause: &dyn std::error::Error = error;
        tracing::error!(cause, "request failed");
    }
    let template = Refused {
        brand: frame,
        title,
        what,
        advice,
        way_on,
        detail: Some((error.reason(), error.description(), request_id)),
    };
    let script = ("", style_source);
    let response = drawn_with(brand, status, &template, script, false);
    error::explained(response, error)
}

/// The page that tells that the body of a form was not read.
pub(super) fn unread(brand: &Brand, error: &BodyError, request_id: &str) -> HttpResponse {
    let (status, reason, description) = error::of_body(error);
    let template = Refused {
        brand: brand.frame(),
        title: "This does not work",
        what: "What your browser has sent did not arrive as it should.",
        advice: "Go back and try again.",
        way_on: Some(brand.to_account()),
        detail: Some((reason, description, request_id)),
    };
    let mut response = drawn(brand, status, &template, "", false);
    error::give_reason(&mut response, reason);
    response
}

/// The page that tells that there is nothing here, or nothing to look at.
pub(super) fn nothing(brand: &Brand, status: StatusCode) -> HttpResponse {
    let template = Refused {
        brand: brand.frame(),
        title: "There is nothing here",
        what: "This address shows no page.",
        advice: "If a link has brought you here, it is not in order.",
        way_on: Some(brand.to_account()),
        detail: None,
    };
    drawn(brand, status, &template, "", false)
}

/// The status of a page that tells what is wrong.
fn status_of(error: &OAuthError) -> StatusCode {
    match error.code() {
        ErrorCode::TooOften => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The page that posts an answer to a client.
pub(super) fn form_post(
    brand: &Brand,
    to: &ReturnAddress,
    parameters: &[(&str, &str)],
) -> HttpResponse {
    let template = FormPost {
        brand: brand.frame(),
        script: format!("{}{FORM_POST_PATH}", brand.base),
        action: &to.redirect_uri,
        parameters,
    };
    drawn(
        brand,
        StatusCode::OK,
        &template,
        "script-src 'self'; ",
        true,
    )
}

/// Draws a page with the headers that all of them have.
///
/// A page whose form may lead to a client has no `form-action`: browsers hold every place that the
/// answer is sent on to against it, and where a client sends its users on nobody here knows.
fn drawn(
    brand: &Brand,
    status: StatusCode,
    template: &impl Template,
    script: &str,
    leads_to_client: bool,
) -> HttpResponse {
    let script = (script, "'self'");
    drawn_with(brand, status, template, script, leads_to_client)
}

/// The same with its style from `style_source`.
fn drawn_with(
    brand: &Brand,
    status: StatusCode,
    template: &impl Template,
    (script, style_source): (&str, &str),
    leads_to_client: bool,
) -> HttpResponse {
    let Ok(body) = template.render() else {
        return HttpResponse::InternalServerError().finish();
    };
    let action = if leads_to_client {
        ""
    } else {
        "form-action 'self'; "
    };
    let policy = format!(
        "default-src 'none'; {script}{action}style-src {style_source}; img-src {}; \
         frame-ancestors 'none'; base-uri 'none'",
        brand.images
    );
    let mut response = HttpResponseBuilder::new(status);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        response.insert_header((name, HeaderValue::from_static(value)));
    }
    // RFC 6797 §7.2; what holds at hosts of others is not for us to say.
    if brand.is_https && style_source == "'self'" {
        let for_a_year = HeaderValue::from_static("max-age=31536000");
        response.insert_header((header::STRICT_TRANSPORT_SECURITY, for_a_year));
    }
    response
        .insert_header((header::CONTENT_SECURITY_POLICY, policy))
        .content_type("text/html; charset=utf-8")
        .body(body)
}
