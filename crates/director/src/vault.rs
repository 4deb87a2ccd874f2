//! Sealing of secrets at rest: with a key that lies in a file of its own, so that the store's
//! files alone give nothing away. What a secret is for, and who may have it, is not known here.

use conpaas_model::ids::{InstallationId, MachineId, SecretVersion, ServiceId};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name of the key's file, beside the authority's.
pub const KEY_FILE: &str = "secrets.key";
const KEY_BYTES: usize = 32;
/// First byte of everything that was sealed: how the rest is to be read.
const FORMAT: u8 = 1;
/// Bytes that name the key.
const ID_BYTES: usize = 8;
const HEAD: usize = 1 + ID_BYTES + NONCE_LEN;

/// What can go wrong with the key or with what was sealed. No error holds a value.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{} holds no key: put the copy from your backup there; without one, move the file away, and every secret has to be set again",
        path.display()
    )]
    BadFile { path: PathBuf },
    #[error("it was sealed with another key than the one in {KEY_FILE}")]
    OtherKey,
    #[error("it was changed after it was sealed")]
    Broken,
    #[error("it cannot be sealed")]
    Seal,
}

/// Which secret a value is of: what was sealed for one cannot be passed off as another.
#[derive(Clone, Copy, Debug)]
pub struct Label<'a> {
    pub service: &'a ServiceId,
    pub name: &'a str,
    pub version: SecretVersion,
}

/// The key, ready for use.
pub struct Vault {
    key: LessSafeKey,
    id: [u8; ID_BYTES],
    digests: hmac::Key,
    births: hmac::Key,
    installation: InstallationId,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(..)")
    }
}

impl Vault {
    /// Reads the key of an installation from its folder, or makes one on the first start.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no key: a key is never replaced.
    pub fn load_or_create(
        folder: &Path,
        installation: &InstallationId,
    ) -> Result<Self, VaultError> {
        let path = folder.join(KEY_FILE);
        let failed = |action| {
            let path = path.clone();
            move |source| VaultError::File {
                action,
                path,
                source,
            }
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => {
                std::fs::set_permissions(&path, Permissions::from_mode(0o600))
                    .map_err(failed("protect"))?;
                text
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let text = hex::encode(rand::random::<[u8; KEY_BYTES]>());
                write(folder, &path, &text).map_err(failed("write"))?;
                text
            }
            Err(error) => return Err(failed("read")(error)),
        };
        let bytes = hex::decode(text.trim()).ok();
        let bytes = bytes.filter(|bytes| bytes.len() == KEY_BYTES);
        bytes
            .and_then(|bytes| Self::new(&bytes, installation))
            .ok_or(VaultError::BadFile { path })
    }

    fn new(bytes: &[u8], installation: &InstallationId) -> Option<Self> {
        // Each use has a key of its own, derived from the one in the file.
        let root = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let derived = |what: &[u8]| hmac::sign(&root, what);
        let keyed = |what: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, derived(what).as_ref());
        let key = UnboundKey::new(&AES_256_GCM, derived(b"conpaas secrets").as_ref()).ok()?;
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(derived(b"conpaas key id").as_ref().get(..ID_BYTES)?);
        Some(Self {
            key: LessSafeKey::new(key),
            id,
            digests: keyed(b"conpaas request digests"),
            births: keyed(b"conpaas birth tokens"),
            installation: installation.clone(),
        })
    }

    fn aad(&self, label: &Label<'_>) -> Vec<u8> {
        let Label {
            service,
            name,
            version,
        } = label;
        format!("{}\0{service}\0{name}\0{}", self.installation, version.0).into_bytes()
    }

    /// Seals a value.
    pub fn seal(&self, label: &Label<'_>, value: &str) -> Result<Vec<u8>, VaultError> {
        let nonce = rand::random::<[u8; NONCE_LEN]>();
        let mut sealed = value.as_bytes().to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(self.aad(label)),
                &mut sealed,
            )
            .map_err(|_| VaultError::Seal)?;
        let mut out = Vec::with_capacity(HEAD + sealed.len());
        out.push(FORMAT);
        out.extend(self.id);
        out.extend(nonce);
        out.extend(sealed);
        Ok(out)
    }

    /// Whether something was sealed with this very key.
    pub fn is_ours(&self, sealed: &[u8]) -> bool {
        sealed.first() == Some(&FORMAT) && sealed.get(1..1 + ID_BYTES) == Some(&self.id[..])
    }

    /// Opens what was sealed.
    pub fn open(&self, label: &Label<'_>, sealed: &[u8]) -> Result<String, VaultError> {
        if !self.is_ours(sealed) {
            return Err(VaultError::OtherKey);
        }
        let nonce = sealed.get(1 + ID_BYTES..HEAD).ok_or(VaultError::Broken)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| VaultError::Broken)?;
        let mut bytes = sealed.get(HEAD..).unwrap_or_default().to_vec();
        let opened = self
            .key
            .open_in_place(nonce, Aad::from(self.aad(label)), &mut bytes)
            .map_err(|_| VaultError::Broken)?;
        String::from_utf8(opened.to_vec()).map_err(|_| VaultError::Broken)
    }

    /// What a machine proves itself with when it enrols: of 256 bits, in hex. Derived, so that the
    /// store need not hold it, and the same whichever of several calls bears the machine.
    pub fn birth_token(&self, machine: &MachineId) -> String {
        let label = format!("{}\0{machine}", self.installation);
        hex::encode(hmac::sign(&self.births, label.as_bytes()).as_ref())
    }

    /// A digest that says nothing of what it is made from to whoever lacks the key: a plain one
    /// of a short password could be guessed.
    pub fn digest(&self, bytes: &[u8]) -> String {
        hex::encode(hmac::sign(&self.digests, bytes).as_ref())
    }
}

/// Writes the key's file whole, and so that it is there after a power cut: what is sealed with
/// it must not outlive it.
fn write(folder: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(folder)?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(folder: &Path) -> Vault {
        Vault::load_or_create(folder, &"inst-a".parse().unwrap()).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_as_the_same_secret_only() {
        let folder = tempfile::tempdir().unwrap();
        let vault = vault(folder.path());
        let service: ServiceId = "svc-a".parse().unwrap();
        let label = Label {
            service: &service,
            name: "DB",
            version: SecretVersion(1),
        };
        let sealed = vault.seal(&label, "hush \u{1f511}").unwrap();
        assert_eq!(vault.open(&label, &sealed).unwrap(), "hush \u{1f511}");
        assert!(!sealed.windows(4).any(|part| part == b"hush"));
        // The same value looks another each time.
        assert_ne!(sealed, vault.seal(&label, "hush \u{1f511}").unwrap());
        let other: ServiceId = "svc-b".parse().unwrap();
        for wrong in [
            Label {
                service: &other,
                ..label
            },
            Label {
                name: "DC",
                ..label
            },
            Label {
                version: SecretVersion(2),
                ..label
            },
        ] {
            let found = vault.open(&wrong, &sealed);
            assert!(matches!(found, Err(VaultError::Broken)), "{wrong:?}");
        }
        for at in [HEAD, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(vault.open(&label, &changed).is_err());
        }
        for length in 0..sealed.len() {
            assert!(vault.open(&label, &sealed[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_machine_is_born_with_the_same_token_however_often_it_is_asked_for() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let machine: MachineId = "m-a".parse().unwrap();
        let token = vault(one.path()).birth_token(&machine);
        assert_eq!(token, vault(one.path()).birth_token(&machine));
        assert_eq!(token.len(), 64);
        let other: MachineId = "m-b".parse().unwrap();
        assert_ne!(token, vault(one.path()).birth_token(&other));
        assert_ne!(token, vault(two.path()).birth_token(&machine));
    }

    #[test]
    fn the_key_is_made_once_for_its_owner_only_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki").join(KEY_FILE);
        let label = Label {
            service: &"svc-a".parse().unwrap(),
            name: "A",
            version: SecretVersion(1),
        };
        let sealed = vault(path.parent().unwrap()).seal(&label, "x").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = vault(path.parent().unwrap());
        assert_eq!(again.open(&label, &sealed).unwrap(), "x");
        // Another key says that it is another.
        std::fs::rename(&path, folder.path().join("kept")).unwrap();
        let lost = vault(path.parent().unwrap());
        assert!(!lost.is_ours(&sealed));
        assert!(matches!(
            lost.open(&label, &sealed),
            Err(VaultError::OtherKey)
        ));
        std::fs::write(&path, "nonsense").unwrap();
        let refused = Vault::load_or_create(path.parent().unwrap(), &"inst-a".parse().unwrap());
        assert!(matches!(refused, Err(VaultError::BadFile { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "nonsense");
    }
}
