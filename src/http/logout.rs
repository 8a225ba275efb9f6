//! The handlers of signing out.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web::{Data, Payload, ReqData},
};

use super::{
    Services, body,
    browser::{Visit, forget, of_another_site},
    pages,
};
use crate::{domain::change::Origin, oauth::logout::endpoint::Reply};

/// Where the answer to the question goes, below the issuer.
pub(super) const DECISION_PATH: &str = "/signout";

/// `GET /oauth2/logout` (`OpenID` Connect RP-Initiated Logout §2).
pub(super) async fn logout(
    request: HttpRequest,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let visit = Visit::of(&request, &services, &origin);
    let query = request.query_string();
    let reply = services.logout.begin(query, visit.browser()).await;
    answer(&visit, &services, reply)
}

/// `POST /signout`: whether the user wants to sign out.
pub(super) async fn decide(
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
    let reply = services.logout.decide(&form, visit.browser()).await;
    answer(&visit, &services, reply)
}

fn answer(visit: &Visit<'_>, services: &Services, reply: Reply) -> HttpResponse {
    match reply {
        Reply::Ask(page) => visit.keep(pages::sign_out(&services.brand, &page), None),
        Reply::SignedOut { to: None } => forget(pages::signed_out(&services.brand)),
        Reply::SignedOut { to: Some(to) } => {
            let Ok(location) = HeaderValue::from_str(&to) else {
                return forget(pages::signed_out(&services.brand));
            };
            let answer = HttpResponse::SeeOther()
                .insert_header((header::LOCATION, location))
                .insert_header((header::CACHE_CONTROL, "no-store"))
                .insert_header((header::REFERRER_POLICY, "no-referrer"))
                .finish();
            forget(answer)
        }
        Reply::Stay => visit.to_account(),
        Reply::Refused(error) => visit.refused(&error),
    }
}
