//! Blocks of addresses: the nodes of a service have theirs in blocks that no other service of
//! the application has a node in, so that a role can tell its own service's nodes by address.

use std::net::Ipv4Addr;

/// Addresses of one block; blocks begin at multiples of it.
pub const BLOCK: u32 = 512;

/// Which block an address is in, counted from the beginning of all addresses.
pub fn number(address: Ipv4Addr) -> u32 {
    u32::from(address) / BLOCK
}

/// All addresses of the block that an address is in.
pub fn around(address: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
    let first = number(address) * BLOCK;
    (first..=first + (BLOCK - 1)).map(Ipv4Addr::from)
}

/// An address for another node of a service, from `first` to `last`: the lowest free one of a
/// block that only this service has nodes in, else the lowest of a block nobody has nodes in,
/// else the lowest free one there is. `taken` says who has what.
pub fn free_address<S: PartialEq>(
    service: &S,
    taken: &[(Ipv4Addr, S)],
    first: Ipv4Addr,
    last: Ipv4Addr,
) -> Option<Ipv4Addr> {
    let is_free = |address: &Ipv4Addr| taken.iter().all(|(other, _)| other != address);
    let within = |block: u32| {
        let begin = (block * BLOCK).max(u32::from(first));
        let end = (block * BLOCK + (BLOCK - 1)).min(u32::from(last));
        (begin..=end).map(Ipv4Addr::from).find(is_free)
    };
    let mut mixed: Vec<u32> = taken
        .iter()
        .filter(|(_, owner)| owner != service)
        .map(|(address, _)| number(*address))
        .collect();
    mixed.sort_unstable();
    mixed.dedup();
    let mut own: Vec<u32> = taken
        .iter()
        .filter(|(_, owner)| owner == service)
        .map(|(address, _)| number(*address))
        .filter(|block| mixed.binary_search(block).is_err())
        .collect();
    own.sort_unstable();
    own.dedup();
    own.iter()
        .find_map(|block| within(*block))
        .or_else(|| {
            (number(first)..=number(last))
                .filter(|block| mixed.binary_search(block).is_err())
                .find_map(within)
        })
        .or_else(|| {
            (u32::from(first)..=u32::from(last))
                .map(Ipv4Addr::from)
                .find(is_free)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn every_service_has_blocks_of_its_own() {
        let (first, last) = (at("100.64.0.10"), at("100.127.255.254"));
        let mut taken: Vec<(Ipv4Addr, &str)> = Vec::new();
        let take = |service: &'static str, taken: &mut Vec<(Ipv4Addr, &'static str)>| {
            let address = free_address(&service, taken, first, last).unwrap();
            taken.push((address, service));
            address
        };
        assert_eq!(take("manager", &mut taken), at("100.64.0.10"));
        assert_eq!(take("web", &mut taken), at("100.64.2.0"));
        assert_eq!(take("db", &mut taken), at("100.64.4.0"));
        assert_eq!(take("web", &mut taken), at("100.64.2.1"));
        // One that was given back is taken again; a full block is followed by another.
        taken.retain(|(address, _)| *address != at("100.64.2.0"));
        assert_eq!(take("web", &mut taken), at("100.64.2.0"));
        for _ in 0..510 {
            take("web", &mut taken);
        }
        assert_eq!(take("web", &mut taken), at("100.64.6.0"));
        for (address, service) in &taken {
            for (other, owner) in &taken {
                let together = number(*address) == number(*other);
                assert!(!together || service == owner, "{address} and {other}");
            }
        }
    }

    #[test]
    fn when_blocks_run_out_any_free_address_will_do() {
        let (first, last) = (at("10.0.0.1"), at("10.0.0.3"));
        let taken = [(at("10.0.0.1"), 1)];
        assert_eq!(free_address(&2, &taken, first, last), Some(at("10.0.0.2")));
        let full = [1, 2, 3].map(|n| (Ipv4Addr::new(10, 0, 0, n), 1));
        assert_eq!(free_address(&2, &full, first, last), None);
    }

    #[test]
    fn a_block_is_all_around_an_address() {
        let all: Vec<Ipv4Addr> = around(at("100.64.3.7")).collect();
        assert_eq!(all.len(), 512);
        assert_eq!((all[0], all[511]), (at("100.64.2.0"), at("100.64.3.255")));
        assert_eq!(around(at("255.255.255.255")).count(), 512);
    }
}
