//! Clients, their secrets, and resources.

use std::collections::HashMap;

use serde_json::{Value, json};
use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{
    Dialect, Done, NewEvent, Published, SqlStore, corrupt, list, revocations::Spans, unlist,
};
use crate::{
    clock::Timestamp,
    domain::{
        change::{EventType, Topic},
        client::{Client, Revision},
        id::{ClientId, ResourceId, SecretId},
        redirect::RedirectUri,
        resource::{Resource, ResourceUri},
        revocation::next_second,
        scope::Scope,
        secret::{SecretHash, StoredSecret},
    },
    store::StoreError,
};

/// What is read of a client, without its secrets.
macro_rules! client_columns {
    () => {
        "client_id, client_name, auth_method, grant_types, scope, resources, default_resource, \
         allowed_origins, access_token_ttl_seconds, disabled, demo, revision, created_at, updated_at, \
         jwks, jwks_uri, tokens_not_before, first_party, refresh_policy, refresh_sharing_acknowledged, \
         session_epoch, redirect_uris, post_logout_redirect_uris, require_pkce, \
         second_factor_required, session_tokens, forward_auth, \
         backchannel_logout_uri, backchannel_logout_session_required, \
         id_token_signed_response_alg"
    };
}

/// The stored form of redirect URIs.
fn uris(uris: &[RedirectUri]) -> String {
    list(uris.iter().map(RedirectUri::as_str))
}

impl<DB: Dialect> SqlStore<DB>
where
    DB::Arguments: IntoArguments<DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    for<'c> &'c Pool<DB>: Executor<'c, Database = DB>,
    for<'a> i64: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Option<i64>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Uuid: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Option<Uuid>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> String: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Option<String>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Vec<u8>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> &'a str: sqlx::ColumnIndex<DB::Row>,
    usize: sqlx::ColumnIndex<DB::Row>,
{
    pub(super) async fn put_client(
        &self,
        tx: &mut Transaction<'_, DB>,
        client: &Client,
        expected: Option<Revision>,
        event: EventType,
        spans: Spans,
    ) -> Result<Done, StoreError> {
        let before = Self::read_client(tx, &client.client_id).await?;
        if before.as_ref().map(|before| before.revision) != expected {
            return Err(StoreError::Conflict);
        }
        let (tokens_not_before, entry) =
            Self::tokens_of(tx, client, before.as_ref(), spans).await?;
        let after = Client {
            revision: expected.map_or(1, |revision| revision + 1),
            created_at: before
                .as_ref()
                .map_or(spans.now, |before| before.created_at),
            updated_at: spans.now,
            tokens_not_before,
            session_epoch: match &before {
                Some(before) => before.session_epoch,
                None => self.epoch()?,
            },
            ..client.clone()
        };
        // The conditions make a writer between our read and this write a conflict. An upsert would
        // not do: it would bring back a client that was deleted in between.
        let sql = match before {
            None => {
                concat!(
                    "insert into client (",
                    client_columns!(),
                    ") \
                     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30) \
                     on conflict (client_id) do nothing \
                     returning client_id"
                )
            }
            Some(_) => {
                "update client set client_name = $2, auth_method = $3, grant_types = $4, scope = $5, \
                 resources = $6, default_resource = $7, allowed_origins = $8, \
                 access_token_ttl_seconds = $9, disabled = $10, demo = $11, revision = $12, \
                 created_at = $13, updated_at = $14, jwks = $15, jwks_uri = $16, \
                 tokens_not_before = $17, first_party = $18, refresh_policy = $19, \
                 refresh_sharing_acknowledged = $20, session_epoch = $21, redirect_uris = $22, \
                 post_logout_redirect_uris = $23, require_pkce = $24, second_factor_required = $25, \
                 session_tokens = $26, forward_auth = $27, \
                 backchannel_logout_uri = $28, backchannel_logout_session_required = $29, \
                 id_token_signed_response_alg = $30 \
                 where client_id = $1 and revision = $12 - 1 \
                 returning client_id"
            }
        };
        sqlx::query::<DB>(sql)
            .bind(after.client_id.as_str().to_owned())
            .bind(after.client_name.clone())
            .bind(after.auth_method.as_str().to_owned())
            .bind(list(after.grant_types.iter().map(|grant| grant.as_str())))
            .bind(after.scope.to_string())
            .bind(list(after.resources.iter().map(ResourceUri::as_str)))
            .bind(after.default_resource.as_ref().map(ToString::to_string))
            .bind(list(&after.allowed_origins))
            .bind(after.access_token_ttl_seconds.map(i64::from))
            .bind(i64::from(after.disabled))
            .bind(i64::from(after.demo))
            .bind(after.revision)
            .bind(after.created_at.millis())
            .bind(after.updated_at.millis())
            .bind(after.jwks.as_ref().map(Value::to_string))
            .bind(after.jwks_uri.clone())
            .bind(after.tokens_not_before.map(Timestamp::millis))
            .bind(i64::from(after.first_party))
            .bind(after.refresh_policy.as_str().to_owned())
            .bind(i64::from(after.refresh_sharing_acknowledged))
            .bind(after.session_epoch)
            .bind(uris(&after.redirect_uris))
            .bind(uris(&after.post_logout_redirect_uris))
            .bind(i64::from(after.require_pkce))
            .bind(i64::from(after.second_factor_required))
            .bind(i64::from(after.session_tokens))
            .bind(i64::from(after.forward_auth))
            .bind(after.backchannel_logout_uri.clone())
            .bind(i64::from(after.backchannel_logout_session_required))
            .bind(after.id_token_alg.as_str().to_owned())
            .fetch_optional(&mut **tx)
            .await?
            .ok_or(StoreError::Conflict)?;
        Self::put_secrets(tx, &after, before.as_ref()).await?;
        let target = after.client_id.to_string();
        Ok(Done {
            revision: after.revision,
            event: NewEvent {
                kind: event,
                target: target.clone(),
                before: before.map(|before| before.document()),
                after: Some(after.document()),
            },
            published: entry
                .into_iter()
                .chain([Published::of(Topic::Client, &target)])
                .collect(),
        })
    }

    /// Replaces the secrets of a client.
    async fn put_secrets(
        tx: &mut Transaction<'_, DB>,
        after: &Client,
        before: Option<&Client>,
    ) -> Result<(), StoreError> {
        let old: &[StoredSecret] = before.map_or(&[], |before| &before.secrets);
        for secret in old
            .iter()
            .filter(|secret| after.secret(secret.id).is_none())
        {
            sqlx::query::<DB>("delete from client_secret where id = $1")
                .bind(secret.id.uuid())
                .execute(&mut **tx)
                .await?;
        }
        for secret in after.secrets.iter().filter(|secret| !old.contains(secret)) {
            sqlx::query::<DB>("insert into client_secret (id, client_id, hash, created_at) values ($1, $2, $3, $4)")
                .bind(secret.id.uuid())
                .bind(after.client_id.as_str().to_owned())
                .bind(secret.hash.as_bytes().to_vec())
                .bind(secret.created_at.millis())
                .execute(&mut **tx)
                .await?;
        }
        Ok(())
    }

    /// What becomes of the tokens of a client that is put: from when on they count, and the entry
    /// that tells of it.
    async fn tokens_of(
        tx: &mut Transaction<'_, DB>,
        client: &Client,
        before: Option<&Client>,
        spans: Spans,
    ) -> Result<(Option<Timestamp>, Option<Published>), StoreError> {
        let id = &client.client_id;
        let unchanged = before.and_then(|before| before.tokens_not_before);
        if client.disabled {
            // As long as it is disabled, whatever a node may issue that does not know of it yet.
            let entry = Published::client(id, None, None);
            let is_new = before.is_none_or(|before| !before.disabled);
            return Ok((unchanged, is_new.then_some(entry)));
        }
        let was_revoked = match before {
            Some(before) => before.disabled,
            None => Self::has_entry(tx, id).await?,
        };
        if !was_revoked {
            return Ok((unchanged, None));
        }
        let not_before = next_second(spans.now);
        let entry = Published::client(id, Some(not_before), Some(spans.tokens_die_at));
        Ok((Some(not_before), Some(entry)))
    }

    pub(super) async fn delete_client(
        tx: &mut Transaction<'_, DB>,
        client_id: &ClientId,
        expected: Revision,
        tokens_die_at: Timestamp,
    ) -> Result<Done, StoreError> {
        let before = Self::read_client(tx, client_id)
            .await?
            .ok_or(StoreError::Conflict)?;
        // Secrets go with it: `on delete cascade`.
        let deleted = sqlx::query::<DB>(
            "delete from client where client_id = $1 and revision = $2 returning client_id",
        )
        .bind(client_id.as_str().to_owned())
        .bind(expected)
        .fetch_optional(&mut **tx)
        .await?;
        if deleted.is_none() {
            return Err(StoreError::Conflict);
        }
        Ok(Done {
            revision: expected,
            event: NewEvent {
                kind: EventType::ClientDeleted,
                target: client_id.to_string(),
                before: Some(before.document()),
                after: None,
            },
            published: vec![
                Published::client(client_id, None, Some(tokens_die_at)),
                Published::of(Topic::Client, &client_id),
            ],
        })
    }

    pub(super) async fn create_resource(
        tx: &mut Transaction<'_, DB>,
        resource: &Resource,
    ) -> Result<Done, StoreError> {
        sqlx::query::<DB>(
            "insert into resource (id, resource, name, scopes, introspection_clients, demo, \
             scope_descriptions) values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(resource.id.uuid())
        .bind(resource.resource.as_str().to_owned())
        .bind(resource.name.clone())
        .bind(resource.scopes.to_string())
        .bind(list(
            resource.introspection_clients.iter().map(ClientId::as_str),
        ))
        .bind(i64::from(resource.demo))
        .bind(json!(resource.scope_descriptions).to_string())
        .execute(&mut **tx)
        .await?;
        Ok(Done {
            revision: 1,
            event: NewEvent {
                kind: EventType::ResourceCreated,
                target: resource.id.to_string(),
                before: None,
                after: Some(resource.document()),
            },
            published: vec![Published::of(Topic::Resource, &resource.id)],
        })
    }

    pub(super) async fn delete_resource(
        tx: &mut Transaction<'_, DB>,
        id: ResourceId,
    ) -> Result<Done, StoreError> {
        let before = sqlx::query::<DB>(
            "delete from resource where id = $1 \
             returning id, resource, name, scopes, introspection_clients, demo, scope_descriptions",
        )
        .bind(id.uuid())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(StoreError::Conflict)?;
        Ok(Done {
            revision: 1,
            event: NewEvent {
                kind: EventType::ResourceDeleted,
                target: id.to_string(),
                before: Some(Self::resource_of(&before)?.document()),
                after: None,
            },
            published: vec![Published::of(Topic::Resource, &id)],
        })
    }

    pub(super) async fn read_client(
        connection: &mut DB::Connection,
        id: &ClientId,
    ) -> Result<Option<Client>, StoreError> {
        let Some(row) = sqlx::query::<DB>(concat!(
            "select ",
            client_columns!(),
            " from client where client_id = $1"
        ))
        .bind(id.as_str().to_owned())
        .fetch_optional(&mut *connection)
        .await?
        else {
            return Ok(None);
        };
        // Uses the index client_secret_client.
        let secrets = sqlx::query::<DB>(
            "select id, client_id, hash, created_at from client_secret \
             where client_id = $1 order by created_at, id",
        )
        .bind(id.as_str().to_owned())
        .fetch_all(&mut *connection)
        .await?;
        let secrets = secrets
            .iter()
            .map(Self::secret_of)
            .collect::<Result<_, _>>()?;
        Self::client_of(&row, secrets).map(Some)
    }

    pub(super) async fn read_clients(
        connection: &mut DB::Connection,
    ) -> Result<Vec<Result<Client, StoreError>>, StoreError> {
        let mut secrets: HashMap<String, Vec<_>> = HashMap::new();
        for row in sqlx::query::<DB>(
            "select id, client_id, hash, created_at from client_secret order by created_at, id",
        )
        .fetch_all(&mut *connection)
        .await?
        {
            let owner: String = Self::column(&row, "client_secret", "client_id")?;
            secrets
                .entry(owner)
                .or_default()
                .push(Self::secret_of(&row));
        }
        let rows = sqlx::query::<DB>(concat!(
            "select ",
            client_columns!(),
            " from client order by client_id"
        ))
        .fetch_all(&mut *connection)
        .await?;
        let read = |row: &DB::Row| {
            let id: String = Self::column(row, "client", "client_id")?;
            let secrets = secrets.remove(&id).unwrap_or_default();
            Self::client_of(row, secrets.into_iter().collect::<Result<_, _>>()?)
        };
        Ok(rows.iter().map(read).collect())
    }

    pub(super) async fn read_resources(
        connection: &mut DB::Connection,
    ) -> Result<Vec<Result<Resource, StoreError>>, StoreError> {
        let rows = sqlx::query::<DB>(
            "select id, resource, name, scopes, introspection_clients, demo, scope_descriptions \
             from resource order by resource",
        )
        .fetch_all(connection)
        .await?;
        Ok(rows.iter().map(Self::resource_of).collect())
    }

    fn secret_of(row: &DB::Row) -> Result<StoredSecret, StoreError> {
        const TABLE: &str = "client_secret";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let hash: Vec<u8> = Self::column(row, TABLE, "hash")?;
        Ok(StoredSecret {
            id: SecretId::from_uuid(id),
            hash: SecretHash::from_bytes(&hash).ok_or_else(|| corrupt(TABLE, "hash", &id))?,
            created_at: Self::time(row, TABLE, "created_at")?,
        })
    }

    fn client_of(row: &DB::Row, secrets: Vec<StoredSecret>) -> Result<Client, StoreError> {
        const TABLE: &str = "client";
        let id: String = Self::column(row, TABLE, "client_id")?;
        let text = |column| Self::column::<String>(row, TABLE, column);
        let bad = |column| corrupt(TABLE, column, &id);
        let redirects = |column| {
            unlist(&text(column)?, |uri| RedirectUri::parse(uri).ok()).ok_or_else(|| bad(column))
        };
        let default_resource = Self::column::<Option<String>>(row, TABLE, "default_resource")?
            .map(|uri| ResourceUri::parse(&uri).map_err(|_| bad("default_resource")))
            .transpose()?;
        let ttl = Self::column::<Option<i64>>(row, TABLE, "access_token_ttl_seconds")?
            .map(|ttl| u32::try_from(ttl).map_err(|_| bad("access_token_ttl_seconds")))
            .transpose()?;
        Ok(Client {
            client_id: ClientId::parse(&id).map_err(|_| bad("client_id"))?,
            client_name: text("client_name")?,
            auth_method: text("auth_method")?
                .parse()
                .map_err(|_| bad("auth_method"))?,
            grant_types: unlist(&text("grant_types")?, |name| name.parse().ok())
                .ok_or_else(|| bad("grant_types"))?,
            scope: Scope::parse(&text("scope")?).map_err(|_| bad("scope"))?,
            resources: unlist(&text("resources")?, |uri| ResourceUri::parse(uri).ok())
                .ok_or_else(|| bad("resources"))?,
            default_resource,
            allowed_origins: unlist(&text("allowed_origins")?, |origin| Some(origin.to_owned()))
                .ok_or_else(|| bad("allowed_origins"))?,
            redirect_uris: redirects("redirect_uris")?,
            post_logout_redirect_uris: redirects("post_logout_redirect_uris")?,
            id_token_alg: text("id_token_signed_response_alg")?
                .parse()
                .map_err(|_| bad("id_token_signed_response_alg"))?,
            require_pkce: Self::column::<i64>(row, TABLE, "require_pkce")? != 0,
            second_factor_required: Self::column::<i64>(row, TABLE, "second_factor_required")? != 0,
            backchannel_logout_uri: Self::column(row, TABLE, "backchannel_logout_uri")?,
            backchannel_logout_session_required: Self::column::<i64>(
                row,
                TABLE,
                "backchannel_logout_session_required",
            )? != 0,
            access_token_ttl_seconds: ttl,
            first_party: Self::column::<i64>(row, TABLE, "first_party")? != 0,
            session_tokens: Self::column::<i64>(row, TABLE, "session_tokens")? != 0,
            forward_auth: Self::column::<i64>(row, TABLE, "forward_auth")? != 0,
            refresh_policy: text("refresh_policy")?
                .parse()
                .map_err(|_| bad("refresh_policy"))?,
            refresh_sharing_acknowledged: Self::column::<i64>(
                row,
                TABLE,
                "refresh_sharing_acknowledged",
            )? != 0,
            session_epoch: Self::column(row, TABLE, "session_epoch")?,
            disabled: Self::column::<i64>(row, TABLE, "disabled")? != 0,
            demo: Self::column::<i64>(row, TABLE, "demo")? != 0,
            jwks: Self::column::<Option<String>>(row, TABLE, "jwks")?
                .map(|jwks| serde_json::from_str(&jwks).map_err(|_| bad("jwks")))
                .transpose()?,
            jwks_uri: Self::column(row, TABLE, "jwks_uri")?,
            tokens_not_before: Self::column::<Option<i64>>(row, TABLE, "tokens_not_before")?
                .map(Timestamp::from_millis),
            secrets,
            revision: Self::column(row, TABLE, "revision")?,
            created_at: Self::time(row, TABLE, "created_at")?,
            updated_at: Self::time(row, TABLE, "updated_at")?,
        })
    }

    fn resource_of(row: &DB::Row) -> Result<Resource, StoreError> {
        const TABLE: &str = "resource";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let text = |column| Self::column::<String>(row, TABLE, column);
        let bad = |column| corrupt(TABLE, column, &id);
        Ok(Resource {
            id: ResourceId::from_uuid(id),
            resource: ResourceUri::parse(&text("resource")?).map_err(|_| bad("resource"))?,
            name: text("name")?,
            scopes: Scope::parse(&text("scopes")?).map_err(|_| bad("scopes"))?,
            scope_descriptions: serde_json::from_str(&text("scope_descriptions")?)
                .map_err(|_| bad("scope_descriptions"))?,
            introspection_clients: unlist(&text("introspection_clients")?, |id| {
                ClientId::parse(id).ok()
            })
            .ok_or_else(|| bad("introspection_clients"))?,
            demo: Self::column::<i64>(row, TABLE, "demo")? != 0,
        })
    }
}
