//! The committed client is the one that the committed OpenAPI document makes.

#[path = "../generator/mod.rs"]
mod generator;

use std::path::Path;

#[test]
fn the_client_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = std::collections::BTreeSet::new();
    for module in ["api", "ends", "event", "ids", "instance", "spec", "status"] {
        let source =
            std::fs::read_to_string(root.join(format!("../model/src/{module}.rs"))).unwrap();
        known.extend(generator::public_types(&source));
    }
    let document = std::fs::read_to_string(root.join("../../openapi/director.json")).unwrap();
    let wanted = generator::generate(&document, &known).unwrap();
    let found = std::fs::read_to_string(root.join("src/generated.rs")).unwrap();
    assert!(
        wanted == found,
        "crates/client/src/generated.rs is stale: run `cargo run -p conpaas-client --example generate`"
    );
}

#[test]
fn a_document_becomes_methods() {
    let document = r##"{
      "paths": {"/v1/apps/{app}/code": {
        "get": {"operationId": "list_code", "summary": "Lists.",
          "parameters": [{"name": "app", "in": "path"}, {"name": "type", "in": "query", "schema": {"type": ["string", "null"]}}],
          "responses": {"200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Page_Code"}}}}}},
        "post": {"operationId": "upload_code", "requestBody": {"content": {"application/octet-stream": {}}},
          "responses": {"201": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Own"}}}}}}}},
      "components": {"schemas": {
        "Page_Code": {"type": "object", "properties": {"items": {"type": "array", "items": {"$ref": "#/components/schemas/Code"}}, "next": {"type": ["string", "null"]}}},
        "Code": {"type": "object"},
        "Own": {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer", "minimum": 0}, "note": {"type": "string"}}}}}
    }"##;
    let known = ["Code".to_owned(), "Page".to_owned()].into();
    let text = generator::generate(document, &known).unwrap();
    for part in [
        "pub async fn list_code(&self, app: &str, query: &ListCodeQuery) -> Result<Page<Code>, ClientError>",
        "self.call(Method::GET, &format!(\"/v1/apps/{}/code\", segment(app))).query(query).answer().await",
        "#[serde(rename = \"type\")]\n    pub kind: Option<String>",
        "pub async fn upload_code(&self, app: &str, upload: Upload) -> Result<Own, ClientError>",
        "pub size: u64,",
        "pub note: Option<String>,",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    assert!(generator::generate("{\"paths\":{\"/x\":{\"get\":{}}}}", &known).is_err());
}
