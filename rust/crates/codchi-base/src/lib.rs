//! Static programs of the built-in base: builder, init, switch.
