//! The OCI driver: containers that an OCI runtime of the host makes, from a bundle that a supervisor writes. No daemon, no image.

mod probe;

use codchi_core::status::Finding;
use codchi_runtime::spec::Launch;

use crate::supervised::container::{Container, Own};
use crate::{DriverError, Flavour, Host, Info, Result};

/// The driver.
pub(crate) static OCI: Container<Oci> = Container(Oci);

/// What is its own: the runtime.
pub(crate) struct Oci;

static INFO: Info = Info { name: "oci", kind: Flavour::Container };

impl Own for Oci {
    fn info(&self) -> &'static Info {
        &INFO
    }

    fn probe(&self, host: &Host) -> Vec<Finding> {
        probe::probe(host)
    }

    fn complete(&self, _: &Host, launch: Launch) -> Result<Launch> {
        if launch.engine["config"].is_null() {
            return Err(DriverError::Settings("they tell no OCI runtime anything".into()));
        }
        Ok(Launch { runtime: Some(probe::usable()?), ..launch })
    }
}
