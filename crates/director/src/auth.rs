//! Who is asking: what passwords are taken, and tokens. What they may do is `access`; hashing is
//! `passwords`; the brake on guessing is `brake`.

use crate::error::DirectorError;
use crate::store::users::{self, TokenRow, UserRow};
use crate::store::{self, Millis, Store};
use conpaas_model::ids::{PrincipalId, TokenId};
use sha2::{Digest, Sha256};

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
