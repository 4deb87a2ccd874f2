//! The few requests to the kernel's routing socket that a machine's network needs: links,
//! addresses, routes, neighbours. Synchronous and small, because the supervisor has no runtime.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    socket,
};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_HOST: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const IFF_UP: u32 = 1;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The Ethernet address that belongs to an IPv4 address: both ends know it without asking.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x02, 0x63, a, b, c, d]
}

/// Attributes of a message under construction.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn link(index: u32, up: bool) -> Self {
        let flags = if up { IFF_UP } else { 0 };
        let mut bytes = vec![0, 0, 0, 0];
        bytes.extend(index.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, data: &[u8]) -> Self {
        self.0.extend(((data.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }
}

/// A routing socket of the namespace it was opened in.
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens the routing socket of the current network namespace.
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    fn request(&mut self, kind: u16, flags: u16, body: Body) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(16 + body.0.len());
        message.extend(((16 + body.0.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body.0);
        sendto(
            self.fd.as_raw_fd(),
            &message,
            &NetlinkAddr::new(0, 0),
            MsgFlags::empty(),
        )?;
        let mut buffer = [0u8; 8192];
        loop {
            let n = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            let mut rest = &buffer[..n];
            while rest.len() >= 20 {
                let word = |at: usize| [rest[at], rest[at + 1], rest[at + 2], rest[at + 3]];
                let length = (u32::from_ne_bytes(word(0)) as usize).clamp(16, rest.len());
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                if kind == NLMSG_ERROR && u32::from_ne_bytes(word(8)) == self.sequence {
                    return match i32::from_ne_bytes(word(16)) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }

    /// Makes a bridge with a fixed Ethernet address and brings it up.
    pub fn add_bridge(&mut self, name: &str, mac: Mac) -> io::Result<()> {
        let info = Body::default().text(IFLA_INFO_KIND, "bridge");
        let body = Body::link(0, true)
            .text(IFLA_IFNAME, name)
            .attribute(IFLA_ADDRESS, &mac)
            .attribute(IFLA_LINKINFO, &info.0);
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)
    }

    /// Makes a cable: `name` here, plugged into the bridge `master` and up, and `peer` with its
    /// Ethernet address in the network namespace of the process `pid`, still down.
    pub fn add_cable(
        &mut self,
        name: &str,
        master: u32,
        peer: &str,
        mac: Mac,
        pid: i32,
    ) -> io::Result<()> {
        let other = Body::link(0, false)
            .text(IFLA_IFNAME, peer)
            .attribute(IFLA_ADDRESS, &mac)
            .attribute(IFLA_NET_NS_PID, &(pid as u32).to_ne_bytes());
        let data = Body::default().attribute(VETH_INFO_PEER, &other.0);
        let info = Body::default()
            .text(IFLA_INFO_KIND, "veth")
            .attribute(IFLA_INFO_DATA, &data.0);
        let body = Body::link(0, true)
            .text(IFLA_IFNAME, name)
            .attribute(IFLA_MASTER, &master.to_ne_bytes())
            .attribute(IFLA_LINKINFO, &info.0);
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)
    }

    /// Brings a link up.
    pub fn up(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_NEWLINK, 0, Body::link(index, true))
    }

    /// Gives a link an address.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut head = vec![libc::AF_INET as u8, prefix, 0, 0];
        head.extend(index.to_ne_bytes());
        let body = Body(head)
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets());
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)
    }

    /// Sends what leads nowhere else to a gateway.
    pub fn add_default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        let body = default_route(RTN_UNICAST, RT_SCOPE_UNIVERSE);
        let body = body.attribute(RTA_GATEWAY, &gateway.octets());
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)
    }

    /// Takes what leads nowhere else as meant for this network's own sockets: whoever listens at
    /// all addresses gets it and sees where it was bound for, and where nobody does it is refused
    /// at once. In the main table, where what the links lead to goes first.
    pub fn take_all(&mut self, loopback: u32) -> io::Result<()> {
        let body = default_route(RTN_LOCAL, RT_SCOPE_HOST);
        let body = body.attribute(RTA_OIF, &loopback.to_ne_bytes());
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)
    }

    /// Writes down a neighbour's Ethernet address for good.
    pub fn add_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: Mac) -> io::Result<()> {
        let mut head = vec![libc::AF_INET as u8, 0, 0, 0];
        head.extend(index.to_ne_bytes());
        head.extend(NUD_PERMANENT.to_ne_bytes());
        head.extend([0, 0]);
        let body = Body(head)
            .attribute(NDA_DST, &address.octets())
            .attribute(NDA_LLADDR, &mac);
        self.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)
    }
}

/// A route for all addresses (`rtmsg` of rtnetlink(7)), to be completed by where it leads.
fn default_route(kind: u8, scope: u8) -> Body {
    let mut head = vec![libc::AF_INET as u8, 0, 0, 0];
    head.extend([RT_TABLE_MAIN, RTPROT_BOOT, scope, kind]);
    head.extend(0u32.to_ne_bytes());
    Body(head)
}

/// A link's index in the current network namespace.
pub fn index_of(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_words() {
        let body = Body::default().text(IFLA_IFNAME, "br0");
        assert_eq!(body.0.len(), 8);
        assert_eq!(Body::default().attribute(1, &[1, 2, 3, 4, 5]).0.len(), 12);
        assert_eq!(Body::link(0, false).0.len(), 16);
    }

    #[test]
    fn ethernet_addresses_are_local_and_follow_the_address() {
        assert_eq!(
            mac_of(Ipv4Addr::new(100, 64, 0, 7)),
            [2, 0x63, 100, 64, 0, 7]
        );
    }
}
