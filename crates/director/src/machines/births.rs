//! What a machine gets at birth: its contextualization, its host name.

use super::records::Birth;
use super::shared::Shared;
use conpaas_cloud::{Cloud, CreateMachine, NetworkAccess};
use conpaas_model::protocol::{Context, DIRECTOR_PORT};

/// The request to a cloud for a machine.
///
/// # Errors
/// In words: the cloud has no such instance type, or machines there cannot reach the Director.
pub fn request(shared: &Shared, cloud: &dyn Cloud, birth: &Birth) -> Result<CreateMachine, String> {
    let types = cloud.instance_types();
    let instance_type = types
        .iter()
        .find(|size| size.name == birth.instance_type)
        .cloned()
        .ok_or_else(|| {
            let known: Vec<&str> = types.iter().map(|size| size.name.as_str()).collect();
            format!(
                "the cloud '{}' has no instance type '{}'; it has {}",
                birth.cloud,
                birth.instance_type,
                known.join(", ")
            )
        })?;
    let port = match cloud.network_access(&birth.application) {
        NetworkAccess::Local { .. } => DIRECTOR_PORT,
        NetworkAccess::Host => shared.host_port().ok_or_else(|| {
            format!("machines of the cloud '{}' need the Director to listen for machines, which it does not", birth.cloud)
        })?,
    };
    let context = Context {
        installation: shared.installation.clone(),
        application: birth.application.clone(),
        service: birth.service.clone(),
        node: birth.node,
        machine: birth.machine.clone(),
        address: birth.address,
        instance_type,
        roots: shared.roots_pem(),
        director: cloud.director_address(&birth.application, port),
        token: birth.token.clone(),
    };
    let contextualization = serde_json::to_vec(&context).map_err(|error| error.to_string())?;
    Ok(CreateMachine {
        token: birth.cloud_token.clone(),
        installation: shared.installation.clone(),
        application: birth.application.clone(),
        machine: birth.machine.clone(),
        hostname: hostname(&birth.display, birth.node.0),
        instance_type: birth.instance_type.clone(),
        address: birth.address,
        contextualization,
    })
}

/// `APP-SERVICE-NUMBER`, cut to what a host name may have.
fn hostname(display: &str, number: u64) -> String {
    let tail = format!("-{number}");
    let mut head = display.replace('/', "-");
    head.truncate(63usize.saturating_sub(tail.len()));
    format!("{}{tail}", head.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_fit() {
        assert_eq!(hostname("shop/web", 3), "shop-web-3");
        let long = hostname(&format!("{}/{}", "a".repeat(40), "b".repeat(40)), 12345);
        assert!(long.len() <= 63 && long.ends_with("-12345"), "{long}");
    }
}
