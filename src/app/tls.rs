//! The certificate of the public listener: read at the start, and again whenever its files change.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{clock::AgreedClock, config::TlsFiles, metrics::Metrics};

/// How often the files are looked at.
const PAUSE: Duration = Duration::from_secs(5);

/// Why a certificate cannot be used; each is one sentence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("setting {key}: cannot read {path}: {problem}")]
    File {
        /// The setting.
        key: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the operating system says.
        problem: String,
    },
    /// Others than the owner and the group can read the private key.
    #[error(
        "setting public.tls.key: {path} is readable by others (mode {mode:04o}); run: chmod 600 {path}"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// No certificate in the file.
    #[error("setting public.tls.certificate: {0} holds no certificate in PEM")]
    NoCertificate(PathBuf),
    /// No key in the file.
    #[error("setting public.tls.key: {0} holds no private key in PEM")]
    NoKey(PathBuf),
    /// The two belong to different pairs.
    #[error(
        "setting public.tls.key: {key} is not the key of the first certificate in {certificate}"
    )]
    NoPair {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// Something else that TLS does not take.
    #[error("setting public.tls.certificate: {certificate} cannot be used with {key}: {problem}")]
    Unusable {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What TLS says.
        problem: String,
    },
}

/// Whether the service could start with these files.
pub fn check_certificate(files: &TlsFiles) -> Result<(), TlsError> {
    read(files).map(drop)
}

/// The certificate in use, and where it comes from.
#[derive(Debug)]
pub(super) struct Certificate {
    files: TlsFiles,
    current: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl Certificate {
    /// Reads the files for the first time.
    pub(super) fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let current = ArcSwap::from_pointee(read(&files)?);
        Ok(Arc::new(Self { files, current }))
    }

    /// TLS 1.2 and 1.3 under whatever certificate is in use.
    ///
    /// The provider is named here, so that nothing depends on one for the whole process.
    pub(super) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Takes in what becomes of the files, until it is told to stop. Where they cannot be used, the
    /// certificate in use stays, and each reason is logged once.
    pub(super) async fn follow(
        self: Arc<Self>,
        clock: AgreedClock,
        metrics: Metrics,
        stop: CancellationToken,
    ) {
        let mut known = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = clock.sleep(PAUSE) => {}
            }
            let this = Arc::clone(&self);
            // Files may be on a disk that does not answer.
            let Ok(looked) = tokio::task::spawn_blocking(move || this.look()).await else {
                continue;
            };
            if !matches!(looked, Ok(false)) {
                metrics.certificate_reloaded(looked.is_ok());
            }
            match looked {
                Ok(false) => known = None,
                Ok(true) => {
                    known = None;
                    tracing::info!("the certificate of the public listener was replaced");
                }
                Err(problem) if known.as_ref() == Some(&problem) => {}
                Err(problem) => {
                    tracing::error!(%problem, "the certificate in use stays");
                    known = Some(problem);
                }
            }
        }
    }

    /// Whether another certificate was there, which is in use now.
    fn look(&self) -> Result<bool, TlsError> {
        let found = read(&self.files)?;
        // The same key can get another certificate, hardly the same certificate another key.
        let differs = found.cert != self.current.load().cert;
        if differs {
            self.current.store(Arc::new(found));
        }
        Ok(differs)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let TlsFiles { certificate, key } = files;
    let at = |setting, path: &PathBuf| {
        let path = path.clone();
        move |error: io::Error| TlsError::File {
            key: setting,
            path,
            problem: error.to_string(),
        }
    };
    let pem = fs::read(certificate).map_err(at("public.tls.certificate", certificate))?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| TlsError::NoCertificate(certificate.clone()))?;

    let metadata = fs::metadata(key).map_err(at("public.tls.key", key))?;
    let mode = metadata.permissions().mode() & 0o777;
    // Mounted secrets are readable by their group.
    if mode & 0o037 != 0 {
        let path = key.clone();
        return Err(TlsError::Exposed { path, mode });
    }
    let pem = Zeroizing::new(fs::read(key).map_err(at("public.tls.key", key))?);
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::NoKey(key.clone()))?;
    CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsError::NoPair {
            key: key.clone(),
            certificate: certificate.clone(),
        },
        other => TlsError::Unusable {
            certificate: certificate.clone(),
            key: key.clone(),
            problem: other.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_about_the_files_gives_one_sentence() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let write = |name: &str, text: &str, mode| {
            fs::write(path(name), text).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        let make = || rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        let key = one.signing_key.serialize_pem();
        write("chain", &one.cert.pem(), 0o644);
        write("key", &key, 0o600);
        write("shared", &key, 0o640);
        write("exposed", &key, 0o644);
        write("other", &other.signing_key.serialize_pem(), 0o600);
        write("empty", "", 0o600);
        let no_certificate = "-----BEGIN CERTIFICATE-----\naGk=\n-----END CERTIFICATE-----\n";
        write("no certificate", no_certificate, 0o644);
        let load = |certificate, key| {
            let (certificate, key) = (path(certificate), path(key));
            let loaded = Certificate::load(TlsFiles { certificate, key });
            loaded.map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(load("chain", "key"), Ok(()));
        assert_eq!(load("chain", "shared"), Ok(()));
        for (certificate, key, setting, problem) in [
            ("nowhere", "key", "certificate", "cannot read"),
            ("chain", "nowhere", "key", "cannot read"),
            ("chain", "exposed", "key", "chmod 600"),
            ("empty", "key", "certificate", "holds no certificate"),
            ("key", "key", "certificate", "holds no certificate"),
            ("chain", "empty", "key", "holds no private key"),
            ("chain", "other", "key", "is not the key of"),
            ("no certificate", "key", "certificate", "cannot be used"),
        ] {
            let sentence = load(certificate, key).unwrap_err();
            let begin = format!("setting public.tls.{setting}: ");
            assert!(sentence.starts_with(&begin), "{sentence}");
            assert!(sentence.contains(problem), "{sentence}");
            assert!(!sentence.contains("PRIVATE"), "{sentence}");
        }
    }
}
