//! The native driver: Codchi's own small runtime, no daemon, no engine.

use codchi_core::status::Finding;
use codchi_runtime::spec::Launch;

use crate::supervised::container::{self, Container, Own};
use crate::{Flavour, Host, Info, Result};

/// The driver.
pub(crate) static NATIVE: Container<Native> = Container(Native);

/// What is its own: nothing but its name.
pub(crate) struct Native;

static INFO: Info = Info { name: "native", kind: Flavour::Container };

impl Own for Native {
    fn info(&self) -> &'static Info {
        &INFO
    }

    fn probe(&self, host: &Host) -> Vec<Finding> {
        container::probe(host)
    }

    fn complete(&self, _: &Host, launch: Launch) -> Result<Launch> {
        Ok(launch)
    }
}
