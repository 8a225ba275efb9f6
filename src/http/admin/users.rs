//! Calls about users.

use serde_json::Value;

use super::{
    call::{Call, Outcome, answer, created, listed, one, removed},
    problem::Problem,
};
use crate::domain::{
    consent::Consent,
    id::{ClientId, UserId},
    user::User,
};

pub(super) async fn list(call: Call) -> Outcome {
    let (request, query) = call.page("users", &["username"])?;
    let username = one(&query, "username")?;
    let page = call.admin().users.page(&request, username).await?;
    Ok(listed(&page, User::document))
}

pub(super) async fn create(mut call: Call) -> Outcome {
    let members = std::mem::take(&mut call.body);
    let cause = call.cause(None);
    let user = call.admin().users.register(members, &cause).await?;
    Ok(created(
        &format!("/admin/v1/users/{}", user.id),
        &user.document(),
    ))
}

pub(super) async fn show(call: Call) -> Outcome {
    let user = call.admin().users.show(user_id(&call)?).await?;
    Ok(answer(&user.document()))
}

pub(super) async fn update(mut call: Call) -> Outcome {
    let id = user_id(&call)?;
    let expected = call.take_revision()?;
    let patch = Value::Object(std::mem::take(&mut call.body));
    let cause = call.cause(None);
    let updated = call.admin().users.update(id, &patch, expected, &cause);
    Ok(answer(&updated.await?.document()))
}

pub(super) async fn set_password(mut call: Call) -> Outcome {
    let id = user_id(&call)?;
    let members = std::mem::take(&mut call.body);
    let cause = call.cause(None);
    let changed = call.admin().users.set_password_read(id, members, &cause);
    Ok(answer(&changed.await?.document()))
}

pub(super) async fn delete(call: Call) -> Outcome {
    let id = user_id(&call)?;
    call.admin().users.delete(id, &call.cause(None)).await?;
    Ok(removed())
}

pub(super) async fn reset_factors(call: Call) -> Outcome {
    let id = user_id(&call)?;
    let cause = call.cause(None);
    call.admin().users.reset_factors(id, &cause).await?;
    Ok(removed())
}

pub(super) async fn consents(call: Call) -> Outcome {
    let (request, _) = call.page("consents", &[])?;
    let page = call.admin().users.consents(user_id(&call)?, &request);
    Ok(listed(&page.await?, Consent::document))
}

pub(super) async fn withdraw_consent(call: Call) -> Outcome {
    let id = user_id(&call)?;
    let client = call.id("client_id", "client", ClientId::parse)?;
    let cause = call.cause(None);
    call.admin()
        .users
        .withdraw_consent(id, client, &cause)
        .await?;
    Ok(removed())
}

fn user_id(call: &Call) -> Result<UserId, Problem> {
    call.id("id", "user", UserId::parse)
}
