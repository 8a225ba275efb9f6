//! Users, their passwords, and what their tokens say of them.

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    AdminError, FieldError, document,
    page::{Page, PageRequest},
};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        client::Revision,
        consent::Consent,
        id::{ClientId, UserId},
        profile::Profile,
        user::{PasswordHash, User, Username},
    },
    entropy::Entropy,
    identity::password::{NewPasswordError, Password, Passwords},
    store::{Store, StoreError},
};

/// Members of a user's document that nobody can write.
const SHOWN_ONLY: [&str; 5] = [
    "created_at",
    "has_password",
    "id",
    "password_changed_at",
    "updated_at",
];

/// How often a change is tried again when somebody else was faster.
const ATTEMPTS: u32 = 8;

/// How many roles a user has at most, and how long each is, in characters.
const MOST_ROLES: usize = 50;
const LONGEST_ROLE: usize = 100;

/// How many claims of its own a user has at most, and how much room they take, in bytes of JSON:
/// they travel in every request of its clients.
const MOST_CLAIMS: usize = 20;
const LARGEST_CLAIMS: usize = 2048;

/// Claims that say something about the token, its subject's rights or the party that uses it, or
/// could be taken for parameters around it: an operator cannot set them for a user.
///
/// Those of RFC 7519, RFC 9068, RFC 7662, RFC 8693, RFC 9449, RFC 9396, RFC 8417 and `OpenID`
/// Connect, and the members of a JOSE header.
const RESERVED_CLAIMS: [&str; 55] = [
    "_claim_names",
    "_claim_sources",
    "acr",
    "act",
    "active",
    "alg",
    "amr",
    "at_hash",
    "ath",
    "aud",
    "auth_time",
    "authorization_details",
    "azp",
    "c_hash",
    "client_id",
    "cnf",
    "crit",
    "cty",
    "dpop_jkt",
    "entitlements",
    "events",
    "exp",
    "groups",
    "htm",
    "htu",
    "iat",
    "iss",
    "jku",
    "jti",
    "jwk",
    "kid",
    "may_act",
    "nbf",
    "nonce",
    "orig",
    "origid",
    "roles",
    "s_hash",
    "scope",
    "scp",
    "sid",
    "status",
    "sub",
    "sub_id",
    "sub_jwk",
    "toe",
    "token_type",
    "txn",
    "typ",
    "username",
    "vot",
    "vtm",
    "x5c",
    "x5t#s256",
    "x5u",
];

/// A user as an operator writes it.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UserMetadata {
    /// The name to sign in with; compared in NFKC and without regard to case.
    #[schema(required, min_length = 1, max_length = 254)]
    pub username: String,
    /// The `roles` of its access tokens.
    #[schema(max_items = 50)]
    pub roles: Vec<String>,
    /// More claims of its access tokens.
    #[schema(value_type = Object)]
    pub claims: Map<String, Value>,
    /// What clients are told of it that ask, and may: the standard claims of `OpenID` Connect
    /// (Core §5.1),
    /// but for `sub`, `preferred_username` and `updated_at`, which follow from the rest.
    #[schema(value_type = Object)]
    pub profile: Map<String, Value>,
    /// Whether it is refused.
    pub disabled: bool,
    /// Whether a password alone is not enough for it to sign in.
    pub second_factor_required: bool,
}

/// A new password as an operator writes it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the document, which is read by hand")]
pub struct PasswordRequest {
    /// The new password, in as many characters as `passwords.minimum_length` says, or more.
    #[schema(min_length = 8, max_length = 1024)]
    password: String,
}

/// The use cases about users.
#[derive(Clone)]
pub struct UserAdmin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
    /// Draws ids.
    pub entropy: Entropy,
    /// Hashes passwords.
    pub passwords: Passwords,
    /// How long after its issue a token may still be accepted somewhere.
    pub token_retention: Duration,
}

impl UserAdmin {
    /// A part of the list of users, by id: the oldest first. With a name, of the list of those who
    /// have it, which is one at most.
    pub async fn page(
        &self,
        request: &PageRequest,
        username: Option<&str>,
    ) -> Result<Page<User>, AdminError> {
        if let Some(username) = username {
            return Ok(Page {
                items: self.find(username).await?.into_iter().collect(),
                next_cursor: None,
            });
        }
        let after = request.after().map(UserId::parse).transpose();
        let after = after.map_err(|_| {
            let detail = "is no next_cursor of this list";
            AdminError::Invalid(vec![FieldError::new("/cursor", detail)])
        })?;
        let limit = u32::try_from(request.limit()).unwrap_or(u32::MAX);
        let users = self.store.users(after, limit.saturating_add(1)).await?;
        Ok(request.first_of(users, |user| user.id.to_string()))
    }

    /// One user.
    pub async fn show(&self, id: UserId) -> Result<User, AdminError> {
        let user = self.store.user(id).await?;
        user.ok_or(AdminError::NotFound("user"))
    }

    /// The user of a name, if there is one.
    pub async fn find(&self, username: &str) -> Result<Option<User>, AdminError> {
        match Username::parse(username) {
            Ok(username) => Ok(self.store.user_by_name(username.key()).await?),
            Err(_) => Ok(None),
        }
    }

    /// Creates the user of a document: [`UserMetadata`], and perhaps a `password`.
    pub async fn register(
        &self,
        mut members: Map<String, Value>,
        cause: &Cause,
    ) -> Result<User, AdminError> {
        let (password, problem) = match members.remove("password").map(|value| read(&value)) {
            None => (None, None),
            Some(Ok(password)) => (Some(password), None),
            Some(Err(problem)) => (None, Some(problem)),
        };
        let (metadata, mut errors) = document::read(members);
        errors.extend(problem);
        self.create_read((&metadata, errors), password, false, cause)
            .await
    }

    /// Creates a user. One without a password cannot sign in with one.
    pub async fn create(
        &self,
        metadata: &UserMetadata,
        password: Option<Password>,
        demo: bool,
        cause: &Cause,
    ) -> Result<User, AdminError> {
        self.create_read((metadata, Vec::new()), password, demo, cause)
            .await
    }

    async fn create_read(
        &self,
        (written, unread): (&UserMetadata, Vec<FieldError>),
        password: Option<Password>,
        demo: bool,
        cause: &Cause,
    ) -> Result<User, AdminError> {
        let (username, profile) = check(written, unread)?;
        let password_hash = match password {
            Some(password) => Some(self.hash(password, &username).await?),
            None => None,
        };
        let now = self.clock.now();
        let user = User {
            id: UserId::from_uuid(self.entropy.uuid_v7(now)?),
            username,
            password_changed_at: password_hash.as_ref().map(|_| now),
            password_hash,
            roles: written.roles.clone(),
            claims: written.claims.clone(),
            profile,
            disabled: written.disabled,
            second_factor_required: written.second_factor_required,
            demo,
            session_epoch: 0,
            tokens_not_before: None,
            revision: 0,
            created_at: now,
            updated_at: now,
        };
        let change = self.put(&user, None, EventType::UserCreated, now);
        match self.store.apply(&change, cause, now).await {
            Ok(applied) => Ok(User {
                revision: applied.revision,
                ..user
            }),
            Err(StoreError::Conflict) => {
                self.refuse_taken_name(&user).await?;
                Err(StoreError::Conflict.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Changes a user by a merge patch (RFC 7396) of its [`UserMetadata`].
    ///
    /// `expected` is the revision that the caller has seen; without it the change is made to
    /// whatever is there. Disabling a user ends its sessions.
    pub async fn update(
        &self,
        id: UserId,
        patch: &Value,
        expected: Option<Revision>,
        cause: &Cause,
    ) -> Result<User, AdminError> {
        let change = |before: &User| {
            if expected.is_some_and(|expected| expected != before.revision) {
                return Err(AdminError::Conflict(format!(
                    "the user is at revision {} by now; look at it again",
                    before.revision
                )));
            }
            let (written, unread) = patched(before, patch);
            let (username, profile) = check(&written, unread)?;
            let event = match (before.disabled, written.disabled) {
                (false, true) => EventType::UserDisabled,
                (true, false) => EventType::UserEnabled,
                _ => EventType::UserUpdated,
            };
            let user = User {
                username,
                roles: written.roles,
                claims: written.claims,
                profile,
                disabled: written.disabled,
                second_factor_required: written.second_factor_required,
                ..before.clone()
            };
            Ok((user, event))
        };
        self.change(id, change, cause).await
    }

    /// Sets the password from the document of a request: [`PasswordRequest`].
    pub async fn set_password_read(
        &self,
        id: UserId,
        mut members: Map<String, Value>,
        cause: &Cause,
    ) -> Result<User, AdminError> {
        let password = members.remove("password").unwrap_or_default();
        let (password, problem) = match read(&password) {
            Ok(password) => (Some(password), None),
            Err(problem) => (None, Some(problem)),
        };
        let (_, mut errors) = document::read::<Nothing>(members);
        errors.extend(problem);
        match password {
            Some(password) if errors.is_empty() => self.set_password(id, password, cause).await,
            _ => Err(AdminError::Invalid(errors)),
        }
    }

    /// Gives a user another password, and ends its sessions: somebody may have known the one before.
    pub async fn set_password(
        &self,
        id: UserId,
        password: Password,
        cause: &Cause,
    ) -> Result<User, AdminError> {
        let user = self.show(id).await?;
        self.put_password(&user, password, |_| true, cause).await
    }

    /// The same, if the user's password and sessions are still those of `seen`: whoever asks has proved
    /// to know that one.
    pub async fn replace_password(
        &self,
        seen: &User,
        password: Password,
        cause: &Cause,
    ) -> Result<User, AdminError> {
        let is_so = |before: &User| {
            before.password_hash == seen.password_hash && before.session_epoch == seen.session_epoch
        };
        self.put_password(seen, password, is_so, cause).await
    }

    async fn put_password(
        &self,
        user: &User,
        password: Password,
        is_expected: impl Fn(&User) -> bool + Send + Sync,
        cause: &Cause,
    ) -> Result<User, AdminError> {
        let hash = self.hash(password, &user.username).await?;
        let now = self.clock.now();
        let change = |before: &User| {
            if !is_expected(before) {
                return Err(StoreError::Conflict.into());
            }
            let user = User {
                password_hash: Some(hash.clone()),
                password_changed_at: Some(now),
                ..before.clone()
            };
            Ok((user, EventType::UserPasswordChanged))
        };
        self.change(user.id, change, cause).await
    }

    /// Removes all that a user has enrolled beside its password, as when its telephone is lost, and
    /// ends its sessions: somebody may have found it.
    pub async fn reset_factors(&self, id: UserId, cause: &Cause) -> Result<(), AdminError> {
        self.show(id).await?;
        let now = self.clock.now();
        let change = Change::ResetFactors {
            id,
            tokens_die_at: now.plus(self.token_retention),
        };
        self.store.apply(&change, cause, now).await?;
        Ok(())
    }

    /// What a user allows clients, by client. What was allowed to one that has been removed, or registered
    /// anew under its id, is over, and not told.
    pub async fn consents(
        &self,
        id: UserId,
        request: &PageRequest,
    ) -> Result<Page<Consent>, AdminError> {
        self.show(id).await?;
        let mut consents = Vec::new();
        for consent in self.store.consents(id).await? {
            let client = self.store.client(&consent.client_id).await?;
            if client.is_some_and(|client| client.session_epoch == consent.client_epoch) {
                consents.push(consent);
            }
        }
        Ok(request.part_of(consents, |consent| consent.client_id.to_string()))
    }

    /// Takes back what a user allows a client, and ends its sign-ins there.
    pub async fn withdraw_consent(
        &self,
        id: UserId,
        client_id: ClientId,
        cause: &Cause,
    ) -> Result<(), AdminError> {
        self.show(id).await?;
        let now = self.clock.now();
        let change = Change::WithdrawConsent {
            subject: id,
            client_id,
            tokens_die_at: now.plus(self.token_retention),
        };
        match self.store.apply(&change, cause, now).await {
            Err(StoreError::Conflict) => Err(AdminError::NotFound("consent")),
            applied => Ok(applied.map(drop)?),
        }
    }

    /// Removes a user, with its sessions.
    pub async fn delete(&self, id: UserId, cause: &Cause) -> Result<(), AdminError> {
        let mut attempt = 1;
        loop {
            let expected = self.show(id).await?.revision;
            let now = self.clock.now();
            let change = Change::DeleteUser {
                id,
                expected,
                tokens_die_at: now.plus(self.token_retention),
            };
            match self.store.apply(&change, cause, now).await {
                // Somebody else was faster: to change it, or to remove it.
                Err(StoreError::Conflict) if attempt < ATTEMPTS => attempt += 1,
                applied => return Ok(applied.map(drop)?),
            }
        }
    }

    /// Changes a user, and once more what is there by then if somebody else was faster.
    async fn change(
        &self,
        id: UserId,
        change: impl Fn(&User) -> Result<(User, EventType), AdminError> + Send,
        cause: &Cause,
    ) -> Result<User, AdminError> {
        let mut attempt = 1;
        loop {
            let before = self.show(id).await?;
            let (user, event) = change(&before)?;
            let now = self.clock.now();
            let put = self.put(&user, Some(before.revision), event, now);
            match self.store.apply(&put, cause, now).await {
                Ok(applied) => {
                    return Ok(User {
                        revision: applied.revision,
                        updated_at: now,
                        ..user
                    });
                }
                Err(StoreError::Conflict) => {
                    self.refuse_taken_name(&user).await?;
                    if attempt >= ATTEMPTS {
                        return Err(StoreError::Conflict.into());
                    }
                    attempt += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn put(
        &self,
        user: &User,
        expected: Option<Revision>,
        event: EventType,
        now: Timestamp,
    ) -> Change {
        Change::PutUser {
            user: Box::new(user.clone()),
            expected,
            event,
            ends_sessions: event == EventType::UserPasswordChanged,
            tokens_die_at: now.plus(self.token_retention),
        }
    }

    /// Tells that somebody else has the name, if that is what was in the way.
    async fn refuse_taken_name(&self, user: &User) -> Result<(), AdminError> {
        let other = self.store.user_by_name(user.username.key()).await?;
        if other.is_some_and(|other| other.id != user.id) {
            return Err(AdminError::Conflict(
                "a user of this name exists already; choose another name".to_owned(),
            ));
        }
        Ok(())
    }

    async fn hash(
        &self,
        password: Password,
        username: &Username,
    ) -> Result<PasswordHash, AdminError> {
        let hashed = self.passwords.hash(password, username.clone()).await;
        hashed.map_err(|error| match error {
            NewPasswordError::Weak(weakness) => {
                AdminError::Invalid(vec![FieldError::new("/password", weakness.to_string())])
            }
            NewPasswordError::Busy(busy) => busy.into(),
            NewPasswordError::Entropy(error) => error.into(),
        })
    }
}

/// A document of which nothing is left.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Nothing {}

/// The password of a document.
fn read(value: &Value) -> Result<Password, FieldError> {
    let wrong = |detail: String| FieldError::new("/password", detail);
    match value {
        Value::String(text) => Password::read(text).map_err(|error| wrong(error.to_string())),
        Value::Null => Err(wrong("is missing".to_owned())),
        _ => Err(wrong("must be a string".to_owned())),
    }
}

/// A user's metadata after a merge patch, as far as that can be read, and what cannot.
fn patched(user: &User, patch: &Value) -> (UserMetadata, Vec<FieldError>) {
    let metadata = UserMetadata {
        username: user.username.to_string(),
        roles: user.roles.clone(),
        claims: user.claims.clone(),
        profile: user.profile.members().clone(),
        disabled: user.disabled,
        second_factor_required: user.second_factor_required,
    };
    let mut document = serde_json::to_value(metadata).unwrap_or_default();
    let patch = document::without_shown(patch, &user.document(), &SHOWN_ONLY);
    document::merge(&mut document, &patch);
    document::read_patched(document, &patch)
}

/// Name and profile of a user whose metadata are all right, or everything that is wrong with them.
fn check(
    written: &UserMetadata,
    unread: Vec<FieldError>,
) -> Result<(Username, Profile), AdminError> {
    let mut errors = Vec::new();
    let username = Username::parse(&written.username);
    if let Err(error) = &username {
        errors.push(FieldError::new("/username", error.to_string()));
    }
    errors.extend(role_problems(&written.roles));
    errors.extend(claim_problems(&written.claims));
    let profile = Profile::parse(written.profile.clone());
    if let Err(wrong) = &profile {
        errors.extend(wrong.iter().map(|(path, detail)| {
            let path: String = path.iter().map(|part| document::pointer_to(part)).collect();
            FieldError::new(format!("/profile{path}"), *detail)
        }));
    }
    match (username, profile) {
        (Ok(username), Ok(profile)) if unread.is_empty() && errors.is_empty() => {
            Ok((username, profile))
        }
        _ => Err(AdminError::Invalid(document::all_wrong(unread, errors))),
    }
}

fn role_problems(roles: &[String]) -> Vec<FieldError> {
    if roles.len() > MOST_ROLES {
        let detail = format!("must be at most {MOST_ROLES}");
        return vec![FieldError::new("/roles", detail)];
    }
    let mut seen: HashSet<&String> = HashSet::new();
    let problem = |(index, role)| {
        let role: &String = role;
        let length = role.chars().count();
        let detail = if length == 0
            || length > LONGEST_ROLE
            || role.trim() != role
            || role.chars().any(char::is_control)
        {
            format!(
                "must be 1 to {LONGEST_ROLE} characters without control characters, and without white space at either end"
            )
        } else if seen.insert(role) {
            return None;
        } else {
            "is there twice".to_owned()
        };
        Some(FieldError::new(format!("/roles/{index}"), detail))
    };
    roles.iter().enumerate().filter_map(problem).collect()
}

fn claim_problems(claims: &Map<String, Value>) -> Vec<FieldError> {
    let size = Value::Object(claims.clone()).to_string().len();
    if claims.len() > MOST_CLAIMS || size > LARGEST_CLAIMS {
        let detail = format!(
            "must have at most {MOST_CLAIMS} members and {LARGEST_CLAIMS} bytes: they travel in every request"
        );
        return vec![FieldError::new("/claims", detail)];
    }
    let problem = |name: &String| {
        let detail = if is_reserved(name) {
            "says something about the token or the rights it gives, and cannot be set"
        } else if name.is_empty() || name.chars().any(char::is_control) {
            "must have a name without control characters"
        } else {
            return None;
        };
        let pointer = format!("/claims{}", document::pointer_to(name));
        Some(FieldError::new(pointer, detail))
    };
    claims.keys().filter_map(problem).collect()
}

/// Whether somebody could take a claim of this name for one that the service makes. Some who read
/// tokens do not regard case.
fn is_reserved(name: &str) -> bool {
    let name = name.trim().to_lowercase();
    name.starts_with("countersign") || RESERVED_CLAIMS.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pointers(roles: Value, claims: Value) -> Vec<String> {
        let written = UserMetadata {
            username: "ada".to_owned(),
            roles: serde_json::from_value(roles).unwrap(),
            claims: serde_json::from_value(claims).unwrap(),
            profile: Map::new(),
            disabled: false,
            second_factor_required: false,
        };
        match check(&written, Vec::new()) {
            Ok(_) => Vec::new(),
            Err(AdminError::Invalid(errors)) => {
                errors.into_iter().map(|error| error.pointer).collect()
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_claim_can_be_set_that_says_something_about_the_token() {
        let names = RESERVED_CLAIMS.iter().map(|name| (*name).to_owned());
        let names = names.chain(["ISS", " sub", "Cnf", "countersign_x"].map(str::to_owned));
        for name in names {
            let found = pointers(json!([]), json!({ &*name: "x", "email": "x" }));
            assert_eq!(found, [format!("/claims/{}", name.replace('~', "~0"))]);
        }
        let mine =
            json!({ "email": "ada@example.com", "https://example.com/tier": ["gold", 1], "": 0 });
        assert_eq!(pointers(json!([]), mine), ["/claims/"]);
        let every = countersign_verifier::AccessTokenClaims {
            iss: "i".into(),
            sub: "s".into(),
            aud: countersign_verifier::Audience::One("a".into()),
            client_id: "c".into(),
            iat: 1,
            exp: 2,
            jti: "j".into(),
            scope: Some("s".into()),
            auth_time: Some(1),
            acr: Some("a".into()),
            amr: Some(Vec::new()),
            sid: Some("s".into()),
        };
        for name in serde_json::to_value(every)
            .unwrap()
            .as_object()
            .unwrap()
            .keys()
        {
            assert!(is_reserved(name), "{name}");
        }
        assert!(RESERVED_CLAIMS.is_sorted());
    }

    #[test]
    fn roles_and_claims_are_bounded() {
        let names = |count: usize| (0..count).map(|number| format!("n{number}"));
        let roles = |count| json!(names(count).collect::<Vec<_>>());
        let claims = |count| Value::Object(names(count).map(|name| (name, json!(1))).collect());
        assert_eq!(pointers(roles(50), claims(20)), [""; 0]);
        assert_eq!(pointers(roles(51), claims(21)), ["/roles", "/claims"]);
        let room = LARGEST_CLAIMS - r#"{"n":""}"#.len();
        let claims = |length| json!({ "n": "x".repeat(length) });
        assert_eq!(pointers(json!([]), claims(room)), [""; 0]);
        assert_eq!(pointers(json!([]), claims(room + 1)), ["/claims"]);
        let long = "ä".repeat(100);
        let roles = json!(["a b", long, "", "a\n", " a", "x".repeat(101), "a b"]);
        let wrong = [2, 3, 4, 5, 6].map(|index| format!("/roles/{index}"));
        assert_eq!(pointers(roles, json!({})), wrong);
    }
}
