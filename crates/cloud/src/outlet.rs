//! The way out of an application's network that is a namespace of this computer: sockets at which
//! its machines knock. Whether and where they are let through is for whoever holds the sockets.

use crate::drivers::local;
use crate::error::CloudError;
use crate::types::NetworkAccess;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

/// Ports that one outlet can have.
pub const MOST_PORTS: usize = local::MOST_FDS - 2;

/// The sockets of one incarnation of a network, set not to block.
pub struct Outlet {
    /// Names the incarnation: a network that lost all its machines is another one when it is back.
    pub instance: String,
    /// Where machines ask for names.
    pub names: UdpSocket,
    /// The same for long answers.
    pub long_names: TcpListener,
    /// A connection taken here has the address that it was bound for as its local one.
    pub doors: Vec<TcpListener>,
}

/// Opens the outlet of a network for some ports (at most [`MOST_PORTS`]); blocks for some
/// milliseconds. Another outlet may be open beside it: each gets some of the knocks. None where
/// machines need no outlet.
///
/// # Errors
/// [`CloudError::NoNetwork`] when no machine of the network runs.
pub fn open_outlet(access: &NetworkAccess, ports: &[u16]) -> Result<Option<Outlet>, CloudError> {
    let NetworkAccess::Local {
        state_dir,
        network,
        program,
    } = access
    else {
        return Ok(None);
    };
    let (instance, sockets) = local::outlet(program, state_dir, network, ports)?;
    let mut sockets = sockets.into_iter();
    let mut next = || -> Result<OwnedFd, CloudError> {
        sockets.next().ok_or_else(|| CloudError::Step {
            step: "receive sockets of a network".into(),
            detail: "there are too few".into(),
        })
    };
    let (names, long_names) = (UdpSocket::from(next()?), TcpListener::from(next()?));
    Ok(Some(Outlet {
        instance,
        names,
        long_names,
        doors: sockets.map(TcpListener::from).collect(),
    }))
}

/// The name of a network's present incarnation; none while it has no machines, as far as is written
/// down.
pub fn network_instance(access: &NetworkAccess) -> Option<String> {
    let NetworkAccess::Local {
        state_dir, network, ..
    } = access
    else {
        return None;
    };
    std::fs::read_to_string(local::instance_file(state_dir, network)).ok()
}
