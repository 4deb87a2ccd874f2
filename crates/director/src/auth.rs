//! Who is asking: what passwords are taken, tokens, and the brake on guessing. What they may do is
//! `access`; hashing is `passwords`.

use crate::error::DirectorError;
use crate::store::users::{self, TokenRow, UserRow};
use crate::store::{self, Millis, Store};
use conpaas_model::ids::{PrincipalId, TokenId};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

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

/// Characters of a random secret.
pub const SECRET_LENGTH: usize = 40;

/// A random password or secret: 160 bits, lower case.
pub fn random_secret() -> String {
    let bytes: [u8; 20] = rand::random();
    hex::encode(bytes)
}

/// SHA-256 in hex.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes.as_ref()))
}

/// A token as it is given out: the row to keep, and the text that is shown once.
pub fn make_token(
    user: &PrincipalId,
    label: String,
    lifetime_ms: i64,
    now: Millis,
    secret: String,
) -> Result<(TokenRow, String), DirectorError> {
    let id: TokenId = store::new_id(TokenId::from_suffix)?;
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

/// Whether a token that was shown earlier still proves who asks: neither revoked nor over, its
/// user there. For what goes on long after it was let in.
pub fn still_holds(
    tx: &rusqlite::Connection,
    token: &TokenId,
    now: Millis,
) -> Result<bool, DirectorError> {
    let Some(row) = users::find_token(tx, token.as_str())? else {
        return Ok(false);
    };
    Ok(row.revoked_at.is_none()
        && row.expires_at > now
        && users::find(tx, row.user.as_str())?.is_some())
}

/// Slows guessing down: attempts by name and address, and by address alone, until they turn out
/// right. In memory: a restart forgives.
#[derive(Default)]
pub struct LoginBrake {
    attempts: Mutex<HashMap<(String, IpAddr), Attempts>>,
}

#[derive(Clone, Copy)]
struct Attempts {
    count: u32,
    last: Millis,
}

/// Attempts that cost nothing, by one name from one address, and from one address at all.
const FREE_BY_NAME: u32 = 5;
const FREE_BY_ADDRESS: u32 = 30;
/// Longest pause, and how long attempts are remembered.
const PAUSE_MAX_MS: Millis = 60_000;
const FORGET_AFTER_MS: Millis = 15 * 60_000;

/// Milliseconds to wait after so many wrong attempts.
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
    /// Refuses an attempt that comes too soon after wrong ones. One that may go on counts as wrong
    /// from here on, so that guessing at the same time gains nothing, until `succeeded` or
    /// `not_made` takes it back.
    ///
    /// # Errors
    /// `too_many_attempts`, with the time to wait.
    pub fn check(&self, name: &str, address: IpAddr, now: Millis) -> Result<(), DirectorError> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.retain(|_, found| found.last.saturating_add(FORGET_AFTER_MS) > now);
        let left = |key: &(String, IpAddr), free| {
            attempts.get(key).map_or(0, |found| {
                let pause = pause(found.count, free);
                // Never longer than the pause, even when the clock was set back.
                (found.last + pause - now).min(pause)
            })
        };
        let by_name = left(&(name.to_owned(), address), FREE_BY_NAME);
        let by_address = left(&(String::new(), address), FREE_BY_ADDRESS);
        let wait = by_name.max(by_address);
        if wait > 0 {
            let seconds = u32::try_from((wait + 999) / 1000).unwrap_or(u32::MAX);
            return Err(DirectorError::unavailable(
                "too_many_attempts",
                format!("too many failed logins; try again in {seconds} s"),
            )
            .retry_after(seconds));
        }
        for name in [name, ""] {
            let found = attempts
                .entry((name.to_owned(), address))
                .or_insert(Attempts {
                    count: 0,
                    last: now,
                });
            found.count = found.count.saturating_add(1);
            found.last = now;
        }
        Ok(())
    }

    /// The password was right: nothing is held against this name here any more, and this attempt
    /// not against the address.
    pub fn succeeded(&self, name: &str, address: IpAddr) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.remove(&(name.to_owned(), address));
        take_back(&mut attempts, "", address);
    }

    /// The attempt that `check` let through was not made: no password was looked at.
    pub fn not_made(&self, name: &str, address: IpAddr) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        take_back(&mut attempts, name, address);
        take_back(&mut attempts, "", address);
    }
}

fn take_back(attempts: &mut HashMap<(String, IpAddr), Attempts>, name: &str, address: IpAddr) {
    let key = (name.to_owned(), address);
    if let Some(found) = attempts.get_mut(&key) {
        found.count = found.count.saturating_sub(1);
        if found.count == 0 {
            attempts.remove(&key);
        }
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
        }
        let error = brake.check("ann", address, 5).unwrap_err().to_string();
        assert!(error.contains("try again in"), "{error}");
        assert!(brake.check("bob", address, 5).is_ok());
        assert!(brake.check("ann", address, 5_000).is_ok());
        brake.succeeded("ann", address);
        assert!(brake.check("ann", address, 5).is_ok());
    }

    #[test]
    fn attempts_at_the_same_time_are_braked_like_others() {
        let brake = LoginBrake::default();
        let address = IpAddr::from([127, 0, 0, 1]);
        let through = |name: &dyn Fn(u32) -> String| {
            let let_through = |n: &u32| brake.check(&name(*n), address, 0).is_ok();
            (0..150).filter(let_through).count()
        };
        assert_eq!(through(&|_| "ann".to_owned()), 5);
        assert_eq!(through(&|n| format!("name{n}")), 25, "30 by the address");
    }

    #[test]
    fn right_attempts_and_those_not_made_cost_nothing() {
        let brake = LoginBrake::default();
        let address = IpAddr::from([127, 0, 0, 1]);
        for _ in 0..200 {
            brake.check("ann", address, 0).unwrap();
            brake.succeeded("ann", address);
            brake.check("bob", address, 0).unwrap();
            brake.not_made("bob", address);
        }
        assert!(brake.attempts.lock().unwrap().is_empty());
        // What is not made takes back itself alone.
        for _ in 0..5 {
            brake.check("ann", address, 0).unwrap();
        }
        brake.not_made("ann", address);
        assert!(brake.check("ann", address, 0).is_ok());
        assert!(brake.check("ann", address, 0).is_err());
    }

    #[test]
    fn pauses_are_bounded() {
        assert_eq!(pause(0, 5), 0);
        assert_eq!(pause(5, 5), 1_000);
        assert_eq!(pause(6, 5), 2_000);
        assert_eq!(pause(4_000_000_000, 5), PAUSE_MAX_MS);
    }
}
