//! `countersign keys …`

use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde_json::{Value, json};

use super::{Failure, Reason, kid, master_key_id, output, timeline};
use crate::{
    admin::key::{KeyChange, MasterKeyStatus, Rotation},
    app::Context,
    clock::{Clock as _, SystemClock, Timestamp},
    domain::{
        id::{Kid, MasterKeyId},
        key::KeyUse,
    },
    entropy::Entropy,
    keys::master::MasterKeySource,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List every key of a use and draw when each of them signs
    List(List),
    /// Let the next key take over
    Rotate(Rotate),
    /// Declare a key compromised; of the active key this is an emergency rotation
    Revoke(Revoke),
    /// List every master key
    Masters,
    /// Draw a master key into a file of its own
    AddMaster,
    /// Seal new keys under another master key from now on
    PromoteMaster(PromoteMaster),
    /// Seal every key anew under the primary master key
    Rewrap(Rewrap),
    /// Delete the file of a master key that is needed no more
    RemoveMaster(RemoveMaster),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// What the keys are for: access tokens (signing), refresh tokens, or ID Tokens signed with RS256
    #[arg(long = "use", value_name = "USE", default_value = "signing", value_parser = key_uses())]
    key_use: KeyUse,
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// What the keys are for: access tokens (signing), refresh tokens, or ID Tokens signed with RS256. An
    /// emergency of refresh tokens refuses all that were made with the revoked key: their users sign in
    /// again
    #[arg(long = "use", value_name = "USE", default_value = "signing", value_parser = key_uses())]
    key_use: KeyUse,
    /// At once: the active key has leaked and is revoked
    #[arg(long)]
    emergency: bool,
    /// Revoke every other key as well: the whole host has leaked
    #[arg(long, requires = "emergency")]
    discard_next: bool,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Which one
    // One in 64 begins with a hyphen.
    #[arg(value_name = "KID", value_parser = kid, allow_hyphen_values = true)]
    kid: Kid,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct PromoteMaster {
    /// Which one
    #[arg(value_name = "ID", value_parser = master_key_id)]
    id: MasterKeyId,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct RemoveMaster {
    /// Which one
    #[arg(value_name = "ID", value_parser = master_key_id)]
    id: MasterKeyId,
}

#[derive(Debug, Args)]
pub(super) struct Rewrap {
    #[command(flatten)]
    reason: Reason,
}

fn key_uses() -> impl TypedValueParser<Value = KeyUse> {
    PossibleValuesParser::new(KeyUse::ALL.iter().map(|key_use| key_use.as_str()))
        .try_map(|name| name.parse::<KeyUse>())
}

impl Command {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        match self {
            Self::List(List { key_use }) => list(key_use, context, json).await,
            Self::Rotate(rotate) => rotate.run(context, json).await,
            Self::Revoke(revoke) => {
                let cause = revoke.reason.cause();
                let change = context.keys().revoke(&revoke.kid, &cause).await?;
                changed(&change, context, json).await
            }
            Self::Masters => masters(context, json).await,
            Self::AddMaster => add_master(&context.config.master_keys, json),
            Self::PromoteMaster(PromoteMaster { id, reason }) => {
                context.keys().promote_master(id, &reason.cause()).await?;
                told(
                    json,
                    &json!({ "primary": id.to_string() }),
                    &format!(
                        "New keys are sealed under master key {id} from now on. Next: countersign keys rewrap"
                    ),
                )
            }
            Self::Rewrap(Rewrap { reason }) => {
                let moved = context.keys().rewrap(&reason.cause()).await?;
                told(
                    json,
                    &json!({ "rewrapped": moved }),
                    &format!(
                        "{moved} keys and second factors were sealed anew under the primary master key."
                    ),
                )
            }
            Self::RemoveMaster(RemoveMaster { id }) => {
                let path = context.keys().remove_master(id).await?;
                told(
                    json,
                    &json!({ "id": id.to_string(), "path": path.display().to_string() }),
                    &format!(
                        "{} is deleted; delete it on the other nodes as well.",
                        path.display()
                    ),
                )
            }
        }
    }
}

async fn list(key_use: KeyUse, context: &Context, json: bool) -> Result<(), Failure> {
    if json {
        let items = context.keys().list(key_use).await?;
        return Ok(output::json(
            &json!({ "items": items, "next_cursor": null }),
        )?);
    }
    let now = context.clock.now();
    let keys = context.keys().states(key_use, now).await?;
    if keys.is_empty() {
        return Ok(output::line(if context.keys().makes(key_use) {
            "There are no keys yet; the first start of the service makes them."
        } else {
            "There are no such keys: setting keys.rs256_id_tokens is false."
        })?);
    }
    let or_dash = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), output::utc);
    let rows: Vec<[String; 5]> = keys
        .iter()
        .map(|(kid, state, times)| {
            [
                state.to_string(),
                kid.to_string(),
                output::utc(times.published_at),
                output::utc(times.activates_at),
                or_dash(times.revoked_at.or(times.withdrawn_at)),
            ]
        })
        .collect();
    output::table(
        ["STATE", "KID", "PUBLISHED (UTC)", "ACTIVATES", "WITHDRAWN"],
        &rows,
    )?;
    output::line("")?;
    for line in timeline::draw(&keys, now) {
        output::line(&line)?;
    }
    Ok(())
}

impl Rotate {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let rotation = if self.emergency {
            Rotation::Emergency {
                discard_next: self.discard_next,
            }
        } else {
            Rotation::Scheduled
        };
        let change = context
            .keys()
            .rotate(self.key_use, rotation, &self.reason.cause())
            .await?;
        changed(&change, context, json).await
    }
}

/// Shows the keys after a change of them.
async fn changed(change: &KeyChange, context: &Context, json: bool) -> Result<(), Failure> {
    if json {
        return Ok(output::json(&change.document())?);
    }
    if let Some(until) = change.verifiers_may_lag_until {
        output::line(&format!(
            "Verifiers may refuse new tokens until {}: they could not know the new key before.",
            output::utc_seconds(until)
        ))?;
    }
    list(change.key_use, context, json).await
}

async fn masters(context: &Context, json: bool) -> Result<(), Failure> {
    let masters = context.keys().master_keys().await?;
    if json {
        let document = |master: &MasterKeyStatus| {
            json!({
                "id": master.id.to_string(),
                "primary": master.is_primary,
                "here": master.is_here,
                "seals": master.seals,
            })
        };
        let items: Vec<Value> = masters.iter().map(document).collect();
        return Ok(output::json(
            &json!({ "items": items, "next_cursor": null }),
        )?);
    }
    if masters.is_empty() {
        return Ok(output::line(
            "There are no master keys yet; see: countersign keys add-master --help",
        )?);
    }
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let row = |master: &MasterKeyStatus| {
        [
            master.id.to_string(),
            yes(master.is_primary),
            yes(master.is_here),
            master.seals.to_string(),
        ]
    };
    let rows: Vec<_> = masters.iter().map(row).collect();
    Ok(output::table(
        ["MASTER KEY", "PRIMARY", "HERE", "KEYS SEALED"],
        &rows,
    )?)
}

/// Needs no database: there may be none before the first master key.
pub(super) fn add_master(source: &MasterKeySource, json: bool) -> Result<(), Failure> {
    let (id, path) = source.add(&Entropy::new(), SystemClock::new().now())?;
    if json {
        let path = path.display().to_string();
        return Ok(output::json(
            &json!({ "id": id.to_string(), "path": path }),
        )?);
    }
    output::line(&format!("Master key {id} is in {}.", path.display()))?;
    output::line("Back it up apart from the database, and copy it to every node.")?;
    output::line(&format!(
        "To use it on a service that has keys: countersign keys promote-master {id}"
    ))?;
    Ok(())
}

fn told(json: bool, document: &Value, sentence: &str) -> Result<(), Failure> {
    if json {
        Ok(output::json(document)?)
    } else {
        Ok(output::line(sentence)?)
    }
}
