//! Progress of long work, as data. Whoever works reports; whoever prints decides how it looks.

/// Something a person who waits wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A new phase began, such as `evaluating` or `fetching packages`.
    Phase(&'a str),
    /// Counted work: `done` of `total` items, and bytes where they are known (0 where not).
    Items {
        /// What is counted, such as `packages`.
        what: &'a str,
        /// Items finished.
        done: u64,
        /// Items in all.
        total: u64,
        /// Bytes finished.
        bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// A build or fetch began, by the name of its result.
    Started(&'a str),
    /// A line of output of a build or of a program that runs for the person.
    Log(&'a str),
    /// Something worth telling that does not stop the work.
    Warning(&'a str),
}

/// Receives events; called from any thread.
pub trait Progress: Sync {
    /// Reports one event.
    fn report(&self, event: Event<'_>);
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _: Event<'_>) {}
}
