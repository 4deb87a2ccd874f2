//! The certificate authority of an installation: one root that lives long and signs nothing but the
//! issuing intermediate, which signs everybody else. Lives in a folder of the Director alone.

use crate::chain::{certificates_from_pem, validity};
use crate::keys::csr_public_key;
use crate::{CertificateChain, Identity, KeyPair, NODE_DNS_NAME, PkiError, Roots, files, tls};
use conpaas_model::ids::InstallationId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The last second a certificate can state (the end of the year 9999).
const LAST_SECOND: u64 = 253_402_300_799;

/// How long the authority's own certificates live, and how far all of them are dated back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthoritySettings {
    /// Life of a root. Default ten years.
    pub root_lifetime: Duration,
    /// Life of an issuing intermediate; replaced after two thirds of it. Default one year.
    pub issuer_lifetime: Duration,
    /// Certificates begin this long before they are made, for peers whose clocks are behind.
    /// Default ten minutes.
    pub backdate: Duration,
}

impl Default for AuthoritySettings {
    fn default() -> Self {
        Self {
            root_lifetime: DAY * 3650,
            issuer_lifetime: DAY * 365,
            backdate: Duration::from_secs(600),
        }
    }
}

/// A signing certificate with its key. Kept in one file, so that a crash cannot part them.
pub(crate) struct Signer {
    pub(crate) certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Signer {
    pub(crate) fn fingerprint(&self) -> String {
        self.key.fingerprint()
    }

    fn from_pem(pem: &str, path: &Path) -> Result<Self, PkiError> {
        let bad = || PkiError::BadFile {
            what: "key with its certificate",
            path: path.to_owned(),
        };
        let certificate = certificates_from_pem(pem)?
            .into_iter()
            .next()
            .ok_or_else(bad)?;
        let start = pem.find("-----BEGIN PRIVATE KEY-----").ok_or_else(bad)?;
        let key = KeyPair::from_pem(&pem[start..])?;
        if crate::key_fingerprint(&certificate)? != key.fingerprint() {
            return Err(bad());
        }
        Ok(Self { certificate, key })
    }

    pub(crate) fn save(&self, path: &Path) -> Result<(), PkiError> {
        let certificate =
            crate::chain::certificates_to_pem(std::slice::from_ref(&self.certificate));
        files::write(path, &format!("{certificate}{}", self.key.to_pem()))
    }

    fn issuer(&self) -> Result<Issuer<'static, &rcgen::KeyPair>, PkiError> {
        Issuer::from_ca_cert_der(&self.certificate, self.key.inner())
            .map_err(|source| PkiError::Issue { source })
    }
}

/// The authority, loaded from its folder.
pub struct Authority {
    pub(crate) installation: InstallationId,
    pub(crate) settings: AuthoritySettings,
    pub(crate) folder: PathBuf,
    pub(crate) root: Signer,
    pub(crate) issuer: Signer,
    /// A root that everybody is to trust before it signs.
    pub(crate) next: Option<Signer>,
    /// Roots that are trusted and do not sign: those of before.
    pub(crate) others: Roots,
    /// All of them.
    pub(crate) roots: Roots,
}

pub(crate) const ROOT: &str = "root.pem";
pub(crate) const NEXT: &str = "next.pem";
pub(crate) const ISSUER: &str = "issuer.pem";
pub(crate) const TRUSTED: &str = "trusted.pem";

impl Authority {
    /// Opens the authority of `folder`, making what is missing (files of mode 0600, written whole).
    ///
    /// Files: `root.pem` and `issuer.pem` (certificate and key each), and during a change of roots
    /// `next.pem` (the root that is to sign next) and `trusted.pem` (roots that signed before and
    /// that everyone still trusts). A folder of another installation is refused.
    pub fn load_or_create(
        folder: &Path,
        installation: &InstallationId,
        settings: &AuthoritySettings,
        now: SystemTime,
    ) -> Result<Self, PkiError> {
        files::make_folder(folder)?;
        let root_path = folder.join(ROOT);
        let root = match files::read_if_there(&root_path)? {
            Some(pem) => Signer::from_pem(&pem, &root_path)?,
            None => {
                let root = make_root(installation, settings, now)?;
                root.save(&root_path)?;
                root
            }
        };
        let found = installation_of(&root.certificate)?;
        if found != installation.as_str() {
            return Err(PkiError::OtherInstallation {
                ours: found,
                theirs: installation.to_string(),
            });
        }
        let issuer_path = folder.join(ISSUER);
        let found = match files::read_if_there(&issuer_path)? {
            Some(pem) => Some(Signer::from_pem(&pem, &issuer_path)?),
            None => None,
        };
        // One of another root is left where a change of roots was cut short.
        let issuer = match found.filter(|found| is_signed_by(&found.certificate, &root.certificate))
        {
            Some(found) => found,
            None => {
                let issuer = make_issuer(&root, installation, settings, now)?;
                issuer.save(&issuer_path)?;
                issuer
            }
        };
        let next_path = folder.join(NEXT);
        let next = match files::read_if_there(&next_path)? {
            Some(pem) => Some(Signer::from_pem(&pem, &next_path)?),
            None => None,
        };
        // A change of roots that was cut short at its end.
        let next = next.filter(|next| next.fingerprint() != root.fingerprint());
        let others = match files::read_if_there(&folder.join(TRUSTED))? {
            Some(pem) => Roots::from_pem(&pem)?.without(&root.fingerprint()),
            None => Roots::new(),
        };
        let mut authority = Self {
            installation: installation.clone(),
            settings: settings.clone(),
            folder: folder.to_owned(),
            root,
            issuer,
            next,
            others,
            roots: Roots::new(),
        };
        authority.gather();
        authority.refresh(now)?;
        Ok(authority)
    }

    /// Makes a new issuing intermediate when the present one is past two thirds of its life; true when
    /// it did. Chains that were signed before stay valid. Call it about once a day.
    pub fn refresh(&mut self, now: SystemTime) -> Result<bool, PkiError> {
        if !validity(&self.issuer.certificate)?.should_renew(now) {
            return Ok(false);
        }
        let issuer = make_issuer(&self.root, &self.installation, &self.settings, now)?;
        issuer.save(&self.folder.join(ISSUER))?;
        self.issuer = issuer;
        tracing::info!(installation = %self.installation, "a new issuing certificate was made");
        Ok(true)
    }

    /// The roots that every party of the installation trusts.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    pub fn installation(&self) -> &InstallationId {
        &self.installation
    }

    /// Signs a certificate for the key of a signing request (DER), naming `identity`.
    ///
    /// The request's signature is checked, and nothing but its key is taken from it. The certificate
    /// serves as client and as server, begins before `now` (see [`AuthoritySettings::backdate`]) and
    /// ends `lifetime` after it, or with the issuing certificate if that is sooner.
    pub fn sign_csr(
        &self,
        csr_der: &[u8],
        identity: &Identity,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<CertificateChain, PkiError> {
        if identity.installation != self.installation {
            return Err(PkiError::OtherInstallation {
                ours: self.installation.to_string(),
                theirs: identity.installation.to_string(),
            });
        }
        let key = csr_public_key(csr_der)?;
        let end = validity(&self.issuer.certificate)?.not_after;
        if now >= end {
            return Err(PkiError::IssuerExpired { since: end });
        }
        let uri = identity.to_string();
        let mut params = CertificateParams::default();
        date(
            &mut params,
            now,
            self.settings.backdate,
            lifetime.min(end.duration_since(now).unwrap_or_default()),
        )?;
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![
            SanType::DnsName(
                NODE_DNS_NAME
                    .try_into()
                    .map_err(|source| PkiError::Issue { source })?,
            ),
            SanType::URI(
                uri.as_str()
                    .try_into()
                    .map_err(|source| PkiError::Issue { source })?,
            ),
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?);
        let certificate = params
            .signed_by(&key, &self.issuer.issuer()?)
            .map_err(|source| PkiError::Issue { source })?;
        CertificateChain::new(vec![
            certificate.der().clone(),
            self.issuer.certificate.clone(),
        ])
    }
}

pub(crate) fn make_root(
    installation: &InstallationId,
    settings: &AuthoritySettings,
    now: SystemTime,
) -> Result<Signer, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = signing_params(
        installation,
        "ConPaaS root",
        BasicConstraints::Constrained(1),
    )?;
    date(&mut params, now, settings.backdate, settings.root_lifetime)?;
    let certificate = params
        .self_signed(key.inner())
        .map_err(|source| PkiError::Issue { source })?;
    Ok(Signer {
        certificate: certificate.der().clone(),
        key,
    })
}

/// Whether a certificate's signature is this signer's.
fn is_signed_by(certificate: &[u8], signer: &[u8]) -> bool {
    let parse = x509_parser::parse_x509_certificate;
    match (parse(certificate), parse(signer)) {
        (Ok((_, certificate)), Ok((_, signer))) => certificate
            .verify_signature(Some(signer.public_key()))
            .is_ok(),
        _ => false,
    }
}

pub(crate) fn make_issuer(
    root: &Signer,
    installation: &InstallationId,
    settings: &AuthoritySettings,
    now: SystemTime,
) -> Result<Signer, PkiError> {
    let end = validity(&root.certificate)?.not_after;
    let left = end
        .duration_since(now)
        .map_err(|_| PkiError::IssuerExpired { since: end })?;
    let key = KeyPair::generate()?;
    let mut params = signing_params(
        installation,
        "ConPaaS issuer",
        BasicConstraints::Constrained(0),
    )?;
    date(
        &mut params,
        now,
        settings.backdate,
        settings.issuer_lifetime.min(left),
    )?;
    params.use_authority_key_identifier_extension = true;
    let certificate = params
        .signed_by(key.inner(), &root.issuer()?)
        .map_err(|source| PkiError::Issue { source })?;
    Ok(Signer {
        certificate: certificate.der().clone(),
        key,
    })
}

fn signing_params(
    installation: &InstallationId,
    name: &str,
    constraints: BasicConstraints,
) -> Result<CertificateParams, PkiError> {
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, installation.as_str());
    // The serial in the name keeps two generations of signers apart for path builders.
    params.distinguished_name.push(
        DnType::CommonName,
        format!("{name} {}", &hex::encode(serial.to_bytes())[..8]),
    );
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial);
    Ok(params)
}

fn installation_of(certificate_der: &[u8]) -> Result<String, PkiError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der)
        .map_err(|_| PkiError::CertificateMalformed)?;
    let organization = certificate.subject().iter_organization().next();
    organization
        .and_then(|o| o.as_str().ok())
        .map(str::to_owned)
        .ok_or(PkiError::CertificateMalformed)
}

/// Dates a certificate from `backdate` before `now` to `lifetime` after it.
pub(crate) fn date(
    params: &mut CertificateParams,
    now: SystemTime,
    backdate: Duration,
    lifetime: Duration,
) -> Result<(), PkiError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = now.duration_since(UNIX_EPOCH).map_err(|_| PkiError::Time)?;
    let end = now
        .as_secs()
        .saturating_add(lifetime.as_secs())
        .min(LAST_SECOND);
    if now.as_secs() > LAST_SECOND {
        return Err(PkiError::Time);
    }
    params.not_before =
        epoch + Duration::from_secs(now.as_secs().saturating_sub(backdate.as_secs()));
    params.not_after = epoch + Duration::from_secs(end);
    Ok(())
}

/// A serial number of 128 random bits.
pub(crate) fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    tls::provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| PkiError::Random)?;
    Ok(SerialNumber::from_slice(&bytes))
}
