//! People who sign in at nodes that are processes of their own.

use std::{net::SocketAddr, sync::Arc};

use countersign::{
    domain::{
        client::Client,
        family::Family,
        id::{ClientId, FamilyId},
        user::User,
    },
    store::{Access, Store},
};
use reqwest::{Client as Http, Response};
use serde_json::Value;

use super::{
    database::open,
    process::now,
    sign_in::{claims, code_for, create_user, grant, put_code, redeem},
};

/// An app and its one user. Codes come straight from the store, as if a page had sent them.
pub(crate) struct App {
    store: Arc<dyn Store>,
    client: Client,
    user: User,
}

impl App {
    /// The app of a public client, with a user of its own.
    pub(crate) async fn new(database_url: &str, client_id: &str) -> Self {
        let store = open(database_url, Access::Command).await.unwrap();
        let id = ClientId::parse(client_id).unwrap();
        Self {
            client: store.client(&id).await.unwrap().unwrap(),
            user: create_user(&*store, "alice", now()).await,
            store,
        }
    }

    /// A code for the user.
    pub(crate) async fn code(&self) -> String {
        let grant = grant(&self.client, &self.user, now());
        put_code(&*self.store, &code_for(grant, now())).await
    }

    /// What a node answers to a code.
    pub(crate) async fn exchange(&self, http: &Http, node: SocketAddr, code: &str) -> Response {
        self.exchange_later(http, node, code).await.unwrap()
    }

    /// The same, for whoever does not count on an answer.
    pub(crate) fn exchange_later(
        &self,
        http: &Http,
        node: SocketAddr,
        code: &str,
    ) -> impl Future<Output = reqwest::Result<Response>> + use<> {
        let form = [
            &redeem(code)[..],
            &[("client_id", self.client.client_id.as_str())],
        ];
        let request = http.post(format!("http://{node}/oauth2/token"));
        request.form(&form.concat()).send()
    }

    /// The first refresh token of a new sign-in at a node.
    pub(crate) async fn sign_in(&self, http: &Http, node: SocketAddr) -> String {
        let answer = self.exchange(http, node, &self.code().await).await;
        let document: Value = answer.json().await.unwrap();
        document["refresh_token"].as_str().unwrap().to_owned()
    }

    /// The family of an access token, as stored.
    pub(crate) async fn family(&self, access_token: &str) -> Family {
        let id = claims(access_token)["sid"].as_str().map(FamilyId::parse);
        let family = self.store.family(id.unwrap().unwrap()).await;
        family.unwrap().unwrap().0
    }
}
