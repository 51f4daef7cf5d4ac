//! Nix as a process: evaluation, builds, logs, profiles, closures, fingerprints.
