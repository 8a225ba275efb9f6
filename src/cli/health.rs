//! `countersign health`: what the image asks every few seconds. Opens no database.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};

use super::{Failure, Global, output};
use crate::{config::Config, outbound};

/// Who is asked.
const LISTENER: &str = "admin.listen";

/// How long the service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 16 * 1024;

#[derive(Debug, Args)]
pub(super) struct Health {
    /// Ask there, instead of at admin.listen
    #[arg(long)]
    url: Option<String>,
}

impl Health {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let url = match self.url {
            Some(url) => url,
            None => url_of(listener(global)?)?,
        };
        let (status, answer) = ask(&url).await.map_err(|error| {
            Failure::Message(format!(
                "nothing answers at {url} (setting {LISTENER}, or --url); is the service running? {}",
                innermost(&*error)
            ))
        })?;
        let document: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if global.json {
            let document = if document.is_object() {
                document
            } else {
                json!({ "status": null })
            };
            output::json(&document)?;
        } else {
            output::line(&format!("{url} answers {status}"))?;
            let members = document.as_object().into_iter().flatten();
            let text = |value: &Value| {
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned)
            };
            let fields: Vec<(&str, String)> = members
                .map(|(name, value)| (name.as_str(), text(value)))
                .collect();
            output::fields(&fields)?;
        }
        if status == reqwest::StatusCode::OK {
            Ok(())
        } else {
            Err(Failure::Told)
        }
    }
}

/// Where the service listens, according to the settings that this command can see.
///
/// That is the admin listener: the public one may speak TLS under a name that is not this machine's.
fn listener(global: &Global) -> Result<SocketAddr, Failure> {
    let mut sources = global.sources();
    // Nothing but the listener matters, and the rest may be in a file that only the service got.
    for (key, value) in [
        ("environment", "production"),
        ("issuer", "https://unused.invalid"),
        ("public.trusted_proxies", "127.0.0.1"),
        ("public.tls.certificate", ""),
        ("public.tls.key", ""),
    ] {
        sources.overrides.push((key.to_owned(), value.to_owned()));
    }
    Ok(Config::load(&sources)?.admin_listen)
}

fn url_of(listen: SocketAddr) -> Result<String, Failure> {
    if listen.port() == 0 {
        return Err(Failure::Message(format!(
            "setting {LISTENER} has port 0, so that the port is not known here; give --url"
        )));
    }
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(format!(
        "http://{}/health/ready",
        SocketAddr::new(ip, listen.port())
    ))
}

async fn ask(url: &str) -> Result<(reqwest::StatusCode, Vec<u8>), Box<dyn Error>> {
    let tls = outbound::tls([])?;
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        // A proxy of the environment is for the world outside.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_backend_preconfigured(tls)
        .build()?;
    let mut response = client.get(url).send().await?;
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        answer.extend_from_slice(&chunk);
        if answer.len() > LONGEST_ANSWER {
            break;
        }
    }
    Ok((response.status(), answer))
}

/// What the operating system said.
fn innermost(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_for_every_address_is_asked_on_loopback() {
        let url = |listen: &str| url_of(listen.parse().unwrap()).ok();
        let shown = |url: &str| Some(url.to_owned());
        assert_eq!(url("0.0.0.0:80"), shown("http://127.0.0.1:80/health/ready"));
        assert_eq!(url("[::]:81"), shown("http://[::1]:81/health/ready"));
        assert_eq!(url("10.0.0.1:82"), shown("http://10.0.0.1:82/health/ready"));
        assert_eq!(url("127.0.0.1:0"), None);
    }
}
