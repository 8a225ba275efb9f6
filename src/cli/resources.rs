//! `countersign resources …`

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use countersign_verifier::json as strict_json;
use serde_json::{Value, json};

use super::{Failure, Reason, output};
use crate::{
    admin::{AdminError, resource::ResourceMetadata},
    app::Context,
    domain::{id::ResourceId, resource::Resource},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List every resource
    List,
    /// Register a resource
    Create(Create),
    /// Remove a resource
    Delete(Delete),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its identifier: what clients ask for and tokens carry in aud
    #[arg(long, value_name = "URI")]
    resource: String,
    /// A name for people
    #[arg(long)]
    name: String,
    /// Every scope token it knows, separated by spaces
    #[arg(long, default_value = "")]
    scope: String,
    /// What scopes mean to users who are asked for consent: a JSON object of texts by scope token
    #[arg(long, value_name = "JSON", value_parser = descriptions)]
    scope_descriptions: Option<BTreeMap<String, String>>,
    /// A client that may introspect its tokens; repeatable
    #[arg(long = "introspection-client", value_name = "CLIENT_ID")]
    introspection_clients: Vec<String>,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Its id, or its identifier
    #[arg(value_name = "ID|URI")]
    which: String,
    #[command(flatten)]
    reason: Reason,
}

impl Command {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        match self {
            Self::List => list(context, json).await,
            Self::Create(create) => create.run(context, json).await,
            Self::Delete(delete) => delete.run(context, json).await,
        }
    }
}

async fn list(context: &Context, json: bool) -> Result<(), Failure> {
    let resources = context.resources().list().await?;
    if json {
        let items: Vec<Value> = resources.iter().map(Resource::document).collect();
        return Ok(output::json(
            &json!({ "items": items, "next_cursor": null }),
        )?);
    }
    let row = |resource: &Resource| {
        [
            resource.id.to_string(),
            resource.resource.to_string(),
            resource.name.clone(),
            resource.scopes.to_string(),
        ]
    };
    let rows: Vec<_> = resources.iter().map(row).collect();
    Ok(output::table(["ID", "RESOURCE", "NAME", "SCOPE"], &rows)?)
}

impl Create {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let scopes = self.scope.split(' ').map(str::to_owned).collect();
        let metadata = ResourceMetadata {
            resource: self.resource,
            name: self.name,
            scopes,
            scope_descriptions: self.scope_descriptions.unwrap_or_default(),
            introspection_clients: self.introspection_clients,
        };
        let cause = self.reason.cause();
        let resource = context.resources().create(&metadata, false, &cause).await?;
        if json {
            return Ok(output::json(&resource.document())?);
        }
        output::line("The resource is registered.")?;
        Ok(output::fields(&[
            ("id", resource.id.to_string()),
            ("resource", resource.resource.to_string()),
        ])?)
    }
}

fn descriptions(text: &str) -> Result<BTreeMap<String, String>, String> {
    let object = strict_json::parse_object(text.as_bytes()).map_err(|error| error.to_string())?;
    serde_json::from_value(object.into_members().into())
        .map_err(|_| "must be an object of texts".to_owned())
}

impl Delete {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let resources = context.resources();
        let named = |resource: &Resource| resource.resource.as_str() == self.which;
        let id = match ResourceId::parse(&self.which) {
            Ok(id) => id,
            Err(_) => resources
                .list()
                .await?
                .into_iter()
                .find(named)
                .map(|resource| resource.id)
                .ok_or(AdminError::NotFound("resource"))?,
        };
        resources.delete(id, &self.reason.cause()).await?;
        if !json {
            output::line(&format!(
                "Resource {id} is removed; no more tokens are issued for it."
            ))?;
        }
        Ok(())
    }
}
