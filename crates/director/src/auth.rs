//! Who is asking: passwords, tokens, and the brake on guessing. What they may do is `access`.

use crate::error::DirectorError;
use crate::store::users::{self, TokenRow, UserRow};
use crate::store::{self, Millis, Store};
use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use conpaas_model::ids::{PrincipalId, TokenId};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Who asks, as a token proved it.
#[derive(Clone, Debug)]
pub struct Principal {
    pub user: UserRow,
    pub token: TokenId,
}

impl Principal {
    pub fn is_operator(&self) -> bool {
        self.user.rank == conpaas_model::api::Rank::Operator
    }

    pub fn owns(&self, owner: &PrincipalId) -> bool {
        self.user.id == *owner
    }
}

/// Shortest password taken.
pub const PASSWORD_MIN: usize = 8;
const PASSWORD_MAX: usize = 1024;

/// Refuses passwords that are too short, or so long that hashing them is an attack.
pub fn check_password(password: &str) -> Result<(), DirectorError> {
    if password.chars().count() < PASSWORD_MIN {
        return Err(DirectorError::invalid(
            "password_too_short",
            format!("a password needs at least {PASSWORD_MIN} characters"),
        ));
    }
    if password.len() > PASSWORD_MAX {
        return Err(DirectorError::invalid(
            "password_too_long",
            format!("a password may have at most {PASSWORD_MAX} bytes"),
        ));
    }
    Ok(())
}

/// A random password or secret: 160 bits, lower case.
pub fn random_secret() -> String {
    let bytes: [u8; 20] = rand::random();
    hex::encode(bytes)
}

/// SHA-256 in hex.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes.as_ref()))
}

/// Hashes and checks passwords beside the async runtime, few at a time: each needs 19 MiB.
#[derive(Clone)]
pub struct Passwords {
    turn: Arc<Semaphore>,
    /// Checked when there is no such user, so that both answers take as long.
    nobody: Arc<tokio::sync::OnceCell<String>>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(2)),
            nobody: Arc::default(),
        }
    }
}

impl Passwords {
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, DirectorError> + Send + 'static,
    ) -> Result<T, DirectorError> {
        const WHAT: &str = "a password could not be worked on";
        let turn = self.turn.acquire().await;
        let _turn = turn.map_err(|error| DirectorError::internal(WHAT, error))?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| DirectorError::internal(WHAT, error))?
    }

    /// The argon2id hash of a password, in PHC form.
    pub async fn hash(&self, password: String) -> Result<String, DirectorError> {
        self.work(move || {
            Argon2::default()
                .hash_password(password.as_bytes())
                .map(|hash| hash.to_string())
                .map_err(|error| {
                    DirectorError::internal("a password could not be hashed", error.to_string())
                })
        })
        .await
    }

    /// Whether this is the password of `hash`; without one it takes as long and is false.
    pub async fn verify(
        &self,
        password: String,
        hash: Option<String>,
    ) -> Result<bool, DirectorError> {
        let known = hash.is_some();
        let hash = match hash {
            Some(hash) => hash,
            None => self
                .nobody
                .get_or_try_init(|| self.hash(random_secret()))
                .await?
                .clone(),
        };
        let right = self
            .work(move || {
                let hash = PasswordHash::new(&hash).map_err(|error| {
                    DirectorError::internal("a password's record is broken", error.to_string())
                })?;
                Ok(Argon2::default()
                    .verify_password(password.as_bytes(), &hash)
                    .is_ok())
            })
            .await?;
        Ok(right && known)
    }
}

/// A token as it is given out: the row to keep, and the text that is shown once.
pub fn make_token(
    user: &PrincipalId,
    label: String,
    lifetime_ms: i64,
    now: Millis,
) -> Result<(TokenRow, String), DirectorError> {
    let id: TokenId = store::new_id(TokenId::from_suffix)?;
    let secret = random_secret();
    let public = id.as_str().trim_start_matches("tok-").to_owned();
    let text = format!("cps_{public}_{secret}");
    let row = TokenRow {
        id,
        user: user.clone(),
        label,
        secret_hash: sha256_hex(&secret),
        created_at: now,
        expires_at: now.saturating_add(lifetime_ms),
        last_used_at: None,
        revoked_at: None,
    };
    Ok((row, text))
}

/// Equal length and content, in a time that does not tell where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .fold(0, |sum, (x, y)| sum | (x ^ y))
            == 0
}

/// How often a token's last use is written down.
const TOUCH_EVERY_MS: Millis = 60_000;

/// Who holds this token.
pub async fn authenticate(store: &Store, token: &str) -> Result<Principal, DirectorError> {
    let refused = || DirectorError::unauthenticated("this token is unknown, revoked or over");
    let (public, secret) = token
        .strip_prefix("cps_")
        .and_then(|rest| rest.split_once('_'))
        .ok_or_else(refused)?;
    let (id, hash) = (format!("tok-{public}"), sha256_hex(secret));
    let now = store::now();
    let found = store
        .read(move |tx| {
            let Some(token) = users::find_token(tx, &id)? else {
                return Ok(None);
            };
            let user = users::find(tx, token.user.as_str())?;
            Ok(user.map(|user| (token, user)))
        })
        .await?;
    let (row, user) = found.ok_or_else(refused)?;
    if !same(&row.secret_hash, &hash) || row.revoked_at.is_some() || row.expires_at <= now {
        return Err(refused());
    }
    let id = row.id.clone();
    if row
        .last_used_at
        .is_none_or(|at| at.saturating_add(TOUCH_EVERY_MS) < now)
    {
        store
            .quiet(move |tx| users::touch_token(tx, &id, now))
            .await?;
    }
    Ok(Principal {
        user,
        token: row.id,
    })
}

/// Slows guessing down: failed logins by name and address, and by address alone. In memory: a
/// restart forgives.
#[derive(Default)]
pub struct LoginBrake {
    failures: Mutex<HashMap<(String, IpAddr), Failures>>,
}

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    last: Millis,
}

/// Failures that cost nothing, by one name from one address, and from one address at all.
const FREE_BY_NAME: u32 = 5;
const FREE_BY_ADDRESS: u32 = 30;
/// Longest pause, and how long failures are remembered.
const PAUSE_MAX_MS: Millis = 60_000;
const FORGET_AFTER_MS: Millis = 15 * 60_000;

/// Milliseconds to wait after so many failures.
fn pause(count: u32, free: u32) -> Millis {
    if count < free {
        return 0;
    }
    let doubled = 1_000i64
        .checked_shl((count - free).min(16))
        .unwrap_or(PAUSE_MAX_MS);
    doubled.min(PAUSE_MAX_MS)
}

impl LoginBrake {
    /// Refuses an attempt that comes too soon after failed ones.
    pub fn check(&self, name: &str, address: IpAddr, now: Millis) -> Result<(), DirectorError> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, failure| failure.last.saturating_add(FORGET_AFTER_MS) > now);
        let left = |key: &(String, IpAddr), free| {
            failures
                .get(key)
                .map_or(0, |failure| failure.last + pause(failure.count, free) - now)
        };
        let by_name = left(&(name.to_owned(), address), FREE_BY_NAME);
        let by_address = left(&(String::new(), address), FREE_BY_ADDRESS);
        let wait = by_name.max(by_address);
        if wait <= 0 {
            return Ok(());
        }
        let seconds = (wait + 999) / 1000;
        Err(DirectorError::unavailable(
            "too_many_attempts",
            format!("too many failed logins; try again in {seconds} s"),
        ))
    }

    pub fn failed(&self, name: &str, address: IpAddr, now: Millis) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        for name in [name, ""] {
            let failure = failures
                .entry((name.to_owned(), address))
                .or_insert(Failures {
                    count: 0,
                    last: now,
                });
            failure.count = failure.count.saturating_add(1);
            failure.last = now;
        }
    }

    pub fn succeeded(&self, name: &str, address: IpAddr) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&(name.to_owned(), address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_gets_slower_and_a_right_password_forgives() {
        let brake = LoginBrake::default();
        let address = IpAddr::from([127, 0, 0, 1]);
        for now in 0..5 {
            assert!(brake.check("ann", address, now).is_ok(), "{now}");
            brake.failed("ann", address, now);
        }
        let error = brake.check("ann", address, 5).unwrap_err().to_string();
        assert!(error.contains("try again in"), "{error}");
        assert!(brake.check("bob", address, 5).is_ok());
        assert!(brake.check("ann", address, 5_000).is_ok());
        brake.succeeded("ann", address);
        assert!(brake.check("ann", address, 5).is_ok());
    }

    #[test]
    fn pauses_are_bounded() {
        assert_eq!(pause(0, 5), 0);
        assert_eq!(pause(5, 5), 1_000);
        assert_eq!(pause(6, 5), 2_000);
        assert_eq!(pause(4_000_000_000, 5), PAUSE_MAX_MS);
    }

    #[tokio::test]
    async fn passwords_verify_only_themselves() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(
            passwords
                .verify("correct horse".to_owned(), Some(hash.clone()))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("wrong".to_owned(), Some(hash))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("correct horse".to_owned(), None)
                .await
                .unwrap()
        );
    }
}
