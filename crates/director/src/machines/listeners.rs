//! Where machines reach the Director: a listener inside each application's network while the
//! application has machines there, made again when the network was; and, for clouds whose
//! machines reach this computer by themselves, one listener of its own.

use super::listener;
use super::shared::{Shared, full};
use conpaas_model::ids::ApplicationId;
use conpaas_model::protocol::DIRECTOR_PORT;
use conpaas_wire::{ServerSettings, ServerTls};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A listener in one network.
struct Open {
    /// The network it was made in: a network that died and was made anew has another name.
    instance: Option<String>,
    /// When it was last known to be wanted, on the broker's scale of calls and lists.
    stamp: u64,
    /// Cancelled when it is to end, and by itself when it has ended.
    end: CancellationToken,
}

/// The listeners inside applications' networks.
#[derive(Default)]
pub struct Listeners {
    open: Mutex<BTreeMap<(String, ApplicationId), Open>>,
}

impl Listeners {
    /// Takes in which networks of a cloud have running machines, by a list that was asked for at
    /// `asked`: opens what lacks, closes the rest.
    pub fn observe(
        &self,
        shared: &Arc<Shared>,
        cloud: &str,
        networks: &BTreeMap<ApplicationId, Option<String>>,
        asked: u64,
    ) {
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|(of, application), entry| {
                // A list from before its first machine knows nothing of it.
                let keep = of != cloud || networks.contains_key(application) || entry.stamp > asked;
                if !keep {
                    entry.end.cancel();
                }
                keep
            });
        }
        for (application, instance) in networks {
            self.ensure(shared, cloud, application, instance.clone(), asked);
        }
    }

    /// Makes sure that a network has its listener, by what was known at `stamp`.
    pub fn ensure(
        &self,
        shared: &Arc<Shared>,
        cloud: &str,
        application: &ApplicationId,
        instance: Option<String>,
        stamp: u64,
    ) {
        let end = shared.shutdown.child_token();
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (cloud.to_owned(), application.clone());
            if let Some(entry) = open.get_mut(&key) {
                let fits = entry.instance == instance || entry.stamp > stamp;
                if fits && !entry.end.is_cancelled() {
                    entry.stamp = entry.stamp.max(stamp);
                    return;
                }
                entry.end.cancel();
            }
            open.insert(
                key,
                Open {
                    instance,
                    stamp,
                    end: end.clone(),
                },
            );
        }
        let (shared, cloud, application) = (shared.clone(), cloud.to_owned(), application.clone());
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let Some(driver) = shared.clouds.get(&cloud) else { return };
            match driver.director_listener(&application, DIRECTOR_PORT).await {
                // Machines there reach the Director's own listener; nothing to do while it lasts.
                Ok(None) => return,
                Ok(Some(listener)) => {
                    let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
                    match listener {
                        Ok(listener) => {
                            tracing::info!(%cloud, %application, "the Director listens in the application's network");
                            serve(&shared, listener, Some(application.clone()), end.clone()).await;
                        }
                        Err(error) => tracing::warn!(%cloud, %application, %error, "the listener cannot be used"),
                    }
                }
                Err(error) => {
                    tracing::warn!(%cloud, %application, error = full(&error), "no listener in the application's network");
                }
            }
            // Whoever looks next makes it anew.
            end.cancel();
        });
    }
}

/// Serves machines on a listener until `end`. On a listener inside a network only machines of
/// that application are served.
pub async fn serve(
    shared: &Arc<Shared>,
    listener: TcpListener,
    network: Option<ApplicationId>,
    end: CancellationToken,
) {
    let given = shared.clone();
    let tls: ServerTls = Arc::new(move || {
        let config = given.server_tls.read();
        config.unwrap_or_else(PoisonError::into_inner).clone()
    });
    let shared = shared.clone();
    conpaas_wire::serve(
        listener,
        tls,
        ServerSettings::default(),
        end,
        move |request, peer| {
            let (shared, network) = (shared.clone(), network.clone());
            async move { listener::handle(shared, network, request, peer).await }
        },
    )
    .await;
}
