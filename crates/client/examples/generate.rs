//! Writes `src/generated.rs` from the Director's OpenAPI document.

#[path = "../generator/mod.rs"]
mod generator;

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = match std::env::args_os().nth(1) {
        Some(path) => path.into(),
        None => root.join("../../openapi/director.json"),
    };
    let mut known = std::collections::BTreeSet::new();
    for module in ["api", "ends", "event", "ids", "instance", "spec", "status"] {
        known.extend(generator::public_types(&std::fs::read_to_string(
            root.join(format!("../model/src/{module}.rs")),
        )?));
    }
    let text = generator::generate(&std::fs::read_to_string(document)?, &known)?;
    std::fs::write(root.join("src/generated.rs"), text)?;
    Ok(())
}
