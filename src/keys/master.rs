//! Master keys: kept outside the database, they seal what is inside it.
//!
//! Neither the database alone nor the master keys alone yield a private key.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use countersign_verifier::base64url;
use ring::{
    aead::{AES_256_GCM, LessSafeKey},
    hkdf::{HKDF_SHA256, Salt},
};
use zeroize::Zeroizing;

use crate::{
    clock::Timestamp,
    domain::{id::MasterKeyId, key::KeyUse},
    entropy::{Entropy, EntropyError},
};

/// The environment variable that holds master keys instead of files.
pub const VARIABLE: &str = "COUNTERSIGN_MASTER_KEY";

/// Why master keys cannot be used. None of it shows key material.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The folder or a file cannot be read or written.
    #[error("setting keys.directory: cannot use {path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Others than the owner can read the file.
    #[error(
        "setting keys.directory: {path} is readable by others (mode {mode:04o}); run: chmod 600 {path}"
    )]
    Exposed {
        /// Which one.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file of that name does not hold 32 bytes in base64url.
    #[error("setting keys.directory: {0} does not hold a master key (32 bytes in base64url)")]
    Malformed(PathBuf),
    /// The variable is not a list of `<id>:<base64url>`.
    #[error("{VARIABLE} is not of the form <id>:<base64url of 32 bytes>[,…]")]
    MalformedVariable,
    /// The master keys come from the variable, so that files do not count.
    #[error("master keys come from {VARIABLE}; change them there and restart")]
    FromVariable,
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// One master key, ready to seal and open.
pub struct MasterKey {
    sealing: LessSafeKey,
    wrapping: LessSafeKey,
    factors: LessSafeKey,
}

impl MasterKey {
    /// Derives what is needed from the 32 bytes of the key.
    fn derive(secret: &[u8; 32]) -> Option<Self> {
        let secret = Salt::new(HKDF_SHA256, b"countersign master key").extract(secret);
        let output = |info: &[u8]| {
            let key = secret.expand(&[info], &AES_256_GCM).ok()?.into();
            Some(LessSafeKey::new(key))
        };
        Some(Self {
            sealing: output(b"sealing v1")?,
            wrapping: output(b"wrapping of MAC keys v1")?,
            factors: output(b"sealing of second factors v1")?,
        })
    }

    /// The key that seals keys of this use.
    pub fn sealing(&self, key_use: KeyUse) -> &LessSafeKey {
        match key_use {
            KeyUse::Signing | KeyUse::IdTokenRs256 => &self.sealing,
            KeyUse::RefreshMac => &self.wrapping,
        }
    }

    /// The key that seals secrets of second factors.
    pub(super) fn factors(&self) -> &LessSafeKey {
        &self.factors
    }
}

/// Where master keys are kept.
#[derive(Clone, Debug)]
pub enum MasterKeySource {
    /// In files named `master-<id>.key`.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Whether the files may be readable by their group, as mounted secrets are.
        group_may_read: bool,
    },
    /// In the environment, as `<id>:<base64url>[,…]`.
    Variable(secrecy::SecretString),
}

impl MasterKeySource {
    /// Reads every master key there is.
    pub fn load(&self) -> Result<MasterKeys, MasterKeyError> {
        match self {
            Self::Folder {
                path,
                group_may_read,
            } => load_folder(path, *group_may_read),
            Self::Variable(text) => load_variable(secrecy::ExposeSecret::expose_secret(text)),
        }
    }

    /// Draws a new master key and keeps it in a file of its own.
    pub fn add(
        &self,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<(MasterKeyId, PathBuf), MasterKeyError> {
        let folder = self.folder()?;
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| MasterKeyError::File { path, source }
        };
        fs::create_dir_all(folder).map_err(at(folder))?;
        let id = MasterKeyId::from_uuid(entropy.uuid_v7(now)?);
        let path = folder.join(file_name(id));
        let text = Zeroizing::new(base64url::encode(&*Zeroizing::new(entropy.bytes::<32>()?)));
        // Written under another name first: a crash must not leave a master key without content,
        // which would be in the way of every later start.
        let unfinished = folder.join(format!("{}.new", file_name(id)));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(at(&unfinished))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&unfinished, &path))
            .map_err(at(&path))?;
        // The name has to survive a crash as well as the content.
        fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(at(folder))?;
        Ok((id, path))
    }

    /// Deletes the file of a master key.
    pub fn remove(&self, id: MasterKeyId) -> Result<PathBuf, MasterKeyError> {
        let path = self.folder()?.join(file_name(id));
        match fs::remove_file(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(MasterKeyError::File { path, source }),
        }
    }

    fn folder(&self) -> Result<&Path, MasterKeyError> {
        match self {
            Self::Folder { path, .. } => Ok(path),
            Self::Variable(_) => Err(MasterKeyError::FromVariable),
        }
    }
}

impl fmt::Display for MasterKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path, .. } => write!(f, "{} (setting keys.directory)", path.display()),
            Self::Variable(_) => f.write_str(VARIABLE),
        }
    }
}

/// The master keys that this process holds.
pub struct MasterKeys(BTreeMap<MasterKeyId, MasterKey>);

impl MasterKeys {
    /// The key of this id.
    pub fn find(&self, id: MasterKeyId) -> Option<&MasterKey> {
        self.0.get(&id)
    }

    /// The ids, oldest first.
    pub fn ids(&self) -> impl Iterator<Item = MasterKeyId> {
        self.0.keys().copied()
    }
}

impl fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn file_name(id: MasterKeyId) -> String {
    format!("master-{id}.key")
}

fn load_folder(folder: &Path, group_may_read: bool) -> Result<MasterKeys, MasterKeyError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| MasterKeyError::File { path, source }
    };
    let mut keys = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(MasterKeys(keys)),
        entries => entries.map_err(at(folder))?,
    };
    for entry in entries {
        let path = entry.map_err(at(folder))?.path();
        let id = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("master-")?.strip_suffix(".key"))
            .and_then(|id| MasterKeyId::parse(id).ok());
        let Some(id) = id else { continue };
        let mode = fs::metadata(&path).map_err(at(&path))?.permissions().mode() & 0o777;
        let forbidden = if group_may_read { 0o037 } else { 0o077 };
        if mode & forbidden != 0 {
            return Err(MasterKeyError::Exposed { path, mode });
        }
        let text = Zeroizing::new(fs::read_to_string(&path).map_err(at(&path))?);
        let key = parse(text.trim_ascii()).ok_or(MasterKeyError::Malformed(path))?;
        keys.insert(id, key);
    }
    Ok(MasterKeys(keys))
}

fn load_variable(text: &str) -> Result<MasterKeys, MasterKeyError> {
    let mut keys = BTreeMap::new();
    for item in text.split(',') {
        let (id, secret) = item
            .trim()
            .split_once(':')
            .ok_or(MasterKeyError::MalformedVariable)?;
        let id = MasterKeyId::parse(id).map_err(|_| MasterKeyError::MalformedVariable)?;
        keys.insert(id, parse(secret).ok_or(MasterKeyError::MalformedVariable)?);
    }
    Ok(MasterKeys(keys))
}

fn parse(text: &str) -> Option<MasterKey> {
    let bytes = Zeroizing::new(base64url::decode(text).ok()?);
    MasterKey::derive(bytes.as_slice().try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use ring::aead::{Aad, Nonce, UnboundKey};

    use super::*;

    fn folder(path: &Path, group_may_read: bool) -> MasterKeySource {
        MasterKeySource::Folder {
            path: path.to_owned(),
            group_may_read,
        }
    }

    fn add(source: &MasterKeySource) -> (MasterKeyId, PathBuf) {
        source
            .add(&Entropy::new(), Timestamp::from_seconds(1_800_000_000))
            .unwrap()
    }

    #[test]
    fn a_new_master_key_is_readable_by_its_owner_only_and_loads_again() {
        let place = tempfile::tempdir().unwrap();
        let source = folder(place.path(), false);
        let (id, path) = add(&source);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(source.load().unwrap().ids().collect::<Vec<_>>(), [id]);
    }

    /// Whoever derives others cannot open what lies in databases. Expected: HKDF-SHA-256
    /// (RFC 5869), worked out apart from this program.
    #[test]
    fn what_is_derived_from_a_master_key_stays_the_same() {
        let master = MasterKey::derive(&[1; 32]).unwrap();
        for (key_use, expected) in [
            (
                KeyUse::Signing,
                "7afa5187f5f398c4cdcfdcde50b5d381e416584ca4d958f44469bb3219a2a308",
            ),
            (
                KeyUse::RefreshMac,
                "8641aa3b440fc9dc0008fadd39058cfecfb4b03a1d672b7b3e165d793c0040a1",
            ),
        ] {
            let bytes: Vec<u8> = (0..32)
                .map(|index| u8::from_str_radix(&expected[index * 2..][..2], 16).unwrap())
                .collect();
            let expected = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).unwrap());
            let nonce = || Nonce::assume_unique_for_key([0; 12]);
            let mut sealed = b"a key".to_vec();
            master
                .sealing(key_use)
                .seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed)
                .unwrap();
            let opened = expected.open_in_place(nonce(), Aad::empty(), &mut sealed);
            assert_eq!(opened.unwrap(), b"a key", "{key_use}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let (_, path) = add(&folder(place.path(), false));
        for (mode, group_may_read, fine) in [
            (0o640, false, false),
            (0o640, true, true),
            (0o604, true, false),
            (0o660, true, false),
            (0o400, false, true),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = folder(place.path(), group_may_read).load();
            assert_eq!(loaded.is_ok(), fine, "{mode:o} {group_may_read}");
        }
    }

    #[test]
    fn what_holds_no_key_is_refused_without_showing_it() {
        let place = tempfile::tempdir().unwrap();
        let source = folder(place.path(), false);
        let (_, path) = add(&source);
        fs::write(&path, "hunter2").unwrap();
        let error = source.load().unwrap_err();
        assert!(matches!(error, MasterKeyError::Malformed(_)));
        assert!(!error.to_string().contains("hunter2"));
        assert!(matches!(
            load_variable("nonsense"),
            Err(MasterKeyError::MalformedVariable)
        ));
    }

    #[test]
    fn the_variable_holds_several_keys() {
        let one = format!(
            "0190a0b0-0000-7000-8000-000000000001:{}",
            base64url::encode(&[1; 32])
        );
        let two = format!(
            "0190a0b0-0000-7000-8000-000000000002:{}",
            base64url::encode(&[2; 32])
        );
        let keys = load_variable(&format!("{one},{two}")).unwrap();
        assert_eq!(keys.ids().count(), 2);
        assert!(!format!("{keys:?}").contains(&base64url::encode(&[1; 32])));
    }
}
