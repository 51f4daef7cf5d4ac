//! Errors that no test reaches, and why.

/// The text in the sources, and the reason.
pub const LEFT_OUT: &[(&str, &str)] = &[];
