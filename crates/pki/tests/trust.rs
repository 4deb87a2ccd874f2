//! Who is believed: chains, roots, dates, kinds and pins, with real handshakes in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A handshake looks at the real clock, whatever time certificates were made for.
#![allow(clippy::disallowed_methods)]

use conpaas_pki::{
    ApiCertificate, Authority, AuthoritySettings, ClientCertificates, Credentials, Identity,
    KeyPair, PkiError, Roots, client_config, first_contact_client_config, peer_identity,
    pinned_client_config, server_config,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

struct World {
    _folder: tempfile::TempDir,
    authority: Authority,
}

impl World {
    fn new(installation: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuthoritySettings::default();
        let authority = Authority::load_or_create(
            &folder.path().join("authority"),
            &installation.parse().unwrap(),
            &settings,
            SystemTime::now(),
        )
        .unwrap();
        Self {
            _folder: folder,
            authority,
        }
    }

    fn credentials(&self, identity: &str, lifetime: Duration, now: SystemTime) -> Arc<Credentials> {
        let key = KeyPair::generate().unwrap();
        let identity: Identity = identity.parse().unwrap();
        let chain = self
            .authority
            .sign_csr(&key.csr().unwrap(), &identity, lifetime, now)
            .unwrap();
        Credentials::new(chain, &key).unwrap()
    }
}

/// Shakes hands in memory; gives both ends or the first error.
fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let mut client = ClientConnection::new(client, ServerName::try_from("localhost").unwrap())?;
    let mut server = ServerConnection::new(server)?;
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            client.process_new_packets()?;
        }
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok((client, server));
        }
    }
    panic!("the handshake does not end");
}

#[test]
fn both_ends_learn_who_the_other_is() {
    let world = World::new("inst-a");
    let now = SystemTime::now();
    let director = world.credentials("conpaas://inst-a/director", HOUR, now);
    let agent = world.credentials("conpaas://inst-a/agent/app-b/m-c", HOUR, now);
    let roots = world.authority.roots();
    let server = server_config(director, roots, ClientCertificates::Optional).unwrap();
    let (client, served) =
        shake(client_config(Some(agent), roots).unwrap(), server.clone()).unwrap();
    assert_eq!(
        peer_identity(client.peer_certificates().unwrap())
            .unwrap()
            .to_string(),
        "conpaas://inst-a/director"
    );
    let seen = peer_identity(served.peer_certificates().unwrap()).unwrap();
    assert!(
        seen.is_agent_of(&"app-b".parse().unwrap()) && !seen.is_agent_of(&"app-x".parse().unwrap())
    );
    assert!(!seen.is_manager_of(&"app-b".parse().unwrap()));

    let (_, served) = shake(client_config(None, roots).unwrap(), server).unwrap();
    assert!(
        served.peer_certificates().is_none(),
        "an unnamed client gets in where that is allowed"
    );
    let director = world.credentials("conpaas://inst-a/director", HOUR, now);
    let strict = server_config(director, roots, ClientCertificates::Required).unwrap();
    assert!(shake(client_config(None, roots).unwrap(), strict).is_err());
}

#[test]
fn expired_and_foreign_certificates_are_refused() {
    let (ours, foreign) = (World::new("inst-a"), World::new("inst-b"));
    let now = SystemTime::now();
    let roots = ours.authority.roots();
    let director = ours.credentials("conpaas://inst-a/director", HOUR, now);
    let server = server_config(director, roots, ClientCertificates::Optional).unwrap();
    let old = ours.credentials("conpaas://inst-a/agent/app-b/m-c", HOUR, now - 2 * HOUR);
    assert!(shake(client_config(Some(old), roots).unwrap(), server.clone()).is_err());
    let stranger = foreign.credentials("conpaas://inst-b/agent/app-b/m-c", HOUR, now);
    assert!(
        shake(
            client_config(Some(stranger.clone()), roots).unwrap(),
            server.clone()
        )
        .is_err()
    );
    assert!(
        shake(
            client_config(None, foreign.authority.roots()).unwrap(),
            server
        )
        .is_err()
    );

    let fresh = ours.credentials("conpaas://inst-a/edge", HOUR, now).chain();
    let at = |now| roots.verify(fresh.certificates(), now);
    assert_eq!(at(now).unwrap().to_string(), "conpaas://inst-a/edge");
    assert!(
        at(now - Duration::from_secs(500)).is_ok(),
        "dated back for clocks that are behind"
    );
    assert!(matches!(
        at(now - Duration::from_secs(700)),
        Err(PkiError::NotTrusted { .. })
    ));
    assert!(matches!(
        at(now + 2 * HOUR),
        Err(PkiError::NotTrusted { .. })
    ));
    assert!(roots.verify(stranger.chain().certificates(), now).is_err());
    assert!(
        roots.verify(&fresh.certificates()[..1], now).is_err(),
        "the intermediate is missing"
    );
}

#[test]
fn two_roots_are_trusted_at_once() {
    let (old, new) = (World::new("inst-a"), World::new("inst-a"));
    let now = SystemTime::now();
    let mut both = old.authority.roots().clone();
    both.merge(new.authority.roots());
    both.merge(new.authority.roots());
    assert_eq!(both.len(), 2);
    let both = Roots::from_pem(&both.to_pem()).unwrap();
    for world in [&old, &new] {
        let server = world.credentials("conpaas://inst-a/director", HOUR, now);
        for other in [&old, &new] {
            let client = other.credentials("conpaas://inst-a/edge", HOUR, now);
            let server =
                server_config(server.clone(), &both, ClientCertificates::Required).unwrap();
            shake(client_config(Some(client), &both).unwrap(), server).unwrap();
        }
    }
    assert!(matches!(Roots::from_pem(""), Err(PkiError::NoRoots)));
    assert!(client_config(None, &Roots::new()).is_err());
}

#[test]
fn a_renewed_certificate_serves_the_next_handshake() {
    let world = World::new("inst-a");
    let now = SystemTime::now();
    let roots = world.authority.roots();
    let key = KeyPair::generate().unwrap();
    let identity: Identity = "conpaas://inst-a/director".parse().unwrap();
    let sign = |now| {
        world
            .authority
            .sign_csr(&key.csr().unwrap(), &identity, HOUR, now)
            .unwrap()
    };
    let credentials = Credentials::new(sign(now - 2 * HOUR), &key).unwrap();
    let server = server_config(credentials.clone(), roots, ClientCertificates::Optional).unwrap();
    let client = client_config(None, roots).unwrap();
    assert!(shake(client.clone(), server.clone()).is_err());
    assert!(
        credentials
            .replace(sign(now), &KeyPair::generate().unwrap())
            .is_err(),
        "not this chain's key"
    );
    credentials.replace(sign(now), &key).unwrap();
    shake(client, server).unwrap();
    assert!(!credentials.validity().unwrap().should_renew(now));
}

#[test]
fn the_authority_takes_only_the_key_from_a_request() {
    let world = World::new("inst-a");
    let now = SystemTime::now();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.subject_alt_names.push(rcgen::SanType::URI(
        "conpaas://inst-a/director".try_into().unwrap(),
    ));
    let csr = params.serialize_request(&key).unwrap();
    let identity: Identity = "conpaas://inst-a/agent/app-b/m-c".parse().unwrap();
    let chain = world
        .authority
        .sign_csr(csr.der(), &identity, HOUR, now)
        .unwrap();
    assert_eq!(
        world
            .authority
            .roots()
            .verify(chain.certificates(), now)
            .unwrap(),
        identity
    );
    let (_, leaf) = x509_parser::parse_x509_certificate(chain.leaf()).unwrap();
    assert!(!leaf.is_ca());
    assert!(!format!("{:?}", leaf.subject_alternative_name().unwrap()).contains("evil"));
    assert!(leaf.raw_serial().len() >= 14);

    let foreign: Identity = "conpaas://inst-z/director".parse().unwrap();
    let refused = world.authority.sign_csr(csr.der(), &foreign, HOUR, now);
    assert!(matches!(refused, Err(PkiError::OtherInstallation { .. })));
    let long = world
        .authority
        .sign_csr(csr.der(), &identity, 1000 * DAY, now)
        .unwrap();
    assert!(
        long.validity().unwrap().not_after <= now + 365 * DAY,
        "no longer than its issuer"
    );
}

#[test]
fn the_authority_survives_in_its_folder_and_renews_its_issuer() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let settings = AuthoritySettings::default();
    let open = |now| {
        Authority::load_or_create(folder.path(), &"inst-a".parse().unwrap(), &settings, now)
            .unwrap()
    };
    let first = open(now);
    for file in std::fs::read_dir(folder.path()).unwrap() {
        assert_eq!(
            file.unwrap().metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let key = KeyPair::generate().unwrap();
    let edge: Identity = "conpaas://inst-a/edge".parse().unwrap();
    let sign = |authority: &Authority, now| {
        authority
            .sign_csr(&key.csr().unwrap(), &edge, DAY, now)
            .unwrap()
    };
    let (before, again) = (sign(&first, now), sign(&open(now), now));
    assert_eq!(before.certificates()[1], again.certificates()[1]);
    assert_ne!(before.leaf(), again.leaf(), "serials differ");
    let later = now + 300 * DAY;
    let renewed = open(later);
    assert_eq!(renewed.roots(), first.roots());
    let chain = sign(&renewed, later);
    assert_ne!(chain.certificates()[1], before.certificates()[1]);
    first.roots().verify(chain.certificates(), later).unwrap();
    let other =
        Authority::load_or_create(folder.path(), &"inst-b".parse().unwrap(), &settings, now);
    assert!(matches!(other, Err(PkiError::OtherInstallation { .. })));
}

#[test]
fn a_root_is_changed_while_everybody_shakes_hands() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let settings = AuthoritySettings::default();
    let open = || {
        let id = "inst-a".parse().unwrap();
        Authority::load_or_create(folder.path(), &id, &settings, now).unwrap()
    };
    let mut authority = open();
    let old = authority.signing_root();
    let sign = |authority: &Authority| {
        let key = KeyPair::generate().unwrap();
        let identity: Identity = "conpaas://inst-a/edge".parse().unwrap();
        let csr = key.csr().unwrap();
        let chain = authority.sign_csr(&csr, &identity, HOUR, now).unwrap();
        Credentials::new(chain, &key).unwrap()
    };
    let good = |client: (&Arc<Credentials>, &Roots), server: (&Arc<Credentials>, &Roots)| {
        let strict = ClientCertificates::Required;
        let server = server_config(server.0.clone(), server.1, strict).unwrap();
        shake(
            client_config(Some(client.0.clone()), client.1).unwrap(),
            server,
        )
        .is_ok()
    };
    let (before, trusted_before) = (sign(&authority), authority.roots().clone());
    let digest = authority.trust_digest();
    assert_eq!(open().trust_digest(), digest);
    assert!(matches!(
        authority.switch_root(now),
        Err(PkiError::NoRootPrepared)
    ));
    assert!(matches!(
        authority.retire_root(&old),
        Err(PkiError::RootSigns { .. })
    ));

    let new = authority.prepare_root(now).unwrap();
    assert!(matches!(
        authority.prepare_root(now),
        Err(PkiError::RootPrepared { .. })
    ));
    assert_ne!(authority.trust_digest(), digest);
    assert_eq!(
        authority.roots().fingerprints().unwrap(),
        [old.clone(), new.clone()]
    );
    let spread = sign(&authority);
    let both = authority.roots().clone();
    let of = |credentials: &Credentials| both.root_of(&credentials.chain()).unwrap();
    assert_eq!(of(&spread), Some(old.clone()), "it does not sign yet");
    assert!(good((&spread, &both), (&before, &trusted_before)));

    // Interrupted anywhere, the folder opens: the step from which on the new one signs is one.
    let mut reopened = open();
    assert_eq!(reopened.trust_digest(), authority.trust_digest());
    let issuer = std::fs::read(folder.path().join("issuer.pem")).unwrap();
    let next = std::fs::read(folder.path().join("next.pem")).unwrap();
    reopened.switch_root(now).unwrap();
    std::fs::write(folder.path().join("issuer.pem"), &issuer).unwrap();
    std::fs::write(folder.path().join("next.pem"), &next).unwrap();
    let mut authority = open();
    assert_eq!(authority.signing_root(), new);
    assert_eq!(
        authority.next_root(),
        None,
        "what signs is not to sign next"
    );
    let after = sign(&authority);
    assert_eq!(of(&after), Some(new.clone()));
    for (one, other) in [(&before, &after), (&after, &before), (&spread, &after)] {
        assert!(good((one, &both), (other, &both)));
    }
    assert!(
        !good((&after, &both), (&before, &trusted_before)),
        "who knows the old one alone"
    );

    authority.retire_root(&old).unwrap();
    assert!(matches!(
        authority.retire_root(&old),
        Err(PkiError::UnknownRoot { .. })
    ));
    let alone = authority.roots().clone();
    assert_eq!(alone.fingerprints().unwrap(), std::slice::from_ref(&new));
    assert_eq!(alone.root_of(&before.chain()).unwrap(), None);
    assert!(good((&after, &alone), (&after, &alone)));
    assert!(!good((&before, &both), (&after, &alone)));
    assert_eq!(open().trust_digest(), authority.trust_digest());
    // One that is not to sign after all goes as well.
    let third = authority.prepare_root(now).unwrap();
    authority.retire_root(&third).unwrap();
    assert_eq!(open().roots(), &alone);
}

#[test]
fn people_pin_the_director() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = SystemTime::now();
    let api = ApiCertificate::load_or_create(folder.path(), &[], 365 * DAY, now).unwrap();
    let impostor = ApiCertificate::load_or_create(elsewhere.path(), &[], 365 * DAY, now).unwrap();
    let (first, seen) = first_contact_client_config().unwrap();
    assert_eq!(seen.get(), None);
    shake(first.clone(), api.server_config().unwrap()).unwrap();
    assert_eq!(seen.get().as_deref(), Some(api.fingerprint()));
    assert!(
        shake(first, impostor.server_config().unwrap()).is_err(),
        "one first contact, one server"
    );

    let pinned = pinned_client_config(api.fingerprint()).unwrap();
    shake(pinned.clone(), api.server_config().unwrap()).unwrap();
    assert!(shake(pinned, impostor.server_config().unwrap()).is_err());
    assert!(pinned_client_config("abc").is_err());
}
