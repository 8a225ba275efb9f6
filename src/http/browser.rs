//! The handlers that people meet: authorization requests, and the pages they lead to.

use actix_web::{
    Error, HttpRequest, HttpResponse,
    body::{BodySize, BoxBody, MessageBody},
    cookie::{Cookie, SameSite},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        StatusCode,
        header::{self, HeaderName, HeaderValue},
    },
    middleware::Next,
    web::{Data, Payload, ReqData},
};
use bytes::Bytes;

use super::{
    Services, account,
    body::{self, BodyError},
    cookie::cookie,
    pages::{self, Brand},
};
use crate::{
    domain::{change::Origin, secret::Ticket},
    oauth::{
        authorization::{
            endpoint::{Answer, Browser, Reply, Submitted},
            request::{ResponseMode, ReturnAddress},
        },
        error::OAuthError,
        metadata,
    },
};

/// What holds the session. The prefix keeps other hosts of the domain from setting it
/// (draft-ietf-httpbis-rfc6265bis §4.1.3.2).
pub(super) const SESSION: &str = "__Host-countersign";

/// What tells a browser from others, from its first page on.
const BINDING: &str = "__Host-countersign-browser";

/// How long styles may be kept, in seconds.
const ASSET_MAX_AGE: &str = "public, max-age=3600";

/// `GET /oauth2/authorize` (RFC 6749 §3.1).
pub(super) async fn authorize(
    request: HttpRequest,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let visit = Visit::of(&request, &services, &origin);
    let query = request.query_string();
    let answer = services.authorization.begin(query, visit.browser());
    visit.answer(&answer.await)
}

/// `POST /oauth2/authorize` (`OpenID` Connect Core §3.1.2.1) and `POST /oauth2/logout` (RP-Initiated
/// Logout §2).
///
/// Browsers send no cookies along with a form of another site, so that a user who has signed in would
/// have to again: the request comes back by itself, as a reading.
pub(super) async fn as_reading(
    request: HttpRequest,
    payload: Payload,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let visit = Visit::of(&request, &services, &origin);
    let query = match body::form(&request, payload, &services).await {
        Ok(query) => query,
        Err(problem) => return visit.unread(&problem),
    };
    match std::str::from_utf8(&query) {
        Ok(query) if query.bytes().all(|byte| byte.is_ascii_graphic()) => {
            let location = format!("{}?{query}", request.path());
            HttpResponse::SeeOther()
                .insert_header((header::LOCATION, location))
                .insert_header((header::CACHE_CONTROL, "no-store"))
                .finish()
        }
        _ => visit.refused(&OAuthError::malformed("the body is not a well-formed form")),
    }
}

/// `GET /assets/style.css`.
pub(super) async fn style(services: Data<Services>) -> HttpResponse {
    asset("text/css; charset=utf-8", services.brand.style.clone())
}

/// `GET /assets/countersign.js`: the module for single-page apps, wherever they are.
pub(super) async fn client_module() -> HttpResponse {
    let mut response = asset(
        "text/javascript; charset=utf-8",
        Bytes::from_static(include_str!("countersign.js").as_bytes()),
    );
    response.headers_mut().insert(
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("cross-origin"),
    );
    response
}

/// `GET /assets/form_post.js`.
pub(super) async fn form_post_script() -> HttpResponse {
    asset(
        "text/javascript; charset=utf-8",
        Bytes::from_static(pages::FORM_POST.as_bytes()),
    )
}

/// `GET /assets/passkey.js`.
pub(super) async fn passkey_script() -> HttpResponse {
    asset(
        "text/javascript; charset=utf-8",
        Bytes::from_static(pages::PASSKEY.as_bytes()),
    )
}

fn asset(media_type: &'static str, body: Bytes) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, ASSET_MAX_AGE))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .content_type(media_type)
        .body(body)
}

/// `POST /signin`, `/signin/cancel` and `/consent`: a form of one of our pages. Of no other: browsers
/// say where a form was.
pub(super) async fn form(
    page: Submitted,
    request: HttpRequest,
    payload: Payload,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let visit = Visit::of(&request, &services, &origin);
    let form = match body::form(&request, payload, &services).await {
        Ok(form) => form,
        Err(problem) => return visit.unread(&problem),
    };
    if let Err(error) = of_another_site(&request) {
        return visit.refused(&error);
    }
    let submitted = services.authorization.submit(page, &form, visit.browser());
    visit.answer(&submitted.await)
}

/// Sends whoever opens the address of a form, as browsers do when a page is loaded once more from the
/// address bar, to where everything begins.
pub(super) async fn of_address_bar(services: Data<Services>) -> HttpResponse {
    to_account(&services)
}

/// Sends a browser to its user's account.
fn to_account(services: &Services) -> HttpResponse {
    let location = format!("{}{}", services.issuer_path, account::PATH);
    HttpResponse::SeeOther()
        .insert_header((header::LOCATION, location))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish()
}

/// Wraps every request of the public listener: where there is nothing, a browser that shows pages to
/// people gets one that says so, in place of an empty answer.
pub(super) async fn nothing_is_a_page(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let accepted = request.headers().get(header::ACCEPT);
    let is_for_people = accepted
        .and_then(|it| it.to_str().ok())
        .is_some_and(|it| it.contains("text/html"));
    let response = next.call(request).await?.map_into_boxed_body();
    let is_nothing = is_for_people
        && matches!(
            response.status(),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
        )
        && matches!(
            response.response().body().size(),
            BodySize::None | BodySize::Sized(0)
        );
    let services = || response.request().app_data::<Data<Services>>().cloned();
    let Some(services) = is_nothing.then(services).flatten() else {
        return Ok(response);
    };
    Ok(response.map_body(|head, _| {
        let page = pages::nothing(&services.brand, head.status);
        let (page, body) = page.into_parts();
        for (name, value) in page.headers() {
            head.headers.insert(name.clone(), value.clone());
        }
        body
    }))
}

/// Refuses a form that is on no page of ours: browsers say where one was (Fetch Metadata).
pub(super) fn of_another_site(request: &HttpRequest) -> Result<(), OAuthError> {
    let site = request.headers().get("sec-fetch-site");
    if site.is_none_or(|site| site == "same-origin") {
        return Ok(());
    }
    Err(OAuthError::malformed(
        "the form is on a page of another site",
    ))
}

/// A request of a browser.
pub(super) struct Visit<'a> {
    services: &'a Services,
    origin: &'a Origin,
    /// The cookie that tells the browser from others; drawn for one that is here for the first time.
    binding: String,
    is_new: bool,
    session: Option<String>,
}

impl<'a> Visit<'a> {
    pub(super) fn of(request: &HttpRequest, services: &'a Services, origin: &'a Origin) -> Self {
        let known = cookie(request, BINDING).filter(|binding| (20..=64).contains(&binding.len()));
        let is_new = known.is_none();
        Self {
            services,
            origin,
            // Without randomness nothing can be sealed for it either.
            binding: known.map_or_else(|| services.authorization.draw_binding(), str::to_owned),
            is_new,
            session: cookie(request, SESSION).map(str::to_owned),
        }
    }

    /// What the browser has sent along.
    pub(super) fn browser(&self) -> Browser<'_> {
        Browser {
            binding: &self.binding,
            session: self.session.as_deref(),
            origin: self.origin,
        }
    }

    fn brand(&self) -> &Brand {
        &self.services.brand
    }

    pub(super) fn answer(&self, answer: &Answer) -> HttpResponse {
        let response = match &answer.reply {
            Reply::SignIn(page) => pages::sign_in(self.brand(), page),
            Reply::Factor(page) => pages::factor(self.brand(), page),
            Reply::Enrol(page) => pages::enrol(self.brand(), page),
            Reply::Codes(page) => pages::codes(self.brand(), page, "/signin/continue"),
            Reply::Consent(page) => pages::consent(self.brand(), page),
            Reply::Return { to, parameters } => self.returned(to, parameters),
            Reply::Account => self.to_account(),
            Reply::Refused(error) => self.refused(error),
            Reply::Over(error, query) => {
                let path = metadata::AUTHORIZATION_PATH;
                let anew = format!("{}{path}?{query}", self.brand().base());
                pages::over(self.brand(), error, &self.origin.request_id, &anew)
            }
        };
        match answer.reply {
            Reply::Refused(_) | Reply::Over(..) => response,
            _ => self.keep(response, answer.session.as_ref()),
        }
    }

    /// Lets the browser keep what tells it from others, and its session where that is another one.
    pub(super) fn keep(
        &self,
        mut response: HttpResponse,
        session: Option<&Ticket>,
    ) -> HttpResponse {
        let kept = self
            .is_new
            .then(|| cookie_of(BINDING, self.binding.clone()));
        let session = session.map(|session| {
            let mut kept = cookie_of(SESSION, session.expose().to_owned());
            // A browser that is closed has signed nobody out: the session ends as the settings say.
            let lifetime = self.services.authorization.sessions.lifetime;
            kept.set_max_age(actix_web::cookie::time::Duration::try_from(lifetime).ok());
            kept
        });
        for cookie in kept.into_iter().chain(session) {
            set(&mut response, &cookie);
        }
        response
    }

    pub(super) fn refused(&self, error: &OAuthError) -> HttpResponse {
        pages::refused(self.brand(), error, &self.origin.request_id)
    }

    /// Says that the body of a form was not read.
    pub(super) fn unread(&self, error: &BodyError) -> HttpResponse {
        pages::unread(self.brand(), error, &self.origin.request_id)
    }

    /// Sends the browser to its user's account.
    pub(super) fn to_account(&self) -> HttpResponse {
        to_account(self.services)
    }

    /// Sends the browser back to the client (RFC 9700 §4.12: 303, so that no form goes along).
    fn returned(&self, to: &ReturnAddress, parameters: &[(&'static str, String)]) -> HttpResponse {
        let answer: Vec<(&'static str, &str)> = parameters
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let parameters = to.parameters(&self.services.authorization.issuer, &answer);
        match to.mode {
            ResponseMode::FormPost => pages::form_post(self.brand(), to, &parameters),
            ResponseMode::Query => {
                let location = to.location(&parameters);
                let Ok(location) = HeaderValue::from_str(&location) else {
                    return HttpResponse::new(StatusCode::INTERNAL_SERVER_ERROR);
                };
                HttpResponse::SeeOther()
                    .insert_header((header::LOCATION, location))
                    .insert_header((header::CACHE_CONTROL, "no-store"))
                    .insert_header((header::REFERRER_POLICY, "no-referrer"))
                    .finish()
            }
        }
    }
}

/// Lets a browser forget its session.
pub(super) fn forget(mut response: HttpResponse) -> HttpResponse {
    let mut gone = cookie_of(SESSION, String::new());
    gone.set_max_age(actix_web::cookie::time::Duration::ZERO);
    set(&mut response, &gone);
    response
}

pub(super) fn set(response: &mut HttpResponse, cookie: &Cookie<'_>) {
    if let Ok(value) = HeaderValue::from_str(&cookie.to_string()) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

/// A cookie for this host alone, unseen by scripts, which other sites bring along only by a link.
pub(super) fn cookie_of(name: &'static str, value: String) -> Cookie<'static> {
    Cookie::build(name, value)
        .path("/")
        .secure(true)
        .http_only(true)
        .same_site(SameSite::Lax)
        .finish()
}
