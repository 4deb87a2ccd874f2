//! A party tells the Director whom it trusts, with each new certificate: roots are changed only when
//! everybody trusts the new one and holds a certificate of it. Asking for certificates is `party`'s.

use crate::DialTo;
use crate::party::{Party, Trust, chained};
use conpaas_model::protocol::{Context, PATH_TRUST, TrustAnswer, TrustReport};
use conpaas_wire::{Backoff, Client, ClientSettings, WireError};
use std::sync::Arc;
use std::time::Duration;

/// Tells for ever, by connections of their own: each shows the certificate of that moment.
pub async fn tell(party: Arc<Party>, context: Context, dial: DialTo) {
    let mut trust = party.trust();
    let Some(secured) = party.secured().await else {
        return;
    };
    let installation = context.installation.clone();
    let address = context.director;
    let settings = ClientSettings {
        connect_timeout: Duration::from_secs(5),
        response_timeout: Duration::from_secs(10),
        max_idle: 0,
        ..ClientSettings::default()
    };
    let client = Client::new(
        move || dial(address),
        secured.client_tls(),
        move |peer| peer.is_director() && peer.installation == installation,
        settings,
    );
    // One that was made by an earlier life of this party was told by it.
    let mut told: Option<Trust> = None;
    loop {
        let present = trust.borrow_and_update().clone();
        if !present.digest.is_empty() && told.as_ref() != Some(&present) {
            tokio::select! {
                answer = until_heard(&client, &present) => {
                    let Some(answer) = answer else { return };
                    party.notice(&answer.trust);
                    told = Some(present);
                }
                // Another certificate came meanwhile.
                changed = trust.changed() => if changed.is_err() { return },
            }
            continue;
        }
        if trust.changed().await.is_err() {
            return;
        }
    }
}

/// The Director's answer; nothing when it is one that does not ask.
async fn until_heard(client: &Client, trust: &Trust) -> Option<TrustAnswer> {
    let report = TrustReport {
        trusts: trust.roots.clone(),
    };
    let mut backoff = Backoff::for_parties();
    loop {
        match client.post_json(PATH_TRUST, &report).await {
            Ok(answer) => return Some(answer),
            Err(WireError::Remote { status, .. }) if status == http::StatusCode::NOT_FOUND => {
                return None;
            }
            Err(error) => {
                tracing::debug!(
                    error = chained(&error),
                    "the Director does not hear of our roots"
                );
            }
        }
        tokio::time::sleep(backoff.next(rand::random())).await;
    }
}
