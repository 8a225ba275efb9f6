//! `countersign users …`

use std::io::{self, Read as _};

use clap::{ArgGroup, Args, Subcommand};
use countersign_verifier::json as strict_json;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{Failure, Reason, output};
use crate::{
    admin::{
        AdminError,
        page::{Page, PageRequest},
        user::UserMetadata,
    },
    app::Context,
    domain::{
        client::Revision,
        consent::Consent,
        id::{ClientId, UserId},
        user::User,
    },
    identity::password::{self, Password, TooLong},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List users, the oldest first
    List(List),
    /// Show one user
    Show(Show),
    /// Create a user
    Create(Create),
    /// Change what is given, leave the rest as it is
    Update(Update),
    /// Give a user another password, and end its sessions
    SetPassword(SetPassword),
    /// Remove what a user has enrolled beside its password, and end its sessions
    ResetFactors(Switch),
    /// List what a user allows clients
    Consents(Show),
    /// Take back what a user allows a client, and end its sessions there
    WithdrawConsent(WithdrawConsent),
    /// Refuse a user from now on, and end its sessions
    Disable(Switch),
    /// Accept a user again
    Enable(Switch),
    /// Remove a user, and end its sessions
    Delete(Switch),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// How many, 200 at most
    #[arg(long, value_name = "NUMBER")]
    limit: Option<String>,
    /// Where to go on: what the part before ended with
    #[arg(long)]
    cursor: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Which one: its id or its name
    #[arg(value_name = "USER")]
    user: String,
}

#[derive(Debug, Args)]
pub(super) struct WithdrawConsent {
    /// Whose: its id or its name
    #[arg(value_name = "USER")]
    user: String,
    /// At which client
    #[arg(value_name = "CLIENT_ID")]
    client: String,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// The name to sign in with
    #[arg(long)]
    username: String,
    /// Refuse the user until it is enabled
    #[arg(long)]
    disabled: bool,
    /// Let it sign in with a second factor only: it enrols one when it first signs in
    #[arg(long)]
    second_factor_required: bool,
    /// A role, for the claim `roles` of its tokens; repeatable
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// More claims of its tokens: a JSON object
    #[arg(long, value_name = "JSON", value_parser = claims)]
    claims: Option<Map<String, Value>>,
    /// What apps are told that ask who it is: a JSON object of standard claims, such as name and email
    #[arg(long, value_name = "JSON", value_parser = claims)]
    profile: Option<Map<String, Value>>,
    #[command(flatten)]
    password: NewPassword,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Which one: its id or its name
    #[arg(value_name = "USER")]
    user: String,
    /// The name to sign in with
    #[arg(long)]
    username: Option<String>,
    /// A role it is to have; repeat it for all of them
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// Have no roles any more
    #[arg(long, conflicts_with = "roles")]
    no_roles: bool,
    /// Claims to change: a JSON object that is merged into those there are, null takes one away
    #[arg(long, value_name = "JSON", value_parser = claims)]
    claims: Option<Map<String, Value>>,
    /// Have no claims any more
    #[arg(long, conflicts_with = "claims")]
    no_claims: bool,
    /// Standard claims to change: a JSON object that is merged into those there are
    #[arg(long, value_name = "JSON", value_parser = claims)]
    profile: Option<Map<String, Value>>,
    /// Have no standard claims any more
    #[arg(long, conflicts_with = "profile")]
    no_profile: bool,
    /// Whether a password alone is not enough for it to sign in
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    second_factor_required: Option<bool>,
    /// Change it only if it is still at this revision
    #[arg(long)]
    revision: Option<Revision>,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["password_stdin", "generate_password"]))]
pub(super) struct SetPassword {
    /// Whose: id or name
    #[arg(value_name = "USER")]
    user: String,
    #[command(flatten)]
    password: NewPassword,
    #[command(flatten)]
    reason: Reason,
}

#[derive(Debug, Args)]
pub(super) struct Switch {
    /// Which one: its id or its name
    #[arg(value_name = "USER")]
    user: String,
    #[command(flatten)]
    reason: Reason,
}

/// Where a new password comes from. Not from an argument: others can see those.
#[derive(Debug, Args)]
struct NewPassword {
    /// Read the password from standard input: its first line
    #[arg(long, conflicts_with = "generate_password")]
    password_stdin: bool,
    /// Draw a password and show it, once
    #[arg(long)]
    generate_password: bool,
}

impl Command {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run(context, json).await,
            Self::Show(show) => shown(&find(context, &show.user).await?, json),
            Self::Create(create) => create.run(context, json).await,
            Self::Update(update) => update.run(context, json).await,
            Self::SetPassword(set) => set.run(context, json).await,
            Self::ResetFactors(reset) => reset.reset_factors(context, json).await,
            Self::Consents(show) => show.consents(context, json).await,
            Self::WithdrawConsent(withdraw) => withdraw.run(context, json).await,
            Self::Disable(switch) => switch.run(context, true, json).await,
            Self::Enable(switch) => switch.run(context, false, json).await,
            Self::Delete(delete) => delete.delete(context, json).await,
        }
    }
}

impl Show {
    async fn consents(self, context: &Context, json: bool) -> Result<(), Failure> {
        let user = find(context, &self.user).await?;
        let mut cursor: Option<String> = None;
        let mut consents = Vec::new();
        loop {
            let request = PageRequest::parse("consents", Some("200"), cursor.as_deref())?;
            let page = context.users().consents(user.id, &request).await?;
            consents.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        if json {
            let items: Vec<Value> = consents.iter().map(Consent::document).collect();
            return Ok(output::json(
                &json!({ "items": items, "next_cursor": null }),
            )?);
        }
        if consents.is_empty() {
            let nothing = format!("User {} allows no client anything.", user.username);
            return Ok(output::line(&nothing)?);
        }
        let rows = consents.iter().flat_map(|consent| {
            consent.permissions.iter().map(|(resource, scope)| {
                [
                    consent.client_id.to_string(),
                    resource.as_str().to_owned(),
                    scope.clone(),
                    output::utc_seconds(consent.given_at),
                ]
            })
        });
        let rows: Vec<_> = rows.collect();
        Ok(output::table(
            ["CLIENT", "RESOURCE", "SCOPE", "GIVEN"],
            &rows,
        )?)
    }
}

impl WithdrawConsent {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let user = find(context, &self.user).await?;
        let client = ClientId::parse(&self.client)
            .map_err(|_| Failure::message("this is no client id; see: countersign clients list"))?;
        let cause = self.reason.cause();
        let withdrawing = context
            .users()
            .withdraw_consent(user.id, client, &cause)
            .await;
        match withdrawing {
            Err(AdminError::NotFound("consent")) => {
                return Err(Failure::message(
                    "the user allows this client nothing; see: countersign users consents",
                ));
            }
            withdrawn => withdrawn?,
        }
        if !json {
            let done = format!(
                "What user {} allowed {} is taken back, and its sessions there are ended.",
                user.username, self.client
            );
            output::line(&done)?;
        }
        Ok(())
    }
}

impl List {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let (limit, cursor) = (self.limit.as_deref(), self.cursor.as_deref());
        let request = PageRequest::parse("users", limit, cursor)?;
        let Page { items, next_cursor } = context.users().page(&request, None).await?;
        if json {
            let items: Vec<Value> = items.iter().map(User::document).collect();
            let document = json!({ "items": items, "next_cursor": next_cursor });
            return Ok(output::json(&document)?);
        }
        if items.is_empty() && cursor.is_none() {
            return Ok(output::line(
                "There are no users; see: countersign users create --help",
            )?);
        }
        let row = |user: &User| {
            [
                user.id.to_string(),
                user.username.to_string(),
                state(user).to_owned(),
                password(user).to_owned(),
                words(&user.roles),
            ]
        };
        let rows: Vec<_> = items.iter().map(row).collect();
        output::table(["USER", "NAME", "STATE", "PASSWORD", "ROLES"], &rows)?;
        if let Some(cursor) = next_cursor {
            output::line(&format!("There are more: --cursor {cursor}"))?;
        }
        Ok(())
    }
}

impl Create {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let metadata = UserMetadata {
            username: self.username,
            roles: self.roles,
            claims: self.claims.unwrap_or_default(),
            profile: self.profile.unwrap_or_default(),
            disabled: self.disabled,
            second_factor_required: self.second_factor_required,
        };
        let (password, generated) = self.password.take(context)?;
        let cause = self.reason.cause();
        let users = context.users();
        let user = users.create(&metadata, password, false, &cause).await?;
        told(&user, generated, json, "The user is created.")
    }
}

impl Update {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let mut patch = Map::new();
        if let Some(username) = self.username {
            patch.insert("username".to_owned(), username.into());
        }
        if self.no_roles || !self.roles.is_empty() {
            patch.insert("roles".to_owned(), self.roles.into());
        }
        if self.no_claims {
            patch.insert("claims".to_owned(), Value::Null);
        }
        if let Some(claims) = self.claims {
            patch.insert("claims".to_owned(), claims.into());
        }
        if self.no_profile {
            patch.insert("profile".to_owned(), Value::Null);
        }
        if let Some(profile) = self.profile {
            patch.insert("profile".to_owned(), profile.into());
        }
        if let Some(required) = self.second_factor_required {
            patch.insert("second_factor_required".to_owned(), required.into());
        }
        if patch.is_empty() {
            return Err(Failure::Usage(
                "nothing is to be changed; see: countersign users update --help".to_owned(),
            ));
        }
        let id = find(context, &self.user).await?.id;
        let (patch, cause) = (patch.into(), self.reason.cause());
        let users = context.users();
        let user = users.update(id, &patch, self.revision, &cause).await?;
        shown(&user, json)
    }
}

impl SetPassword {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let id = find(context, &self.user).await?.id;
        let (password, generated) = self.password.take(context)?;
        let Some(password) = password else {
            return Err(Failure::Usage(
                "give --password-stdin or --generate-password".to_owned(),
            ));
        };
        let cause = self.reason.cause();
        let user = context.users().set_password(id, password, &cause).await?;
        told(
            &user,
            generated,
            json,
            "The password is changed, and every session of the user is ended.",
        )
    }
}

impl Switch {
    async fn run(self, context: &Context, disabled: bool, json: bool) -> Result<(), Failure> {
        let id = find(context, &self.user).await?.id;
        let patch = json!({ "disabled": disabled });
        let cause = self.reason.cause();
        let user = context.users().update(id, &patch, None, &cause).await?;
        if json {
            return Ok(output::json(&user.document())?);
        }
        let done = if disabled {
            "is disabled, and every session of it is ended"
        } else {
            "is enabled, and may sign in"
        };
        Ok(output::line(&format!("User {} {done}.", user.username))?)
    }

    async fn reset_factors(self, context: &Context, json: bool) -> Result<(), Failure> {
        let user = find(context, &self.user).await?;
        let cause = self.reason.cause();
        context.users().reset_factors(user.id, &cause).await?;
        if !json {
            let done = format!(
                "User {} has no second factor any more, and every session of it is ended.",
                user.username
            );
            output::line(&done)?;
        }
        Ok(())
    }

    async fn delete(self, context: &Context, json: bool) -> Result<(), Failure> {
        let user = find(context, &self.user).await?;
        let cause = self.reason.cause();
        context.users().delete(user.id, &cause).await?;
        if !json {
            let done = format!("User {} is removed, with its sessions.", user.username);
            output::line(&done)?;
        }
        Ok(())
    }
}

impl NewPassword {
    /// The password, if there is to be one; and the same once more if it is to be shown.
    fn take(&self, context: &Context) -> Result<(Option<Password>, Option<String>), Failure> {
        if self.generate_password {
            let password = context.passwords.generate();
            let password = password.map_err(AdminError::Entropy)?;
            let shown = password.expose().to_owned();
            return Ok((Some(password), Some(shown)));
        }
        let password = self.password_stdin.then(from_stdin).transpose()?;
        Ok((password, None))
    }
}

/// The first line of standard input.
fn from_stdin() -> Result<Password, Failure> {
    // A password with the longest end of a line, and one byte that is too much.
    const MOST: u64 = password::LONGEST as u64 + 3;
    let unusable = |problem: String| Failure::message(format!("--password-stdin: {problem}"));
    let mut bytes = Zeroizing::new(Vec::new());
    let read = io::stdin().lock().take(MOST).read_to_end(&mut bytes);
    read.map_err(|error| unusable(error.to_string()))?;
    let line = bytes.split(|byte| *byte == b'\n').next();
    let line = line.unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(unusable("there is no password in it".to_owned()));
    }
    if line.len() > password::LONGEST {
        return Err(unusable(TooLong.to_string()));
    }
    let text = str::from_utf8(line);
    let text = text.map_err(|_| unusable("it is not in UTF-8".to_owned()))?;
    Password::read(text).map_err(|error| unusable(error.to_string()))
}

/// The user of an id or a name.
async fn find(context: &Context, which: &str) -> Result<User, Failure> {
    let users = context.users();
    if let Ok(id) = UserId::parse(which) {
        match users.show(id).await {
            Err(AdminError::NotFound(_)) => {}
            found => return Ok(found?),
        }
    }
    let found = users.find(which).await?;
    found.ok_or_else(|| {
        Failure::message("there is no user of this id or name; see: countersign users list")
    })
}

/// The claims of an argument, as strictly read as those of the admin interface.
fn claims(text: &str) -> Result<Map<String, Value>, String> {
    let object = strict_json::parse_object(text.as_bytes()).map_err(|error| error.to_string())?;
    Ok(object.into_members())
}

/// Says what was done, with the password that was drawn for the user, this once.
fn told(user: &User, generated: Option<String>, json: bool, done: &str) -> Result<(), Failure> {
    if json {
        let mut document = user.document();
        if let (Some(password), Some(members)) = (generated, document.as_object_mut()) {
            members.insert("password".to_owned(), password.into());
        }
        return Ok(output::json(&document)?);
    }
    output::line(done)?;
    let mut fields = vec![
        ("id", user.id.to_string()),
        ("username", user.username.to_string()),
    ];
    let is_shown = generated.is_some();
    fields.extend(generated.map(|password| ("password", password)));
    output::fields(&fields)?;
    if is_shown {
        output::line("Keep the password now: it is not shown again.")?;
    }
    Ok(())
}

fn shown(user: &User, json: bool) -> Result<(), Failure> {
    if json {
        return Ok(output::json(&user.document())?);
    }
    let password = match user.password_changed_at {
        Some(time) if user.password_hash.is_some() => {
            format!("set {}", output::utc_seconds(time))
        }
        _ => password(user).to_owned(),
    };
    Ok(output::fields(&[
        ("id", user.id.to_string()),
        ("username", user.username.to_string()),
        ("state", state(user).to_owned()),
        ("password", password),
        (
            "second factor required",
            if user.second_factor_required {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
        ),
        ("roles", words(&user.roles)),
        ("claims", members(&user.claims)),
        ("profile", members(user.profile.members())),
        ("revision", user.revision.to_string()),
        ("created", output::utc_seconds(user.created_at)),
        ("changed", output::utc_seconds(user.updated_at)),
    ])?)
}

fn members(members: &Map<String, Value>) -> String {
    if members.is_empty() {
        return "none".to_owned();
    }
    Value::Object(members.clone()).to_string()
}

fn state(user: &User) -> &'static str {
    if user.disabled { "disabled" } else { "enabled" }
}

fn password(user: &User) -> &'static str {
    match user.password_hash {
        Some(_) => "set",
        None => "none",
    }
}

/// Roles may have spaces in them.
fn words(roles: &[String]) -> String {
    if roles.is_empty() {
        return "none".to_owned();
    }
    roles.join(", ")
}
