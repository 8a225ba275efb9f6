//! The handlers of pages that use the session of their browser without a code.
//!
//! Cookies are sent along whoever has caused a request. So these take none that a browser sends
//! without asking first: JSON, a header of their own, an origin. Pages of other sites bring no cookie
//! at all (`SameSite`), and are refused by what browsers say of them.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web::{Data, Payload, ReqData},
};
use bytes::BytesMut;

use super::{
    Services, body,
    browser::{self, SESSION},
    cookie::cookie,
    cors, error,
};
use crate::{
    domain::change::Origin,
    oauth::{
        error::{ErrorCode, OAuthError},
        session::pages::{PageAnswer, PageRequest},
    },
};

/// The header without which nothing is done: no form can send it.
pub(super) const REQUIRED: &str = "countersign-session";

/// `POST /session/token`: the session of the browser for an access token.
pub(super) async fn token(
    request: HttpRequest,
    payload: Payload,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let asked = match Asked::of(&request, payload, &services).await {
        Ok(asked) => asked,
        Err(refused) => return refused,
    };
    let answer = services.session_pages.token(asked.by(&origin)).await;
    asked.answer(answer, |tokens| HttpResponse::Ok().json(tokens))
}

/// `POST /session/logout`: the end of the session.
pub(super) async fn logout(
    request: HttpRequest,
    payload: Payload,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let asked = match Asked::of(&request, payload, &services).await {
        Ok(asked) => asked,
        Err(refused) => return refused,
    };
    let answer = services.session_pages.sign_out(asked.by(&origin)).await;
    asked.answer(answer, |()| HttpResponse::NoContent().finish())
}

/// A request that a page has sent on purpose.
struct Asked {
    body: BytesMut,
    page: String,
    cookie: Option<String>,
}

impl Asked {
    /// Reads a request; the answer to one that any page could have caused, with nothing done.
    async fn of(
        request: &HttpRequest,
        payload: Payload,
        services: &Services,
    ) -> Result<Self, HttpResponse> {
        let page = page_of(request).map_err(|refused| error::oauth(&refused, false))?;
        let body = body::of_type(&["application/json"], request, payload, services);
        let body = body.await.map_err(|problem| error::body(&problem))?;
        Ok(Self {
            body,
            page: page.to_owned(),
            cookie: cookie(request, SESSION).map(str::to_owned),
        })
    }

    fn by<'a>(&'a self, origin: &'a Origin) -> PageRequest<'a> {
        PageRequest {
            body: &self.body,
            page: &self.page,
            cookie: self.cookie.as_deref(),
            origin,
        }
    }

    fn answer<T>(
        &self,
        answer: PageAnswer<T>,
        drawn: impl FnOnce(T) -> HttpResponse,
    ) -> HttpResponse {
        let mut response = match answer.result {
            Ok(result) => drawn(result),
            Err(refused) => error::oauth(&refused, false),
        };
        let no_store = HeaderValue::from_static("no-store");
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, no_store);
        if answer.is_cookie_dead {
            response = browser::forget(response);
        }
        let reader = answer.is_readable.then_some(self.page.as_str());
        cors::allow_with_cookies(reader, &mut response);
        response
    }
}

/// The origin of the page that sends a request, if it does so on purpose.
fn page_of(request: &HttpRequest) -> Result<&str, OAuthError> {
    let one = |name: &str| {
        let mut values = request.headers().get_all(name);
        let value = values.next().and_then(|value| value.to_str().ok());
        value.filter(|_| values.next().is_none())
    };
    if one(REQUIRED) != Some("1") {
        return Err(OAuthError::new(
            ErrorCode::InvalidRequest,
            "header",
            "the request needs the header Countersign-Session: 1",
        ));
    }
    // Browsers that do not send this one send the origin all the same.
    let site = request.headers().get("sec-fetch-site");
    if site.is_some_and(|site| site != "same-origin" && site != "same-site") {
        return Err(elsewhere());
    }
    one("origin").ok_or_else(elsewhere)
}

const fn elsewhere() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidRequest,
        "origin",
        "the request is not sent by a page on the site of this service",
    )
}
