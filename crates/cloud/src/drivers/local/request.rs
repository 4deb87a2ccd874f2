//! Requests for machines before anything is made: whether they can work, and the id they lead to.

use super::config::{GATEWAY, PREFIX};
use crate::error::CloudError;
use crate::types::{CloudMachineId, CreateMachine};
use conpaas_model::ids::InstallationId;
use sha2::{Digest, Sha256};
use std::net::Ipv4Addr;

const ID_PREFIX: &str = "local-";

/// The id of the machine that a token names: no record is needed to find it again.
pub fn id_for(installation: &InstallationId, token: &str) -> CloudMachineId {
    let digest = Sha256::new()
        .chain_update(installation.as_str())
        .chain_update([0])
        .chain_update(token)
        .finalize();
    CloudMachineId(format!("{ID_PREFIX}{}", &hex::encode(digest)[..20]))
}

/// Whether an id is one of ours, and so safe as the name of a folder.
pub fn well_formed(id: &CloudMachineId) -> bool {
    id.as_str()
        .strip_prefix(ID_PREFIX)
        .is_some_and(|rest| rest.len() == 20 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Refuses requests that could never work.
pub fn check(request: &CreateMachine) -> Result<(), CloudError> {
    let wrong = |what: String| Err(CloudError::Invalid { what });
    let bits = u32::from(request.address);
    let network = u32::from(Ipv4Addr::new(100, 64, 0, 0));
    let hosts = u32::MAX >> PREFIX;
    if bits & !hosts != network
        || bits & hosts == 0
        || bits & hosts == hosts
        || request.address == GATEWAY
    {
        return wrong(format!(
            "{} cannot be a machine's address: it must lie in 100.64.0.0/{PREFIX} and not be {GATEWAY}",
            request.address
        ));
    }
    let name = &request.hostname;
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
    };
    if name.len() > 64 || !name.split('.').all(label) {
        return wrong(format!("'{name}' cannot be a machine's host name"));
    }
    if request.token.is_empty() {
        return wrong("a machine needs a token that names the wish for it".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_token_and_cannot_climb() {
        let one: InstallationId = "inst-a".parse().unwrap();
        let two: InstallationId = "inst-b".parse().unwrap();
        assert_eq!(id_for(&one, "t"), id_for(&one, "t"));
        assert_ne!(id_for(&one, "t"), id_for(&two, "t"));
        assert!(well_formed(&id_for(&one, "t")));
        assert!(!well_formed(&CloudMachineId(
            "local-../../../../etc/pw".into()
        )));
    }
}
