//! The table of calls.

use std::pin::Pin;

use super::{
    call::{Call, Outcome},
    clients, events, families, keys,
    problem::Kind::{self, Busy, Conflict, Forbidden, Invalid, NotFound, TooEarly},
    resources, revocations, users,
};

/// The method of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Delete,
    Get,
    Patch,
    Post,
    Put,
}

impl Verb {
    /// The methods that a route takes for it; the first is the call's own.
    pub(super) const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Delete => &["DELETE"],
            Self::Get => &["GET", "HEAD"],
            Self::Patch => &["PATCH"],
            Self::Post => &["POST"],
            Self::Put => &["PUT"],
        }
    }
}

/// The body that a call takes: a JSON object.
pub(super) struct Body {
    /// Its schema, by name.
    pub(super) schema: &'static str,
    /// The media types it may come as.
    pub(super) media_types: &'static [&'static str],
    /// One that is accepted.
    pub(super) example: &'static str,
    /// Whether the call can do without: then no body is an object without members.
    pub(super) is_optional: bool,
}

/// What a call answers with when it is carried out.
pub(super) enum Success {
    /// 200 and a document of this schema.
    Document(&'static str),
    /// 200 and a part of a list whose items have this schema.
    List(&'static str),
    /// 201, `Location`, and a document of this schema.
    Created(&'static str),
    /// 204.
    Removed,
}

/// One call.
pub(super) struct Operation {
    /// Names it for programs that are made from the document.
    pub(super) id: &'static str,
    pub(super) method: Verb,
    pub(super) path: &'static str,
    /// The one scope it needs.
    pub(super) scope: &'static str,
    /// What it does, in a few words and then as far as is needed.
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) body: Option<Body>,
    pub(super) success: Success,
    /// How it can be refused, besides what all calls have in common.
    pub(super) refusals: &'static [Kind],
    pub(super) handler: Handler,
}

type Handler = fn(Call) -> Pin<Box<dyn Future<Output = Outcome>>>;

const JSON: &[&str] = &["application/json"];
const MERGE_PATCH: &[&str] = &["application/merge-patch+json", "application/json"];

/// Every call. Those of one path stand together.
pub(super) static OPERATIONS: [Operation; 27] = [
    Operation {
        id: "listKeys",
        method: Verb::Get,
        path: "/admin/v1/keys",
        scope: "keys:read",
        summary: "List the keys",
        description: "Every key of a use there ever was, with its state now and its times: the signing keys \
            unless asked otherwise.",
        body: None,
        success: Success::List("Key"),
        refusals: &[Invalid],
        handler: |call| Box::pin(keys::list(call)),
    },
    Operation {
        id: "rotateKeys",
        method: Verb::Post,
        path: "/admin/v1/keys/rotate",
        scope: "keys:rotate",
        summary: "Let the next key take over",
        description: "On schedule, as soon as every verifier knows the next key; before that the answer is 409 \
            with earliest_activation_at. In an emergency at once: the active key is revoked and leaves the JWKS; \
            of refresh_mac keys, every refresh token made with it is refused, and those users sign in again.",
        body: Some(Body {
            schema: "RotationRequest",
            media_types: JSON,
            example: r#"{"mode":"emergency","reason":"The host has leaked","discard_next":true}"#,
            is_optional: false,
        }),
        success: Success::Document("KeyChange"),
        refusals: &[Invalid, Conflict, TooEarly],
        handler: |call| Box::pin(keys::rotate(call)),
    },
    Operation {
        id: "revokeKey",
        method: Verb::Post,
        path: "/admin/v1/keys/{kid}/revoke",
        scope: "keys:rotate",
        summary: "Declare a key compromised",
        description: "Of the active key this is an emergency: the next key signs at once. Of the next key it \
            makes another one. To give a reason, rotate.",
        body: None,
        success: Success::Document("KeyChange"),
        refusals: &[NotFound, Conflict],
        handler: |call| Box::pin(keys::revoke(call)),
    },
    Operation {
        id: "listClients",
        method: Verb::Get,
        path: "/admin/v1/clients",
        scope: "clients:read",
        summary: "List the clients",
        description: "By id.",
        body: None,
        success: Success::List("Client"),
        refusals: &[Invalid],
        handler: |call| Box::pin(clients::list(call)),
    },
    Operation {
        id: "createClient",
        method: Verb::Post,
        path: "/admin/v1/clients",
        scope: "clients:write",
        summary: "Register a client",
        description: "The answer has the secret of a confidential client, this once. Without a client_id one \
            is drawn. A client that may call this interface must not have more scopes here than you.",
        body: Some(Body {
            schema: "NewClient",
            media_types: JSON,
            example: r#"{"client_name":"Orders"}"#,
            is_optional: false,
        }),
        success: Success::Created("CreatedClient"),
        refusals: &[Invalid, Forbidden, Conflict],
        handler: |call| Box::pin(clients::create(call)),
    },
    Operation {
        id: "showClient",
        method: Verb::Get,
        path: "/admin/v1/clients/{client_id}",
        scope: "clients:read",
        summary: "Show a client",
        description: "",
        body: None,
        success: Success::Document("Client"),
        refusals: &[NotFound],
        handler: |call| Box::pin(clients::show(call)),
    },
    Operation {
        id: "updateClient",
        method: Verb::Patch,
        path: "/admin/v1/clients/{client_id}",
        scope: "clients:write",
        summary: "Change a client",
        description: "A merge patch (RFC 7396): null takes a member away, what is absent stays. With a revision \
            it is refused once somebody else has changed the client. A client with more scopes here than you, \
            before the change or after it, is not changed.",
        body: Some(Body {
            schema: "ClientPatch",
            media_types: MERGE_PATCH,
            example: r#"{"client_name":"Orders, Europe"}"#,
            is_optional: false,
        }),
        success: Success::Document("Client"),
        refusals: &[Invalid, Forbidden, NotFound, Conflict],
        handler: |call| Box::pin(clients::update(call)),
    },
    Operation {
        id: "deleteClient",
        method: Verb::Delete,
        path: "/admin/v1/clients/{client_id}",
        scope: "clients:write",
        summary: "Remove a client",
        description: "With its secrets. Not one with more scopes here than you.",
        body: None,
        success: Success::Removed,
        refusals: &[Forbidden, NotFound, Conflict],
        handler: |call| Box::pin(clients::delete(call)),
    },
    Operation {
        id: "addClientSecret",
        method: Verb::Post,
        path: "/admin/v1/clients/{client_id}/secrets",
        scope: "clients:write",
        summary: "Give a client a second secret",
        description: "So that the first can be exchanged without a gap; a third is refused. The secret is not \
            shown again. Not for a client with more scopes here than you.",
        body: None,
        success: Success::Created("NewSecret"),
        refusals: &[Forbidden, NotFound, Conflict],
        handler: |call| Box::pin(clients::add_secret(call)),
    },
    Operation {
        id: "removeClientSecret",
        method: Verb::Delete,
        path: "/admin/v1/clients/{client_id}/secrets/{secret_id}",
        scope: "clients:write",
        summary: "Take a secret out of use",
        description: "Not of a client with more scopes here than you.",
        body: None,
        success: Success::Removed,
        refusals: &[Forbidden, NotFound, Conflict],
        handler: |call| Box::pin(clients::remove_secret(call)),
    },
    Operation {
        id: "listFamilies",
        method: Verb::Get,
        path: "/admin/v1/families",
        scope: "families:read",
        summary: "List the sessions of users at clients",
        description: "The latest first. Each is a family of refresh tokens: one sign-in, however often it is \
            refreshed; its id is the sid of access tokens. A part may have fewer items than its limit before the \
            end of the list, where few are in the state that is asked for.",
        body: None,
        success: Success::List("Family"),
        refusals: &[Invalid],
        handler: |call| Box::pin(families::list(call)),
    },
    Operation {
        id: "showFamily",
        method: Verb::Get,
        path: "/admin/v1/families/{id}",
        scope: "families:read",
        summary: "Show a session and tell its story",
        description: "What happened, in order and in plain words: from where it was opened and refreshed, which \
            tokens were used twice and by whom, and when and why it ended. A session that has ended is kept \
            for about 30 days.",
        body: None,
        success: Success::Document("FamilyStory"),
        refusals: &[NotFound],
        handler: |call| Box::pin(families::show(call)),
    },
    Operation {
        id: "revokeFamily",
        method: Verb::Post,
        path: "/admin/v1/families/{id}/revoke",
        scope: "families:write",
        summary: "End a session",
        description: "Its refresh tokens are refused from now on, and introspection says at once that its access \
            tokens are inactive. One that has ended already stays as it has.",
        body: Some(Body {
            schema: "EndRequest",
            media_types: JSON,
            example: r#"{"reason":"A laptop was stolen"}"#,
            is_optional: true,
        }),
        success: Success::Document("FamilyStory"),
        refusals: &[Invalid, NotFound],
        handler: |call| Box::pin(families::revoke(call)),
    },
    Operation {
        id: "listResources",
        method: Verb::Get,
        path: "/admin/v1/resources",
        scope: "resources:read",
        summary: "List the protected resources",
        description: "This interface first, then the oldest.",
        body: None,
        success: Success::List("Resource"),
        refusals: &[Invalid],
        handler: |call| Box::pin(resources::list(call)),
    },
    Operation {
        id: "createResource",
        method: Verb::Post,
        path: "/admin/v1/resources",
        scope: "resources:write",
        summary: "Register a protected resource",
        description: "",
        body: Some(Body {
            schema: "ResourceMetadata",
            media_types: JSON,
            example: r#"{"resource":"https://orders.example","name":"Orders","scopes":["orders:read"]}"#,
            is_optional: false,
        }),
        success: Success::Created("Resource"),
        refusals: &[Invalid, Conflict],
        handler: |call| Box::pin(resources::create(call)),
    },
    Operation {
        id: "deleteResource",
        method: Verb::Delete,
        path: "/admin/v1/resources/{id}",
        scope: "resources:write",
        summary: "Remove a protected resource",
        description: "No more tokens are issued for it. Clients keep its name, without effect.",
        body: None,
        success: Success::Removed,
        refusals: &[NotFound, Conflict],
        handler: |call| Box::pin(resources::delete(call)),
    },
    Operation {
        id: "listUsers",
        method: Verb::Get,
        path: "/admin/v1/users",
        scope: "users:read",
        summary: "List the users",
        description: "The oldest first.",
        body: None,
        success: Success::List("User"),
        refusals: &[Invalid],
        handler: |call| Box::pin(users::list(call)),
    },
    Operation {
        id: "createUser",
        method: Verb::Post,
        path: "/admin/v1/users",
        scope: "users:write",
        summary: "Create a user",
        description: "Without a password the user cannot sign in with one. A password that is too short or \
            easy to guess is refused.",
        body: Some(Body {
            schema: "NewUser",
            media_types: JSON,
            example: r#"{"username":"ada@example.com","password":"zw\u00f6lf Boxk\u00e4mpfer jagen Eva","roles":["author"]}"#,
            is_optional: false,
        }),
        success: Success::Created("User"),
        refusals: &[Invalid, Conflict, Busy],
        handler: |call| Box::pin(users::create(call)),
    },
    Operation {
        id: "showUser",
        method: Verb::Get,
        path: "/admin/v1/users/{id}",
        scope: "users:read",
        summary: "Show a user",
        description: "",
        body: None,
        success: Success::Document("User"),
        refusals: &[NotFound],
        handler: |call| Box::pin(users::show(call)),
    },
    Operation {
        id: "updateUser",
        method: Verb::Patch,
        path: "/admin/v1/users/{id}",
        scope: "users:write",
        summary: "Change a user",
        description: "A merge patch (RFC 7396): null takes a member away, what is absent stays. With a revision \
            it is refused once somebody else has changed the user. Disabling a user ends its sessions and \
            revokes its access tokens. Roles and claims are in its tokens from the next refresh on.",
        body: Some(Body {
            schema: "UserPatch",
            media_types: MERGE_PATCH,
            example: r#"{"roles":["author","editor"],"claims":{"tier":"gold"}}"#,
            is_optional: false,
        }),
        success: Success::Document("User"),
        refusals: &[Invalid, NotFound, Conflict],
        handler: |call| Box::pin(users::update(call)),
    },
    Operation {
        id: "deleteUser",
        method: Verb::Delete,
        path: "/admin/v1/users/{id}",
        scope: "users:write",
        summary: "Remove a user",
        description: "With its sessions; its access tokens are revoked. Nobody gets its id again.",
        body: None,
        success: Success::Removed,
        refusals: &[NotFound, Conflict],
        handler: |call| Box::pin(users::delete(call)),
    },
    Operation {
        id: "setUserPassword",
        method: Verb::Put,
        path: "/admin/v1/users/{id}/password",
        scope: "users:write",
        summary: "Give a user another password",
        description: "Ends the sessions of the user and revokes its access tokens: somebody may have known the \
            password before. One that is too short or easy to guess is refused.",
        body: Some(Body {
            schema: "PasswordRequest",
            media_types: JSON,
            example: r#"{"password":"correct horse battery staple"}"#,
            is_optional: false,
        }),
        success: Success::Document("User"),
        refusals: &[Invalid, NotFound, Conflict, Busy],
        handler: |call| Box::pin(users::set_password(call)),
    },
    Operation {
        id: "resetUserFactors",
        method: Verb::Delete,
        path: "/admin/v1/users/{id}/factors",
        scope: "users:write",
        summary: "Remove the second factors of a user",
        description: "As when its telephone is lost: all passkeys, recovery codes and apps that make one-time \
            passwords. Ends the sessions of the user and revokes its access tokens.",
        body: None,
        success: Success::Removed,
        refusals: &[NotFound, Conflict],
        handler: |call| Box::pin(users::reset_factors(call)),
    },
    Operation {
        id: "listUserConsents",
        method: Verb::Get,
        path: "/admin/v1/users/{id}/consents",
        scope: "users:read",
        summary: "List what a user allows clients",
        description: "By client: what the user was asked for and has allowed, which it is not asked for again.",
        body: None,
        success: Success::List("Consent"),
        refusals: &[Invalid, NotFound],
        handler: |call| Box::pin(users::consents(call)),
    },
    Operation {
        id: "withdrawUserConsent",
        method: Verb::Delete,
        path: "/admin/v1/users/{id}/consents/{client_id}",
        scope: "users:write",
        summary: "Take back what a user allows a client",
        description: "Ends the sessions of the user at the client and revokes its access tokens there. The user is \
            asked again at the next sign-in.",
        body: None,
        success: Success::Removed,
        refusals: &[NotFound],
        handler: |call| Box::pin(users::withdraw_consent(call)),
    },
    Operation {
        id: "revoke",
        method: Verb::Post,
        path: "/admin/v1/revocations",
        scope: "revocations:write",
        summary: "Revoke access tokens",
        description: "Every token that a client holds, or that anybody holds of a user (subject) or of a session \
            (family_id), or one by its jti. Every node refuses them within the poll interval. The sessions of \
            the user or at the client end with them; users may sign in again. A client may go on to get new \
            tokens: disable it to end that.",
        body: Some(Body {
            schema: "RevocationRequest",
            media_types: JSON,
            example: r#"{"client_id":"orders"}"#,
            is_optional: false,
        }),
        success: Success::Document("RevocationRequest"),
        refusals: &[Invalid, Forbidden, NotFound],
        handler: |call| Box::pin(revocations::revoke(call)),
    },
    Operation {
        id: "listEvents",
        method: Verb::Get,
        path: "/admin/v1/events",
        scope: "events:read",
        summary: "List what was changed, by whom, from where and why",
        description: "The earliest first. To follow: ask with after, the id of the last event seen, and wait.",
        body: None,
        success: Success::List("Event"),
        refusals: &[Invalid],
        handler: |call| Box::pin(events::list(call)),
    },
];
