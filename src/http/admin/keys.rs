//! Calls about keys.

use super::call::{Call, Outcome, answer, listed, one};
use crate::{admin::key::RotationRequest, domain::id::Kid};

pub(super) async fn list(call: Call) -> Outcome {
    let (request, query) = call.page("keys", &["use"])?;
    let key_use = one(&query, "use")?;
    let page = call.admin().keys.page(key_use, &request).await?;
    Ok(listed(&page, Clone::clone))
}

pub(super) async fn rotate(mut call: Call) -> Outcome {
    let (key_use, rotation, reason) = RotationRequest::read(std::mem::take(&mut call.body))?;
    let cause = call.cause(reason);
    let change = call.admin().keys.rotate(key_use, rotation, &cause).await?;
    Ok(answer(&change.document()))
}

pub(super) async fn revoke(call: Call) -> Outcome {
    let kid = call.id("kid", "key", Kid::parse)?;
    let change = call.admin().keys.revoke(&kid, &call.cause(None)).await?;
    Ok(answer(&change.document()))
}
