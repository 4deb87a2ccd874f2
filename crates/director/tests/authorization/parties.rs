//! An agent and a manager with the certificates that the Director gave them.

use base64::Engine;
use conpaas_model::protocol::{Context, EnrolAnswer, EnrolRequest, PATH_ENROL, PATH_ENROL_MANAGER};
use conpaas_pki::{CertificateChain, Credentials, Identity, KeyPair, Roots, client_config};
use conpaas_wire::{Client, ClientSettings, dial_address, fixed_client_tls};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn csr(key: &KeyPair) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(key.csr().unwrap());
    let mut pem = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).unwrap());
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE REQUEST-----\n"
}

/// A client of the machines' listener.
fn client(context: &Context, credentials: Option<Arc<Credentials>>) -> Client {
    let roots = Roots::from_pem(&context.roots).unwrap();
    let tls = fixed_client_tls(client_config(credentials, &roots).unwrap());
    let settings = ClientSettings::default();
    Client::new(
        dial_address(context.director),
        tls,
        Identity::is_director,
        settings,
    )
}

/// Asks until it is granted: a node is recorded as up a moment after its machine runs.
async fn certificate(context: &Context, asker: &Client, path: &str) -> Arc<Credentials> {
    let key = KeyPair::generate().unwrap();
    let request = EnrolRequest {
        machine: context.machine.clone(),
        csr: csr(&key),
        token: (path == PATH_ENROL).then(|| context.token.clone()),
        version: conpaas_model::VERSION.into(),
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match asker.post_json::<_, EnrolAnswer>(path, &request).await {
            Ok(answer) => {
                let chain = CertificateChain::from_pem(&answer.chain).unwrap();
                return Credentials::new(chain, &key).unwrap();
            }
            Err(error) if Instant::now() < deadline => {
                assert!(
                    error.is_transient() || error.code() == Some("no_system_node"),
                    "{error}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("no certificate at {path}: {error}"),
        }
    }
}

/// Certificates of one machine's agent and of the manager there.
pub struct Parties {
    pub agent: Arc<Credentials>,
    pub manager: Arc<Credentials>,
    pub machines_port: u16,
}

impl Parties {
    /// Enrols as the machine's agent, and through it as its manager.
    pub async fn enrol(context: &Context) -> Self {
        let agent = certificate(context, &client(context, None), PATH_ENROL).await;
        let named = client(context, Some(agent.clone()));
        let manager = certificate(context, &named, PATH_ENROL_MANAGER).await;
        Self {
            agent,
            manager,
            machines_port: context.director.port(),
        }
    }
}
