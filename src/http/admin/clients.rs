//! Calls about clients and their secrets.

use serde_json::Value;

use super::{
    call::{Call, Outcome, answer, created, listed, removed},
    problem::Problem,
};
use crate::{
    admin::client::{created_document, secret_document},
    domain::{
        client::Client,
        id::{ClientId, SecretId},
    },
};

pub(super) async fn list(call: Call) -> Outcome {
    let (request, _) = call.page("clients", &[])?;
    let page = call.clients().page(&request).await?;
    Ok(listed(&page, Client::document))
}

pub(super) async fn create(mut call: Call) -> Outcome {
    let members = std::mem::take(&mut call.body);
    let (client, secret) = call.clients().register(members, &call.cause(None)).await?;
    Ok(created(
        &format!("/admin/v1/clients/{}", client.client_id),
        &created_document(&client, secret.as_ref()),
    ))
}

pub(super) async fn show(call: Call) -> Outcome {
    Ok(answer(
        &call.clients().show(&client_id(&call)?).await?.document(),
    ))
}

pub(super) async fn update(mut call: Call) -> Outcome {
    let id = client_id(&call)?;
    let expected = call.take_revision()?;
    let patch = Value::Object(std::mem::take(&mut call.body));
    let update = call
        .clients()
        .update(&id, &patch, expected, &call.cause(None))
        .await;
    Ok(answer(&update?.document()))
}

pub(super) async fn delete(call: Call) -> Outcome {
    let id = client_id(&call)?;
    call.clients().delete(&id, &call.cause(None)).await?;
    Ok(removed())
}

pub(super) async fn add_secret(call: Call) -> Outcome {
    let id = client_id(&call)?;
    let (client, secret_id, secret) = call.clients().add_secret(&id, &call.cause(None)).await?;
    Ok(created(
        &format!("/admin/v1/clients/{id}/secrets/{secret_id}"),
        &secret_document(&client, secret_id, &secret),
    ))
}

pub(super) async fn remove_secret(call: Call) -> Outcome {
    let id = client_id(&call)?;
    let secret = call.id("secret_id", "secret", SecretId::parse)?;
    call.clients()
        .remove_secret(&id, secret, &call.cause(None))
        .await?;
    Ok(removed())
}

fn client_id(call: &Call) -> Result<ClientId, Problem> {
    call.id("client_id", "client", ClientId::parse)
}
