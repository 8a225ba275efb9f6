//! Whatever is wrong with the settings is said in one sentence, and the program ends with status 1.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _};

use serde_json::Value;

use crate::support::{
    database::{Database, Engine},
    process::{Installation, PASSWORD},
};

/// A mistake that is all in the settings.
struct Mistake {
    name: &'static str,
    /// What is put into the environment.
    variables: &'static [(&'static str, &'static str)],
    /// What is put into the file of `--config`.
    file: &'static str,
    arguments: &'static [&'static str],
    /// What the sentence holds.
    says: &'static [&'static str],
}

const NONE: Mistake = Mistake {
    name: "",
    variables: &[],
    file: "",
    arguments: &[],
    says: &[],
};

const IN_SETTINGS: &[Mistake] = &[
    Mistake {
        name: "an unknown key in the environment",
        variables: &[("COUNTERSIGN__TOKENS__LIFE", "5")],
        says: &["tokens.life", "config/default.toml"],
        ..NONE
    },
    Mistake {
        name: "an unknown key in the file",
        file: "isuer = \"https://issuer.example\"",
        says: &["isuer", "file.toml"],
        ..NONE
    },
    Mistake {
        name: "an unknown key on the command line",
        arguments: &["--set", "tokens.life=5"],
        says: &["tokens.life"],
        ..NONE
    },
    Mistake {
        name: "a wrong type in the environment",
        variables: &[("COUNTERSIGN__TOKENS__ACCESS_TOKEN_TTL_SECONDS", "soon")],
        says: &["tokens.access_token_ttl_seconds"],
        ..NONE
    },
    Mistake {
        name: "a wrong type in the file",
        file: "[tokens]\naccess_token_ttl_seconds = true",
        says: &["tokens.access_token_ttl_seconds"],
        ..NONE
    },
    Mistake {
        name: "a listener that is no address",
        variables: &[("COUNTERSIGN__PUBLIC__LISTEN", "localhost")],
        says: &["public.listen"],
        ..NONE
    },
    Mistake {
        name: "a value out of range",
        variables: &[("COUNTERSIGN__TOKENS__ACCESS_TOKEN_TTL_SECONDS", "3601")],
        says: &["tokens.access_token_ttl_seconds", "3600"],
        ..NONE
    },
    Mistake {
        name: "a sign-in that outlives the keys of its refresh tokens",
        variables: &[(
            "COUNTERSIGN__TOKENS__REFRESH_TOKEN_LIFETIME_SECONDS",
            "34560001",
        )],
        says: &["tokens.refresh_token_lifetime_seconds", "34560000"],
        ..NONE
    },
    Mistake {
        name: "a sign-in that is over before it is idle",
        variables: &[(
            "COUNTERSIGN__TOKENS__REFRESH_TOKEN_LIFETIME_SECONDS",
            "604799",
        )],
        says: &[
            "tokens.refresh_token_idle_seconds",
            "tokens.refresh_token_lifetime_seconds",
            "604799",
        ],
        ..NONE
    },
    Mistake {
        name: "a sign-in that is idle after no time",
        variables: &[("COUNTERSIGN__TOKENS__REFRESH_TOKEN_IDLE_SECONDS", "59")],
        says: &["tokens.refresh_token_idle_seconds", "60"],
        ..NONE
    },
    Mistake {
        name: "a rotation period shorter than two leads",
        variables: &[("COUNTERSIGN__KEYS__ROTATION_PERIOD_SECONDS", "1200")],
        says: &["keys.rotation_period_seconds", "1231"],
        ..NONE
    },
    Mistake {
        name: "an http issuer in production",
        variables: &[
            ("COUNTERSIGN__ENVIRONMENT", "production"),
            ("COUNTERSIGN__ISSUER", "http://issuer.example"),
        ],
        says: &["issuer", "https://"],
        ..NONE
    },
    Mistake {
        name: "no issuer in production",
        variables: &[("COUNTERSIGN__ENVIRONMENT", "production")],
        says: &["issuer", "missing", "https"],
        ..NONE
    },
    Mistake {
        name: "neither TLS nor a proxy in production",
        variables: &[
            ("COUNTERSIGN__ENVIRONMENT", "production"),
            ("COUNTERSIGN__ISSUER", "https://issuer.example"),
        ],
        says: &[
            "public.tls.certificate",
            "missing",
            "public.trusted_proxies",
        ],
        ..NONE
    },
    Mistake {
        name: "a certificate without its key",
        variables: &[("COUNTERSIGN__PUBLIC__TLS__CERTIFICATE", "chain.pem")],
        says: &["public.tls.key", "missing"],
        ..NONE
    },
    Mistake {
        name: "a key without its certificate",
        variables: &[("COUNTERSIGN__PUBLIC__TLS__KEY", "key.pem")],
        says: &["public.tls.certificate", "missing"],
        ..NONE
    },
    Mistake {
        name: "a certificate that is not there",
        variables: &[
            ("COUNTERSIGN__PUBLIC__TLS__CERTIFICATE", "nowhere.pem"),
            ("COUNTERSIGN__PUBLIC__TLS__KEY", "key.pem"),
        ],
        says: &["public.tls.certificate", "nowhere.pem", "cannot read"],
        ..NONE
    },
    Mistake {
        name: "a proxy that is no address",
        variables: &[("COUNTERSIGN__PUBLIC__TRUSTED_PROXIES", "10.0.0.1,proxy")],
        says: &["public.trusted_proxies", "proxy", "10.0.0.0/8"],
        ..NONE
    },
    Mistake {
        name: "everybody as a proxy",
        variables: &[("COUNTERSIGN__PUBLIC__TRUSTED_PROXIES", "::/0")],
        says: &["public.trusted_proxies", "::/0", "anybody"],
        ..NONE
    },
    Mistake {
        name: "an environment that does not exist",
        variables: &[("COUNTERSIGN__ENVIRONMENT", "staging")],
        says: &["environment", "production"],
        ..NONE
    },
    Mistake {
        name: "a public listener for everybody in development",
        variables: &[("COUNTERSIGN__PUBLIC__LISTEN", "0.0.0.0:0")],
        says: &["public.listen", "0.0.0.0:0", "production"],
        ..NONE
    },
    Mistake {
        name: "an admin listener for everybody in development",
        variables: &[("COUNTERSIGN__ADMIN__LISTEN", "[::]:0")],
        says: &["admin.listen", "[::]:0"],
        ..NONE
    },
    Mistake {
        name: "a database that cannot be reached",
        variables: &[(
            "DATABASE_URL",
            "postgres://me:hunter2@127.0.0.1:1/countersign",
        )],
        says: &["database.url", "cannot be reached"],
        ..NONE
    },
    Mistake {
        name: "a database of another engine",
        variables: &[("DATABASE_URL", "mysql://me:hunter2@127.0.0.1/countersign")],
        says: &["database.url", "sqlite://", "postgres://"],
        ..NONE
    },
    Mistake {
        name: "a database in a folder that cannot be",
        variables: &[("DATABASE_URL", "sqlite:///dev/null/countersign.db")],
        says: &["database.url", "/dev/null"],
        ..NONE
    },
    Mistake {
        name: "a settings file that does not exist",
        arguments: &["--config", "nowhere.toml"],
        says: &["nowhere.toml"],
        ..NONE
    },
    Mistake {
        name: "a settings file that is no TOML",
        file: "issuer = \"https://issuer.example",
        says: &["file.toml"],
        ..NONE
    },
    Mistake {
        name: "no master key in production",
        variables: &[
            ("COUNTERSIGN__ENVIRONMENT", "production"),
            ("COUNTERSIGN__ISSUER", "https://issuer.example"),
            ("COUNTERSIGN__PUBLIC__TRUSTED_PROXIES", "127.0.0.1"),
        ],
        says: &["keys.directory", "no master key", "countersign init"],
        ..NONE
    },
    Mistake {
        name: "a malformed master key in the environment",
        variables: &[("COUNTERSIGN_MASTER_KEY", "hunter2")],
        says: &["COUNTERSIGN_MASTER_KEY", "<id>:<base64url"],
        ..NONE
    },
    Mistake {
        name: "a log filter that is none",
        variables: &[("COUNTERSIGN__TELEMETRY__LOG_FILTER", "info,=,=")],
        says: &["telemetry.log_filter"],
        ..NONE
    },
];

/// Whether the program ends with a sentence that says all this. Tells what is missing from it.
async fn refuses(
    installation: &Installation,
    arguments: &[&str],
    name: &str,
    says: &[&str],
) -> Result<(), String> {
    let outcome = installation.run(&[&["serve"], arguments].concat()).await;
    let seen = format!("{name}: {outcome:?}");
    let refused = tokio::spawn(async move { outcome.refusal() }).await;
    let Ok(sentence) = refused else {
        return Err(format!("{seen} is not one sentence"));
    };
    let missing: Vec<&&str> = says
        .iter()
        .filter(|word| !sentence.contains(**word))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("{seen} does not say {missing:?}"))
    }
}

#[tokio::test]
async fn each_mistake_in_the_settings_gives_one_sentence() {
    let mut failures = Vec::new();
    for mistake in IN_SETTINGS {
        let mut installation = Installation::development();
        for (variable, value) in mistake.variables {
            installation = installation.with_variable(variable, value);
        }
        let mut arguments = mistake.arguments.to_vec();
        if !mistake.file.is_empty() {
            fs::write(installation.path("file.toml"), mistake.file).unwrap();
            arguments.extend(["--config", "file.toml"]);
        }
        let refused = refuses(&installation, &arguments, mistake.name, mistake.says).await;
        failures.extend(refused.err());
        assert!(
            installation.master_key_files().is_empty(),
            "{}: a master key was made nevertheless",
            mistake.name
        );
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn a_master_key_that_others_can_read_gives_one_sentence() {
    let database = Database::create(Engine::Sqlite).await;
    let installation = Installation::production(database.url()).await;
    let key = installation.master_key_files().remove(0);
    let command = format!("chmod 600 keys/{}", key.file_name().unwrap().display());
    for (mode, who) in [(0o640, "its group"), (0o604, "the world"), (0o666, "all")] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let says = ["keys.directory", &command, &format!("{mode:04o}")];
        refuses(&installation, &[], who, &says).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_holds_no_master_key_gives_one_sentence_without_what_it_holds() {
    let database = Database::create(Engine::Sqlite).await;
    let installation = Installation::production(database.url()).await;
    let key = installation.master_key_files().remove(0);
    fs::write(&key, PASSWORD).unwrap();
    let says = ["keys.directory", key.file_name().unwrap().to_str().unwrap()];
    refuses(&installation, &[], "no key", &says).await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_gives_one_sentence() {
    for setting in ["public.listen", "admin.listen"] {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let installation = Installation::development().with(setting, address);
        let says = [setting, &address.to_string()];
        refuses(&installation, &[], setting, &says).await.unwrap();
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_gives_one_sentence() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let database = Database::create(engine).await;
        let installation = Installation::production(database.url()).await;
        installation.run(&["migrate"]).await.done();
        database
            .execute(
                "insert into _sqlx_migrations \
                 (version, description, installed_on, success, checksum, execution_time) \
                 select 9999, description, installed_on, success, checksum, execution_time \
                 from _sqlx_migrations where version = 1",
            )
            .await;
        let says = ["database.url", "newer", "9999"];
        refuses(&installation, &[], "newer", &says).await.unwrap();
    }
}

#[tokio::test]
async fn demo_rows_in_production_give_one_sentence() {
    let development = Installation::development();
    let demo = development.start().await;
    assert_eq!(demo.stop().await.code(), Some(0));
    let production = development
        .with("environment", "production")
        .with("public.trusted_proxies", "127.0.0.1")
        .with("issuer", "https://issuer.example");
    let says = ["database.url", "demo", "ops", "user ", "clients delete"];
    refuses(&production, &[], "demo", &says).await.unwrap();
    // The user alone will do, by whatever name.
    for id in ["demo", "ops"] {
        production.run(&["clients", "delete", id]).await.done();
    }
    let resources = production.json(&["resources", "list"]).await;
    let items = resources["items"].as_array().unwrap();
    let is_demo = |item: &&Value| item["resource"].as_str().unwrap().ends_with("/demo");
    let resource = items.iter().find(is_demo).unwrap()["id"].as_str().unwrap();
    production
        .run(&["resources", "delete", resource])
        .await
        .done();
    let renamed = ["users", "update", "demo", "--username", "somebody"];
    production.run(&renamed).await.done();
    let says = ["database.url", "(user ", "users delete"];
    refuses(&production, &[], "demo-user", &says).await.unwrap();
    production
        .run(&["users", "delete", "somebody"])
        .await
        .done();
    assert_eq!(production.start().await.stop().await.code(), Some(0));
}

#[tokio::test]
async fn production_that_demo_rows_refuse_leaves_development_its_database() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let database = Database::create(engine).await;
        let development = Installation::development().with("database.url", database.url());
        assert_eq!(development.start().await.stop().await.code(), Some(0));
        let production = [
            "--set=environment=production",
            "--set=public.trusted_proxies=127.0.0.1",
            "--set=issuer=https://issuer.example",
        ];
        let says = ["database.url", "demo"];
        refuses(&development, &production, "demo", &says)
            .await
            .unwrap();
        assert_eq!(development.start().await.stop().await.code(), Some(0));
    }
}

#[tokio::test]
async fn development_on_a_database_of_production_gives_one_sentence() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let database = Database::create(engine).await;
        let production = Installation::production(database.url()).await;
        assert_eq!(production.start().await.stop().await.code(), Some(0));
        let development = Installation::development().with("database.url", database.url());
        let says = ["database.url", "belongs to production"];
        refuses(&development, &[], "development", &says)
            .await
            .unwrap();
        let clients: Vec<(String,)> = database.rows("select client_id from client").await;
        assert!(clients.is_empty(), "{clients:?}");
    }
}

#[tokio::test]
async fn a_client_of_the_demo_clients_name_gives_one_sentence_in_development() {
    let installation = Installation::development();
    let ours = ["--client-id", "demo", "--name", "Ours"];
    let ours = [&["clients", "create"], &ours[..]].concat();
    installation.run(&ours).await.done();
    let before = installation.json(&["clients", "show", "demo"]).await;
    let says = ["database.url", "client demo", "not the demo client"];
    refuses(&installation, &[], "demo", &says).await.unwrap();
    let after = installation.json(&["clients", "show", "demo"]).await;
    assert_eq!(after, before);
    // Nor is anything left behind that production would refuse.
    let resources = installation.json(&["resources", "list"]).await;
    assert!(!resources.to_string().contains("/demo"), "{resources}");
}

#[tokio::test]
async fn a_user_of_the_demo_users_name_gives_one_sentence_in_development() {
    let installation = Installation::development();
    let ours = ["users", "create", "--username", "DEMO"];
    installation.run(&ours).await.done();
    let before = installation.json(&["users", "show", "demo"]).await;
    let says = ["database.url", "user demo", "not the demo user"];
    refuses(&installation, &[], "demo", &says).await.unwrap();
    let after = installation.json(&["users", "show", "demo"]).await;
    assert_eq!(after, before);
    let clients = installation.json(&["clients", "list"]).await;
    assert_eq!(clients["items"].as_array().unwrap().len(), 0, "{clients}");
}

#[tokio::test]
async fn a_second_server_on_one_sqlite_file_gives_one_sentence() {
    let database = Database::create(Engine::Sqlite).await;
    let installation = Installation::production(database.url()).await;
    let node = installation.start().await;
    let says = ["database.url", "another process", "Postgres"];
    refuses(&installation, &[], "second", &says).await.unwrap();
    // The first one is none the worse for it, and commands work beside it.
    installation.run(&["keys", "list"]).await.done();
    assert_eq!(node.ready().await.0, 200);
}
