//! Whatever ends sessions, asked of those who end them, and seen by the clients that hold the tokens.

use countersign::domain::id::UserId;

use super::*;
use crate::{
    http::token::{INVALID_CLIENT, Refusal, refused},
    support::{
        database::Engine,
        server::{FILES, Setup, metadata},
        sign_in::{PASSWORD, SignedIn, by, redeem, refresh},
    },
};

on_both_engines! {
    whatever_ends_sessions_ends_their_tokens_at_once_and_no_others,
}

/// Whose sessions are ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    Client,
    Session,
    User,
}

/// A client, a user, and the sessions that have to do with either.
struct Scene<'a> {
    server: &'a TestServer,
    client: Registered,
    user: UserId,
    /// The code of the first session.
    code: String,
    /// Two of the user at the client, one of the user elsewhere, one of somebody else at the client.
    sessions: [SignedIn; 4],
    /// A code of the user that the client has not used yet.
    unused: String,
}

impl<'a> Scene<'a> {
    async fn set(server: &'a TestServer, number: usize) -> Self {
        let client = server.register(&metadata()).await;
        let user = server.user(&format!("user {number}")).await;
        let other = server.user(&format!("other {number}")).await;
        let code = server.code(&client, user).await;
        let unused = server.code(&client, user).await;
        let first = SignedIn::of(&server.redeem(&client, &code).await);
        Self {
            sessions: [
                first,
                server.sign_in(&client, user).await,
                server.sign_in(&server.app, user).await,
                server.sign_in(&client, other).await,
            ],
            server,
            client,
            user,
            code,
            unused,
        }
    }

    /// Which of the sessions are ended with those of this one.
    fn ended(of: Of) -> [bool; 4] {
        match of {
            Of::Client => [true, true, false, true],
            Of::Session => [true, false, false, false],
            Of::User => [true, true, true, false],
        }
    }

    fn holder(&self, session: usize) -> &Registered {
        if session == 2 {
            &self.server.app
        } else {
            &self.client
        }
    }

    async fn is_active(&self, holder: &Registered, token: &str) -> bool {
        let request = self.server.request(Method::POST, "/oauth2/introspect");
        let answer = answer(by(request, holder, &[("token", token)])).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["active"] == true
    }

    /// Every session is as it has to be after an end that its tokens are told of in this way.
    async fn is_over(&self, how: &str, of: Of, refusal: Refusal) {
        for (number, is_ended) in Self::ended(of).into_iter().enumerate() {
            let (session, holder) = (&self.sessions[number], self.holder(number));
            let may_ask = refusal.0 != 401 || holder.id == self.server.app.id;
            for token in [&session.access_token, &session.refresh_token] {
                assert!(
                    !may_ask || self.is_active(holder, token).await != is_ended,
                    "{how}: {number}"
                );
            }
            let request = self.server.by(holder, &refresh(&session.refresh_token));
            if is_ended {
                refused(request, refusal).await;
            } else {
                answer(request).await.refresh_token();
            }
        }
        let request = self.server.by(&self.client, &redeem(&self.unused));
        if of == Of::Session {
            answer(request).await.refresh_token();
        } else {
            refused(request, refusal).await;
        }
    }
}

/// RFC 9700 §4.14.2 and RFC 7009 §2.1: all of them, whoever ends them.
async fn whatever_ends_sessions_ends_their_tokens_at_once_and_no_others(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let desk = Desk::of(&server, ALL).await;
    let grant = |reason| (400, "invalid_grant", reason);
    let disabled = (401, "invalid_client", "client_disabled");
    let cases = [
        ("password", Of::User, grant("user_sessions_ended")),
        ("disabled user", Of::User, grant("user_disabled")),
        ("enabled user", Of::User, grant("user_sessions_ended")),
        ("deleted user", Of::User, grant("user_deleted")),
        ("revoked user", Of::User, grant("user_sessions_ended")),
        ("revoked client", Of::Client, grant("client_sessions_ended")),
        ("disabled client", Of::Client, disabled),
        ("deleted client", Of::Client, INVALID_CLIENT),
        ("client anew", Of::Client, grant("client_sessions_ended")),
        ("revoked session", Of::Session, grant("revoked")),
        ("ended session", Of::Session, grant("revoked")),
        ("sign-out", Of::Session, grant("revoked")),
        ("code used again", Of::Session, grant("revoked")),
    ];
    for (number, (how, of, refusal)) in cases.into_iter().enumerate() {
        let mut scene = Scene::set(&server, number).await;
        end(&desk, &mut scene, how).await;
        // The node has heard of it; of users and sessions it need not.
        if of == Of::Client {
            server.renewed().await;
        }
        scene.is_over(how, of, refusal).await;
    }
}

/// Ends sessions of a scene in some way.
async fn end(desk: &Desk<'_>, scene: &mut Scene<'_>, how: &str) {
    let family = scene.sessions[0].family;
    let user = format!("/admin/v1/users/{}", scene.user);
    let client = format!("/admin/v1/clients/{}", scene.client.id);
    let revocations = "/admin/v1/revocations";
    let disable = async |path: &str, and_enable: bool| {
        let patched = desk.patch(path, &json!({ "disabled": true })).await;
        if !and_enable {
            return patched;
        }
        assert_eq!(patched.status, 200, "{patched:?}");
        desk.patch(path, &json!({ "disabled": false })).await
    };
    let done = match how {
        "password" => {
            let request = desk.request("PUT", &format!("{user}/password"));
            desk.send(request.json(&json!({ "password": PASSWORD })))
                .await
        }
        "disabled user" => disable(&user, false).await,
        "enabled user" => disable(&user, true).await,
        "deleted user" => desk.delete(&user).await,
        "revoked user" => {
            let subject = json!({ "subject": scene.user.to_string() });
            desk.post(revocations, &subject).await
        }
        "revoked client" => {
            let client_id = json!({ "client_id": scene.client.id });
            desk.post(revocations, &client_id).await
        }
        "disabled client" => disable(&client, false).await,
        "deleted client" => desk.delete(&client).await,
        "client anew" => {
            assert_eq!(desk.delete(&client).await.status, 204);
            let metadata = json!({
                "client_id": scene.client.id,
                "client_name": "Another client of the same id",
                "scope": "read write files:read",
                "resources": [API, FILES],
                "default_resource": API,
            });
            let created = desk.post("/admin/v1/clients", &metadata).await;
            assert_eq!(created.status, 201, "{created:?}");
            let secret = created.json()["client_secret"].as_str().map(str::to_owned);
            scene.client.secret = secret.unwrap();
            return;
        }
        "revoked session" => {
            let path = format!("/admin/v1/families/{family}/revoke");
            desk.post(&path, &json!({})).await
        }
        "ended session" => {
            let family_id = json!({ "family_id": family.to_string() });
            desk.post(revocations, &family_id).await
        }
        "sign-out" => {
            let request = scene.server.request(Method::POST, "/oauth2/revoke");
            let token = ("token", scene.sessions[0].refresh_token.as_str());
            answer(by(request, &scene.client, &[token])).await
        }
        "code used again" => {
            let request = scene.server.by(&scene.client, &redeem(&scene.code));
            refused(request, (400, "invalid_grant", "code_reuse")).await;
            return;
        }
        other => panic!("{other}"),
    };
    assert!(matches!(done.status, 200 | 204), "{how}: {done:?}");
}
