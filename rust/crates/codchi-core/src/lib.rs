//! Pure data of Codchi: names, manifests, plans, flake edits, the agent protocol.
//!
//! Nothing here reads a file, starts a process or looks at the clock; adapters do that and hand the data in.

pub mod attr;
pub mod consent;
pub mod credentials;
pub mod dirs;
pub mod document;
pub mod engine;
pub mod export;
#[cfg(feature = "host")]
pub mod flake;
pub mod folder;
#[cfg(feature = "host")]
pub mod machine;
pub mod manifest;
pub mod name;
pub mod plan;
pub mod port;
pub mod progress;
pub mod protocol;
pub mod remote;
pub mod report;
pub mod session;
#[cfg(feature = "host")]
pub mod settings;
pub mod source;
pub mod status;
pub mod text;
