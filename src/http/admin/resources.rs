//! Calls about protected resources.

use super::call::{Call, Outcome, created, listed, removed};
use crate::domain::{id::ResourceId, resource::Resource};

pub(super) async fn list(call: Call) -> Outcome {
    let (request, _) = call.page("resources", &[])?;
    let page = call.admin().resources.page(&request).await?;
    Ok(listed(&page, Resource::document))
}

pub(super) async fn create(mut call: Call) -> Outcome {
    let members = std::mem::take(&mut call.body);
    let resource = call
        .admin()
        .resources
        .register(members, &call.cause(None))
        .await?;
    Ok(created(
        &format!("/admin/v1/resources/{}", resource.id),
        &resource.document(),
    ))
}

pub(super) async fn delete(call: Call) -> Outcome {
    let id = call.id("id", "resource", ResourceId::parse)?;
    call.admin().resources.delete(id, &call.cause(None)).await?;
    Ok(removed())
}
