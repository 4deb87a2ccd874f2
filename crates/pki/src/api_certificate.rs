//! The certificate of the listener people talk to. No public authority vouches for it: clients pin the
//! fingerprint of its key, which therefore stays the same when the certificate is made again.

use crate::authority::{date, random_serial};
use crate::chain::validity;
use crate::{
    CertificateChain, ClientCertificates, Credentials, KeyPair, PkiError, Roots, files, tls,
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use x509_parser::extensions::GeneralName;

const BACKDATE: Duration = Duration::from_secs(600);

/// Self-signed certificate and key of the people's listener.
pub struct ApiCertificate {
    chain: CertificateChain,
    key: KeyPair,
    fingerprint: String,
}

impl ApiCertificate {
    /// Opens the certificate in `folder` (`api.key`, `api.crt`), making what is missing. It is for
    /// `localhost`, `127.0.0.1`, `::1` and `names` (DNS names or addresses). It is made again, with the
    /// same key, when the names changed or two thirds of its life are over.
    pub fn load_or_create(
        folder: &Path,
        names: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, PkiError> {
        files::make_folder(folder)?;
        let key = KeyPair::load_or_create(&folder.join("api.key"))?;
        let fingerprint = key.fingerprint();
        let mut wanted: BTreeSet<String> =
            ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        wanted.extend(
            names
                .iter()
                .map(|name| name.trim().to_ascii_lowercase())
                .filter(|name| !name.is_empty()),
        );

        let path = folder.join("api.crt");
        if let Some(pem) = files::read_if_there(&path)?
            && let Ok(chain) = CertificateChain::from_pem(&pem)
            && chain.key_fingerprint()? == fingerprint
            && !validity(chain.leaf())?.should_renew(now)
            && names_of(&chain)? == wanted
        {
            return Ok(Self {
                chain,
                key,
                fingerprint,
            });
        }
        let chain = make(&key, &wanted, lifetime, now)?;
        chain.save(&path)?;
        Ok(Self {
            chain,
            key,
            fingerprint,
        })
    }

    /// What clients pin: SHA-256 of the public key, 64 hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub fn chain(&self) -> &CertificateChain {
        &self.chain
    }

    /// A configuration that asks clients for no certificate.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let credentials = Credentials::new(self.chain.clone(), &self.key)?;
        tls::server_config(credentials, &Roots::new(), ClientCertificates::None)
    }
}

fn make(
    key: &KeyPair,
    names: &BTreeSet<String>,
    lifetime: Duration,
    now: SystemTime,
) -> Result<CertificateChain, PkiError> {
    let mut params = CertificateParams::default();
    date(&mut params, now, BACKDATE, lifetime)?;
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if is_host_name(name) => SanType::DnsName(
                name.as_str()
                    .try_into()
                    .map_err(|_| PkiError::ServerName { name: name.clone() })?,
            ),
            Err(_) => return Err(PkiError::ServerName { name: name.clone() }),
        });
    }
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "ConPaaS Director");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.serial_number = Some(random_serial()?);
    let certificate = params
        .self_signed(key.inner())
        .map_err(|source| PkiError::Issue { source })?;
    CertificateChain::new(vec![certificate.der().clone()])
}

fn is_host_name(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn names_of(chain: &CertificateChain) -> Result<BTreeSet<String>, PkiError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(chain.leaf())
        .map_err(|_| PkiError::CertificateMalformed)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| PkiError::CertificateMalformed)?;
    Ok(names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes)
                    .ok()
                    .map(|b| IpAddr::from(b).to_string()),
                16 => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|b| IpAddr::from(b).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn some_day() -> SystemTime {
        SystemTime::UNIX_EPOCH + 60 * YEAR
    }

    #[test]
    fn the_pin_outlives_names_and_renewal() {
        let folder = tempfile::tempdir().unwrap();
        let now = some_day();
        let open = |names: &[&str], now| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            ApiCertificate::load_or_create(folder.path(), &names, YEAR, now).unwrap()
        };
        let first = open(&[], now);
        assert_eq!(
            first.chain(),
            open(&[], now).chain(),
            "opened again, nothing changes"
        );
        let named = open(&["paas.example.org", "192.0.2.7"], now);
        assert_ne!(first.chain(), named.chain());
        assert_eq!(
            named.chain(),
            open(&["192.0.2.7", "PaaS.example.org"], now).chain()
        );
        let later = open(&["paas.example.org", "192.0.2.7"], now + YEAR);
        assert_ne!(named.chain(), later.chain());
        assert_eq!(first.fingerprint(), later.fingerprint());
        assert_eq!(
            crate::key_fingerprint(later.chain().leaf()).unwrap(),
            first.fingerprint()
        );
    }

    #[test]
    fn nonsense_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for bad in ["a b", "-a.example", "a..b", "http://x"] {
            let made =
                ApiCertificate::load_or_create(folder.path(), &[bad.to_owned()], YEAR, some_day());
            assert!(matches!(made, Err(PkiError::ServerName { .. })), "{bad}");
        }
    }
}
