//! The static programs and Nix sources carried in the codchi program.
