//! The handlers of the account page.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Payload, ReqData},
};

use super::{
    Services, body,
    browser::{Visit, forget, of_another_site},
    pages,
};
use crate::{account::Outcome, domain::change::Origin};

/// Where it is, below the issuer.
pub(super) const PATH: &str = "/account";

/// Where its forms go.
pub(super) const FORMS_PATH: &str = "/account/forms";

/// What is asked for to see more than the latest of each.
pub(super) const IN_FULL: &str = "show=all";

/// `GET /account`: the page, or the way to it.
pub(super) async fn page(
    request: HttpRequest,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let visit = Visit::of(&request, &services, &origin);
    let in_full = request.query_string() == IN_FULL;
    match services.accounts.page(visit.browser(), in_full).await {
        Ok(Some(page)) => visit.keep(pages::account(&services.brand, &page), None),
        Ok(None) => {
            let answer = services.authorization.begin_account(visit.browser());
            visit.answer(&answer.await)
        }
        Err(error) => visit.refused(&error),
    }
}

/// `POST /account/forms`: a form of the page.
pub(super) async fn form(
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
    match services.accounts.submit(&form, visit.browser()).await {
        Ok(Outcome::Done | Outcome::Nobody) => visit.to_account(),
        Ok(Outcome::Renewed(cookie)) => visit.keep(visit.to_account(), Some(&cookie)),
        Ok(Outcome::SignedOut) => forget(visit.to_account()),
        Ok(Outcome::Confirm(username)) => {
            let browser = visit.browser();
            visit.answer(&services.authorization.confirm_account(username, browser))
        }
        Ok(Outcome::Enrolment(page)) => {
            visit.keep(pages::account_enrolment(&services.brand, &page), None)
        }
        Ok(Outcome::Passkey(page)) => {
            visit.keep(pages::account_passkey(&services.brand, &page), None)
        }
        Ok(Outcome::Codes { codes, cookie }) => visit.keep(
            pages::account_codes(&services.brand, &codes),
            cookie.as_ref(),
        ),
        Ok(Outcome::Refused(page)) => visit.keep(pages::account(&services.brand, &page), None),
        Err(error) => visit.refused(&error),
    }
}
