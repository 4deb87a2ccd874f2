//! Text of the load balancer's configuration, and the content of its maps. Pure. The text holds
//! nothing that changes while it runs: what changes (servers, releases, paths, the active
//! release) is in maps and in servers that are added at run time.

use super::manager::ProxyConfig;
use super::rules::{MOST_PARTS, Redirect};
use super::site::{Site, Target};
use super::sizing::MOST_CONNECTIONS;
use super::{PING, STATUS};
use conpaas_core::service_type::RELEASE_RING;
use conpaas_model::edge::PREVIEW_HEADER;
use conpaas_model::ids::ReleaseNumber;
use std::fmt::Write;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

/// Cookie by which a browser never sees an older release after a newer one, whichever of
/// several load balancers answers it.
const COOKIE: &str = "conpaas-release";

/// How long after a switch files, too, tell browsers which release they are of: until all load
/// balancers have surely switched. Later they do not, so that caches may keep them.
const SWITCHING_SECONDS: u64 = 60;

/// How long a request may wait for a place at a server, in seconds.
pub const QUEUE_SECONDS: u64 = 10;

/// The backend that answers proofs of life: what it counts is no request of people's.
pub const SELF: &str = "self";
/// The backend that leads elsewhere, by the rules of people's own.
const LEADS: &str = "leads";
/// Between a release and its path that a rule leads away from.
const LED_AWAY: char = '!';
/// About so many lines a second tell how long requests took that went well, and never less than
/// half of them: waking who listens costs a tenth of a request. What failed at once is told line by
/// line; of what broke after its first bytes, in a storm, a part, and counters tell the rest.
const LINES: u32 = 64;
/// The ring buffer that holds a line for each request, for whoever listens to it.
pub const TAP: &str = "tap";
/// Bytes of that buffer, and of a line in it.
const TAP_BYTES: u32 = 256 * 1024;
const TAP_LINE: u32 = 4096;

/// The maps, in the role's folder.
pub struct Maps {
    /// `active` to the release people are led to.
    pub active: PathBuf,
    /// Releases that are ready here, to their document root.
    pub roots: PathBuf,
    /// Releases to the milliseconds a request may take.
    pub limits: PathBuf,
    /// `RELEASE|PATH` to what answers it, `RELEASE!PATH` where a rule goes before.
    pub paths: PathBuf,
    /// `RELEASE|BEGINNING` to the script that answers what is no path of its own below it.
    pub fronts: PathBuf,
    /// `RELEASE|PATH` to where it leads.
    pub redirects: PathBuf,
    /// `RELEASE|BEGINNING` to where what is below it leads.
    pub redirects_below: PathBuf,
}

impl Maps {
    pub fn in_folder(folder: &Path) -> Self {
        let file = |name: &str| folder.join(format!("{name}.map"));
        Self {
            active: file("active"),
            roots: file("roots"),
            limits: file("limits"),
            paths: file("paths"),
            fronts: file("fronts"),
            redirects: file("redirects"),
            redirects_below: file("redirects_below"),
        }
    }
}

/// Where one load balancer's files are.
pub struct Place<'a> {
    pub listen: SocketAddrV4,
    pub socket: &'a Path,
    pub folder: &'a Path,
    pub is_root: bool,
}

/// The text of a 503.
const BUSY: &str = "No backend is ready for this page right now. Please try again in a moment.";

/// The whole configuration. What went wrong goes to standard output, every request to the tap;
/// `proxy_metrics` reads the format from its end.
pub fn file(place: &Place<'_>, config: &ProxyConfig) -> String {
    let Maps {
        active,
        roots,
        limits,
        paths,
        fronts,
        redirects,
        redirects_below,
    } = Maps::in_folder(place.folder);
    let (active, roots, limits, paths) = (
        active.display(),
        roots.display(),
        limits.display(),
        paths.display(),
    );
    let (fronts, redirects, redirects_below) = (
        fronts.display(),
        redirects.display(),
        redirects_below.display(),
    );
    let mut leading = String::new();
    for parts in 0..=MOST_PARTS {
        // Slashes at its beginning would make another address of a target that ends in one.
        let _ = writeln!(
            leading,
            r#"  http-request set-var(txn.rest) 'path,field({},/,0),regsub("^/+","")' if {{ var(txn.rule),field(2,|) -m str {parts} }}"#,
            parts + 2
        );
    }
    for status in [301, 302, 307, 308] {
        let _ = writeln!(
            leading,
            r#"  http-request redirect code {status} location %[var(txn.rule),field(3,|)]%[var(txn.rest)]%[var(txn.query)] if {{ var(txn.rule),field(1,|) -m str {status} }}"#
        );
    }
    let account = if place.is_root {
        "  user haproxy\n  group haproxy\n"
    } else {
        ""
    };
    let (listen, socket, threads) = (place.listen, place.socket.display(), config.threads);
    let mut text = format!(
        r#"# Written by ConPaaS; changes here are lost.
global
  log stdout format raw local0 notice
  log ring@{TAP} format raw local0 info
  stats socket {socket} mode 600 level admin expose-fd listeners
  stats timeout 1m
{account}  nbthread {threads}
  maxconn {MOST_CONNECTIONS}
  no strict-limits
  hard-stop-after 60s

ring {TAP}
  format raw
  maxlen {TAP_LINE}
  size {TAP_BYTES}

defaults
  mode http
  log global
  log-format "%ci [%tr] \"%HM %HP\" %ST %B %Ta %b %s %tsc release=%[var(txn.release)] of=%[var(txn.of)]"
  option dontlognull
  option log-separate-errors
  option idle-close-on-response
  option redispatch 1
  retries 5
  retry-on conn-failure empty-response junk-response
  http-reuse safe
  timeout connect 200ms
  timeout client 60s
  timeout server 60s
  timeout queue {QUEUE_SECONDS}s
  timeout check 1s
  timeout tunnel 1h
  timeout http-request 30s
  timeout http-keep-alive 60s
  http-error status 503 content-type "text/plain; charset=utf-8" string "{BUSY}" hdr Retry-After 3

fcgi-app php
  docroot /
  no option keep-conn
  set-param DOCUMENT_ROOT %[var(txn.root)]
  set-param SCRIPT_FILENAME %[var(txn.root)]%[var(txn.script)]
  set-param SCRIPT_NAME %[var(txn.script)]
  set-param PATH_INFO %[var(txn.info)]
  set-param SERVER_NAME %[req.hdr(host),field(1,:)]
  set-param SERVER_PORT 443 if {{ req.hdr(x-forwarded-proto) -i https }}
  set-param HTTPS on if {{ req.hdr(x-forwarded-proto) -i https }}

frontend people
  bind {listen}
  http-request set-src req.hdr_ip(x-forwarded-for,-1) if {{ req.hdr_ip(x-forwarded-for,-1) -m found }}
  http-request set-header X-Forwarded-For %[src] unless {{ req.hdr(x-forwarded-for) -m found }}
  http-request set-header X-Forwarded-Proto http unless {{ req.hdr(x-forwarded-proto) -m found }}

  # Which release: the active one, or a newer one that this browser has seen already.
  http-request set-var(txn.release) str(active),map_str_int({active},0)
  http-request set-var(txn.seen) req.cook_val({COOKIE})
  http-request set-var(txn.release) var(txn.seen) if {{ var(txn.seen),sub(txn.release) gt 0 }} {{ var(txn.seen),map_str({roots}) -m found }}
  # At the preview address, the one that is held. A browser that saw it elsewhere, when it had been
  # promoted at another load balancer, is led to it by the rule above.
  acl preview req.hdr({PREVIEW_HEADER}) -m found
  http-request set-var(txn.held) str(preview),map_str_int({active},0) if preview
  http-request set-var(txn.release) var(txn.held) if preview {{ var(txn.held),add(0) gt 0 }}
  http-request del-header {PREVIEW_HEADER} if preview
  http-request set-var(txn.root) var(txn.release),map_str({roots})
  acl own path {PING}
  http-request return status 503 content-type "text/plain; charset=utf-8" string "{BUSY}" hdr Retry-After 3 unless {{ var(txn.root) -m found }} or own

  # An entry of the release's paths says what answers, and most requests end here. None of them
  # climbs, is hidden, or has a rule that leads elsewhere.
  acl routed var(txn.route) -m found
  acl static var(txn.route) -m str static
  acl ruled var(txn.rule) -m found
  acl script var(txn.script) -m found
  http-request set-var(txn.key) path,url_dec,url_enc
  http-request set-var(txn.route) 'var(txn.release),concat("|",txn.key),map_str({paths})'
  http-request set-var(txn.script) var(txn.route),url_dec if routed !static
  http-request allow if routed
  http-request set-log-level silent if own
  http-request allow if own

  # Nothing climbs, and what starts with a dot is nobody's business.
  http-request set-var(txn.path) path,url_dec
  http-request deny deny_status 400 if {{ var(txn.path) -m sub /../ }} or {{ var(txn.path) -m end /.. }} or {{ path -i -m sub %00 }}
  http-request set-var(txn.plain) 'var(txn.path),regsub("^/\.well-known(/|$)","/")'
  http-request deny deny_status 404 if {{ var(txn.plain) -m sub /. }}

  # Where the release's own rules lead.
  http-request set-var(txn.rule) 'var(txn.release),concat("|",txn.key),map_str({redirects})'
  http-request set-var(txn.rule) 'var(txn.release),concat("|",txn.key),map_beg({redirects_below})' if !ruled
  http-request allow if ruled

  # A script with more path behind it, else one of the release's front controllers, else a web
  # server with its 404.
  acl has_info var(txn.path) -m reg \.php/
  http-request set-var(txn.before) 'var(txn.path),regsub("\.php/.*$",".php"),url_enc' if has_info
  http-request set-var(txn.route) 'var(txn.release),concat("|",txn.before),map_str({paths})' if has_info
  http-request set-var(txn.route) 'var(txn.release),concat("{LED_AWAY}",txn.before),map_str({paths})' if has_info !routed
  http-request set-var(txn.info) 'var(txn.path),regsub("^.*?\.php/","/")' if routed !static
  http-request set-var(txn.route) 'var(txn.release),concat("|",txn.key),map_beg({fronts})' if !routed
  http-request set-var(txn.route) 'var(txn.release),concat("|*"),map_str({paths})' if !routed
  http-request set-var(txn.script) var(txn.route),url_dec if routed !static

  # In a storm who listens is told of a part of what went well; a line stands for `of` requests.
  http-response set-var(txn.of) fe_req_rate,div({LINES}) if {{ status lt 500 }}
  http-response set-log-level silent if {{ var(txn.of),add(0) gt 1 }} !{{ rand(65536),mul(txn.of) lt 65536 }}
  use_backend static-s%[var(txn.release),mod({RELEASE_RING})] if static
  use_backend php-s%[var(txn.release),mod({RELEASE_RING})] if script
  use_backend {SELF} if own
  use_backend {LEADS} if ruled
  use_backend static-s%[var(txn.release),mod({RELEASE_RING})]

backend {LEADS}
  http-request set-var(txn.of) fe_req_rate(people),div({LINES})
  http-request set-log-level silent if {{ var(txn.of),add(0) gt 1 }} !{{ rand(65536),mul(txn.of) lt 65536 }}
  http-request deny deny_status 400 if {{ path -m reg '[\x5c]' }}
  http-request set-var(txn.rest) str("")
  http-request set-var(txn.query) str("")
  http-request set-var(txn.asked) query
  http-request set-var(txn.query) 'str("?"),concat("",txn.asked)' if {{ query -m len gt 0 }} !{{ var(txn.rule) -m sub ? }}
{leading}
backend {SELF}
  http-request return status 200 content-type text/plain string "ready"
"#
    );
    for slot in 0..RELEASE_RING {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            r#"
backend php-s{slot}
  balance leastconn
  use-fcgi-app php
  http-request disable-l7-retry unless {{ method GET HEAD OPTIONS }}
  http-request del-header proxy
  http-request set-timeout server var(txn.release),map_str_int({limits},60000)
  http-request return status 503 content-type "text/plain; charset=utf-8" string "{BUSY}" hdr Retry-After 3 if {{ nbsrv lt 1 }}
  http-response add-header Set-Cookie "{COOKIE}=%[var(txn.release)]; Path=/; HttpOnly; SameSite=Lax" unless {{ var(txn.seen),sub(txn.release) eq 0 }}
  option httpchk
  http-check send meth GET uri {STATUS}
  http-check expect status 200
  server none 127.0.0.1:1 proto fcgi disabled

backend static-s{slot}
  balance roundrobin
  http-response set-var(txn.since) str(since),map_str_int({active},0)
  http-response add-header Set-Cookie "{COOKIE}=%[var(txn.release)]; Path=/; HttpOnly; SameSite=Lax" if {{ date,sub(txn.since) lt {SWITCHING_SECONDS} }} !{{ var(txn.seen),sub(txn.release) eq 0 }}
  option httpchk
  http-check send meth GET uri {PING} ver HTTP/1.1 hdr Host localhost
  http-check expect status 200
  server none 127.0.0.1:1 disabled
"#
        );
    }
    text
}

/// The name of the backend for a provider's role and release.
pub fn backend_name(php: bool, release: ReleaseNumber) -> String {
    format!(
        "{}-s{}",
        if php { "php" } else { "static" },
        release.0 % RELEASE_RING
    )
}

/// A server's name: which release and node it is, so that an agent that starts anew knows.
pub fn server_name(release: ReleaseNumber, node: u64) -> String {
    format!("r{}n{node}", release.0)
}

/// The release and node of a server's name.
pub fn parse_server_name(name: &str) -> Option<(ReleaseNumber, u64)> {
    let (release, node) = name.strip_prefix('r')?.split_once('n')?;
    Some((ReleaseNumber(release.parse().ok()?), node.parse().ok()?))
}

/// Entries of the map of paths for one release. A path that a rule leads away from has a key that
/// only paths behind a script are looked for by.
pub fn path_entries<'a>(
    release: ReleaseNumber,
    site: &'a Site,
    redirects: &'a [Redirect],
) -> impl Iterator<Item = (String, String)> + 'a {
    let number = release.0;
    let front = site
        .front
        .iter()
        .map(move |script| (format!("{number}|*"), encode(script)));
    let paths = site.paths.iter().map(move |(path, target)| {
        let led_away = redirects.iter().any(|one| one.leads_away_from(path));
        let kind = if led_away { LED_AWAY } else { '|' };
        let value = match target {
            Target::Static => "static".to_owned(),
            Target::Script(script) => encode(script),
        };
        (format!("{number}{kind}{}", encode(path)), value)
    });
    front.chain(paths)
}

/// Entries of the map of front controllers below paths, for one release.
pub fn front_entries(
    release: ReleaseNumber,
    site: &Site,
) -> impl Iterator<Item = (String, String)> + '_ {
    site.fronts
        .iter()
        .map(move |(below, script)| (format!("{}|{}", release.0, encode(below)), encode(script)))
}

/// Percent-encoding as the load balancer's `url_enc` does it: all but letters, digits and
/// `-._~`, in capital hexadecimal digits.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte))
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}
