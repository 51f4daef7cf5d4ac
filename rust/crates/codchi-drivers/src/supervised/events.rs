//! What a supervisor tells, as progress.

use codchi_core::progress::{Event as Told, Progress};
use codchi_runtime::start::Event;

/// Passes an event on.
pub fn tell(progress: &dyn Progress, event: &Event) {
    match event {
        Event::Status { text } => progress.report(Told::Started(text)),
        Event::Warning { message } => progress.report(Told::Warning(message)),
        Event::Started { .. } | Event::Ready | Event::Failed { .. } => {}
    }
}
