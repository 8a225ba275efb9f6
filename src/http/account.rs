//! The handlers of the account page.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, ReqData},
};

use super::{Services, browser::Visit, pages};
use crate::domain::change::Origin;

/// Where it is, below the issuer.
pub(super) const PATH: &str = "/account";

/// `GET /account`: the page, or the way to it.
pub(super) async fn page(
    request: HttpRequest,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    let visit = Visit::of(&request, &services, &origin);
    match services.accounts.page(visit.browser()).await {
        Ok(Some(page)) => pages::account(&services.brand, &page),
        Ok(None) => {
            let answer = services.authorization.begin_account(visit.browser());
            visit.answer(&answer.await)
        }
        Err(error) => visit.refused(&error),
    }
}
