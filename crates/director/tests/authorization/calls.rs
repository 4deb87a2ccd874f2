//! What is sent with each operation, so that whoever may call it succeeds. One that is not named
//! here is sent an empty object.

use crate::world::Fixture;
use serde_json::{Value, json};

/// What is sent of an upload, which is all of it.
pub const PIECE: &[u8] = b"a piece";

/// A request's body.
pub enum Body {
    Json(Value),
    Bytes(Vec<u8>),
}

/// An archive with one file.
pub fn archive(content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "index.html", content.as_bytes())
        .unwrap();
    builder.into_inner().unwrap()
}

pub fn body(operation: &str, fixture: &Fixture) -> Body {
    let fresh = &fixture.fresh;
    Body::Json(match operation {
        "login" => json!({"name": fixture.user, "password": fixture.password}),
        "create_user" => json!({"name": fresh, "password": "a long password"}),
        "change_password" => json!({"current": fixture.password, "new": "another password"}),
        "set_quota" => json!({"node_quota": 21}),
        "create_token" => json!({"label": "made", "lifetime_seconds": 600}),
        "create_app" => json!({"name": fresh}),
        "update_app" | "update_service" => json!({"description": "changed"}),
        "create_service" => json!({"service_type": fixture.service_type, "name": "more"}),
        "scale_service" => json!({"roles": {fixture.role.clone(): "1"}}),
        "set_settings" => json!({"settings": {}}),
        "add_domain" => json!({"name": format!("{fresh}.example.org")}),
        "set_env" => json!({"variables": {"LEVEL": "1"}}),
        "set_secret" => json!({"value": "a value that is kept"}),
        "append_upload" => return Body::Bytes(PIECE.to_vec()),
        "upload_code" => return Body::Bytes(archive("another")),
        _ => json!({}),
    })
}
