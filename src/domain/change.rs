//! What can be changed, by whom and why, and how other nodes learn of it.
//!
//! To add a change: a variant of [`Change`], its event types, and its arm in `store::sql`.

use std::net::IpAddr;

use uuid::Uuid;

use super::{
    client::{Client, Revision},
    consent::Consent,
    factor::FactorChange,
    family::EndReason,
    id::{ClientId, FamilyId, ResourceId, SessionId, UserId},
    key::KeySchedule,
    logout_notice::{Hopeless, LogoutNotice},
    name::named,
    resource::Resource,
    user::User,
};
use crate::clock::Timestamp;

/// A change to the stored state. Each is applied whole or not at all, together with its event, its
/// entries on the revocation feed and its place in the order of changes.
#[derive(Clone, Debug)]
pub enum Change {
    /// Registers a client (`expected` is none) or replaces one that is at revision `expected`.
    PutClient {
        /// The client as it is to be; the store sets its revision.
        client: Box<Client>,
        /// The revision that was seen.
        expected: Option<Revision>,
        /// What the audit trail calls it.
        event: EventType,
        /// When the last token that the client holds now is dead: until then tokens are revoked
        /// along with a client that is disabled.
        tokens_die_at: Timestamp,
    },
    /// Removes a client that is at revision `expected`.
    DeleteClient {
        /// Whom to remove.
        client_id: ClientId,
        /// The revision that was seen.
        expected: Revision,
        /// When the last token that the client holds now is dead.
        tokens_die_at: Timestamp,
    },
    /// Registers a resource.
    CreateResource(Resource),
    /// Removes a resource.
    DeleteResource(ResourceId),
    /// Replaces the key schedule that is at `schedule.revision`; the store sets the next one.
    ///
    /// A key that was not revoked before and is now goes out on the revocation feed as well.
    PutKeys {
        /// The schedule as it is to be.
        schedule: KeySchedule,
        /// What the audit trail calls it.
        event: EventType,
    },
    /// Revokes one access token.
    ///
    /// Of a client of which too many are revoked one by one already, it ends the token's family, or
    /// revokes them all.
    RevokeToken {
        /// Which one.
        jti: String,
        /// The family that it belongs to, if it does.
        family: Option<FamilyId>,
        /// Whose it is; unknown when an operator gives nothing but the `jti`.
        client_id: Option<ClientId>,
        /// When nobody accepts the token any more.
        token_dies_at: Timestamp,
        /// When the last token that the client holds now is dead.
        tokens_die_at: Timestamp,
    },
    /// Revokes every access token that a client holds, and ends every sign-in at it.
    RevokeClientTokens {
        /// Whose.
        client_id: ClientId,
        /// When the last of them is dead.
        tokens_die_at: Timestamp,
    },
    /// Ends a family. One that has ended already is a conflict.
    EndFamily {
        /// Which one.
        family: FamilyId,
        /// Why.
        reason: EndReason,
        /// When the last token issued so far is dead.
        tokens_die_at: Timestamp,
    },
    /// Creates a user (`expected` is none) or replaces one that is at revision `expected`.
    PutUser {
        /// The user as it is to be; the store sets its revision, its epoch, and from when on its
        /// tokens count.
        user: Box<User>,
        /// The revision that was seen.
        expected: Option<Revision>,
        /// What the audit trail calls it.
        event: EventType,
        /// Whether every session of the user ends. It does in any case when the user becomes
        /// disabled, or enabled again.
        ends_sessions: bool,
        /// When the last token issued to the user by now is dead.
        tokens_die_at: Timestamp,
    },
    /// Removes a user that is at revision `expected`.
    DeleteUser {
        /// Whom to remove.
        id: UserId,
        /// The revision that was seen.
        expected: Revision,
        /// When the last token issued to the user by now is dead.
        tokens_die_at: Timestamp,
    },
    /// Ends every session of a user and revokes its access tokens.
    EndUserSessions {
        /// Whose.
        id: UserId,
        /// When the last token issued to the user by now is dead.
        tokens_die_at: Timestamp,
    },
    /// Ends a session of a browser, and with it the sign-ins at clients that it has brought, but for
    /// those that were to outlast it. One that has ended already is a conflict.
    EndSession {
        /// Which one.
        session: SessionId,
        /// When the last token issued so far is dead.
        tokens_die_at: Timestamp,
    },
    /// Keeps what a user has allowed a client, in place of what it had before.
    PutConsent {
        /// What.
        consent: Box<Consent>,
        /// When that was given which was seen before; another one now, or none, is a conflict.
        expected: Option<Timestamp>,
    },
    /// Takes back what a user has allowed a client, and ends the user's sign-ins there and the codes
    /// under way. Where nothing was allowed, that is a conflict.
    WithdrawConsent {
        /// Whose.
        subject: UserId,
        /// At which client.
        client_id: ClientId,
        /// When the last token issued so far is dead.
        tokens_die_at: Timestamp,
    },
    /// Changes what a user has enrolled beside its password. Where there is no such user, or not with
    /// this epoch, or where what is to be removed is not there, that is a conflict; as it is where
    /// there is a second factor already and this is to be the first.
    ///
    /// Recovery codes go with the last factor that they stand in for.
    ChangeFactors {
        /// Whose.
        subject: UserId,
        /// The epoch of the user that was seen: with another one now, whoever asks may do so no more.
        user_epoch: i64,
        /// Whether it is done by somebody who has proved no second factor, and therefore for a user who
        /// has none.
        is_first: bool,
        /// What is done.
        change: FactorChange,
    },
    /// Removes all that a user has enrolled beside its password, and ends every session of the user.
    ResetFactors {
        /// Whose.
        id: UserId,
        /// When the last token issued to the user by now is dead.
        tokens_die_at: Timestamp,
    },
    /// Gives up telling a client that a user has been signed out. Where somebody has told it, that is a
    /// conflict.
    DropNotice {
        /// What it was to be told.
        notice: Box<LogoutNotice>,
        /// What else the client is not told any more.
        hopeless: Option<Hopeless>,
        /// What the audit trail calls it.
        event: EventType,
        /// What was in the way.
        problem: String,
    },
    /// Begins a new epoch after a backup was restored: every node reads everything again.
    Restore {
        /// Leaves alone the tokens of which nobody knows any more whether they were revoked.
        keep_tokens: bool,
        /// When the last token issued so far is dead.
        tokens_die_at: Timestamp,
    },
}

/// What events about the whole database have as their target.
pub const DATABASE: &str = "database";

named!(
    /// The types of events in the audit trail.
    EventType {
        /// A client was registered.
        ClientCreated = "client.created",
        /// A client was removed.
        ClientDeleted = "client.deleted",
        /// A secret was added to a client.
        ClientSecretCreated = "client.secret_created",
        /// A secret of a client was removed.
        ClientSecretDeleted = "client.secret_deleted",
        /// Every token of a client was revoked.
        ClientTokensRevoked = "client.tokens_revoked",
        /// Anything else about a client was changed.
        ClientUpdated = "client.updated",
        /// A backup was restored.
        DatabaseRestored = "database.restored",
        /// A family was ended: by its client, its user or an operator.
        FamilyRevoked = "family.revoked",
        /// A spent refresh token, or a used authorization code, was presented: its family was ended.
        FamilyReuseDetected = "family.reuse_detected",
        /// The first keys were made, or a next one.
        KeyCreated = "key.created",
        /// A key was declared compromised.
        KeyRevoked = "key.revoked",
        /// The next key was told to take over.
        KeyRotated = "key.rotated",
        /// Every key was sealed anew under the primary master key.
        KeysRewrapped = "keys.rewrapped",
        /// A client was not told that a user has been signed out, as it has not answered for too long.
        LogoutNoticeDropped = "logout_notice.dropped",
        /// A client has refused to hear that a user has been signed out.
        LogoutNoticeRefused = "logout_notice.refused",
        /// Another master key became the primary one.
        MasterKeyPromoted = "master_key.promoted",
        /// A user has added a passkey.
        PasskeyAdded = "passkey.added",
        /// A user has removed a passkey.
        PasskeyRemoved = "passkey.removed",
        /// A user has used a recovery code in place of a second factor.
        RecoveryCodeUsed = "recovery_code.used",
        /// A user has made recovery codes, in place of those before.
        RecoveryCodesMade = "recovery_codes.made",
        /// A resource was registered.
        ResourceCreated = "resource.created",
        /// A resource was removed.
        ResourceDeleted = "resource.deleted",
        /// An access token was revoked.
        TokenRevoked = "token.revoked",
        /// A user has enrolled an app that makes one-time passwords.
        TotpEnrolled = "totp.enrolled",
        /// A user has removed it.
        TotpRemoved = "totp.removed",
        /// A user was created.
        UserCreated = "user.created",
        /// A user was removed.
        UserDeleted = "user.deleted",
        /// A user was disabled.
        UserDisabled = "user.disabled",
        /// A user was enabled again.
        UserEnabled = "user.enabled",
        /// All second factors of a user were removed, and its sessions ended.
        UserFactorsReset = "user.factors_reset",
        /// The password of a user was changed or removed.
        UserPasswordChanged = "user.password_changed",
        /// Every session of a user was ended.
        UserSessionsEnded = "user.sessions_ended",
        /// A user has allowed a client something.
        ConsentGiven = "consent.given",
        /// A user has taken back what it had allowed a client.
        ConsentWithdrawn = "consent.withdrawn",
        /// A session of a browser was ended.
        SessionEnded = "session.ended",
        /// Anything else about a user was changed.
        UserUpdated = "user.updated",
    }
);

/// Who caused a change, from where, and why. Recorded with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// A client id, `cli:<user>` or `system`.
    pub actor: String,
    /// The network address the request came from.
    pub address: Option<String>,
    /// The `User-Agent` of the request.
    pub user_agent: Option<String>,
    /// The id under which the request is logged.
    pub request_id: Option<String>,
    /// What the operator gave as the reason.
    pub reason: Option<String>,
}

impl Cause {
    /// Somebody who sent a request.
    pub fn of_request(actor: &ClientId, origin: &Origin, reason: Option<String>) -> Self {
        Self::by(actor.to_string(), origin, reason)
    }

    /// A user, for itself.
    pub fn of_user(user: UserId, origin: &Origin) -> Self {
        Self::by(format!("user:{user}"), origin, None)
    }

    fn by(actor: String, origin: &Origin, reason: Option<String>) -> Self {
        Self {
            actor,
            address: Some(origin.address.to_string()),
            user_agent: origin.user_agent.clone(),
            request_id: Some(origin.request_id.clone()),
            reason,
        }
    }

    /// The service itself, on schedule.
    pub fn system() -> Self {
        Self {
            actor: "system".to_owned(),
            ..Self::default()
        }
    }
}

/// The longest part of a `User-Agent` that is kept, in characters.
const LONGEST_USER_AGENT: usize = 256;

/// Where a request came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client's network address, past trusted proxies.
    pub address: IpAddr,
    /// Whether that is a trusted proxy, which did not tell for whom it asks.
    pub is_proxy: bool,
    /// What the client says it is.
    pub user_agent: Option<String>,
    /// The id under which the request is logged.
    pub request_id: String,
}

impl Origin {
    /// The origin of a request.
    ///
    /// # Security
    /// Whoever sends the request chooses `user_agent`: it is cut off, and what could act on a
    /// terminal is left out.
    pub fn new(
        address: IpAddr,
        is_proxy: bool,
        user_agent: Option<&str>,
        request_id: String,
    ) -> Self {
        let kept = |text: &str| {
            let visible = text.chars().filter(|character| !character.is_control());
            visible.take(LONGEST_USER_AGENT).collect()
        };
        Self {
            address,
            is_proxy,
            user_agent: user_agent.map(kept),
            request_id,
        }
    }
}

/// A place in the order of changes. Places of different epochs cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// New whenever the order may have broken, as by restoring a backup.
    pub epoch: Uuid,
    /// The number of changes so far, without gaps.
    pub seq: i64,
}

named!(
    /// What a change touched: tells other nodes what to read again.
    Topic {
        /// A client; the target is its id.
        Client = "client",
        /// The key schedule.
        Keys = "keys",
        /// A resource; the target is its id.
        Resource = "resource",
        /// An entry on the revocation feed.
        Revocation = "revocation",
        /// A user; the target is its id. No node keeps users in memory.
        User = "user",
    }
);

/// One published change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRow {
    /// Its place.
    pub seq: i64,
    /// What it touched; none if this version does not know it.
    pub topic: Option<Topic>,
    /// Which one of them, in the form of the topic.
    pub target: String,
}

/// The changes after some position.
#[derive(Clone, Debug)]
pub struct Changes {
    /// The epoch in force. Another one than asked about: nothing known still counts, read it all.
    pub epoch: Uuid,
    /// The last place taken.
    pub head: i64,
    /// The changes in order, as many as were asked for at most.
    pub rows: Vec<ChangeRow>,
}

/// What applying a change led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The place of the change.
    pub position: Position,
    /// The revision of what was changed.
    pub revision: Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_user_agent_only_so_much_is_kept_and_nothing_that_acts_on_a_terminal() {
        let origin = |agent: &str| {
            let address = "192.0.2.1".parse().unwrap();
            Origin::new(address, false, Some(agent), String::new()).user_agent
        };
        assert_eq!(origin("curl/8\u{1b}[2J\r\n").unwrap(), "curl/8[2J");
        assert_eq!(origin(&"ä".repeat(1000)).unwrap(), "ä".repeat(256));
    }
}
