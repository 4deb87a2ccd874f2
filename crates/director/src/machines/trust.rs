//! Whom everybody trusts: the set of roots, changed while all runs. A new root is spread beside the
//! old one; when every living party has said that it trusts it, it signs; when every one holds a
//! certificate of it, the old one may be retired. The files are `pki`'s; here is who is how far.

use super::listener::{Caller, Kind, Refused, internal, problem, refuse};
use super::shared::{Shared, full};
use super::{managers, records};
use crate::error::DirectorError;
use crate::store::changes::Touched;
use crate::store::{self, Millis};
use conpaas_model::api::{RootInfo, RootState};
use conpaas_model::ids::MachineId;
use conpaas_model::protocol::{TrustAnswer, TrustReport};
use conpaas_pki::{PkiError, TrustedRoot};
use conpaas_wire::{Body, Peer, json_response, read_json};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use rusqlite::{Connection, params};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

/// How often certificates are looked at for renewal.
const RENEWAL_CHECK: Duration = Duration::from_secs(600);
/// A report names a few roots.
const MAX_REPORT: usize = 64 * 1024;
/// So many parties are named in a refusal.
const NAMED: usize = 10;

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Agent => "agent",
        Kind::Manager => "manager",
    }
}

/// A party that may call, and what it last said of roots.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Party {
    /// In words for people: `agent of ann:shop/web/2`.
    name: String,
    /// The root of the certificate it showed; absent when it said nothing yet.
    root: Option<String>,
    trusts: BTreeSet<String>,
}

/// The parties of all machines that have their secrets and are not known to be dead.
fn parties(tx: &Connection) -> Result<Vec<Party>, DirectorError> {
    // Every such machine has an agent, whether it has said something or not; a manager is there
    // once a certificate was given to it.
    let mut statement = tx.prepare_cached(
        "SELECT k.kind AS kind, t.root AS root, t.trusts_json AS trusts, m.node_number AS number,
             coalesce(u.name || ':' || a.name || '/' || s.name, m.service_id) AS service
         FROM machines m
         JOIN (SELECT 'agent' AS kind UNION SELECT 'manager') k
         LEFT JOIN trust t ON t.machine_id = m.id AND t.kind = k.kind
         LEFT JOIN services s ON s.id = m.service_id
         LEFT JOIN apps a ON a.id = m.app_id
         LEFT JOIN users u ON u.id = a.owner_id
         WHERE m.removed = 0 AND m.state IN ('creating','booting','up')
             AND (k.kind = 'agent' OR t.kind IS NOT NULL)
         ORDER BY service, number, kind",
    )?;
    let found = statement.query_map([], |row| {
        Ok((
            row.get::<_, String>("kind")?,
            row.get::<_, String>("service")?,
            row.get::<_, i64>("number")?,
            row.get::<_, Option<String>>("root")?,
            row.get::<_, Option<String>>("trusts")?,
        ))
    })?;
    let mut all = Vec::new();
    for row in found {
        let (kind, service, number, root, trusts) = row?;
        all.push(Party {
            name: format!("{kind} of {service}/{number}"),
            root: root.filter(|root| !root.is_empty()),
            trusts: match trusts {
                Some(text) => serde_json::from_str(&text)?,
                None => BTreeSet::new(),
            },
        });
    }
    Ok(all)
}

/// Writes down what a party said.
fn note(
    tx: &Connection,
    machine: &MachineId,
    kind: Kind,
    root: &str,
    trusts: &BTreeSet<String>,
    now: Millis,
) -> Result<(), DirectorError> {
    tx.prepare_cached(
        "INSERT INTO trust(machine_id, kind, root, trusts_json, at) VALUES(?1,?2,?3,?4,?5)
         ON CONFLICT(machine_id, kind) DO UPDATE SET root = ?3, trusts_json = ?4, at = ?5",
    )?
    .execute(params![
        machine.as_str(),
        word(kind),
        root,
        serde_json::to_string(trusts)?,
        now
    ])?;
    Ok(())
}

/// Writes down that there is a party from now on, which is yet to say something.
pub fn expect(
    tx: &Connection,
    machine: &MachineId,
    kind: Kind,
    now: Millis,
) -> Result<(), DirectorError> {
    tx.prepare_cached(
        "INSERT OR IGNORE INTO trust(machine_id, kind, root, trusts_json, at)
         VALUES(?1,?2,'','[]',?3)",
    )?
    .execute(params![machine.as_str(), word(kind), now])?;
    Ok(())
}

/// Forgets parties whose machines are gone.
fn forget_gone(tx: &Connection) -> Result<(), DirectorError> {
    tx.execute(
        "DELETE FROM trust WHERE machine_id NOT IN (SELECT id FROM machines WHERE state <> 'gone')",
        [],
    )?;
    Ok(())
}

/// Who does not trust a root yet.
fn strangers_to<'a>(parties: &'a [Party], root: &str) -> Vec<&'a str> {
    let not_yet = parties.iter().filter(|party| !party.trusts.contains(root));
    not_yet.map(|party| party.name.as_str()).collect()
}

/// Who still has a certificate of a root, as far as is known: who never said anything may.
fn holders_of<'a>(parties: &'a [Party], root: &str) -> Vec<&'a str> {
    let may = |party: &&Party| party.root.as_deref().is_none_or(|held| held == root);
    let holders = parties.iter().filter(may);
    holders.map(|party| party.name.as_str()).collect()
}

fn named(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied();
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if names.len() > NAMED {
        text.push_str(&format!(" and {} more", names.len() - NAMED));
    }
    text
}

/// Why a root that does not sign, and is not to sign next, may not be retired yet.
fn in_the_way(parties: &[Party], root: &str, signing: &str) -> Option<String> {
    let holders = holders_of(parties, root);
    if !holders.is_empty() {
        return Some(format!(
            "a certificate of it is still held by {}",
            named(&holders)
        ));
    }
    let strangers = strangers_to(parties, signing);
    (!strangers.is_empty()).then(|| {
        format!(
            "the root that signs now is not yet trusted by {}",
            named(&strangers)
        )
    })
}

fn describe(root: &TrustedRoot, parties: &[Party]) -> RootInfo {
    let state = match (root.signs, root.next) {
        (true, _) => RootState::Signs,
        (_, true) => RootState::Next,
        _ => RootState::Former,
    };
    let strangers = strangers_to(parties, &root.fingerprint);
    let waits_for = match state {
        RootState::Signs => Vec::new(),
        RootState::Next => strangers.clone(),
        RootState::Former => holders_of(parties, &root.fingerprint),
    };
    let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
    let held = parties
        .iter()
        .filter(|party| party.root.as_ref() == Some(&root.fingerprint));
    RootInfo {
        fingerprint: root.fingerprint.clone(),
        state,
        expires_at: store::show_time(millis(root.validity.not_after)),
        parties: count(parties.len()),
        trusted_by: count(parties.len() - strangers.len()),
        certificates: count(held.count()),
        waits_for: waits_for.into_iter().map(str::to_owned).collect(),
    }
}

fn millis(at: SystemTime) -> Millis {
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

fn broken(error: PkiError) -> DirectorError {
    DirectorError::internal("the roots could not be read or written", error)
}

/// `POST PATH_TRUST`: a party says whom it trusts, with the certificate that it has now.
pub async fn report(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: Request<Incoming>,
    peer: &Peer,
) -> Result<Response<Body>, Refused> {
    let report: TrustReport = read_json(request, MAX_REPORT).await.map_err(problem)?;
    let (known, root) = {
        let authority = shared
            .authority
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let known = authority.roots().fingerprints();
        let chain = peer.chain.as_deref();
        let root = chain.map(|chain| authority.roots().root_of(chain));
        (known, root.transpose())
    };
    let unreadable = |error: PkiError| internal(&broken(error));
    let known: BTreeSet<String> = known.map_err(unreadable)?.into_iter().collect();
    let root = root.map_err(unreadable)?.flatten();
    let Some(root) = root else {
        return Err(refuse(
            StatusCode::FORBIDDEN,
            "unknown_root",
            "this certificate is of no root that is trusted here; renew it",
        ));
    };
    // What is no root of ours says nothing, and would only fill the store.
    let trusts: BTreeSet<String> = known
        .into_iter()
        .filter(|root| report.trusts.contains(root))
        .collect();
    let (machine, kind) = (caller.machine.id.clone(), caller.kind);
    // It is nothing to the applications.
    shared
        .store
        .transaction_of(Touched::default(), move |tx| {
            note(tx, &machine, kind, &root, &trusts, store::now())
        })
        .await
        .map_err(|error| internal(&error))?;
    let answer = TrustAnswer {
        trust: shared.trust_digest(),
    };
    Ok(json_response(StatusCode::OK, &answer))
}

/// All roots that are trusted, and how far everybody is.
pub async fn list(shared: &Arc<Shared>) -> Result<Vec<RootInfo>, DirectorError> {
    let parties = shared.store.read(|tx| parties(tx)).await?;
    let roots = shared
        .authority
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .trusted()
        .map_err(broken)?;
    Ok(roots.iter().map(|root| describe(root, &parties)).collect())
}

/// Makes a root that is to sign once everybody trusts it.
pub async fn add(shared: &Arc<Shared>) -> Result<RootInfo, DirectorError> {
    let made = shared
        .authority
        .write()
        .unwrap_or_else(PoisonError::into_inner)
        .prepare_root(SystemTime::now());
    let fingerprint = made.map_err(|error| match error {
        PkiError::RootPrepared { fingerprint } => DirectorError::conflict(
            "root_spreading",
            format!(
                "the root {fingerprint} is being spread already; it signs once everybody trusts it"
            ),
        )
        .hint("see for whom it waits: conpaas director roots list"),
        error => broken(error),
    })?;
    changed(shared).map_err(broken)?;
    let found = list(shared).await?;
    found
        .into_iter()
        .find(|root| root.fingerprint == fingerprint)
        .ok_or_else(|| DirectorError::not_found("the new root is gone again"))
}

/// The one root that a fingerprint, or the beginning of one, names.
fn find(roots: &[TrustedRoot], text: &str) -> Result<TrustedRoot, DirectorError> {
    let text = text.replace(':', "").to_ascii_lowercase();
    let mut fits = roots
        .iter()
        .filter(|root| text.len() >= 8 && root.fingerprint.starts_with(&text));
    match (fits.next(), fits.next()) {
        (Some(root), None) => Ok(root.clone()),
        (Some(_), Some(_)) => Err(DirectorError::conflict(
            "ambiguous_root",
            format!("several roots begin with '{text}'; write more of it"),
        )),
        (None, _) => Err(
            DirectorError::not_found(format!("no root '{text}' is trusted"))
                .hint("list them: conpaas director roots list"),
        ),
    }
}

/// Takes a root out of those that everybody trusts.
///
/// # Errors
/// `Conflict` for the one that signs, and while any living party has a certificate of it or does not
/// trust the one that signs, saying which.
pub async fn retire(shared: &Arc<Shared>, text: &str) -> Result<(), DirectorError> {
    let parties = shared.store.read(|tx| parties(tx)).await?;
    {
        let mut authority = shared
            .authority
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let root = find(&authority.trusted().map_err(broken)?, text)?;
        if root.signs {
            return Err(DirectorError::conflict(
                "root_signs",
                format!(
                    "the root {} signs everybody's certificates",
                    root.fingerprint
                ),
            )
            .hint("let another one sign first: conpaas director roots add"));
        }
        if !root.next
            && let Some(why) = in_the_way(&parties, &root.fingerprint, &authority.signing_root())
        {
            return Err(DirectorError::conflict(
                "root_in_use",
                format!("the root {} cannot be retired yet: {why}", root.fingerprint),
            )
            .hint(
                "they renew by themselves; one that does not can be replaced: conpaas node replace",
            ));
        }
        authority.retire_root(&root.fingerprint).map_err(broken)?;
    }
    changed(shared).map_err(broken)
}

/// What follows from a changed set of roots, here and for everybody who listens.
fn changed(shared: &Arc<Shared>) -> Result<(), PkiError> {
    shared.renew_tls()?;
    shared.store.tell(&Touched::Everything);
    Ok(())
}

/// Lets the prepared root sign, when everybody trusts it.
async fn switch_when_due(shared: &Arc<Shared>) -> Result<(), DirectorError> {
    let next = || {
        let authority = shared.authority.read();
        authority
            .unwrap_or_else(PoisonError::into_inner)
            .next_root()
    };
    let Some(root) = next() else {
        return Ok(());
    };
    let parties = shared.store.read(|tx| parties(tx)).await?;
    if !strangers_to(&parties, &root).is_empty() {
        return Ok(());
    }
    {
        let mut authority = shared
            .authority
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // It may have been retired, and another made, meanwhile.
        if authority.next_root().as_deref() != Some(root.as_str()) {
            return Ok(());
        }
        authority.switch_root(SystemTime::now()).map_err(broken)?;
    }
    shared.renew_own().map_err(broken)?;
    changed(shared).map_err(broken)
}

/// Looks, whenever records change, whether the next root may sign.
pub async fn follow(shared: Arc<Shared>) {
    let mut changed = shared.store.changed();
    loop {
        if let Err(error) = switch_when_due(&shared).await {
            tracing::error!(error = full(&error), "the change of roots broke off");
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = changed.changed() => {}
        }
    }
}

/// Keeps the issuing certificate and the Director's own fresh, and forgets what is over.
pub async fn renew(shared: Arc<Shared>) {
    let lifetime = shared.config.certificate_lifetime;
    loop {
        let now = SystemTime::now();
        let refreshed = shared
            .authority
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .refresh(now);
        if let Err(error) = refreshed {
            tracing::error!(
                error = full(&error),
                "the issuing certificate could not be renewed"
            );
        }
        let due = shared.own.credentials.validity();
        if due.map_or(true, |validity| validity.should_renew_of(lifetime, now))
            && let Err(error) = shared.renew_own()
        {
            tracing::error!(
                error = full(&error),
                "the Director's certificate could not be renewed"
            );
        }
        let forgotten = shared.store.quiet(|tx| {
            managers::forget_epochs(tx)?;
            forget_gone(tx)
        });
        if let Err(error) = forgotten.await {
            tracing::warn!(error = full(&error), "what is over could not be forgotten");
        }
        // Short-lived certificates are looked at more often.
        let pause = RENEWAL_CHECK
            .min(lifetime / 6)
            .max(Duration::from_millis(100));
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether a machine may have a manager is its caller's to know; from now on one is counted.
pub async fn expect_manager(
    shared: &Arc<Shared>,
    machine: &records::Machine,
) -> Result<(), DirectorError> {
    let id = machine.id.clone();
    shared
        .store
        .quiet(move |tx| expect(tx, &id, Kind::Manager, store::now()))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(name: &str, root: Option<&str>, trusts: &[&str]) -> Party {
        Party {
            name: name.to_owned(),
            root: root.map(str::to_owned),
            trusts: trusts.iter().map(|root| (*root).to_owned()).collect(),
        }
    }

    #[test]
    fn a_root_is_retired_only_when_nobody_needs_it() {
        let both = ["old", "new"];
        let done = [
            party("a", Some("new"), &both),
            party("b", Some("new"), &["new"]),
        ];
        assert_eq!(in_the_way(&done, "old", "new"), None);
        assert_eq!(in_the_way(&[], "old", "new"), None);
        let holds = [done[0].clone(), party("c", Some("old"), &both)];
        let why = in_the_way(&holds, "old", "new").unwrap();
        assert!(why.contains("held by c"), "{why}");
        // Who never said anything may hold and trust anything.
        let silent = [done[0].clone(), party("d", None, &[])];
        let why = in_the_way(&silent, "old", "new").unwrap();
        assert!(why.contains("held by d"), "{why}");
        let odd = [party("e", Some("third"), &["old", "third"])];
        let why = in_the_way(&odd, "old", "new").unwrap();
        assert!(why.contains("not yet trusted by e"), "{why}");
        assert_eq!(strangers_to(&silent, "new"), ["d"]);
    }

    #[test]
    fn many_names_are_cut_short() {
        let names: Vec<String> = (0..25).map(|n| format!("p{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(named(&names).ends_with("p9 and 15 more"));
        assert_eq!(named(&names[..2]), "p0, p1");
    }
}
