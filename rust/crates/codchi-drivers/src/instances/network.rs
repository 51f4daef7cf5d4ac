//! The network of a machine on another host: that of the engine's default profile there. Whoever looks after the machine tells it its
//! address, so that nothing in it has to ask for one.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use codchi_core::progress::{Event, Progress};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Api, ApiError};
use super::mark;

/// What a machine has of a network there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The instance's device.
    pub device: Value,
    /// Its address, where that is known beforehand.
    pub address: Option<Address>,
}

/// An address in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The machine's.
    pub own: Ipv4Addr,
    /// Bits of the network.
    pub bits: u8,
    /// The engine's, which leads elsewhere and knows names.
    pub gateway: Ipv4Addr,
}

impl Address {
    /// What `ip -batch` does in the machine.
    pub fn commands(&self) -> String {
        let Address { own, bits, gateway } = self;
        format!("link set eth0 up\naddr replace {own}/{bits} dev eth0\nroute replace default via {gateway}\n")
    }

    /// What resolv.conf(5) says.
    pub fn resolver(&self) -> String {
        format!("nameserver {}\n", self.gateway)
    }
}

/// The network of an instance; none where a person gave it one, or there is none.
pub fn find(api: &Api, instance: &Value, progress: &dyn Progress) -> Result<Option<Network>, ApiError> {
    // What a person added is theirs.
    let nic = |devices: &Value| {
        let all = devices.as_object().into_iter().flatten();
        all.map(|(_, d)| d).find(|d| d["type"] == "nic").cloned()
    };
    if nic(&Value::Object(mark::devices_of_others(instance))).is_some() {
        return Ok(None);
    }
    let profile = match api.get("/1.0/profiles/default") {
        Err(e) if !e.is_not_found() => return Err(e),
        profile => profile.unwrap_or_default(),
    };
    let Some(mut device) = nic(&profile["devices"]) else {
        progress.report(Event::Warning(
            "the machine has no network: the default profile there has none (`network create`, `profile device add default eth0 nic network=NAME name=eth0`)",
        ));
        return Ok(None);
    };
    device["name"] = json!("eth0");
    let named = ["network", "parent"].iter().find_map(|key| device[key].as_str());
    let name = named.unwrap_or_default().to_string();
    let about = match api.get(&format!("/1.0/networks/{name}")) {
        Err(e) if !e.is_not_found() => return Err(e),
        about => about.unwrap_or_default(),
    };
    let Some((gateway, bits)) = (about["managed"] == true).then(|| subnet(&about)).flatten() else {
        progress.report(Event::Warning(&format!(
            "the machine gets no address of the network `{name}` there: Codchi knows those only that the engine manages"
        )));
        return Ok(Some(Network { device, address: None }));
    };
    let had = instance["devices"]["eth0"]["ipv4.address"].as_str().and_then(|a| a.parse().ok());
    let own = match had.filter(|own| is_in(*own, gateway, bits)) {
        Some(own) => Some(own),
        None => {
            let leases = api.get(&format!("/1.0/networks/{name}/leases"))?;
            let leases = leases.as_array().into_iter().flatten();
            let taken: BTreeSet<Ipv4Addr> =
                leases.filter_map(|l| l["address"].as_str()?.parse().ok()).collect();
            let seed = instance["name"].as_str().unwrap_or_default().bytes();
            free(gateway, bits, &taken, seed.fold(7, |sum: u32, b| sum.wrapping_mul(31) + u32::from(b)))
        }
    };
    let Some(own) = own else {
        progress.report(Event::Warning(&format!("the network `{name}` there has no address left")));
        return Ok(Some(Network { device, address: None }));
    };
    if about["config"]["ipv4.dhcp"] != "false" {
        // So that nobody else gets it.
        device["ipv4.address"] = json!(own.to_string());
    }
    Ok(Some(Network { device, address: Some(Address { own, bits, gateway }) }))
}

/// The engine's address in a network, and the network's bits.
fn subnet(about: &Value) -> Option<(Ipv4Addr, u8)> {
    let (address, bits) = about["config"]["ipv4.address"].as_str()?.split_once('/')?;
    let bits = bits.parse().ok().filter(|bits| (8..=30).contains(bits))?;
    Some((address.parse().ok()?, bits))
}

fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

fn is_in(address: Ipv4Addr, gateway: Ipv4Addr, bits: u8) -> bool {
    address.to_bits() & mask(bits) == gateway.to_bits() & mask(bits) && address != gateway
}

/// An address that nobody has; which is tried first depends on `seed`, so that a machine mostly has the same.
fn free(gateway: Ipv4Addr, bits: u8, taken: &BTreeSet<Ipv4Addr>, seed: u32) -> Option<Ipv4Addr> {
    let network = gateway.to_bits() & mask(bits);
    // Neither the network's own nor that of all.
    let hosts = !mask(bits) - 1;
    let tries = hosts.min(1 << 16);
    let nth = |n: u32| Ipv4Addr::from_bits(network + 1 + (seed % hosts + n) % hosts);
    (0..tries).map(nth).find(|a| *a != gateway && !taken.contains(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_the_network_that_nobody_has() {
        let gateway: Ipv4Addr = "10.1.2.1".parse().unwrap();
        let mut taken = BTreeSet::new();
        for _ in 0..5 {
            let one = free(gateway, 29, &taken, 12345).unwrap();
            assert!(is_in(one, gateway, 29) && taken.insert(one));
        }
        assert_eq!(free(gateway, 29, &taken, 1), None);
        let all: Vec<String> = taken.iter().map(Ipv4Addr::to_string).collect();
        assert_eq!(all, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert!(!is_in("10.1.3.2".parse().unwrap(), gateway, 24));
        assert!(is_in("10.200.3.2".parse().unwrap(), gateway, 8));
        assert_eq!(free(gateway, 24, &BTreeSet::new(), 9), free(gateway, 24, &BTreeSet::new(), 9));
    }

    #[test]
    fn networks_that_are_no_subnets_have_no_addresses() {
        let read = |text: &str| subnet(&json!({ "config": { "ipv4.address": text } }));
        assert_eq!(read("10.1.2.1/24"), Some(("10.1.2.1".parse().unwrap(), 24)));
        for text in ["none", "auto", "", "10.1.2.1/31", "10.1.2.1/0", "fd00::1/64"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
