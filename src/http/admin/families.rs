//! Calls about families.

use super::{
    call::{Call, Outcome, answer, listed, one},
    problem::Problem,
};
use crate::{
    admin::family::{EndRequest, FamilyFilter, FamilyView},
    domain::id::FamilyId,
};

pub(super) async fn list(call: Call) -> Outcome {
    let (request, query) = call.page("families", &["subject", "client_id", "state"])?;
    let filter = FamilyFilter {
        subject: one(&query, "subject")?,
        client_id: one(&query, "client_id")?,
        state: one(&query, "state")?,
    };
    let page = call.admin().families.page(filter, &request).await?;
    Ok(listed(&page, FamilyView::document))
}

pub(super) async fn show(call: Call) -> Outcome {
    let story = call.admin().families.show(family_id(&call)?).await?;
    Ok(answer(&story.document()))
}

pub(super) async fn revoke(mut call: Call) -> Outcome {
    let id = family_id(&call)?;
    let reason = EndRequest::read(std::mem::take(&mut call.body))?;
    let cause = call.cause(reason);
    let story = call.admin().families.end(id, &cause).await?;
    Ok(answer(&story.document()))
}

fn family_id(call: &Call) -> Result<FamilyId, Problem> {
    call.id("id", "family", FamilyId::parse)
}
