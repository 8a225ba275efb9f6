//! The command line as a person or a script meets it: the program itself, in a folder of its own.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use countersign::{
    app::Context,
    clock::{Clock as _, SystemClock, Timestamp},
    config::{Config, Sources},
    domain::{
        change::Cause,
        code::{Redeemed, Redemption, s256},
        family::Terms,
        id::{ClientId, FamilyId},
        secret::{Ticket, TicketKind},
        user::Username,
    },
    identity::factor::FactorRefused,
    oauth::access_token,
    store::{Access, Schema},
};
use countersign_verifier::{AccessTokenClaims, Audience};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    database::{Database, Engine},
    jwt::{SigningKey, jwks},
    sign_in, totp,
};

const ISSUER: &str = "http://127.0.0.1:8080";

/// A folder to call the program in, and the environment it is given.
struct Terminal {
    folder: TempDir,
    environment: HashMap<String, String>,
}

/// What came of a call.
#[derive(Debug)]
struct Answer {
    status: i32,
    output: String,
    remarks: String,
}

impl Terminal {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            environment: [("USER".to_owned(), "tester".to_owned())].into(),
        }
    }

    fn of(database: &Database) -> Self {
        Self::new().with("DATABASE_URL", database.url())
    }

    /// A file in the folder; returns its path.
    fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// With keys as after the first start of the service.
    async fn started(database: &Database) -> (Self, Context) {
        let terminal = Self::of(database);
        let keys = terminal.folder.path().join("keys");
        let terminal = terminal.with("COUNTERSIGN__KEYS__DIRECTORY", keys.to_str().unwrap());
        let config = Config::load(&Sources {
            environment: terminal.environment.clone(),
            ..Sources::default()
        });
        let context = Context::open(config.unwrap(), Access::Command)
            .await
            .unwrap();
        context.keys().bootstrap(true).await.unwrap();
        (terminal, context)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn call(&self, arguments: &[&str]) -> Answer {
        self.call_with(arguments, "")
    }

    fn call_with(&self, arguments: &[&str], input: &str) -> Answer {
        let mut child = self.command(arguments).spawn().unwrap();
        // A command that reads nothing may have ended by now.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let done = child.wait_with_output().unwrap();
        Answer {
            status: done.status.code().unwrap(),
            output: String::from_utf8(done.stdout).unwrap(),
            remarks: String::from_utf8(done.stderr).unwrap(),
        }
    }

    /// Registers a resource.
    fn resource(&self, uri: &str, more: &[&str]) {
        let create = ["resources", "create", "--resource", uri, "--name", "API"];
        self.json(&[&create[..], more].concat());
    }

    /// The document that a successful call prints.
    fn json(&self, arguments: &[&str]) -> Value {
        let answer = self.call(&[arguments, &["--json"]].concat());
        assert_eq!(answer.status, 0, "{answer:?}");
        serde_json::from_str(&answer.output).unwrap()
    }
}

impl Answer {
    /// The one sentence of a failure.
    fn failure(&self) -> &str {
        assert_eq!(self.status, 1, "{self:?}");
        assert_eq!(self.remarks.lines().count(), 1, "{self:?}");
        self.remarks
            .strip_prefix("countersign: ")
            .unwrap()
            .trim_end()
    }
}

/// Makes each case a test on each engine, with a database of its own.
macro_rules! on_both_engines {
    ($($case:ident,)+) => {
        on_both_engines!(@on_sqlite Sqlite $($case)+);
        on_both_engines!(@on_postgres Postgres $($case)+);
    };
    (@$module:ident $engine:ident $($case:ident)+) => {
        mod $module {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::$case(&Database::create(Engine::$engine).await).await;
                }
            )+
        }
    };
}

on_both_engines! {
    one_command_registers_an_operator,
    a_client_is_created_shown_changed_and_deleted,
    how_refresh_tokens_rotate_is_said_of_a_client,
    a_client_says_where_browsers_are_sent_back_to,
    a_client_may_have_what_the_session_of_a_browser_is_good_for,
    a_client_that_signs_has_keys_and_no_secret,
    what_is_no_public_key_for_es256_is_not_registered,
    a_client_has_two_secrets_and_no_third,
    a_resource_is_created_listed_and_deleted,
    a_user_is_created_shown_and_changed,
    a_user_is_disabled_enabled_signed_out_and_deleted,
    users_are_listed_in_parts,
    a_password_comes_from_standard_input_or_is_drawn,
    a_change_is_recorded_with_user_and_reason,
    migrating_twice_is_fine,
    keys_are_listed_and_drawn,
    keys_of_refresh_tokens_are_listed_and_rotated_apart,
    keys_for_rs256_are_there_where_the_settings_say_so,
    rotating_too_early_says_from_when,
    an_emergency_rotation_replaces_the_active_key,
    master_keys_are_exchanged_step_by_step,
    a_valid_token_is_told_from_every_other,
    the_doctor_finds_nothing_wrong_after_a_start,
    a_key_that_was_altered_is_found_and_replaced_by_revoking_it,
    an_older_schema_is_reported_and_changed_by_migrating_only,
    events_are_shown_as_asked_for,
    events_are_followed_until_interrupted,
    tokens_are_revoked_one_by_one_or_by_client,
    what_a_user_allows_is_shown_and_taken_back,
    sessions_are_listed_and_shown,
    why_a_session_ended_is_told_and_drawn,
    a_session_is_ended_by_its_id,
    a_restored_database_gets_a_new_epoch,
}

async fn one_command_registers_an_operator(database: &Database) {
    let scope = "keys:read keys:rotate";
    let create = [
        "clients",
        "create",
        "--operator",
        "--name",
        "ops",
        "--scope",
        scope,
    ];
    let client = Terminal::of(database).json(&create);
    assert!(
        client["client_secret"]
            .as_str()
            .unwrap()
            .starts_with("cs_cs_")
    );
    assert!(client["client_id"].is_string());
    assert_eq!(client["scope"], scope);
    assert_eq!(client["resources"], json!([format!("{ISSUER}/admin")]));
    assert_eq!(client["default_resource"], Value::Null);
}

async fn a_client_is_created_shown_changed_and_deleted(database: &Database) {
    let terminal = Terminal::of(database);
    let resource = "https://api.example.com";
    terminal.resource(resource, &["--scope", "a b"]);
    let created = terminal.call(&[
        "clients",
        "create",
        "--name",
        "App",
        "--client-id",
        "app",
        "--scope",
        "a",
        "--resource",
        resource,
        "--default-resource",
        resource,
        "--allowed-origin",
        "https://app.example.com",
        "--ttl",
        "60",
    ]);
    assert_eq!((created.status, created.remarks.as_str()), (0, ""));
    assert!(created.output.contains("cs_cs_"));

    let list = terminal.json(&["clients", "list"]);
    assert_eq!(list["next_cursor"], Value::Null);
    let shown = terminal.json(&["clients", "show", "app"]);
    assert_eq!(list["items"], json!([shown]));
    assert_eq!(shown["access_token_ttl_seconds"], 60);
    assert_eq!(shown["default_resource"], resource);

    let changed = terminal.json(&[
        "clients",
        "update",
        "app",
        "--name",
        "Other",
        "--disable",
        "--no-ttl",
        "--revision",
        "1",
    ]);
    let mut expected = shown;
    for (member, value) in [
        ("client_name", json!("Other")),
        ("disabled", json!(true)),
        ("access_token_ttl_seconds", Value::Null),
        ("revision", json!(2)),
        ("updated_at", changed["updated_at"].clone()),
    ] {
        expected[member] = value;
    }
    assert_eq!(changed, expected);
    let stale = terminal.call(&["clients", "update", "app", "--enable", "--revision", "1"]);
    assert!(stale.failure().contains("revision 2"));

    let twice = terminal.call(&["clients", "create", "--name", "App", "--client-id", "app"]);
    assert!(twice.failure().contains("a client app exists already"));
    assert_eq!(terminal.call(&["clients", "delete", "app"]).status, 0);
    let gone = terminal.call(&["clients", "show", "app"]);
    assert!(gone.failure().contains("there is no client of this id"));
}

async fn how_refresh_tokens_rotate_is_said_of_a_client(database: &Database) {
    let terminal = Terminal::of(database);
    let create = [
        "clients",
        "create",
        "--name",
        "App",
        "--client-id",
        "app",
        "--public",
    ];
    let created = terminal.json(&[&create[..], &["--first-party"]].concat());
    assert_eq!(created["first_party"], true);
    assert_eq!(created["refresh_policy"], "standard");
    let update =
        |arguments: &[&str]| terminal.call(&[&["clients", "update", "app"], arguments].concat());
    let refused = update(&["--refresh-policy", "shared"]);
    assert!(
        refused
            .failure()
            .contains("--refresh-policy: shared hides most thieves")
    );
    let refused = update(&["--refresh-policy", "none"]);
    assert!(
        refused
            .failure()
            .contains("--refresh-policy: none is for clients that authenticate")
    );
    let accepted = update(&[
        "--refresh-policy",
        "shared",
        "--acknowledge-refresh-sharing",
        "--first-party=false",
    ]);
    assert_eq!(accepted.status, 0);
    // What was acknowledged once need not be again.
    assert_eq!(update(&["--name", "Other"]).status, 0);
    let shown = terminal.json(&["clients", "show", "app"]);
    assert_eq!(shown["refresh_policy"], "shared");
    assert_eq!(shown["refresh_sharing_acknowledged"], true);
    assert_eq!(shown["first_party"], false);
}

async fn a_client_says_where_browsers_are_sent_back_to(database: &Database) {
    let terminal = Terminal::of(database);
    let create = ["clients", "create", "--name", "Site", "--client-id", "site"];
    let refused =
        terminal.call(&[&create[..], &["--redirect-uri", "http://site.example/cb"]].concat());
    assert!(
        refused
            .failure()
            .starts_with("--redirect-uri (number 1): must begin with https"),
        "{refused:?}"
    );
    let uris = [
        "--redirect-uri",
        "https://site.example/cb",
        "--redirect-uri",
        "http://127.0.0.1/cb",
        "--post-logout-redirect-uri",
        "https://site.example/",
    ];
    let created = terminal.json(&[&create[..], &uris].concat());
    assert_eq!(
        created["redirect_uris"],
        json!(["https://site.example/cb", "http://127.0.0.1/cb"])
    );
    let update = ["clients", "update", "site"];
    let refused = terminal.call(&[&update[..], &["--require-pkce=false"]].concat());
    assert!(
        refused
            .failure()
            .starts_with("--require-pkce: must be true"),
        "{refused:?}"
    );
    let relaxed = ["--require-pkce=false", "--scope", "openid"];
    let relaxed = terminal.json(&[&update[..], &relaxed].concat());
    assert_eq!(relaxed["require_pkce"], false);
    let shown = terminal.call(&["clients", "show", "site"]).output;
    for part in [
        "https://site.example/cb http://127.0.0.1/cb",
        "https://site.example/",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
}

/// `--session-tokens` and `--forward-auth`, which exclude each other.
async fn a_client_may_have_what_the_session_of_a_browser_is_good_for(database: &Database) {
    let terminal = Terminal::of(database);
    let resource = "https://wiki.example.com";
    terminal.resource(resource, &[]);
    let create = [
        "clients",
        "create",
        "--name",
        "Board",
        "--client-id",
        "board",
    ];
    let refused = terminal.call(&[&create[..], &["--session-tokens"]].concat());
    let is_for = "--session-tokens: is for public clients: token_endpoint_auth_method none";
    assert!(refused.failure().starts_with(is_for), "{refused:?}");
    let public = ["--session-tokens", "--auth-method", "none"];
    let refused = terminal.call(&[&create[..], &public].concat());
    let needs = "--session-tokens: needs the origins of its pages in allowed_origins";
    assert!(refused.failure().starts_with(needs), "{refused:?}");
    assert_eq!(terminal.json(&["clients", "list"])["items"], json!([]));
    let origin = ["--allowed-origin", "https://board.example.com"];
    let created = terminal.json(&[&create[..], &public, &origin].concat());
    assert_eq!(created["session_tokens"], true);
    assert_eq!(created["forward_auth"], false);

    // What it rests on cannot be taken away from under it, nor can the other be added.
    let update = ["clients", "update", "board"];
    let refused = terminal.call(&[&update[..], &["--forward-auth"]].concat());
    let needs = "--forward-auth: needs token_endpoint_auth_method client_secret_basic";
    assert!(refused.failure().starts_with(needs), "{refused:?}");
    assert_eq!(terminal.json(&["clients", "show", "board"])["revision"], 1);
    let without = terminal.json(&[&update[..], &["--session-tokens=false"]].concat());
    assert_eq!(without["session_tokens"], false);
    let again = terminal.json(&[&update[..], &["--session-tokens"]].concat());
    assert_eq!(again["session_tokens"], true);
    let shown = terminal.call(&["clients", "show", "board"]).output;
    assert_eq!(said(&shown, "session tokens"), "yes", "{shown}");
    assert_eq!(said(&shown, "forward auth"), "no", "{shown}");

    let protects = [
        "clients",
        "create",
        "--name",
        "Wiki",
        "--client-id",
        "wiki",
        "--forward-auth",
    ];
    let default = ["--resource", resource, "--default-resource", resource];
    let uri = [
        "--redirect-uri",
        "https://wiki.example.com/session/callback",
    ];
    for (given, needs) in [
        (&uri[..], "needs a default_resource"),
        (
            &default,
            "needs a redirect URI https://<host>/session/callback",
        ),
    ] {
        let refused = terminal.call(&[&protects[..], given].concat());
        let sentence = format!("--forward-auth: {needs}");
        assert!(refused.failure().starts_with(&sentence), "{refused:?}");
    }
    let created = terminal.json(&[&protects[..], &default, &uri].concat());
    assert_eq!(created["forward_auth"], true);
    let update = ["clients", "update", "wiki"];
    let refused = terminal.call(&[&update[..], &["--session-tokens"]].concat());
    assert!(refused.failure().starts_with(is_for), "{refused:?}");
    let without = terminal.json(&[&update[..], &["--forward-auth=false"]].concat());
    assert_eq!(without["forward_auth"], false);
    let again = terminal.json(&[&update[..], &["--forward-auth=true"]].concat());
    assert_eq!(
        (&again["forward_auth"], &again["revision"]),
        (&json!(true), &json!(3))
    );
    let shown = terminal.call(&["clients", "show", "wiki"]).output;
    assert_eq!(said(&shown, "forward auth"), "yes", "{shown}");
}

/// What the table of one thing says of a field.
fn said<'a>(table: &'a str, field: &str) -> &'a str {
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(field));
    line.unwrap_or_else(|| panic!("no {field}: {table}")).trim()
}

/// RFC 7591 §2: `jwks` or `jwks_uri`; and neither for a client that authenticates otherwise.
async fn a_client_that_signs_has_keys_and_no_secret(database: &Database) {
    let terminal = Terminal::of(database);
    let key = SigningKey::new("key-1");
    let file = terminal.file("jwks.json", &jwks(&[&key]).to_string());
    let signs = ["--auth-method", "private_key_jwt"];
    let create = ["clients", "create", "--name", "App", "--client-id", "app"];
    let created = terminal.json(&[&create[..], &signs, &["--jwks", &file]].concat());
    assert_eq!(created["token_endpoint_auth_method"], "private_key_jwt");
    assert_eq!(created["jwks"], jwks(&[&key]));
    assert_eq!(created["jwks_uri"], Value::Null);
    assert_eq!(created["secrets"], json!([]));
    assert!(created.get("client_secret").is_none());
    let shown = terminal.call(&["clients", "show", "app"]);
    assert!(shown.output.contains("key-1"), "{shown:?}");
    let secret = terminal.call(&["clients", "add-secret", "app"]);
    assert!(secret.failure().contains("private_key_jwt"), "{secret:?}");

    // One takes the place of the other.
    let update = ["clients", "update", "app"];
    let uri = "https://app.example/jwks.json";
    let changed = terminal.json(&[&update[..], &["--jwks-uri", uri]].concat());
    assert_eq!(changed["jwks_uri"], uri);
    assert_eq!(changed["jwks"], Value::Null);
    let changed = terminal.json(&[&update[..], &["--jwks", &file]].concat());
    assert_eq!(changed["jwks"], jwks(&[&key]));
    assert_eq!(changed["jwks_uri"], Value::Null);
    let both = [&update[..], &["--jwks", &file, "--jwks-uri", uri]].concat();
    assert_eq!(terminal.call(&both).status, 2);

    // What belongs to one way of authenticating goes with it.
    let by_secret = [&update[..], &["--auth-method", "client_secret_basic"]].concat();
    let changed = terminal.json(&by_secret);
    assert_eq!(changed["jwks"], Value::Null);
    assert_eq!(terminal.call(&["clients", "add-secret", "app"]).status, 0);
    let without_keys = terminal.call(&[&update[..], &signs].concat());
    assert!(without_keys.failure().contains("needs jwks or jwks_uri"));
    let changed = terminal.json(&[&update[..], &signs, &["--jwks-uri", uri]].concat());
    assert_eq!(changed["secrets"], json!([]));
    let changed = terminal.json(&[&update[..], &["--public"]].concat());
    assert_eq!(changed["jwks_uri"], Value::Null);
    let keys = terminal.call(&[&update[..], &["--jwks", &file]].concat());
    assert!(keys.failure().starts_with("--jwks: "), "{keys:?}");
}

async fn what_is_no_public_key_for_es256_is_not_registered(database: &Database) {
    let terminal = Terminal::of(database);
    let key = SigningKey::new("key-1");
    let with = |name: &str, value: Value| {
        let mut jwk = key.jwk();
        jwk[name] = value;
        json!({ "keys": [jwk] })
    };
    let without = |name: &str| {
        let mut jwk = key.jwk();
        jwk.as_object_mut().unwrap().remove(name);
        json!({ "keys": [jwk] })
    };
    let create = [
        "clients",
        "create",
        "--name",
        "App",
        "--auth-method",
        "private_key_jwt",
    ];
    let many: Vec<Value> = (0..21)
        .map(|number| SigningKey::new(&format!("key-{number}")).jwk())
        .collect();
    for set in [
        json!([]),
        json!({}),
        json!({ "keys": [] }),
        json!({ "keys": {} }),
        json!({ "keys": [1] }),
        json!({ "keys": many }),
        key.jwk(),
        json!({ "keys": [key.jwk(), key.jwk()] }),
        json!({ "keys": [key.jwk(), SigningKey::new("key-1").jwk()] }),
        json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0LW9mLXRoZS1jbGllbnQ" }] }),
        json!({ "keys": [{ "kty": "RSA", "n": "AQAB", "e": "AQAB" }] }),
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": "AAAA" }] }),
        with("d", json!("c2VjcmV0LW9mLXRoZS1jbGllbnQ")),
        with("d", Value::Null),
        with("crv", json!("P-384")),
        with("kty", json!("RSA")),
        with("x", json!("AAAA")),
        with("y", json!("")),
        with("alg", json!("HS256")),
        with("alg", json!("ES384")),
        with("use", json!("enc")),
        with("key_ops", json!(["sign"])),
        with("kid", json!("")),
        with("kid", json!("../key")),
        with("kid", json!("k".repeat(65))),
        with("kid", json!(1)),
        with("note", json!("n".repeat(70_000))),
        without("x"),
        without("kty"),
        without("crv"),
    ] {
        let file = terminal.file("jwks.json", &set.to_string());
        let refused = terminal.call(&[&create[..], &["--jwks", &file]].concat());
        let problem = refused.failure();
        assert!(problem.starts_with("--jwks"), "{set}: {problem}");
        // Not a word of what may be a private key.
        assert!(!problem.contains("c2VjcmV0"), "{problem}");
    }
    for text in ["", "nonsense", "{"] {
        let file = terminal.file("jwks.json", text);
        let refused = terminal.call(&[&create[..], &["--jwks", &file]].concat());
        assert!(refused.failure().contains("it is no JSON"));
    }
    for uri in [
        "http://app.example/jwks.json",
        "https://user:password@app.example/",
        "https://app.example/#keys",
        "file:///etc/passwd",
        "app.example",
        "https://",
        &format!("https://app.example/{}", "x".repeat(2048)),
    ] {
        let refused = terminal.call(&[&create[..], &["--jwks-uri", uri]].concat());
        assert!(refused.failure().starts_with("--jwks-uri: "), "{uri}");
    }
    assert_eq!(terminal.json(&["clients", "list"])["items"], json!([]));
    for good in [
        without("kid"),
        without("alg"),
        without("use"),
        with("note", json!("x")),
    ] {
        let file = terminal.file("jwks.json", &good.to_string());
        let created = terminal.json(&[&create[..], &["--jwks", &file]].concat());
        assert_eq!(created["jwks"], good);
    }
}

async fn a_client_has_two_secrets_and_no_third(database: &Database) {
    let terminal = Terminal::of(database);
    terminal.json(&["clients", "create", "--name", "App", "--client-id", "app"]);
    let second = terminal.json(&["clients", "add-secret", "app"]);
    assert!(
        second["client_secret"]
            .as_str()
            .unwrap()
            .starts_with("cs_cs_")
    );
    let third = terminal.call(&["clients", "add-secret", "app"]);
    assert!(third.failure().contains("remove one first"));

    let client = terminal.json(&["clients", "show", "app"]);
    let first = client["secrets"][0]["id"].as_str().unwrap();
    let removed = terminal.call(&["clients", "remove-secret", "app", first]);
    assert!(removed.output.contains("1 left"), "{removed:?}");
    let client = terminal.json(&["clients", "show", "app"]);
    assert_eq!(client["secrets"][0]["id"], second["id"]);
    assert_eq!(client["secrets"].as_array().unwrap().len(), 1);
}

async fn a_resource_is_created_listed_and_deleted(database: &Database) {
    let terminal = Terminal::of(database);
    let uri = "https://api.example.com";
    let create = [
        "resources",
        "create",
        "--resource",
        uri,
        "--name",
        "API",
        "--scope",
        "a b",
        "--scope-descriptions",
        r#"{"a":"See “it”"}"#,
    ];
    let created = terminal.json(&create);
    assert_eq!(created["scopes"], json!(["a", "b"]));
    assert_eq!(created["scope_descriptions"], json!({ "a": "See “it”" }));
    for (wrong, told) in [
        ("x", "invalid value"),
        (r#"{"a":7}"#, "must be an object of texts"),
    ] {
        let mut create = create;
        create[9] = wrong;
        let refused = terminal.call(&create);
        assert_eq!(refused.status, 2, "{refused:?}");
        assert!(refused.remarks.contains(told), "{refused:?}");
    }
    let listed = terminal.json(&["resources", "list"]);
    assert_eq!(listed["items"][0]["resource"], format!("{ISSUER}/admin"));
    let userinfo = format!("{ISSUER}/oauth2/userinfo");
    assert_eq!(listed["items"][1]["resource"], userinfo);
    assert_eq!(listed["items"][2], created);
    assert!(
        terminal
            .call(&create)
            .failure()
            .contains("registered already")
    );
    assert_eq!(terminal.call(&["resources", "delete", uri]).status, 0);
    assert_eq!(
        terminal.json(&["resources", "list"])["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

async fn a_user_is_created_shown_and_changed(database: &Database) {
    let terminal = Terminal::of(database);
    let none = terminal.call(&["users", "list"]);
    assert!(none.output.contains("There are no users"), "{none:?}");
    let created = terminal.json(&[
        "users",
        "create",
        "--username",
        "Ada@example.com",
        "--role",
        "author",
        "--role",
        "night editor",
        "--claims",
        r#"{"tier":"gold","n":1}"#,
        "--profile",
        r#"{"email":"ada@example.com","name":"Ada"}"#,
    ]);
    let id = created["id"].as_str().unwrap();
    assert_eq!(created["roles"], json!(["author", "night editor"]));
    assert_eq!(created["has_password"], false);
    for name in [id, "ada@EXAMPLE.com"] {
        assert_eq!(terminal.json(&["users", "show", name]), created);
    }
    let list = terminal.json(&["users", "list"]);
    assert_eq!(list, json!({ "items": [created], "next_cursor": null }));
    let text = terminal.call(&["users", "show", id]).output;
    for part in [
        "author, night editor",
        r#"{"n":1,"tier":"gold"}"#,
        r#"{"email":"ada@example.com","name":"Ada"}"#,
        "enabled",
        "none",
    ] {
        assert!(text.contains(part), "{text}");
    }

    let changed = terminal.json(&[
        "users",
        "update",
        id,
        "--username",
        "Ada",
        "--no-roles",
        "--claims",
        r#"{"n":null}"#,
        "--profile",
        r#"{"name":null,"gender":"female"}"#,
        "--revision",
        "1",
    ]);
    assert_eq!(changed["claims"], json!({ "tier": "gold" }));
    assert_eq!(
        changed["profile"],
        json!({ "email": "ada@example.com", "gender": "female" })
    );
    assert_eq!(
        (&changed["roles"], &changed["username"]),
        (&json!([]), &json!("Ada"))
    );
    let stale = terminal.call(&["users", "update", "ada", "--no-claims", "--revision", "1"]);
    assert!(stale.failure().contains("revision 2"));
    let taken = terminal.call(&["users", "create", "--username", "ADA"]);
    assert!(
        taken
            .failure()
            .contains("a user of this name exists already")
    );
    let wrong = [
        "users",
        "update",
        "ada",
        "--role",
        "",
        "--claims",
        r#"{"aud":"x"}"#,
        "--profile",
        r#"{"email":"x"}"#,
    ];
    let wrong = terminal.call(&wrong);
    assert!(
        wrong.failure().contains("--role (number 1): must be"),
        "{wrong:?}"
    );
    assert!(
        wrong.failure().contains("--claims: says something"),
        "{wrong:?}"
    );
    assert!(
        wrong.failure().contains("--profile: must be an e-mail"),
        "{wrong:?}"
    );
    let none = terminal.json(&["users", "update", "ada", "--no-profile"]);
    assert_eq!(none["profile"], json!({}));
}

async fn a_user_is_disabled_enabled_signed_out_and_deleted(database: &Database) {
    let terminal = Terminal::of(database);
    let created = terminal.json(&["users", "create", "--username", "Ada"]);
    let id = created["id"].as_str().unwrap();
    let off = terminal.call(&["users", "disable", "ada", "--reason", "left"]);
    assert!(off.output.contains("Ada is disabled"), "{off:?}");
    assert_eq!(terminal.json(&["users", "show", "ada"])["disabled"], true);
    assert_eq!(
        terminal.json(&["users", "enable", "ada"])["disabled"],
        false
    );
    let ended = terminal.call(&["revoke", "--subject", id]);
    assert!(ended.output.contains("Every session of user"), "{ended:?}");
    assert_eq!(terminal.json(&["revoke", "--subject", id])["subject"], id);
    assert_eq!(terminal.call(&["users", "delete", "ada"]).status, 0);
    let events = terminal.json(&["events", "--limit", "20"]);
    let types: Vec<&str> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    let expected = [
        "user.created",
        "user.disabled",
        "user.enabled",
        "user.sessions_ended",
        "user.sessions_ended",
        "user.deleted",
    ];
    assert_eq!(types, expected);
    assert_eq!(events["items"][1]["reason"], "left");
    for arguments in [
        &["users", "show", "ada"][..],
        &["users", "delete", id],
        &["users", "show", ""],
    ] {
        let gone = terminal.call(arguments);
        assert!(
            gone.failure()
                .contains("there is no user of this id or name")
        );
    }
    let nobody = terminal.call(&["revoke", "--subject", id]);
    assert!(nobody.failure().contains("there is no user of this id"));
}

async fn users_are_listed_in_parts(database: &Database) {
    let terminal = Terminal::of(database);
    for name in ["a", "b", "c"] {
        terminal.json(&["users", "create", "--username", name]);
    }
    let part = terminal.json(&["users", "list", "--limit", "2"]);
    let cursor = part["next_cursor"].as_str().unwrap();
    let rest = terminal.json(&["users", "list", "--cursor", cursor]);
    assert_eq!(rest["items"][0]["username"], "c");
    let text = terminal.call(&["users", "list", "--limit", "2"]).output;
    assert!(text.contains(&format!("--cursor {cursor}")), "{text}");
}

async fn a_password_comes_from_standard_input_or_is_drawn(database: &Database) {
    const PASSWORD: &str = "zwölf Boxkämpfer jagen Eva";
    let (terminal, context) = Terminal::started(database).await;
    let sign_in = context.sign_in().await.unwrap();
    let is_right = async |username: &str, password: &str| {
        sign_in.verify(username, password, None).await.is_ok()
    };
    let create = ["users", "create", "--username", "ada", "--password-stdin"];
    for (input, says) in [
        ("", "--password-stdin: there is no password in it"),
        ("\n", "--password-stdin: there is no password in it"),
        ("short\n", "password: must have at least 15 characters"),
        ("passwordpassword", "password: is easy to guess"),
        (
            &"ä".repeat(600),
            "--password-stdin: must have at most 1024 bytes",
        ),
    ] {
        let refused = terminal.call_with(&create, input);
        assert!(refused.failure().starts_with(says), "{refused:?}");
        assert!(input.trim().is_empty() || !refused.remarks.contains(input.trim()));
    }
    let created = terminal.call_with(&create, &format!("{PASSWORD}\r\nanother line\n"));
    assert_eq!(created.status, 0, "{created:?}");
    assert!(!created.output.contains(PASSWORD), "{created:?}");
    assert!(is_right("ada", PASSWORD).await);

    let set = ["users", "set-password", "ada"];
    let drawn = terminal.json(&[&set[..], &["--generate-password"]].concat());
    let drawn = drawn["password"].as_str().unwrap();
    assert!(is_right("ada", drawn).await);
    assert!(!is_right("ada", PASSWORD).await);
    let shown = terminal.call(&[&set[..], &["--generate-password"]].concat());
    assert!(shown.output.contains("not shown again"), "{shown:?}");
    assert!(!is_right("ada", drawn).await);
    let given = terminal.call_with(&[&set[..], &["--password-stdin"]].concat(), PASSWORD);
    assert!(
        given.output.contains("every session of the user is ended"),
        "{given:?}"
    );
    assert!(is_right("ada", PASSWORD).await);
    let disabled = terminal.call(&["users", "disable", "ada"]);
    assert_eq!(disabled.status, 0, "{disabled:?}");
    assert!(!is_right("ada", PASSWORD).await);
}

async fn a_change_is_recorded_with_user_and_reason(database: &Database) {
    let terminal = Terminal::of(database);
    terminal.json(&["clients", "create", "--name", "App", "--reason", "ticket 7"]);
    let events: Vec<(String, String)> = database.rows("select actor, reason from event").await;
    assert_eq!(events, [("cli:tester".to_owned(), "ticket 7".to_owned())]);
}

async fn migrating_twice_is_fine(database: &Database) {
    let terminal = Terminal::of(database);
    for _ in 0..2 {
        let answer = terminal.call(&["migrate"]);
        assert_eq!((answer.status, answer.remarks.as_str()), (0, ""));
        assert!(answer.output.contains("up to date"));
    }
}

async fn keys_are_listed_and_drawn(database: &Database) {
    let empty = Terminal::of(database).call(&["keys", "list"]);
    assert!(empty.output.contains("no keys yet"), "{empty:?}");
    let (terminal, _context) = Terminal::started(database).await;
    let keys = terminal.json(&["keys", "list"]);
    let shown = terminal.call(&["keys", "list"]).output;
    for (index, state) in ["active", "next"].into_iter().enumerate() {
        let key = &keys["items"][index];
        assert_eq!(key["state"], state);
        assert_eq!(key["jwk"]["kid"], key["kid"]);
        assert!(shown.contains(key["kid"].as_str().unwrap()), "{shown}");
    }
    assert!(
        shown.contains("▲ now") && shown.contains("signs in 30 days"),
        "{shown}"
    );
}

async fn keys_of_refresh_tokens_are_listed_and_rotated_apart(database: &Database) {
    let (terminal, _context) = Terminal::started(database).await;
    let listed = |key_use: &str| terminal.json(&["keys", "list", "--use", key_use]);
    let signing = listed("signing");
    assert_eq!(signing, terminal.json(&["keys", "list"]));
    let before = listed("refresh_mac");
    let shown = terminal.call(&["keys", "list", "--use", "refresh_mac"]);
    for (index, state) in ["active", "next"].into_iter().enumerate() {
        let key = &before["items"][index];
        assert_eq!(
            (&key["state"], &key["version"]),
            (&json!(state), &json!(index + 1))
        );
        assert!(key.get("jwk").is_none(), "{key}");
        assert!(
            shown.output.contains(key["kid"].as_str().unwrap()),
            "{shown:?}"
        );
    }
    let rotate = ["keys", "rotate", "--use", "refresh_mac"];
    assert!(terminal.call(&rotate).failure().contains("--emergency"));
    let change = terminal.json(&[&rotate[..], &["--emergency"]].concat());
    assert_eq!(change["verifiers_may_lag_until"], Value::Null);
    let after = listed("refresh_mac");
    assert_eq!(after["items"], change["keys"]);
    assert_eq!(after["items"][0]["state"], "revoked");
    assert_eq!(after["items"][1]["kid"], before["items"][1]["kid"]);
    assert_eq!(after["items"][1]["state"], "active");
    // By its kid alone, and what is shown then are the keys of its use.
    let next = after["items"][2]["kid"].as_str().unwrap();
    let revoked = terminal.call(&["keys", "revoke", next]);
    assert!(revoked.output.contains(next), "{revoked:?}");
    assert_eq!(listed("refresh_mac")["items"][2]["state"], "revoked");
    assert_eq!(listed("signing"), signing);
    let wrong = terminal.call(&["keys", "list", "--use", "mac"]);
    assert_eq!(wrong.status, 2);
    assert!(wrong.remarks.contains("refresh_mac"), "{wrong:?}");
}

async fn keys_for_rs256_are_there_where_the_settings_say_so(database: &Database) {
    let (terminal, _context) = Terminal::started(database).await;
    let list = ["keys", "list", "--use", "id_token_rs256"];
    assert_eq!(terminal.json(&list)["items"], json!([]));
    let empty = terminal.call(&list);
    assert!(empty.output.contains("keys.rs256_id_tokens"), "{empty:?}");
    let rotate = ["keys", "rotate", "--use", "id_token_rs256", "--emergency"];
    let refused = terminal.call(&rotate);
    assert!(
        refused.failure().contains("keys.rs256_id_tokens"),
        "{refused:?}"
    );
    let create = ["clients", "create", "--name", "Portal", "--public"];
    let wants = ["--id-token-signed-response-alg", "RS256"];
    let refused = terminal.call(&[&create[..], &wants].concat());
    let refused = refused.failure();
    assert!(
        refused.contains("--id-token-signed-response-alg")
            && refused.contains("keys.rs256_id_tokens"),
        "{refused}"
    );

    let terminal = terminal.with("COUNTERSIGN__KEYS__RS256_ID_TOKENS", "true");
    let none = terminal.call(&list);
    assert!(none.output.contains("no keys yet"), "{none:?}");
    let change = terminal.json(&rotate);
    assert_eq!(change["keys"], terminal.json(&list)["items"]);
    let kid = change["keys"][0]["kid"].as_str().unwrap();
    assert_eq!(change["keys"][0]["jwk"]["alg"], "RS256");
    let drawn = terminal.call(&list).output;
    assert!(drawn.contains(kid) && drawn.contains("▲ now"), "{drawn}");
    let report = terminal.json(&["doctor"]);
    assert_eq!(report["ok"], true, "{report}");
    assert_eq!(report["checks"][9]["name"], "RS256 keys");
    assert!(
        report["checks"][9]["detail"]
            .as_str()
            .unwrap()
            .contains(kid)
    );

    let client = terminal.json(&[&create[..], &wants].concat());
    let id = client["client_id"].as_str().unwrap();
    let shown = terminal.call(&["clients", "show", id]).output;
    let line = shown.lines().find(|line| line.contains("ID Tokens"));
    assert!(line.unwrap().ends_with("RS256"), "{shown}");
    let back = [
        "clients",
        "update",
        id,
        "--id-token-signed-response-alg",
        "ES256",
    ];
    assert_eq!(
        terminal.json(&back)["id_token_signed_response_alg"],
        "ES256"
    );
    let wrong = terminal.call(&[&create[..], &[wants[0], "HS256"]].concat());
    assert_eq!(wrong.status, 2);
}

async fn rotating_too_early_says_from_when(database: &Database) {
    let (terminal, _context) = Terminal::started(database).await;
    let answer = terminal.call(&["keys", "rotate"]);
    let sentence = answer.failure();
    assert!(
        sentence.starts_with("the next key may sign from 2"),
        "{sentence}"
    );
    assert!(
        sentence.contains(" UTC on") && sentence.contains("--emergency"),
        "{sentence}"
    );
}

async fn an_emergency_rotation_replaces_the_active_key(database: &Database) {
    let (terminal, _context) = Terminal::started(database).await;
    let before = terminal.json(&["keys", "list"]);
    let change = terminal.json(&["keys", "rotate", "--emergency", "--reason", "leaked"]);
    assert!(change["verifiers_may_lag_until"].is_i64());
    let after = terminal.json(&["keys", "list"]);
    let state = |index: usize| {
        (
            &after["items"][index]["kid"],
            after["items"][index]["state"].as_str(),
        )
    };
    assert_eq!(state(0), (&before["items"][0]["kid"], Some("revoked")));
    assert_eq!(state(1), (&before["items"][1]["kid"], Some("active")));
    assert_eq!(state(2).1, Some("next"));
    let next = state(2).0.as_str().unwrap();
    assert_eq!(terminal.call(&["keys", "revoke", next]).status, 0);
    assert_eq!(
        terminal.json(&["keys", "list"])["items"][2]["state"],
        "revoked"
    );
}

async fn master_keys_are_exchanged_step_by_step(database: &Database) {
    let (terminal, context) = Terminal::started(database).await;
    // A user's second factor is sealed, too.
    terminal.json(&["users", "create", "--username", "ada"]);
    let ada = context.users().find("ada").await.unwrap().unwrap();
    let (factors, secret) = (context.second_factors(), b"12345678901234567890");
    let code = totp::code(secret, context.clock.now());
    let cause = Cause::system();
    let enrolled = factors.enrol(&ada, (secret, &code), true, &cause);
    enrolled.await.unwrap();
    let masters = terminal.json(&["keys", "masters"]);
    let old = masters["items"][0]["id"].as_str().unwrap();
    let early = terminal.call(&["keys", "remove-master", old]);
    assert!(early.failure().contains("promote another first"));
    let added = terminal.json(&["keys", "add-master"]);
    let new = added["id"].as_str().unwrap();
    assert_eq!(terminal.call(&["keys", "promote-master", new]).status, 0);
    let sealed = terminal.call(&["keys", "remove-master", old]);
    assert!(sealed.failure().contains("countersign keys rewrap"));
    let rewrapped = terminal.call(&["keys", "rewrap"]).output;
    assert!(rewrapped.starts_with("5 keys"), "{rewrapped}");
    assert_eq!(terminal.call(&["keys", "remove-master", old]).status, 0);
    let masters = terminal.json(&["keys", "masters"]);
    let expected = json!([{ "id": new, "primary": true, "here": true, "seals": 5 }]);
    assert_eq!(masters["items"], expected);
    // It still opens, and its code was taken already.
    let verified = factors.verify(&ada, &code, None, &cause).await;
    assert!(
        matches!(verified, Err(FactorRefused::Wrong)),
        "{verified:?}"
    );
    let next = Timestamp::from_seconds(context.clock.now().seconds() + 30);
    let code = totp::code(secret, next);
    assert!(factors.verify(&ada, &code, None, &cause).await.is_ok());

    // An operator helps who has lost it.
    terminal.json(&["users", "update", "ada", "--second-factor-required"]);
    let shown = terminal.call(&["users", "show", "ada"]).output;
    let line = shown
        .lines()
        .find(|line| line.starts_with("second factor required"));
    assert!(line.unwrap().ends_with("yes"), "{shown}");
    let reset = terminal.call(&["users", "reset-factors", "ada"]);
    assert!(
        reset.output.contains("no second factor any more"),
        "{reset:?}"
    );
    assert!(!factors.of(ada.id).await.unwrap().is_enrolled());
    let events = terminal.json(&["events", "--type", "user.factors_reset"]);
    assert_eq!(events["items"][0]["before"]["totp"], true);
}

async fn a_valid_token_is_told_from_every_other(database: &Database) {
    let (terminal, context) = Terminal::started(database).await;
    let ring = context.keys().ring().await.unwrap();
    let now = context.clock.now();
    let token = |expires_in: i64, client: &str| {
        let seconds = |offset: i64| u64::try_from(now.seconds() + offset).unwrap();
        let claims = AccessTokenClaims {
            iss: ISSUER.into(),
            sub: client.into(),
            aud: Audience::One("urn:api".into()),
            client_id: client.into(),
            iat: seconds(-600),
            exp: seconds(expires_in),
            jti: "1".into(),
            scope: None,
            auth_time: None,
            acr: None,
            amr: None,
            sid: None,
        };
        access_token::sign(ring.active(now).unwrap(), &claims).unwrap_or_else(|_| panic!("signing"))
    };
    let valid = token(600, "app");
    let answer = terminal.call(&["token", "verify", "--audience", "urn:api", &valid]);
    assert_eq!(
        (answer.status, answer.output.lines().last()),
        (0, Some("valid")),
        "{answer:?}"
    );

    let response = json!({ "access_token": &valid, "token_type": "Bearer" }).to_string();
    for arguments in [&["token", "verify", "-"][..], &["token", "verify"]] {
        let answer = terminal.call_with(arguments, &response);
        assert_eq!(answer.status, 0, "{answer:?}");
    }

    let (signed, signature) = valid.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let tampered = format!("{signed}.{first}{}", &signature[1..]);
    for (wrong, told) in [
        (token(-300, "app"), "✗  exp        the token has expired"),
        (tampered, "✗  signature  the signature does not match"),
        ("nonsense".to_owned(), "✗  token"),
    ] {
        let answer = terminal.call_with(&["token", "verify", "-"], &wrong);
        assert_eq!(answer.status, 1);
        assert!(answer.output.contains(told), "{answer:?}");
        assert!(
            answer
                .output
                .lines()
                .last()
                .unwrap()
                .starts_with("not valid")
        );
    }
    let other = terminal.call(&[
        "token",
        "verify",
        "--audience",
        "urn:other",
        "--json",
        &valid,
    ]);
    assert_eq!(other.status, 1);
    let other: Value = serde_json::from_str(&other.output).unwrap();
    assert_eq!(other["valid"], false);

    let hostile = terminal.call(&["token", "verify", &token(600, "a\u{1b}[2J\u{202e}\nb")]);
    let is_text =
        |character: char| character == '\n' || !(character.is_control() || character == '\u{202e}');
    assert!(hostile.output.chars().all(is_text), "{hostile:?}");
}

async fn the_doctor_finds_nothing_wrong_after_a_start(database: &Database) {
    let (terminal, _context) = Terminal::started(database).await;
    let report = terminal.json(&["doctor"]);
    assert_eq!(report["ok"], true, "{report}");
    let names: Vec<&str> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    let expected = [
        "settings",
        "permissions",
        "master keys",
        "database",
        "schema",
        "clock",
        "needed master keys",
        "key schedule",
        "refresh-MAC keys",
    ];
    assert_eq!(names, expected);
}

async fn a_key_that_was_altered_is_found_and_replaced_by_revoking_it(database: &Database) {
    let (terminal, _context) = Terminal::started(database).await;
    for (key_use, name) in [
        ("signing", "key schedule"),
        ("refresh_mac", "refresh-MAC keys"),
    ] {
        let keys = terminal.json(&["keys", "list", "--use", key_use]);
        let kid = keys["items"][0]["kid"].as_str().unwrap();
        let alter = format!("update sealed_key set version = 77 where kid = '{kid}'");
        database.execute(&alter).await;
        let examined = terminal.call(&["doctor", "--json"]);
        assert_eq!(examined.status, 1);
        let report: Value = serde_json::from_str(&examined.output).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let wrong: Vec<_> = checks.iter().filter(|check| check["ok"] == false).collect();
        assert_eq!(wrong.len(), 1, "{report}");
        assert_eq!(wrong[0]["name"], name);
        let detail = wrong[0]["detail"].as_str().unwrap();
        assert!(
            detail.contains(kid) && detail.contains("altered"),
            "{detail}"
        );

        assert_eq!(terminal.call(&["keys", "revoke", kid]).status, 0);
        let report = terminal.json(&["doctor"]);
        assert_eq!(report["ok"], true, "{report}");
    }
}

async fn an_older_schema_is_reported_and_changed_by_migrating_only(database: &Database) {
    let (terminal, context) = Terminal::started(database).await;
    context.close().await;
    let up_to_date = terminal.json(&["doctor"]);
    let version = Schema::default().version();
    let detail = format!("up to date (version {version})");
    assert_eq!(up_to_date["checks"][4]["detail"], detail);

    // As the version before left it.
    let forget = format!("delete from _sqlx_migrations where version = {version}");
    database.execute(&forget).await;
    let before: Vec<(i64,)> = database
        .rows("select max(version) from _sqlx_migrations")
        .await;
    let list = terminal.call(&["clients", "list"]);
    let sentence = list.failure();
    let versions = format!(
        "(version {}) than this binary needs (version {version})",
        before[0].0
    );
    assert!(sentence.contains(&versions), "{sentence}");
    assert!(sentence.ends_with("run countersign migrate"), "{sentence}");
    let report = terminal.call(&["doctor"]);
    assert_eq!(report.status, 1);
    assert!(report.output.contains("✗  schema"), "{report:?}");
    assert!(
        report.output.contains("run countersign migrate"),
        "{report:?}"
    );
}

async fn events_are_shown_as_asked_for(database: &Database) {
    let terminal = Terminal::of(database);
    assert!(terminal.call(&["events"]).output.contains("no such events"));
    for id in ["a", "b"] {
        terminal.json(&[
            "clients",
            "create",
            "--name",
            id,
            "--client-id",
            id,
            "--reason",
            "ticket",
        ]);
        terminal.json(&["clients", "update", id, "--disable"]);
    }
    let shown = |arguments: &[&str]| -> Vec<(String, String)> {
        let events = terminal.json(&[&["events"], arguments].concat());
        assert_eq!(events["next_cursor"], Value::Null);
        let member = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
        let items = events["items"].as_array().unwrap().iter();
        items
            .map(|event| (member(event, "type"), member(event, "target")))
            .collect()
    };
    let all = shown(&[]);
    let event = |kind: &str, target: &str| (kind.to_owned(), target.to_owned());
    assert_eq!(all[0], event("client.created", "a"));
    assert_eq!(all.len(), 4);
    // The latest, in the order in which they happened.
    assert_eq!(shown(&["--limit", "2"]), all[2..]);
    assert_eq!(shown(&["--subject", "b"]), all[2..]);
    let created = [all[0].clone(), all[2].clone()];
    assert_eq!(shown(&["--type", "client.created"]), created);
    let first = terminal.json(&["events"])["items"][0]["id"].clone();
    let first = first.as_str().unwrap();
    assert_eq!(shown(&["--after", first, "--limit", "1"]), all[1..2]);

    let table = terminal.call(&["events"]);
    assert_eq!((table.status, table.output.lines().count()), (0, 5));
    for word in ["client.created", "cli:tester", "ticket", first] {
        assert!(table.output.contains(word), "{word}: {table:?}");
    }
}

async fn events_are_followed_until_interrupted(database: &Database) {
    let terminal = Terminal::of(database);
    terminal.json(&["clients", "create", "--name", "a", "--client-id", "a"]);
    let mut child = terminal
        .command(&["events", "--follow", "--json"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["target"], "a");
    for id in ["b", "c"] {
        terminal.json(&["clients", "create", "--name", id, "--client-id", id]);
        let event = next();
        assert_eq!(
            (&event["type"], &event["target"]),
            (&json!("client.created"), &json!(id))
        );
    }
    let interrupt = format!("kill -INT {}", child.id());
    assert!(
        Command::new("sh")
            .args(["-c", &interrupt])
            .status()
            .unwrap()
            .success()
    );
    let done = child.wait_with_output().unwrap();
    assert_eq!(
        (done.status.code(), done.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}

async fn tokens_are_revoked_one_by_one_or_by_client(database: &Database) {
    let terminal = Terminal::of(database);
    terminal.json(&["clients", "create", "--name", "a", "--client-id", "a"]);
    let expires_at = (SystemClock::new().now().seconds() + 600).to_string();
    let by_client = terminal.call(&["revoke", "--client", "a", "--reason", "leaked"]);
    assert_eq!((by_client.status, by_client.remarks.as_str()), (0, ""));
    assert!(
        by_client
            .output
            .contains("Every session at client a is ended"),
        "{by_client:?}"
    );
    let one = terminal.json(&["revoke", "--jti", "token-1", "--expires-at", &expires_at]);
    assert_eq!(one["jti"], "token-1");
    let events = terminal.json(&["events", "--limit", "2"]);
    assert_eq!(events["items"][0]["type"], "client.tokens_revoked");
    assert_eq!(events["items"][0]["reason"], "leaked");
    assert_eq!(events["items"][1]["type"], "token.revoked");

    let nobody = terminal.call(&["revoke", "--client", "nobody"]);
    assert!(nobody.failure().contains("there is no client of this id"));
    let past = terminal.call(&["revoke", "--jti", "token-1", "--expires-at", "1"]);
    assert!(past.failure().starts_with("--expires-at: "), "{past:?}");

    // An id may begin with a hyphen.
    terminal.json(&["revoke", "--jti", "-token", "--expires-at", &expires_at]);
    let kid = format!("-{}", "k".repeat(42));
    for revoke in [
        ["keys", "revoke", &kid, "--reason", "leaked"],
        ["keys", "revoke", "--reason", "leaked", &kid],
    ] {
        let refused = terminal.call(&revoke);
        assert_eq!(refused.status, 1, "{refused:?}");
    }
}

/// Signs a user in at a client, who both are there, with an agent that plays tricks on terminals.
async fn opened(context: &Context, client: &str, user: &str) -> FamilyId {
    let now = context.clock.now();
    let client = ClientId::parse(client).unwrap();
    let client = context.store.client(&client).await.unwrap().unwrap();
    let name = Username::parse(user).unwrap();
    let user = context
        .store
        .user_by_name(name.key())
        .await
        .unwrap()
        .unwrap();
    let code = sign_in::code_for(sign_in::grant(&client, &user, now), now);
    let text = sign_in::put_code(&*context.store, &code).await;
    let redemption = Redemption {
        hash: Ticket::hash_of(TicketKind::AuthorizationCode, &text).unwrap(),
        client_id: client.client_id,
        code_challenge: s256(sign_in::VERIFIER),
        redirect_uri: None,
        dpop_jkt: None,
        scope: None,
        resources: Vec::new(),
        family_id: FamilyId::from_uuid(context.entropy.uuid_v7(now).unwrap()),
        for_session: false,
        lifetime: Duration::from_hours(24),
        terms: Terms {
            mac_version: 1,
            idle: Duration::from_hours(1),
            tokens_die_at: now,
        },
        cause: Cause {
            address: Some("192.0.2.7".to_owned()),
            user_agent: Some("App/1 \u{202e}".to_owned()),
            ..Cause::default()
        },
    };
    match context.store.redeem_code(&redemption, now).await.unwrap() {
        Redeemed::Opened { family, .. } => family.id,
        refused @ Redeemed::Refused(_) => panic!("{refused:?}"),
    }
}

/// Clients `a` and `b` and users `ada` and `bob`; a session of each user at each client, in order.
async fn sessions(database: &Database) -> (Terminal, Context, Vec<String>) {
    let (terminal, context) = Terminal::started(database).await;
    let mut ids = Vec::new();
    for id in ["a", "b"] {
        terminal.json(&["clients", "create", "--name", id, "--client-id", id]);
    }
    for user in ["ada", "bob"] {
        terminal.json(&["users", "create", "--username", user]);
        for client in ["a", "b"] {
            ids.push(opened(&context, client, user).await.to_string());
        }
    }
    (terminal, context, ids)
}

async fn what_a_user_allows_is_shown_and_taken_back(database: &Database) {
    let (terminal, context, _) = sessions(database).await;
    let none = terminal.call(&["users", "consents", "ada"]);
    assert!(
        none.output.contains("allows no client anything"),
        "{none:?}"
    );
    let now = context.clock.now();
    let client = ClientId::parse("a").unwrap();
    let client = context.store.client(&client).await.unwrap().unwrap();
    let ada = context.users().find("ada").await.unwrap().unwrap();
    let consent = sign_in::consent(&sign_in::grant(&client, &ada, now), now);
    context
        .store
        .apply(&consent, &Cause::system(), now)
        .await
        .unwrap();
    let listed = terminal.json(&["users", "consents", "ada"]);
    assert_eq!(listed["items"][0]["client_id"], "a");
    assert_eq!(listed["items"][0]["permissions"][0]["scope"], "read");
    let table = terminal.call(&["users", "consents", "ada"]).output;
    assert!(table.starts_with("CLIENT"), "{table}");
    for wrong in ["b", "nobody", " "] {
        let refused = terminal.call(&["users", "withdraw-consent", "ada", wrong]);
        let said = refused.failure();
        assert!(said.contains("see: countersign"), "{said}");
    }
    let taken = [
        "users",
        "withdraw-consent",
        "ada",
        "a",
        "--reason",
        "asked to",
    ];
    let taken = terminal.call(&taken);
    assert!(taken.output.contains("is taken back"), "{taken:?}");
    let ended = terminal.json(&["families", "list", "--state", "ended"]);
    assert_eq!(ended["items"].as_array().unwrap().len(), 1);
    assert_eq!(ended["items"][0]["end_reason"], "consent_withdrawn");
    let events = terminal.json(&["events", "--type", "consent.withdrawn"]);
    assert_eq!(events["items"][0]["reason"], "asked to");
}

async fn sessions_are_listed_and_shown(database: &Database) {
    let (terminal, _context, ids) = sessions(database).await;
    let found = |arguments: &[&str]| -> Vec<usize> {
        let listed = terminal.json(&[&["families", "list"], arguments].concat());
        assert_eq!(listed["next_cursor"], Value::Null);
        let number = |item: &Value| ids.iter().position(|id| item["id"] == *id).unwrap();
        listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(number)
            .collect()
    };
    // Ids of one millisecond are in no particular order.
    let sorted = |mut numbers: Vec<usize>| {
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(sorted(found(&[])), [0, 1, 2, 3]);
    assert_eq!(found(&["--limit", "1"]).len(), 1);
    assert_eq!(sorted(found(&["--subject", "Ada"])), [0, 1]);
    assert_eq!(sorted(found(&["--client", "b"])), [1, 3]);
    assert_eq!(found(&["--client", "b", "--subject", "bob"]), [3]);
    terminal.json(&["families", "revoke", &ids[2]]);
    assert_eq!(found(&["--state", "ended"]), [2]);
    assert_eq!(sorted(found(&["--state", "active"])), [0, 1, 3]);
    let ada = terminal.json(&["users", "show", "ada"])["id"].clone();
    assert_eq!(sorted(found(&["--subject", ada.as_str().unwrap()])), [0, 1]);

    let table = terminal
        .call(&["families", "list", "--subject", "bob"])
        .output;
    assert!(table.starts_with("STATE"), "{table}");
    assert!(
        table.contains("revoked_by_operator") && table.contains("active"),
        "{table}"
    );
    let none = terminal.call(&["families", "list", "--state", "suspended"]);
    assert_eq!(none.output.trim_end(), "There are no such sessions.");
    let nobody = terminal.call(&["families", "list", "--subject", "eve"]);
    assert!(nobody.failure().contains("no user eve"), "{nobody:?}");

    let shown = terminal.json(&["families", "show", &ids[0]]);
    assert_eq!(shown["username"], "ada");
    assert_eq!(shown["story"][0]["what"], "opened");
    let shown = terminal.call(&["families", "show", &ids[0]]).output;
    assert!(
        shown.contains("192.0.2.7") && shown.contains("┌"),
        "{shown}"
    );
    assert!(!shown.contains('\u{202e}'), "{shown}");
    let unknown = "019f0000-0000-7000-8000-000000000000";
    let unknown = terminal.call(&["families", "show", unknown]);
    assert!(
        unknown
            .failure()
            .ends_with("see: countersign families list")
    );
}

async fn why_a_session_ended_is_told_and_drawn(database: &Database) {
    let (terminal, context, ids) = sessions(database).await;
    let active = terminal.call(&["families", "why", &ids[0]]).output;
    let lines: Vec<&str> = active.lines().collect();
    assert!(
        lines[0].ends_with("of ada at client a is active."),
        "{active}"
    );
    assert!(lines[1].contains("UTC  ┌  The user signed in at client a from 192.0.2.7"));
    assert!(lines[2].starts_with("now") && lines[2].contains("▼  It ends at"));

    let ada = terminal.json(&["users", "show", "ada"])["id"].clone();
    let ada = ada.as_str().unwrap();
    let end = ["revoke", "--subject", ada, "--reason", "left the company"];
    assert_eq!(terminal.call(&end).status, 0);
    for who in ["ada", "ADA", ada] {
        let told = terminal.call(&["families", "why", who]);
        assert_eq!((told.status, told.remarks.as_str()), (0, ""));
        let text = "└  Every session of the user was ended by tester on the command line. Reason: “left the \
             company”.";
        assert_eq!(told.output.matches(text).count(), 2, "{told:?}");
        assert_eq!(told.output.matches("(user_sessions_ended).").count(), 2);
    }
    let told = terminal.json(&["families", "why", "ada"]);
    assert_eq!(told["items"].as_array().unwrap().len(), 2);
    let one = terminal.json(&["families", "why", &ids[1]]);
    assert_eq!(one["end_reason"], "user_sessions_ended");
    // What is left of a removed user is found by its id.
    assert_eq!(terminal.call(&["users", "delete", "ada"]).status, 0);
    let told = terminal.call(&["families", "why", ada]);
    assert!(
        told.output.contains(&format!("removed user {ada}")),
        "{told:?}"
    );
    let gone = terminal.call(&["families", "why", "ada"]);
    assert!(
        gone.failure().contains("no session and no user ada"),
        "{gone:?}"
    );
    // No more than one can read.
    for _ in 0..5 {
        opened(&context, "a", "bob").await;
    }
    let told = terminal.call(&["families", "why", "bob"]).output;
    assert_eq!(told.matches("Session ").count(), 5, "{told}");
    assert!(told.contains("There are more; see: countersign families list --subject"));
    terminal.json(&["users", "create", "--username", "eve"]);
    let told = terminal.call(&["families", "why", "eve"]);
    assert!(
        told.output.starts_with("The user has no session"),
        "{told:?}"
    );
}

async fn a_session_is_ended_by_its_id(database: &Database) {
    let (terminal, _context, ids) = sessions(database).await;
    let ended = terminal.call(&["families", "revoke", &ids[0], "--reason", "stolen"]);
    assert_eq!((ended.status, ended.remarks.as_str()), (0, ""));
    let text = "The session was ended by tester on the command line. Reason: “stolen”.";
    assert!(ended.output.contains(text), "{ended:?}");
    // Again, nothing happens.
    let again = terminal.json(&["families", "revoke", &ids[0]]);
    assert_eq!(again["story"][1]["text"], text);
    let ended = terminal.call(&["revoke", "--family", &ids[1]]);
    assert!(
        ended
            .output
            .contains("is ended, and every access token of it")
    );
    assert_eq!(
        terminal.json(&["revoke", "--family", &ids[2]])["family_id"],
        ids[2]
    );
    let states = |id: &String| terminal.json(&["families", "show", id])["state"].clone();
    let states: Vec<Value> = ids.iter().map(states).collect();
    assert_eq!(states, ["ended", "ended", "ended", "active"]);
    let events = terminal.json(&["events", "--type", "family.revoked"]);
    assert_eq!(events["items"].as_array().unwrap().len(), 3);
    let unknown = "019f0000-0000-7000-8000-000000000000";
    for arguments in [
        &["revoke", "--family", unknown],
        &["families", "revoke", unknown][..],
    ] {
        let refused = terminal.call(arguments);
        assert!(refused.failure().contains("there is no family of this id"));
    }
}

async fn a_restored_database_gets_a_new_epoch(database: &Database) {
    let (terminal, context) = Terminal::started(database).await;
    terminal.json(&["clients", "create", "--name", "a", "--client-id", "a"]);
    let position = async || context.store.snapshot().await.unwrap().position;
    let before = position().await;
    let kept = terminal.call(&["restored", "--keep-tokens"]);
    assert!(
        kept.output.contains("Tokens and sessions are left alone"),
        "{kept:?}"
    );
    let between = position().await;
    assert_ne!(between.epoch, before.epoch);
    let restored = terminal.call(&["restored", "--reason", "disk failed"]);
    assert_eq!((restored.status, restored.remarks.as_str()), (0, ""));
    assert!(
        restored.output.contains("every session is ended"),
        "{restored:?}"
    );
    assert_ne!(position().await.epoch, between.epoch);
    let event = &terminal.json(&["events", "--limit", "1"])["items"][0];
    assert_eq!(
        (&event["type"], &event["reason"]),
        (&json!("database.restored"), &json!("disk failed"))
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    let terminal = Terminal::new();
    for arguments in [
        &["nonsense"][..],
        &["clients", "create"],
        &["clients", "create", "--name", "a", "--operator"],
        &["clients", "create", "--name", "a", "--auth-method", "guess"],
        &["clients", "show", "a b"],
        &["clients", "update", "app"],
        &["users", "create"],
        &["users", "create", "--username", "a", "--password", "b"],
        &["users", "create", "--username", "a", "--claims", "[]"],
        &[
            "users",
            "create",
            "--username",
            "a",
            "--claims",
            r#"{"a":1,"a":2}"#,
        ],
        &["users", "update", "a"],
        &["users", "set-password", "a"],
        &[
            "users",
            "set-password",
            "a",
            "--password-stdin",
            "--generate-password",
        ],
        &["revoke", "--subject", "ada"],
        &[
            "revoke",
            "--subject",
            "019f0000-0000-7000-8000-000000000000",
            "--client",
            "a",
        ],
        &["revoke", "--family", "ada"],
        &["families"],
        &["families", "list", "--state", "dead"],
        &["families", "list", "--limit", "0"],
        &["families", "list", "--client", "a b"],
        &["families", "show", "ada"],
        &["families", "revoke", "ada"],
        &["families", "why"],
        &["keys", "rotate", "--discard-next"],
        &["keys", "revoke", "short"],
        &["doctor", "--set", "issuer"],
        &["revoke"],
        &["revoke", "--jti", "a"],
        &["revoke", "--client", "a", "--jti", "a", "--expires-at", "1"],
        &["events", "--limit", "0"],
        &["events", "--type", "client.eaten"],
        &["completions", "cmd"],
        &[
            "--set",
            "issuer=http://a",
            "doctor",
            "--set",
            "issuer=http://b",
        ],
    ] {
        assert_eq!(terminal.call(arguments).status, 2, "{arguments:?}");
    }
    assert_eq!(terminal.call(&["--help"]).status, 0);
    assert_eq!(terminal.call(&["--version"]).status, 0);
}

#[test]
fn completions_are_read_by_their_shell() {
    let terminal = Terminal::new();
    // Of these shells only bash is on every machine; the others' scripts are told by their form.
    for (shell, begins, checker) in [
        ("bash", "_countersign() {", Some("bash")),
        ("fish", "# Print an optspec", None),
        ("zsh", "#compdef countersign", None),
    ] {
        let answer = terminal.call(&["completions", shell]);
        assert_eq!((answer.status, answer.remarks.as_str()), (0, ""));
        assert!(answer.output.starts_with(begins), "{}", answer.output);
        for command in ["rotate", "add-secret", "doctor", "completions"] {
            assert!(answer.output.contains(command), "{shell}: {command}");
        }
        if let Some(checker) = checker {
            let script = terminal.path().join("script");
            fs::write(&script, &answer.output).unwrap();
            let read = Command::new(checker).arg("-n").arg(&script).output();
            let read = read.unwrap();
            assert!(read.status.success() && read.stderr.is_empty(), "{read:?}");
            // What it offers after `countersign keys ro`.
            let offer = format!(
                "source {}; COMP_WORDS=(countersign keys ro); COMP_CWORD=2; \
                 _countersign countersign ro keys; echo \"${{COMPREPLY[@]}}\"",
                script.display()
            );
            let offer = Command::new(checker).args(["-c", &offer]).output().unwrap();
            assert_eq!(String::from_utf8(offer.stdout).unwrap(), "rotate\n");
        }
    }
    assert!(!terminal.path().join("data").exists());
}

#[test]
fn a_wrong_setting_is_named_in_one_sentence() {
    let terminal = Terminal::new();
    let told = |setting: &str| {
        terminal
            .call(&["clients", "list", "--set", setting])
            .failure()
            .to_owned()
    };
    assert!(told("public.port=1").contains("there is no setting public.port"));
    assert!(told("public.listen=here").contains("setting public.listen"));
    assert!(told("public.listen=0.0.0.0:80").contains("environment = \"production\""));
    assert!(told("environment=production").contains("setting issuer is missing"));
    assert!(told("database.url=mysql://a").contains("setting database.url"));
    let missing = terminal.call(&["clients", "list", "--config", "none.toml"]);
    assert!(missing.failure().contains("none.toml"));
}

#[test]
fn a_line_of_the_settings_file_is_not_repeated_in_an_error() {
    let terminal = Terminal::new();
    let text = "[database]\nurl = \"postgres://me:hunter2@localhost\" nonsense\n";
    fs::write(terminal.path().join("broken.toml"), text).unwrap();
    let answer = terminal.call(&["clients", "list", "--config", "broken.toml"]);
    let sentence = answer.failure();
    assert!(
        sentence.contains("line 2") && sentence.contains("broken.toml"),
        "{sentence}"
    );
    assert!(!sentence.contains("hunter2"), "{sentence}");
}

#[test]
fn a_database_that_is_down_is_told_without_its_password() {
    let terminal = Terminal::new().with("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:1/none");
    let answer = terminal.call(&["clients", "list"]);
    let sentence = answer.failure();
    assert!(sentence.contains("database.url"), "{sentence}");
    assert!(sentence.contains("cannot be reached"), "{sentence}");
    assert!(!sentence.contains("hunter2"), "{sentence}");
}

#[test]
fn fields_are_named_by_their_flags() {
    let terminal = Terminal::new();
    let resource = ["--resource", "urn:known", "--resource", "urn:unknown"];
    let create = ["clients", "create", "--name", "App", "--scope", "a  b"];
    terminal.resource("urn:known", &[]);
    let answer = terminal.call(&[&create[..], &resource].concat());
    let sentence = answer.failure();
    assert!(sentence.contains("--scope: "), "{sentence}");
    assert!(sentence.contains("--resource (number 2): "), "{sentence}");
}

#[test]
fn scope_tokens_that_nobody_knows_are_pointed_out() {
    let terminal = Terminal::new();
    let create = [
        "clients",
        "create",
        "--operator",
        "--name",
        "ops",
        "--scope",
        "key:read",
    ];
    let answer = terminal.call(&create);
    assert_eq!(answer.status, 0);
    assert!(answer.remarks.contains("key:read"), "{answer:?}");
}

#[test]
fn health_says_when_nothing_answers() {
    let terminal = Terminal::new();
    let answer = terminal.call(&["health", "--set", "admin.listen=127.0.0.1:1"]);
    let sentence = answer.failure();
    assert!(
        sentence.starts_with("nothing answers at http://127.0.0.1:1/health/ready"),
        "{sentence}"
    );
    assert!(!terminal.path().join("data").exists());
}

#[test]
fn a_refusal_of_the_token_endpoint_is_no_token() {
    let (refusal, terminal) = (r#"{"error": "invalid_client"}"#, Terminal::new());
    let answer = terminal.call_with(&["token", "verify", "-"], refusal);
    assert!(answer.failure().contains("invalid_client"));
    let long = "a".repeat(65 * 1024);
    let answer = terminal.call_with(&["token", "verify", "-"], &long);
    assert!(answer.failure().contains("longer than 65536 bytes"));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let terminal = Terminal::new();
    let mut child = terminal.command(&["resources", "list"]).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(
        (done.status.code(), done.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}

#[test]
fn init_prepares_production_and_changes_nothing_when_run_again() {
    let terminal = Terminal::new();
    let init = ["init", "--issuer", "https://auth.example.com"];
    let first = terminal.call(&init);
    assert_eq!(first.status, 0, "{first:?}");
    let file = terminal.path().join("countersign.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let keys = || fs::read_dir(terminal.path().join("keys")).unwrap().count();
    assert_eq!(keys(), 1);

    let second = terminal.call(&["init", "--issuer", "https://other.example.com"]);
    assert_eq!(second.status, 0, "{second:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    assert_eq!(keys(), 1);

    let report = terminal.json(&["doctor", "--config", "countersign.toml"]);
    assert_eq!(
        report["checks"][0]["detail"],
        "production, issuer https://auth.example.com"
    );
}

#[test]
fn what_init_leaves_as_a_comment_is_a_setting() {
    let terminal = Terminal::new();
    terminal.call(&["init", "--issuer", "https://auth.example.com"]);
    let text = fs::read_to_string(terminal.path().join("countersign.toml")).unwrap();
    // A comment has a space behind its sign, a setting to be uncommented has none.
    let is_setting = |line: &&str| line.starts_with('#') && line.chars().nth(1) != Some(' ');
    assert_eq!(text.lines().filter(is_setting).count(), 4, "{text}");
    let mut with_all = text;
    for name in ["tls", "retention", "otlp"] {
        with_all = with_all.replace(&format!("\n#{name}"), &format!("\n{name}"));
    }
    assert!(
        !with_all.lines().any(|line| is_setting(&line)),
        "{with_all}"
    );
    let config = Config::parse(&with_all);
    assert!(config.is_ok(), "{config:?}");
}

#[test]
fn the_doctor_finds_files_that_others_may_read() {
    let terminal = Terminal::new();
    assert_eq!(terminal.call(&["clients", "list"]).status, 0);
    let permissions = |arguments: &[&str]| {
        let report = terminal.call(&[&["doctor", "--json"], arguments].concat());
        let report: Value = serde_json::from_str(&report.output).unwrap();
        let check = &report["checks"][1];
        assert_eq!(check["name"], "permissions");
        (check["ok"].clone(), check["detail"].to_string())
    };
    assert_eq!(permissions(&[]).0, true);
    let open = |name: &str| {
        let path = terminal.path().join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    };
    open("data/countersign.db");
    let (ok, detail) = permissions(&[]);
    assert_eq!(ok, false);
    assert!(detail.contains("chmod 600 data/countersign.db"), "{detail}");

    // A certificate that the service would not start with.
    let files = ["certificate", "key"].map(|name| format!("public.tls.{name}=missing.pem"));
    let report = terminal.call(&["doctor", "--set", &files[0], "--set", &files[1]]);
    assert!(report.output.contains("✗  certificate"), "{report:?}");
    assert!(
        report.output.contains("cannot read missing.pem"),
        "{report:?}"
    );

    for (url, secret) in [
        ("postgres://me:hunter2@127.0.0.1:1/none", true),
        ("postgres://me@127.0.0.1:1/none", false),
    ] {
        let text = format!("database.url = \"{url}\"\n");
        fs::write(terminal.path().join("some.toml"), text).unwrap();
        open("some.toml");
        let (ok, detail) = permissions(&["--config", "some.toml"]);
        assert_eq!(ok, !secret, "{detail}");
        assert!(!detail.contains("hunter2"), "{detail}");
    }
}

#[test]
fn init_without_an_issuer_says_what_is_left_to_do() {
    let terminal = Terminal::new();
    for _ in 0..2 {
        let answer = terminal.call(&["init"]);
        assert_eq!(answer.status, 0, "{answer:?}");
        assert!(
            answer.output.contains("1. Set issuer in countersign.toml"),
            "{answer:?}"
        );
    }
}

#[test]
fn init_writes_nothing_for_an_issuer_that_will_not_do() {
    let terminal = Terminal::new();
    let answer = terminal.call(&["init", "--issuer", "http://auth.example.com"]);
    assert!(
        answer
            .failure()
            .contains("setting issuer must begin with https://")
    );
    assert_eq!(fs::read_dir(terminal.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_master_key_is_made_beside_a_database_that_needs_another() {
    let database = Database::create(Engine::Sqlite).await;
    let (terminal, context) = Terminal::started(&database).await;
    context.close().await;
    let away = terminal.with("COUNTERSIGN__KEYS__DIRECTORY", "elsewhere");
    let answer = away.call(&["init", "--issuer", "https://auth.example.com"]);
    assert!(answer.failure().contains("the database needs master key"));
    assert!(!away.path().join("elsewhere").exists());
    let report = away.call(&["doctor"]);
    assert_eq!(report.status, 1);
    assert!(
        report
            .output
            .contains("✗  needed master keys  the database needs master key"),
        "{report:?}"
    );
}

#[test]
fn the_doctor_goes_on_after_a_finding() {
    let terminal = Terminal::new();
    let added = terminal.json(&["keys", "add-master"]);
    let file = terminal.path().join(added["path"].as_str().unwrap());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let report = terminal.call(&["doctor"]);
    assert_eq!(report.status, 1);
    assert!(report.output.contains("chmod 600"), "{report:?}");
    assert!(report.output.contains("✓  database"), "{report:?}");

    let broken = terminal.call(&["doctor", "--set", "issuer=nonsense", "--json"]);
    assert_eq!(broken.status, 1);
    let broken: Value = serde_json::from_str(&broken.output).unwrap();
    assert_eq!(broken["checks"][0]["ok"], false);
}
