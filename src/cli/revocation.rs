//! `countersign revoke` and `countersign restored`

use clap::{ArgGroup, Args};
use serde_json::json;

use super::{Failure, Reason, client_id, output, user_id};
use crate::{
    admin::revocation::Target,
    app::Context,
    clock::Timestamp,
    domain::id::{ClientId, UserId},
    keys::lifecycle::LONGEST_TOKEN_LIFE,
};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).args(["jti", "client", "subject"]))]
pub(super) struct Revoke {
    /// Revoke one access token, by its `jti`
    #[arg(long, value_name = "ID", requires = "expires_at")]
    jti: Option<String>,
    /// The token's `exp`, in seconds since 1970; goes with --jti
    #[arg(long, value_name = "SECONDS", requires = "jti")]
    expires_at: Option<i64>,
    /// Revoke every access token that a client holds now
    #[arg(long, value_name = "CLIENT_ID", value_parser = client_id)]
    client: Option<ClientId>,
    /// End every session of a user and revoke every access token of it
    #[arg(long, value_name = "USER_ID", value_parser = user_id)]
    subject: Option<UserId>,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Restored {
    /// Do not revoke the access tokens issued so far: nothing was revoked that is lost now
    #[arg(long)]
    keep_tokens: bool,
    #[command(flatten)]
    reason: Reason,
}

impl Revoke {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let target = match (self.client, self.subject, self.jti, self.expires_at) {
            (Some(id), ..) => Target::Client(id),
            (None, Some(id), ..) => Target::Subject(id),
            (None, None, Some(jti), Some(expires_at)) => Target::Token {
                jti,
                expires_at: Timestamp::from_seconds(expires_at),
            },
            _ => {
                return Err(Failure::Usage(
                    "give --client, or --subject, or --jti and --expires-at".to_owned(),
                ));
            }
        };
        let what = match &target {
            Target::Client(id) => format!("Every access token that client {id} holds"),
            Target::Subject(id) => {
                format!("Every session of user {id} is ended, and every access token of it")
            }
            Target::Token { jti, .. } => format!("The access token {jti}"),
        };
        let cause = self.reason.cause();
        context.revocations().revoke(&target, &cause).await?;
        if json {
            return Ok(output::json(&target.document())?);
        }
        output::line(&format!(
            "{what} is revoked: introspection says so on every node within {} ms.",
            context.config.policy.poll.as_millis()
        ))?;
        Ok(output::line(&format!(
            "Services that verify tokens by themselves accept it until it expires, within {} s at most.",
            LONGEST_TOKEN_LIFE.as_secs()
        ))?)
    }
}

impl Restored {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let (keep, cause) = (self.keep_tokens, self.reason.cause());
        context.revocations().restored(keep, &cause).await?;
        if json {
            return Ok(output::json(&json!({ "keep_tokens": keep }))?);
        }
        output::line("A new epoch has begun: every node reads everything anew.")?;
        output::line(if keep {
            "Tokens are left alone; those that were revoked after the backup was made are valid again."
        } else {
            "Every access token issued so far is revoked; clients ask for new ones by themselves."
        })?;
        output::line("")?;
        output::line("What was changed after the backup was made is undone. Do again:")?;
        for step in [
            "keys that were revoked:        countersign keys list, then keys rotate --emergency",
            "secrets that were removed:     countersign clients remove-secret",
            "clients disabled or deleted:   countersign clients update --disable, clients delete",
            "users disabled or deleted:     countersign users disable, users delete",
            "passwords that were changed:   countersign users set-password",
        ] {
            output::line(&format!("  {step}"))?;
        }
        Ok(())
    }
}
