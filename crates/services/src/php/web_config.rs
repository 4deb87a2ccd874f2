//! Text of a web server's configuration for one release. Pure.

use super::manager::WebConfig;
use super::{ACCOUNT, PING, STATUS, site};
use conpaas_model::ids::ReleaseNumber;
use std::net::SocketAddrV4;
use std::path::Path;

/// Where one web server's files are.
pub struct Place<'a> {
    pub listen: SocketAddrV4,
    /// The public folder.
    pub root: &'a Path,
    /// For its process number and temporary files.
    pub folder: &'a Path,
    pub access_log: &'a Path,
    pub release: ReleaseNumber,
    pub is_root: bool,
}

/// The whole file (`web_metrics` reads the log's format from its end): serves real files of the public folder and nothing else; never a script's
/// source, never a hidden file, never through a link.
pub fn file(place: &Place<'_>, config: &WebConfig) -> String {
    let Place {
        listen,
        root,
        folder,
        access_log,
        release,
        ..
    } = place;
    let (root, folder, access_log) = (quoted(root), folder.display(), access_log.display());
    let release = release.0;
    let user = if place.is_root {
        format!("user {ACCOUNT};\n")
    } else {
        String::new()
    };
    let caching = match config.cache_seconds {
        0 => String::new(),
        seconds => format!("    expires {seconds}s;\n"),
    };
    let refused: String = site::refused(&config.site)
        .iter()
        .map(|path| format!("    location = /{path} {{ return 404; }}\n    location ^~ /{path}/ {{ return 404; }}\n"))
        .collect();
    let workers = config.workers;
    format!(
        r#"# Written by ConPaaS; changes here are lost.
daemon off;
{user}worker_processes {workers};
pid {folder}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  log_format conpaas '$http_x_forwarded_for $remote_addr [$time_iso8601] "$request" $status $body_bytes_sent $request_time release={release}';
  access_log {access_log} conpaas;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  sendfile on;
  tcp_nopush on;
  server_tokens off;
  absolute_redirect off;
  keepalive_timeout 75s;
  keepalive_requests 100000;
  gzip on;
  gzip_vary on;
  gzip_proxied any;
  gzip_min_length 1000;
  gzip_types text/plain text/css text/xml application/javascript text/javascript application/json application/xml image/svg+xml;
  server {{
    listen {listen};
    root {root};
    index index.html index.htm;
    charset utf-8;
    disable_symlinks on from=$document_root;
{caching}{refused}    location = {PING} {{ access_log off; return 200 "ready\n"; }}
    location = {STATUS} {{ access_log off; stub_status; }}
    location ~ /\.(?!well-known(/|$)) {{ return 404; }}
    location ~* \.(php[0-9]?|phtml|phar|phps)$ {{ return 404; }}
    location / {{ }}
  }}
}}
"#
    )
}

/// A path in quotes, as the file's grammar wants it.
fn quoted(path: &Path) -> String {
    format!(
        "\"{}\"",
        path.display()
            .to_string()
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
    )
}
