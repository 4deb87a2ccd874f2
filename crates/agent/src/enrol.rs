//! How an agent gets its certificates: at the Director, by the token of the machine's birth or by
//! the key that is known there. Who keeps them is `party`.

use crate::DialTo;
use crate::party::{Enrol, EnrolError, chained};
use async_trait::async_trait;
use conpaas_model::protocol::{Context, EnrolAnswer, EnrolRequest, PATH_ENROL};
use conpaas_pki::{Identity, Roots, client_config};
use conpaas_wire::{Client, ClientSettings, fixed_client_tls};
use std::time::Duration;

/// Enrols at the Director by the token of the machine's birth, or by the known key.
pub struct AtDirector {
    pub context: Context,
    pub dial: DialTo,
}

#[async_trait]
impl Enrol for AtDirector {
    async fn enrol(
        &self,
        csr: String,
        roots: &Roots,
        first: bool,
    ) -> Result<EnrolAnswer, EnrolError> {
        let failed = |error: &(dyn std::error::Error + 'static)| EnrolError(chained(error));
        // Without a certificate: one that is over would be refused before anything is said.
        let tls = client_config(None, roots).map_err(|error| failed(&error))?;
        let (dial, address) = (self.dial.clone(), self.context.director);
        let installation = self.context.installation.clone();
        let expect = move |peer: &Identity| peer.is_director() && peer.installation == installation;
        let settings = ClientSettings {
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            max_idle: 0,
            ..ClientSettings::default()
        };
        let client = Client::new(
            move || dial(address),
            fixed_client_tls(tls),
            expect,
            settings,
        );
        let request = EnrolRequest {
            machine: self.context.machine.clone(),
            csr,
            token: first.then(|| self.context.token.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        client
            .post_json(PATH_ENROL, &request)
            .await
            .map_err(|error| failed(&error))
    }
}
