//! The development start: demo clients, a demo user, their secrets, and the lines to paste.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::{Context, StartError};
use crate::{
    admin::{
        AdminError,
        client::{ClientAdmin, ClientMetadata},
        resource::ResourceMetadata,
        user::UserMetadata,
    },
    domain::{
        change::Cause, id::ClientId, resource::ResourceUri, secret::ClientSecret, user::User,
    },
    identity::password::Password,
    oauth::metadata::TOKEN_PATH,
};

/// Where the secrets of the demo clients and of the demo user are kept between starts.
const FILE: &str = "data/development.json";

/// The demo clients.
const CLIENTS: [&str; 2] = ["demo", "ops"];

/// The demo user, and where its password stands among the secrets: no client has such an id.
const USER: &str = "demo";
const PASSWORD: &str = "user:demo";

/// The scopes of the demo resource.
const DEMO_SCOPES: &str = "demo:read demo:write";

/// What they mean to people.
const DEMO_SCOPES_IN_WORDS: [(&str, &str); 2] = [
    ("demo:read", "See what is in the demo"),
    ("demo:write", "Change what is in the demo"),
];

/// Sees to it that the demo rows exist and returns the banner.
pub(super) async fn prepare(context: &Context) -> Result<String, StartError> {
    for id in CLIENTS {
        refuse_foreign(&context.clients(), id).await?;
    }
    let user = context.users().find(USER).await?;
    if user.as_ref().is_some_and(|user| !user.demo) {
        return Err(StartError::NotDemoUser(USER));
    }
    let resources = context.resources();
    let demo = format!("{}/demo", context.issuer);
    let admin = format!("{}/admin", context.issuer);
    let known = resources.list().await?;
    if !known
        .iter()
        .any(|resource| resource.resource.as_str() == demo)
    {
        let metadata = ResourceMetadata {
            resource: demo.clone(),
            name: "Demo".to_owned(),
            scopes: DEMO_SCOPES.split(' ').map(str::to_owned).collect(),
            scope_descriptions: DEMO_SCOPES_IN_WORDS
                .map(|(token, words)| (token.to_owned(), words.to_owned()))
                .into(),
            introspection_clients: Vec::new(),
        };
        resources.create(&metadata, true, &Cause::system()).await?;
    }
    let admin_scopes = known
        .iter()
        .find(|resource| resource.resource.as_str() == admin)
        .map(|resource| resource.scopes.to_string())
        .unwrap_or_default();
    let mut secrets = kept()?;
    let demo_client = ClientMetadata {
        client_name: "Demo".to_owned(),
        scope: DEMO_SCOPES.to_owned(),
        default_resource: Some(demo.clone()),
        resources: vec![demo],
        // Where the demo user signs in.
        first_party: true,
        ..ClientMetadata::default()
    };
    let ops_client = ClientMetadata {
        client_name: "Demo operator".to_owned(),
        scope: admin_scopes,
        resources: vec![admin],
        ..ClientMetadata::default()
    };
    let clients = context.clients();
    for (id, metadata) in CLIENTS.into_iter().zip([demo_client, ops_client]) {
        let kept = secrets
            .remove(id)
            .map(|secret| ClientSecret::kept(secret.expose_secret().to_owned()));
        let secret = ensure_client(&clients, id, &metadata, kept, context).await?;
        secrets.insert(id.to_owned(), secret.expose().to_owned().into());
    }
    let password = secrets.remove(PASSWORD);
    let password = ensure_user(context, user, password).await?;
    secrets.insert(PASSWORD.to_owned(), password);
    keep(&secrets)?;
    Ok(banner(
        context,
        secrets
            .get("demo")
            .map_or("", |secret| secret.expose_secret()),
    ))
}

/// Refuses a client of this id that is not ours, before anything is written.
async fn refuse_foreign(clients: &ClientAdmin, id: &str) -> Result<(), StartError> {
    let client_id = ClientId::parse(id).map_err(|_| AdminError::NotFound("client"))?;
    match clients.show(&client_id).await {
        Ok(client) if !client.demo => Err(StartError::NotDemo(client_id)),
        Ok(_) | Err(AdminError::NotFound(_)) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

/// Sees to it that a demo client is as it should be; returns its secret.
async fn ensure_client(
    clients: &ClientAdmin,
    id: &str,
    metadata: &ClientMetadata,
    kept: Option<ClientSecret>,
    context: &Context,
) -> Result<ClientSecret, StartError> {
    let cause = Cause::system();
    let client_id = ClientId::parse(id).map_err(|_| AdminError::NotFound("client"))?;
    let existing = match clients.show(&client_id).await {
        Ok(client) => client,
        Err(AdminError::NotFound(_)) => {
            clients
                .create(Some(client_id.clone()), metadata, true, &cause)
                .await?
                .0
        }
        Err(other) => return Err(other.into()),
    };
    let resources = existing.resources.iter().map(ResourceUri::as_str);
    let is_as_made = resources.eq(metadata.resources.iter().map(String::as_str))
        && existing.first_party == metadata.first_party;
    if !is_as_made {
        // The issuer has changed since the last start, or an earlier version made the client.
        let patch = json!({
            "resources": metadata.resources,
            "default_resource": metadata.default_resource,
            "first_party": metadata.first_party,
        });
        clients.update(&client_id, &patch, None, &cause).await?;
    }
    let secret = match kept {
        Some(secret) => secret,
        None => ClientSecret::mint(&context.entropy).map_err(AdminError::Entropy)?,
    };
    let hash = secret.hash();
    let is_set = existing
        .secrets
        .iter()
        .any(|stored| bool::from(stored.hash.matches(&hash)));
    if !is_set {
        clients.set_secret(&client_id, &secret, &cause).await?;
    }
    Ok(secret)
}

/// Sees to it that there is the demo user, with the password that was kept or another one; returns
/// the password.
async fn ensure_user(
    context: &Context,
    user: Option<User>,
    kept: Option<SecretString>,
) -> Result<SecretString, StartError> {
    let users = context.users();
    let password = match kept {
        Some(kept) => kept,
        None => context
            .passwords
            .generate()
            .map_err(AdminError::Entropy)?
            .expose()
            .to_owned()
            .into(),
    };
    // A new one for each that takes it.
    let read = || {
        let read = Password::read(password.expose_secret());
        read.map_err(|error| unusable(io::Error::new(io::ErrorKind::InvalidData, error)))
    };
    let cause = Cause::system();
    let Some(user) = user else {
        let metadata = UserMetadata {
            username: USER.to_owned(),
            ..UserMetadata::default()
        };
        users.create(&metadata, Some(read()?), true, &cause).await?;
        return Ok(password);
    };
    let is_set = match user.password_hash {
        Some(hash) => context.passwords.verify(read()?, hash).await,
        None => Ok(false),
    };
    if !is_set.map_err(AdminError::Busy)? {
        users.set_password(user.id, read()?, &cause).await?;
    }
    Ok(password)
}

fn kept() -> Result<BTreeMap<String, SecretString>, StartError> {
    let text = match fs::read_to_string(FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        text => text.map_err(unusable)?,
    };
    let secrets: BTreeMap<String, String> = serde_json::from_str(&text).map_err(|_| {
        unusable(io::Error::new(
            io::ErrorKind::InvalidData,
            "it holds no JSON object of secrets; delete it",
        ))
    })?;
    let secrets = secrets.into_iter();
    Ok(secrets
        .map(|(name, secret)| (name, secret.into()))
        .collect())
}

fn keep(secrets: &BTreeMap<String, SecretString>) -> Result<(), StartError> {
    let document: BTreeMap<&str, &str> = secrets
        .iter()
        .map(|(name, secret)| (name.as_str(), secret.expose_secret()))
        .collect();
    let text = format!("{:#}\n", json!(document));
    if fs::read_to_string(FILE).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    if let Some(folder) = Path::new(FILE).parent() {
        fs::create_dir_all(folder).map_err(unusable)?;
    }
    // Written beside and renamed, so that a crash leaves the old file or the new one.
    let beside = format!("{FILE}.new");
    let _ = fs::remove_file(&beside);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(unusable)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(unusable)?;
    fs::rename(&beside, FILE).map_err(unusable)
}

fn unusable(source: io::Error) -> StartError {
    StartError::DevelopmentFile {
        path: FILE.to_owned(),
        source,
    }
}

fn banner(context: &Context, secret: &str) -> String {
    let issuer = &context.issuer;
    let request =
        format!("curl -s -u demo:{secret} {issuer}{TOKEN_PATH} -d grant_type=client_credentials");
    let program = program();
    // Says which issuer is meant where a default start would mean another one.
    let settings = match issuer.as_str() {
        "http://127.0.0.1:8080" => String::new(),
        other => format!(" --set issuer={other}"),
    };
    format!(
        "\nCountersign serves {issuer} (development)\n\n\
         Get a token:\n\n{request}\n\n\
         Get one and verify it:\n\n{request} | {program}{settings} token verify -\n\n\
         Keys:     {issuer}/.well-known/jwks.json\n\
         Metadata: {issuer}/.well-known/oauth-authorization-server\n\
         Secrets of the clients demo and ops and of the user demo: {FILE}\n\n"
    )
}

/// How to call this program from the current folder in a shell.
fn program() -> String {
    let Ok(program) = std::env::current_exe() else {
        return "countersign".to_owned();
    };
    called(&program, &std::env::current_dir().unwrap_or_default())
}

/// The same of this program and this folder.
fn called(program: &Path, here: &Path) -> String {
    let path = match program.strip_prefix(here) {
        // A shell looks for a name without a slash elsewhere.
        Ok(name) if name.components().count() == 1 => format!("./{}", name.display()),
        Ok(below) => below.display().to_string(),
        Err(_) => program.display().to_string(),
    };
    let plain = path
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte));
    if plain {
        path
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_called_from_the_current_folder_by_a_path() {
        for (program, called_by) in [
            ("/home/ada/countersign", "./countersign"),
            (
                "/home/ada/target/debug/countersign",
                "target/debug/countersign",
            ),
            ("/usr/bin/countersign", "/usr/bin/countersign"),
            ("/home/ada/it's new", "'./it'\\''s new'"),
        ] {
            assert_eq!(
                called(Path::new(program), Path::new("/home/ada")),
                called_by
            );
        }
    }
}
