//! Debian mirrors: signatures, indexes, resolution, downloads, unpacking.
