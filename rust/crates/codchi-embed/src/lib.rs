//! The static programs and Nix sources carried in the codchi program.
//!
//! `build.rs` builds and packs them. With `CODCHI_EMBED=none` in its environment the programs are empty, for a quick type check.

/// PID 1 of a container before its init.
pub static BOOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/codchi-boot"));

/// Runs commands in a machine for its host.
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/codchi-agent"));

/// Builder of the built-in base. It changes rarely: its hash decides every package's path.
pub static BASE_BUILD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/codchi-base-build"));

/// Stage-2 init, activation and switch of machines of the built-in base.
pub static BASE_INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/codchi-base-init"));

/// A tar of flake.nix, flake.lock, lib/, modules/, drivers/ and docs/templates: sorted, without times and owners.
pub static SOURCES_TAR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sources.tar"));

/// SHA-256 of [`SOURCES_TAR`], in hexadecimal: known without reading it.
pub static SOURCES_HASH: &str = include_str!(concat!(env!("OUT_DIR"), "/sources.hash"));

/// SHA-256 over [`BOOT`] and [`AGENT`], in hexadecimal.
pub static PROGRAMS_HASH: &str = include_str!(concat!(env!("OUT_DIR"), "/programs.hash"));
