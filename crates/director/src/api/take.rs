//! What handlers take from a request: bodies, queries, pages, preconditions; each refused in the
//! API's own words.

use crate::auth::Principal;
use crate::error::{DirectorError, Explain};
use crate::store::Millis;
use crate::store::apps::AppRow;
use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use conpaas_model::api::{Labels, Page};
use conpaas_model::ids::ApplicationId;
use http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use utoipa::IntoParams;

/// A JSON body.
pub struct Payload<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Payload<T> {
    type Rejection = DirectorError;
    async fn from_request(request: Request, state: &S) -> Result<Self, DirectorError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => {
                let message = rejection.body_text();
                Err(
                    if rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE {
                        DirectorError::too_large(message)
                    } else {
                        DirectorError::invalid("invalid_body", message)
                    },
                )
            }
        }
    }
}

/// The query of a URL.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = DirectorError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, DirectorError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(DirectorError::invalid(
                "invalid_query",
                rejection.body_text(),
            )),
        }
    }
}

/// What stands in the path's places, by name.
pub struct Segments(pub BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Segments {
    type Rejection = DirectorError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, DirectorError> {
        match Path::<BTreeMap<String, String>>::from_request_parts(parts, state).await {
            Ok(Path(found)) => Ok(Self(found)),
            Err(rejection) => Err(DirectorError::invalid(
                "invalid_path",
                rejection.body_text(),
            )),
        }
    }
}

/// Which page of a collection.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `next` of the page before.
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    pub limit: Option<u32>,
}

const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1000;

impl PageQuery {
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX) as usize
    }

    /// What the cursor names, or the start.
    pub fn position(&self) -> Result<Option<String>, DirectorError> {
        let Some(cursor) = &self.cursor else {
            return Ok(None);
        };
        let text = URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|b| String::from_utf8(b).ok());
        text.and_then(|text| text.strip_prefix("1:").map(str::to_owned))
            .map(Some)
            .ok_or_else(|| {
                DirectorError::invalid(
                    "invalid_cursor",
                    "this cursor does not come from a page's `next`",
                )
            })
    }

    /// A position made of a time and an id; newest first starts at the end of time.
    pub fn time_position(&self) -> Result<(Millis, String), DirectorError> {
        let Some(text) = self.position()? else {
            return Ok((Millis::MAX, String::new()));
        };
        let bad =
            || DirectorError::invalid("invalid_cursor", "this cursor is of another collection");
        let (at, id) = text.split_once(' ').ok_or_else(bad)?;
        Ok((at.parse().map_err(|_| bad())?, id.to_owned()))
    }

    /// A position that is a number.
    pub fn number_position(&self, start: u64) -> Result<u64, DirectorError> {
        let Some(text) = self.position()? else {
            return Ok(start);
        };
        text.parse().map_err(|_| {
            DirectorError::invalid("invalid_cursor", "this cursor is of another collection")
        })
    }
}

/// A page from rows that were asked for with one more than the limit.
pub fn page<R, T>(
    mut rows: Vec<R>,
    limit: usize,
    position: impl Fn(&R) -> String,
    mut show: impl FnMut(R) -> Result<T, DirectorError>,
) -> Result<Page<T>, DirectorError> {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows
        .last()
        .filter(|_| more)
        .map(|row| URL_SAFE_NO_PAD.encode(format!("1:{}", position(row))));
    let items = rows.into_iter().map(&mut show).collect::<Result<_, _>>()?;
    Ok(Page { items, next })
}

/// A page of a collection that is made anew for each request. `key` says where an item stands, and
/// the order of items is that of their keys.
pub fn page_of<T>(
    items: Vec<T>,
    query: &PageQuery,
    key: impl Fn(&T) -> String,
) -> Result<Page<T>, DirectorError> {
    let (after, limit) = (query.position()?, query.limit());
    let mut items: Vec<(String, T)> = items
        .into_iter()
        .map(|item| (key(&item), item))
        .filter(|(key, _)| after.as_ref().is_none_or(|after| key > after))
        .collect();
    items.sort_by(|(a, _), (b, _)| a.cmp(b));
    page(items, limit, |(key, _)| key.clone(), |(_, item)| Ok(item))
}

/// Whether labels match a filter `key=value` (or `key`: it is there), several by comma.
pub fn labels_match(filter: Option<&str>, labels: &Labels) -> bool {
    filter
        .into_iter()
        .flat_map(|filter| filter.split(','))
        .filter(|part| !part.is_empty())
        .all(|part| match part.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(part),
        })
}

/// `If-Match`, if the request has one.
#[derive(Clone)]
pub struct IfMatch(Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let value = parts.headers.get(http::header::IF_MATCH);
        Ok(Self(
            value
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
        ))
    }
}

impl IfMatch {
    /// Refuses a change of something whose wishes changed since the caller looked. A tag is the
    /// whole entity tag, as it was read, or its generation alone (`"g12"`).
    pub fn check(&self, etag: &str) -> Result<(), DirectorError> {
        let Some(wanted) = &self.0 else { return Ok(()) };
        let present = etag.trim_matches('"');
        let generation = present.split('-').next().unwrap_or(present);
        let fits = wanted
            .split(',')
            .map(|tag| tag.trim().trim_start_matches("W/"))
            .any(|tag| {
                let tag = tag.trim_matches('"');
                // What reading gives has the content's digest behind it, which is not asked for.
                let read = tag
                    .strip_prefix(present)
                    .is_some_and(|rest| rest.starts_with('-'));
                tag == "*" || tag == present || tag == generation || read
            });
        if fits {
            return Ok(());
        }
        Err(DirectorError::PreconditionFailed(Explain {
            code: "changed_meanwhile",
            message: format!("it changed since you looked: it is at {etag}, not {wanted}"),
            hint: Some("look again, and repeat the change if it still makes sense".to_owned()),
            retry_after: None,
        }))
    }
}

/// Who asks for a change, and of which state of the thing they think.
pub struct Caller {
    pub principal: Principal,
    pub precondition: IfMatch,
    /// The application in whose part of the API they ask, if it is one's.
    pub application: Option<ApplicationId>,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = DirectorError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, DirectorError> {
        let Ok(precondition) = IfMatch::from_request_parts(parts, state).await;
        let principal = parts.extensions.get::<Principal>().cloned();
        Ok(Self {
            principal: principal
                .ok_or_else(|| DirectorError::unauthenticated("this needs a login"))?,
            precondition,
            application: parts.extensions.get::<AppRow>().map(|row| row.id.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_end_and_go_on() {
        let query = PageQuery {
            cursor: None,
            limit: Some(2),
        };
        let first = page(vec![1, 2, 3], query.limit(), i32::to_string, Ok).unwrap();
        assert_eq!(first.items, [1, 2]);
        let next = PageQuery {
            cursor: first.next,
            limit: Some(2),
        };
        assert_eq!(next.position().unwrap().as_deref(), Some("2"));
        assert!(page(vec![3], 2, i32::to_string, Ok).unwrap().next.is_none());
        let rest = page_of(vec![3, 1, 2], &next, i32::to_string).unwrap();
        assert_eq!((rest.items, rest.next), (vec![3], None));
        let bad = PageQuery {
            cursor: Some("nonsense".to_owned()),
            limit: None,
        };
        assert!(bad.position().is_err());
    }

    #[test]
    fn preconditions_take_tag_or_generation() {
        for good in ["\"g3-ab\"", "\"g3\"", "*", "W/\"g3-ab\"", "\"g1\", \"g3\""] {
            assert!(
                IfMatch(Some(good.to_owned())).check("\"g3-ab\"").is_ok(),
                "{good}"
            );
        }
        assert!(
            IfMatch(Some("\"g2\"".to_owned()))
                .check("\"g3-ab\"")
                .is_err()
        );
        assert!(IfMatch(None).check("\"g3-ab\"").is_ok());
    }

    #[test]
    fn labels_filter() {
        let labels = Labels::from([("a".to_owned(), "1".to_owned())]);
        assert!(labels_match(None, &labels) && labels_match(Some("a"), &labels));
        assert!(labels_match(Some("a=1"), &labels));
        assert!(!labels_match(Some("a=2"), &labels) && !labels_match(Some("a=1,b"), &labels));
    }
}
