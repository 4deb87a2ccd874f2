//! Writes the API's description to `openapi/director.json` (or to the path given).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/director.json");
    let path = std::env::args()
        .nth(1)
        .unwrap_or_else(|| default.to_owned());
    if let Some(folder) = std::path::Path::new(&path).parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut text = conpaas_director::openapi().to_pretty_json()?;
    text.push('\n');
    Ok(std::fs::write(path, text)?)
}
