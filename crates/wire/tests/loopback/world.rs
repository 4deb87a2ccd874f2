//! An installation of its own, with servers and clients on loopback.

use conpaas_pki::{
    Authority, AuthoritySettings, ClientCertificates, Credentials, Identity, KeyPair,
    client_config, server_config,
};
use conpaas_wire::{
    Body, Client, ClientSettings, Peer, ServerSettings, dial_address, fixed_client_tls,
    fixed_server_tls, serve,
};
use http::{Request, Response};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub const BOUND: Duration = Duration::from_secs(20);
pub const DIRECTOR: &str = "conpaas://inst-a/director";
pub const AGENT: &str = "conpaas://inst-a/agent/app-b/m-c";
pub const MANAGER: &str = "conpaas://inst-a/manager/app-b/m-d";

pub async fn bounded<F: Future>(what: &str, future: F) -> F::Output {
    timeout(BOUND, future)
        .await
        .unwrap_or_else(|_| panic!("{what} takes too long"))
}

pub struct World {
    _folder: tempfile::TempDir,
    pub authority: Authority,
}

pub struct Server {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<()>,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuthoritySettings::default();
        let now = SystemTime::now();
        let authority =
            Authority::load_or_create(folder.path(), &"inst-a".parse().unwrap(), &settings, now)
                .unwrap();
        Self {
            _folder: folder,
            authority,
        }
    }

    pub fn credentials(&self, identity: &str) -> Arc<Credentials> {
        let key = KeyPair::generate().unwrap();
        let identity: Identity = identity.parse().unwrap();
        let hour = Duration::from_secs(3600);
        let chain = self
            .authority
            .sign_csr(&key.csr().unwrap(), &identity, hour, SystemTime::now())
            .unwrap();
        Credentials::new(chain, &key).unwrap()
    }

    pub async fn server<H, F>(&self, settings: ServerSettings, handler: H) -> Server
    where
        H: Fn(Request<Incoming>, Peer) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = server_config(
            self.credentials(DIRECTOR),
            self.authority.roots(),
            ClientCertificates::Optional,
        )
        .unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(
            listener,
            fixed_server_tls(config),
            settings,
            shutdown.clone(),
            handler,
        ));
        Server {
            address,
            shutdown,
            task,
        }
    }

    pub fn client(&self, who: Option<&str>, address: SocketAddr) -> Client {
        self.client_expecting(who, address, Identity::is_director)
    }

    pub fn client_expecting(
        &self,
        who: Option<&str>,
        address: SocketAddr,
        expect: impl Fn(&Identity) -> bool + Send + Sync + 'static,
    ) -> Client {
        let config =
            client_config(who.map(|who| self.credentials(who)), self.authority.roots()).unwrap();
        let settings = ClientSettings {
            connect_timeout: Duration::from_secs(15),
            ..ClientSettings::default()
        };
        Client::new(
            dial_address(address),
            fixed_client_tls(config),
            expect,
            settings,
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub text: String,
}

pub fn note(text: impl Into<String>) -> Note {
    Note { text: text.into() }
}

/// A proxy that cuts each connection after so many bytes of answers.
pub async fn cutting_proxy(target: SocketAddr, limit: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                let (mut near_in, mut near_out) = near.split();
                let (far_in, mut far_out) = far.split();
                let mut far_in = far_in.take(limit);
                tokio::select! {
                    _ = tokio::io::copy(&mut near_in, &mut far_out) => {}
                    _ = tokio::io::copy(&mut far_in, &mut near_out) => {}
                }
            });
        }
    });
    address
}
