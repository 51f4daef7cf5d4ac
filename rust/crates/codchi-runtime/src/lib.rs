//! Namespaces, mounts, cgroups, network and supervision of a native machine.
