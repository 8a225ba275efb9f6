//! `countersign revoke` and `countersign restored`

use clap::{ArgGroup, Args};
use serde_json::json;

use super::{Failure, Reason, client_id, family_id, output, user_id};
use crate::{
    admin::revocation::Target,
    app::Context,
    clock::Timestamp,
    domain::id::{ClientId, FamilyId, UserId},
    keys::lifecycle::LONGEST_TOKEN_LIFE,
};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).args(["jti", "client", "subject", "family"]))]
pub(super) struct Revoke {
    /// Revoke one access token, by its `jti`
    // One in 64 begins with a hyphen.
    #[arg(
        long,
        value_name = "ID",
        requires = "expires_at",
        allow_hyphen_values = true
    )]
    jti: Option<String>,
    /// The token's `exp`, in seconds since 1970; goes with --jti
    #[arg(long, value_name = "SECONDS", requires = "jti")]
    expires_at: Option<i64>,
    /// Revoke every access token that a client holds now, and end every session at it
    #[arg(long, value_name = "CLIENT_ID", value_parser = client_id)]
    client: Option<ClientId>,
    /// End every session of a user and revoke every access token of it
    #[arg(long, value_name = "USER_ID", value_parser = user_id)]
    subject: Option<UserId>,
    /// End a session and revoke its access tokens
    #[arg(long, value_name = "ID", value_parser = family_id)]
    family: Option<FamilyId>,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Restored {
    /// Keep the access tokens and sessions there are: nothing was revoked or ended that is lost now
    #[arg(long)]
    keep_tokens: bool,
    #[command(flatten)]
    reason: Reason,
}

impl Revoke {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let token = self.jti.zip(self.expires_at);
        let target = match (self.client, self.subject, self.family, token) {
            (Some(id), ..) => Target::Client(id),
            (None, Some(id), ..) => Target::Subject(id),
            (None, None, Some(id), _) => Target::Family(id),
            (None, None, None, Some((jti, expires_at))) => Target::Token {
                jti,
                expires_at: Timestamp::from_seconds(expires_at),
            },
            (None, None, None, None) => {
                return Err(Failure::Usage(
                    "give --client, or --subject, or --family, or --jti and --expires-at"
                        .to_owned(),
                ));
            }
        };
        let what = match &target {
            Target::Client(id) => {
                format!(
                    "Every session at client {id} is ended, and every access token that it holds"
                )
            }
            Target::Subject(id) => {
                format!("Every session of user {id} is ended, and every access token of it")
            }
            Target::Family(id) => format!("Session {id} is ended, and every access token of it"),
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
            "Tokens and sessions are left alone; those that were revoked or ended after the backup was made \
             are good again."
        } else {
            "Every access token issued so far is revoked, and every session is ended: clients ask for new \
             tokens by themselves, users sign in again."
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
