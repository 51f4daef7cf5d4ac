//! An image with nothing in it, for an engine that makes no instance without one.

use serde_json::{Value, json};

use super::api::{Api, ApiError};

/// One that the engine has for as long as this lives.
pub struct Image<'a> {
    api: &'a Api,
    fingerprint: String,
}

impl<'a> Image<'a> {
    /// Gives the engine one of its own: the same for two instances could go before the second is made.
    pub fn new(api: &'a Api) -> Result<Image<'a>, ApiError> {
        let bad = |reason: String| ApiError::Broken { request: "POST /1.0/images".into(), reason };
        let file = pack().map_err(|e| bad(e.to_string()))?;
        let made = api.upload("/1.0/images", &file)?;
        let fingerprint = made["fingerprint"].as_str().ok_or_else(|| bad("no image is named".into()))?;
        Ok(Image { api, fingerprint: fingerprint.into() })
    }

    /// What an instance is made from.
    pub fn source(&self) -> Value {
        json!({ "type": "image", "fingerprint": self.fingerprint })
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        let _ = self.api.delete(&format!("/1.0/images/{}", self.fingerprint));
    }
}

/// The image, as the engine reads it: a tar with a description and the folder that becomes the root.
fn pack() -> std::io::Result<Vec<u8>> {
    let made = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let about = json!({
        "architecture": std::env::consts::ARCH,
        "creation_date": made.as_secs(),
        "properties": {
            "description": "an empty root file system of codchi, which goes again at once",
            "serial": format!("{}.{}", std::process::id(), made.as_nanos()),
        },
    });
    // JSON is YAML.
    let about = about.to_string();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(about.len() as u64);
    tar.append_data(&mut header, "metadata.yaml", about.as_bytes())?;
    let mut folder = tar::Header::new_ustar();
    folder.set_entry_type(tar::EntryType::Directory);
    folder.set_mode(0o755);
    folder.set_size(0);
    tar.append_data(&mut folder, "rootfs/", std::io::empty())?;
    tar.into_inner()
}
