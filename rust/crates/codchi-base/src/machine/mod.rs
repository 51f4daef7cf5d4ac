//! What a machine runs.
