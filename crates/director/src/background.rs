//! The Director's own duties beside requests: drawing conclusions when records change, ending
//! operations at their deadlines, forgetting what is old. They hold a lease.

use crate::api::ApiTls;
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::changes::Touched;
use crate::store::{apps, codes, events, housekeeping, millis, now, operations, users};
use crate::{blobs, life, metrics, uploads};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The lease of these duties.
const LEASE: &str = "conclusions";
const LEASE_MS: i64 = 10_000;
/// Conclusions are drawn at least so often (deadlines pass without any record changing).
const TICK: Duration = Duration::from_secs(1);
/// And for all applications at least so often, whatever is thought to be touched.
const WHOLE: Duration = Duration::from_secs(10);
const CLEAN_EVERY: Duration = Duration::from_secs(600);
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Draws conclusions for the applications that changes touched, and for those that time touches, if
/// this Director holds the lease; whether it does.
pub async fn conclude(shared: &Arc<Shared>, touched: Touched) -> Result<bool, DirectorError> {
    let here = shared.clone();
    let changed = shared
        .store
        .quiet(move |tx| {
            let mut changed = Touched::default();
            let at = now();
            if housekeeping::hold_lease(tx, LEASE, &here.run_id, at, at + LEASE_MS)?.is_none() {
                return Ok(None);
            }
            let running = operations::running(tx, None)?;
            let due = match touched {
                Touched::Everything => apps::every(tx)?.into_iter().map(|app| app.id).collect(),
                Touched::Applications(mut these) => {
                    // Deadlines pass without any record changing.
                    these.extend(running.iter().map(|operation| operation.app.clone()));
                    these.extend(apps::leaving(tx)?);
                    these
                }
            };
            for app in due {
                if apps::get(tx, &app)?.is_none() {
                    continue;
                }
                // What follows may follow from what was just concluded, a few steps deep.
                for _ in 0..4 {
                    if !life::settle(tx, &here, &app)? {
                        break;
                    }
                    changed.add(&app.clone().into());
                }
            }
            // Operations of applications that are gone end too.
            for operation in running {
                if apps::get(tx, &operation.app)?.is_none()
                    && crate::operations::judge_running(tx, &operation.app)?
                {
                    changed.add(&operation.app.into());
                }
            }
            Ok(Some(changed))
        })
        .await?;
    let news = changed
        .as_ref()
        .filter(|changed| **changed != Touched::default());
    if let Some(changed) = news {
        shared.store.tell(changed);
    }
    Ok(changed.is_some())
}

/// Concludes whenever records change and at least each second, until shutdown.
pub async fn conclusions(shared: Arc<Shared>) {
    let mut changes = shared.store.follow();
    let mut whole = tokio::time::Instant::now();
    loop {
        let mut touched = changes.take();
        if whole.elapsed() >= WHOLE {
            touched = Touched::Everything;
        }
        let concluded = conclude(&shared, touched.clone()).await;
        match &concluded {
            Ok(true) if touched == Touched::Everything => whole = tokio::time::Instant::now(),
            Ok(true) => {}
            // It is for another time, or for whoever holds the lease.
            Ok(false) | Err(_) => changes.put_back(&touched),
        }
        if let Err(error) = concluded {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "conclusions broke off"
            );
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            () = tokio::time::sleep(TICK) => {}
            there = changes.changed() => if !there { break },
        }
    }
    let run_id = shared.run_id.clone();
    let given_back = shared
        .store
        .quiet(move |tx| housekeeping::release_leases(tx, &run_id))
        .await;
    if let Err(error) = given_back {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "a lease stays until it is over"
        );
    }
}

/// Forgets what is old.
pub async fn clean(shared: &Arc<Shared>) -> Result<(), DirectorError> {
    let kept = shared.config.kept;
    shared
        .store
        .quiet(move |tx| {
            let at = now();
            housekeeping::forget_keys(tx, at - millis(kept.keys))?;
            users::forget_tokens(tx, at - DAY_MS)?;
            operations::forget(tx, at - millis(kept.operations))?;
            events::forget_old(tx, kept.events)?;
            codes::forget_deleted(tx, at - millis(kept.code))
        })
        .await?;
    let here = shared.clone();
    let emptied = shared
        .store
        .transaction(move |tx| life::empty_trash(tx, &here))
        .await?;
    if emptied {
        shared.machines.wake();
    }
    blobs::collect(shared).await?;
    uploads::forget(shared, kept.uploads)?;
    clean_what_was_said(shared).await
}

/// Logs and metrics.
async fn clean_what_was_said(shared: &Arc<Shared>) -> Result<(), DirectorError> {
    let apps = shared.store.read(|tx| apps::every(tx)).await?;
    let known: BTreeSet<String> = apps.iter().map(|app| app.id.to_string()).collect();
    let (logs, most) = (shared.logs.clone(), shared.config.logs_per_application);
    let metrics = shared.metrics.clone();
    let work = move || {
        let keep = |app: &str| known.contains(app);
        logs.clean(&keep, most)?;
        let cleaned = metrics.clean(&keep, now() / 1000);
        cleaned.map_err(std::io::Error::other)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)
        .and_then(|done| done)
        .map_err(|error| DirectorError::internal("logs and metrics could not be cleaned", error))
}

/// Writes what was measured down, step by step and at the end.
pub async fn measures(shared: Arc<Shared>) {
    let pause = Duration::from_secs(metrics::FINE.unsigned_abs());
    loop {
        let last = tokio::select! {
            () = shared.shutdown.cancelled() => true,
            () = tokio::time::sleep(pause) => false,
        };
        let metrics = shared.metrics.clone();
        let written = tokio::task::spawn_blocking(move || metrics.flush(now() / 1000)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "metrics wait to be written"
            );
        }
        if last {
            return;
        }
    }
}

/// Cleans at start and now and then, and keeps the API's certificate fresh.
pub async fn cleaning(shared: Arc<Shared>, tls: Arc<ApiTls>) {
    loop {
        if let Err(error) = clean(&shared).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cleaning broke off"
            );
        }
        if let Err(error) = tls.renew() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the API's certificate is not renewed"
            );
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(CLEAN_EVERY) => {}
        }
    }
}
