//! Logging in and out, users, tokens.

use super::repeat::TokenSecret;
use super::take::{IfMatch, PageQuery, Params, Payload, page};
use super::views;
use crate::auth::{Principal, check_password, make_token, random_secret};
use crate::brake::Attempt;
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::users::{self, TokenRow, UserRow};
use crate::store::{apps, housekeeping, new_id, now};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_model::api::{
    Login, NewToken, Page, PasswordChange, QuotaChange, Rank, Token, TokenCreate, User, UserCreate,
};
use conpaas_model::ids::PrincipalId;
use http::{HeaderName, StatusCode, header};
use std::net::SocketAddr;
use std::sync::Arc;

type Here = State<Arc<Shared>>;

/// A token's lifetime in milliseconds: what was asked for, within the Director's setting.
fn lifetime(shared: &Shared, asked: Option<u64>) -> Result<i64, DirectorError> {
    let max = shared.config.token_lifetime_max.as_secs();
    let seconds = asked.unwrap_or(shared.config.token_lifetime.as_secs().min(max));
    if seconds == 0 || seconds > max {
        return Err(DirectorError::invalid(
            "invalid_lifetime",
            format!("a token lives from 1 to {max} seconds, not {seconds}"),
        ));
    }
    Ok(i64::try_from(seconds)
        .unwrap_or(i64::MAX / 1000)
        .saturating_mul(1000))
}

fn check_label(label: &str) -> Result<(), DirectorError> {
    if label.chars().count() > 100 {
        return Err(DirectorError::invalid(
            "too_long",
            "a label has at most 100 characters",
        ));
    }
    Ok(())
}

async fn new_token(
    shared: &Shared,
    user: UserRow,
    label: String,
    lifetime_ms: i64,
    secret: String,
) -> Result<NewToken, DirectorError> {
    check_label(&label)?;
    let (row, secret) = make_token(&user.id, label, lifetime_ms, now(), secret)?;
    shared
        .store
        .quiet(move |tx| {
            users::insert_token(tx, &row)?;
            Ok(NewToken {
                id: row.id,
                secret,
                expires_at: crate::store::show_time(row.expires_at),
                user: views::user(tx, user)?,
            })
        })
        .await
}

/// Whether a password is right, after the brake admitted the attempt, with what comes of it for
/// the brake.
async fn right(
    shared: &Shared,
    attempt: Attempt<'_>,
    password: String,
    hash: Option<String>,
) -> Result<bool, DirectorError> {
    let right = shared.passwords.verify(password, hash).await;
    match right {
        Ok(true) => attempt.succeeded(),
        // It counts already.
        Ok(false) => drop(attempt),
        Err(_) => attempt.not_made(),
    }
    right
}

/// Log in with name and password; gives a token.
#[utoipa::path(post, path = "/v1/login", operation_id = "login", request_body = Login,
    responses((status = 200, description = "A token.", body = NewToken)))]
pub(super) async fn login(
    State(shared): Here,
    Extension(address): Extension<SocketAddr>,
    Payload(wish): Payload<Login>,
) -> Result<Json<NewToken>, DirectorError> {
    let (name, address) = (wish.name.to_string(), address.ip());
    let lifetime_ms = lifetime(&shared, wish.lifetime_seconds)?;
    let attempt = shared.brake.admit(&name, address, now).await?;
    let asked = name.clone();
    let (user, audit) = shared
        .store
        .quiet(move |tx| {
            let target = format!("/v1/login from {address}");
            let audit = housekeeping::begin_audit(tx, now(), &asked, None, "login", &target)?;
            Ok((
                users::find(tx, &asked)?.filter(|user| user.name == wish.name),
                audit,
            ))
        })
        .await?;
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    let right = right(&shared, attempt, wish.password, hash).await;
    let answer = match right.map(|right| user.filter(|_| right)) {
        Ok(Some(user)) => {
            let label = wish.label.unwrap_or_else(|| "login".to_owned());
            new_token(&shared, user, label, lifetime_ms, random_secret()).await
        }
        Ok(None) => Err(DirectorError::unauthenticated("wrong name or password")),
        Err(error) => Err(error),
    };
    let status = answer
        .as_ref()
        .map_or_else(super::status, |_| StatusCode::OK)
        .as_u16();
    shared
        .store
        .quiet(move |tx| housekeeping::end_audit(tx, audit, status))
        .await?;
    answer.map(Json)
}

/// Revoke the token this request was made with.
#[utoipa::path(post, path = "/v1/logout", operation_id = "logout",
    responses((status = 204, description = "Logged out.")))]
pub(super) async fn logout(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
) -> Result<StatusCode, DirectorError> {
    shared
        .store
        .quiet(move |tx| users::revoke_token(tx, &principal.token, now()))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who one is.
#[utoipa::path(get, path = "/v1/whoami", operation_id = "whoami",
    responses((status = 200, description = "The user.", body = User)))]
pub(super) async fn whoami(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
) -> Result<Json<User>, DirectorError> {
    Ok(Json(
        shared
            .store
            .read(move |tx| views::user(tx, principal.user))
            .await?,
    ))
}

/// All users.
#[utoipa::path(get, path = "/v1/users", operation_id = "list_users", params(PageQuery),
    responses((status = 200, description = "Users by name.", body = Page<User>)))]
pub(super) async fn list_users(
    State(shared): Here,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<User>>, DirectorError> {
    let (after, limit) = (query.position()?.unwrap_or_default(), query.limit());
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let rows = users::list(tx, &after, limit as u64 + 1)?;
        page(
            rows,
            limit,
            |row| row.name.to_string(),
            |row| views::user(tx, row),
        )
    };
    Ok(Json(shared.store.read(look).await?))
}

/// Add a user.
#[utoipa::path(post, path = "/v1/users", operation_id = "create_user", request_body = UserCreate,
    responses((status = 201, description = "The user.", body = User)))]
pub(super) async fn create_user(
    State(shared): Here,
    Payload(wish): Payload<UserCreate>,
) -> Result<(StatusCode, Json<User>), DirectorError> {
    check_password(&wish.password)?;
    if wish.name.as_str().contains('-') {
        return Err(DirectorError::invalid(
            "invalid_name",
            "a user's name holds no '-': host names are APP-USER, and must say which is which",
        ));
    }
    let password_hash = shared.passwords.hash(wish.password).await?;
    let row = UserRow {
        id: new_id(PrincipalId::from_suffix)?,
        name: wish.name,
        password_hash,
        rank: wish.rank.unwrap_or(Rank::User),
        node_quota: wish.node_quota.unwrap_or(shared.config.default_node_quota),
        created_at: now(),
    };
    let user = shared
        .store
        .transaction(move |tx| {
            if users::find(tx, row.name.as_str())?.is_some() {
                return Err(DirectorError::conflict(
                    "name_taken",
                    format!("there is already a user named '{}'", row.name),
                ));
            }
            users::insert(tx, &row)?;
            views::user(tx, row)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(user)))
}

/// One user: oneself, or any for an operator.
#[utoipa::path(get, path = "/v1/users/{user}", operation_id = "show_user",
    params(("user" = String, Path, description = "Name or id.")),
    responses((status = 200, description = "The user.", body = User, headers(("ETag" = String, description = "For If-Match.")))))]
pub(super) async fn show_user(
    State(shared): Here,
    Extension(row): Extension<UserRow>,
) -> Result<([(HeaderName, String); 1], Json<User>), DirectorError> {
    let tag = user_etag(&row)?;
    let user = shared.store.read(move |tx| views::user(tx, row)).await?;
    Ok(([(header::ETAG, tag)], Json(user)))
}

fn user_etag(row: &UserRow) -> Result<String, DirectorError> {
    views::etag(
        "user",
        &(&row.name, row.rank, row.node_quota, &row.password_hash),
    )
}

/// A user as it is within the transaction that changes it, if it is still what the caller thinks of.
fn fresh(
    tx: &rusqlite::Connection,
    row: &UserRow,
    precondition: &IfMatch,
) -> Result<UserRow, DirectorError> {
    let found = users::find(tx, row.id.as_str())?;
    let found = found.ok_or_else(|| DirectorError::not_found(format!("no user '{}'", row.name)))?;
    precondition.check(&user_etag(&found)?)?;
    Ok(found)
}

/// Remove a user who has no applications.
#[utoipa::path(delete, path = "/v1/users/{user}", operation_id = "delete_user",
    params(("user" = String, Path, description = "Name or id.")),
    responses((status = 204, description = "Removed.")))]
pub(super) async fn delete_user(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    Extension(row): Extension<UserRow>,
    precondition: IfMatch,
) -> Result<StatusCode, DirectorError> {
    if row.id == principal.user.id {
        return Err(DirectorError::conflict(
            "oneself",
            "you cannot remove yourself",
        ));
    }
    let remove = move |tx: &rusqlite::Transaction<'_>| {
        let row = fresh(tx, &row, &precondition)?;
        let apps = apps::list(tx, Some(&row.id), apps::Which::All, "", 1)?;
        if let Some(app) = apps.first() {
            return Err(DirectorError::conflict(
                "has_applications",
                format!(
                    "'{}' still has applications, for instance '{}'{}",
                    row.name,
                    app.name,
                    if app.trashed_at.is_some() {
                        " in the trash"
                    } else {
                        ""
                    }
                ),
            )
            .hint(format!(
                "delete them for good first: conpaas app delete {} --now",
                app.id
            )));
        }
        users::delete(tx, &row.id)
    };
    shared.store.transaction(remove).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Change a password; other tokens of that user end.
#[utoipa::path(post, path = "/v1/users/{user}/password", operation_id = "change_password",
    request_body = PasswordChange,
    params(("user" = String, Path, description = "Name or id.")),
    responses((status = 204, description = "Changed.")))]
pub(super) async fn change_password(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    Extension(address): Extension<SocketAddr>,
    Extension(row): Extension<UserRow>,
    precondition: IfMatch,
    Payload(wish): Payload<PasswordChange>,
) -> Result<StatusCode, DirectorError> {
    check_password(&wish.new)?;
    let own = row.id == principal.user.id;
    if own {
        let (name, address) = (row.name.as_str(), address.ip());
        let attempt = shared.brake.admit(name, address, now).await?;
        let current = wish.current.unwrap_or_default();
        let hash = Some(row.password_hash.clone());
        if !right(&shared, attempt, current, hash).await? {
            return Err(DirectorError::forbidden("the present password is another"));
        }
    }
    let hash = shared.passwords.hash(wish.new).await?;
    let keep = own.then_some(principal.token);
    let change = move |tx: &rusqlite::Transaction<'_>| {
        fresh(tx, &row, &precondition)?;
        users::set_password(tx, &row.id, &hash)?;
        users::revoke_all_tokens(tx, &row.id, keep.as_ref(), now())
    };
    shared.store.quiet(change).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Set how many nodes a user may have at once.
#[utoipa::path(patch, path = "/v1/users/{user}", operation_id = "set_quota",
    request_body = QuotaChange,
    params(("user" = String, Path, description = "Name or id.")),
    responses((status = 200, description = "The user.", body = User)))]
pub(super) async fn set_quota(
    State(shared): Here,
    Extension(row): Extension<UserRow>,
    precondition: IfMatch,
    Payload(wish): Payload<QuotaChange>,
) -> Result<Json<User>, DirectorError> {
    let change = move |tx: &rusqlite::Transaction<'_>| {
        let row = fresh(tx, &row, &precondition)?;
        users::set_quota(tx, &row.id, wish.node_quota)?;
        views::user(
            tx,
            UserRow {
                node_quota: wish.node_quota,
                ..row
            },
        )
    };
    Ok(Json(shared.store.transaction(change).await?))
}

/// One's own tokens.
#[utoipa::path(get, path = "/v1/tokens", operation_id = "list_tokens", params(PageQuery),
    responses((status = 200, description = "Tokens that work.", body = Page<Token>)))]
pub(super) async fn list_tokens(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<Token>>, DirectorError> {
    let (after, limit) = (query.position()?.unwrap_or_default(), query.limit());
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let rows = users::list_tokens(tx, &principal.user.id, now(), &after, limit as u64 + 1)?;
        page(
            rows,
            limit,
            |row| row.id.to_string(),
            |row| Ok(views::token(row)),
        )
    };
    Ok(Json(shared.store.read(look).await?))
}

/// Make a token, for instance for a program.
#[utoipa::path(post, path = "/v1/tokens", operation_id = "create_token", request_body = TokenCreate,
    responses((status = 201, description = "The token; its secret is shown this once.", body = NewToken)))]
pub(super) async fn create_token(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    repeatable: Option<Extension<TokenSecret>>,
    Payload(wish): Payload<TokenCreate>,
) -> Result<(StatusCode, Json<NewToken>), DirectorError> {
    let lifetime_ms = lifetime(&shared, wish.lifetime_seconds)?;
    let secret = repeatable.map_or_else(random_secret, |Extension(given)| given.secret);
    let token = new_token(&shared, principal.user, wish.label, lifetime_ms, secret).await?;
    Ok((StatusCode::CREATED, Json(token)))
}

/// End a token.
#[utoipa::path(delete, path = "/v1/tokens/{token}", operation_id = "revoke_token",
    params(("token" = String, Path, description = "Its id.")),
    responses((status = 204, description = "It works no more.")))]
pub(super) async fn revoke_token(
    State(shared): Here,
    Extension(row): Extension<TokenRow>,
) -> Result<StatusCode, DirectorError> {
    shared
        .store
        .quiet(move |tx| users::revoke_token(tx, &row.id, now()))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
