//! The development start, again and again in the same folder.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::PathBuf};

use argon2::PasswordVerifier as _;
use countersign::{domain::user::Username, store::Access};
use reqwest::StatusCode;
use serde_json::Value;

use crate::support::{
    database::open,
    process::{Credentials, Installation, Node, free_address},
};

const SECRETS: &str = "data/development.json";

/// The demo client with the secret that the banner shows.
fn demo(node: &Node) -> Credentials {
    let banner = node.process.stdout();
    let requests: Vec<&str> = banner
        .lines()
        .filter(|line| line.starts_with("curl -s "))
        .collect();
    let secret = |line: &str| {
        let (_, rest) = line.split_once("-u demo:").unwrap();
        rest.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(requests.len(), 2, "{banner}");
    assert_eq!(secret(requests[0]), secret(requests[1]));
    Credentials {
        id: "demo".to_owned(),
        secret: secret(requests[0]),
    }
}

/// The secret of a client in the file that keeps them, which only its owner can read.
fn kept(installation: &Installation, node: &Node, client: &str) -> Credentials {
    let path = installation.path(SECRETS);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secrets: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(secrets["demo"], demo(node).secret);
    Credentials {
        id: client.to_owned(),
        secret: secrets[client].as_str().unwrap().to_owned(),
    }
}

/// The password of the demo user in the file that keeps it, which must be the one in the database.
async fn password(installation: &Installation) -> String {
    let secrets = fs::read_to_string(installation.path(SECRETS)).unwrap();
    let secrets: Value = serde_json::from_str(&secrets).unwrap();
    let kept = secrets["user:demo"].as_str().unwrap().to_owned();
    let file = installation.path("data/countersign.db");
    let store = open(&format!("sqlite://{}", file.display()), Access::Command).await;
    let key = Username::parse("demo").unwrap();
    let user = store.unwrap().user_by_name(key.key()).await.unwrap();
    let user = user.unwrap();
    assert!(user.demo);
    let hash = argon2::PasswordHash::new(user.password_hash.as_ref().unwrap().phc()).unwrap();
    let verified = argon2::Argon2::default().verify_password(kept.as_bytes(), &hash);
    verified.unwrap();
    kept
}

async fn kids(node: &Node) -> Vec<String> {
    node.jwks().await.kids().map(str::to_owned).collect()
}

fn database_files(installation: &Installation) -> Vec<PathBuf> {
    let entries = fs::read_dir(installation.path("data")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.to_string_lossy().contains("countersign.db"));
    assert!(!files.is_empty());
    files
}

/// Stops a node and starts it again at the same address, with `meanwhile` in between.
async fn restart(installation: &Installation, node: Node, meanwhile: impl FnOnce()) -> Node {
    let address: SocketAddr = node.public;
    assert_eq!(node.stop().await.code(), Some(0));
    meanwhile();
    installation.start_at(address).await
}

#[tokio::test]
async fn a_second_start_in_the_same_folder_has_the_same_secrets_and_keys() {
    let installation = Installation::development();
    let node = installation.start().await;
    let (secret, keys) = (demo(&node), kids(&node).await);
    let ops = kept(&installation, &node, "ops");
    let of_user = password(&installation).await;
    let banner = node.process.stdout();
    let masters = installation.master_key_files();
    assert_eq!(masters.len(), 1);
    node.token(&secret).await;

    let node = restart(&installation, node, || ()).await;
    assert_eq!(node.process.stdout(), banner);
    assert_eq!(kids(&node).await, keys);
    assert_eq!(kept(&installation, &node, "ops").secret, ops.secret);
    assert_eq!(password(&installation).await, of_user);
    // Nor is its password set again, which would end its sessions.
    let events = ["events", "--type", "user.password_changed"];
    let events = installation.json(&events).await;
    assert_eq!(events["items"], serde_json::json!([]));
    assert_eq!(installation.master_key_files(), masters);
    node.token(&secret).await;
}

/// The lines of the README that sign the demo user in, as they stand but for the port; also where an
/// earlier version has made the client, at which nobody could sign in.
#[tokio::test]
async fn the_demo_user_signs_in_as_the_readme_says() {
    let readme = include_str!("../../../README.md");
    let (_, lines) = readme.split_once("ISSUER=http://127.0.0.1:8080\n").unwrap();
    let (lines, expected) = lines.split_once("```").unwrap();
    let (_, expected) = expected.split_once("```json\n").unwrap();
    let (refusal, _) = expected.split_once('\n').unwrap();
    let installation = Installation::development();
    let mut node = installation.start().await;
    for _ in 0..2 {
        let issuer = format!("ISSUER=http://{}\n", node.public);
        let shown = installation.run_script(&(issuer + lines)).await.done();
        let [tokens, end] = shown.lines().collect::<Vec<_>>()[..] else {
            panic!("{shown}");
        };
        let tokens: Value = serde_json::from_str(tokens).unwrap();
        assert!(tokens["refresh_token"].is_string(), "{tokens}");
        assert_eq!(end, refusal);
        let story = installation.run(&["families", "why", "demo"]).await.done();
        assert!(story.contains("(reuse)"), "{story}");
        let update = ["clients", "update", "demo", "--first-party=false"];
        installation.run(&update).await.done();
        node = restart(&installation, node, || {}).await;
    }
}

#[tokio::test]
async fn deleting_the_file_of_secrets_makes_new_ones_that_work() {
    let installation = Installation::development();
    let node = installation.start().await;
    let (old, keys) = (demo(&node), kids(&node).await);
    let old_password = password(&installation).await;
    let secrets = installation.path(SECRETS);

    let node = restart(&installation, node, || fs::remove_file(secrets).unwrap()).await;
    let new = kept(&installation, &node, "demo");
    assert_ne!(new.secret, old.secret);
    assert_ne!(password(&installation).await, old_password);
    node.token(&new).await;
    assert_eq!(node.ask(&old).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(kids(&node).await, keys);
}

#[tokio::test]
async fn deleting_the_database_and_keeping_the_master_key_works() {
    let installation = Installation::development();
    let node = installation.start().await;
    let (secret, keys) = (demo(&node), kids(&node).await);
    let masters = installation.master_key_files();

    let node = restart(&installation, node, || {
        for file in database_files(&installation) {
            fs::remove_file(file).unwrap();
        }
    })
    .await;
    assert_eq!(installation.master_key_files(), masters);
    let new_keys = kids(&node).await;
    assert!(new_keys.iter().all(|kid| !keys.contains(kid)));
    // The secrets are in the file beside it, and the new rows have been made to match.
    assert_eq!(demo(&node).secret, secret.secret);
    node.token(&secret).await;
    password(&installation).await;
}

/// The file as it was before there were users.
#[tokio::test]
async fn a_file_without_the_users_password_gets_one() {
    let installation = Installation::development();
    let node = installation.start().await;
    let secret = demo(&node);
    let path = installation.path(SECRETS);
    let node = restart(&installation, node, || {
        let text = fs::read_to_string(&path).unwrap();
        let mut secrets: Value = serde_json::from_str(&text).unwrap();
        secrets
            .as_object_mut()
            .unwrap()
            .remove("user:demo")
            .unwrap();
        fs::write(&path, secrets.to_string()).unwrap();
    })
    .await;
    password(&installation).await;
    assert_eq!(kept(&installation, &node, "demo").secret, secret.secret);
}

#[tokio::test]
async fn another_port_is_another_issuer_with_the_same_secrets() {
    let installation = Installation::development();
    let node = installation.start().await;
    let secret = demo(&node);
    assert_eq!(node.stop().await.code(), Some(0));
    let address = free_address();
    let node = installation.start_at(address).await;
    assert_eq!(demo(&node).secret, secret.secret);
    let banner = node.process.stdout();
    assert!(banner.contains(&format!("http://{address}")), "{banner}");
    node.token(&secret).await;
}
