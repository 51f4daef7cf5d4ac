//! Ports of the host that lead into a machine: what a module asks for, and what a person says to that.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::manifest;

/// A protocol with ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// Text that names no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a port: write {wanted}", crate::text::printable_line(given))]
pub struct PortError {
    given: String,
    wanted: &'static str,
}

/// A port in a machine, `80/tcp`; without the protocol `80` is read, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestPort {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// A port on 127.0.0.1 of the host that leads to a port of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Forward {
    /// Port on the host.
    pub host: u16,
    /// Port in the machine.
    pub guest: u16,
    /// Protocol of both.
    pub protocol: Protocol,
}

/// A forwarded port and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct PortState {
    /// The ports.
    #[serde(flatten)]
    pub forward: Forward,
    /// Why it is not forwarded; none: it is.
    pub problem: Option<String>,
}

/// What a person says of a port of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPort {
    /// It is this port on the host.
    Port(u16),
    /// It is not to be reached, whatever a module asks for.
    Withheld,
}

/// Who wants a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A module of the machine.
    Module,
    /// The person.
    Person,
}

impl Origin {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Module => "module",
            Origin::Person => "you",
        }
    }
}

fn split_protocol(text: &str) -> Option<(&str, Protocol)> {
    match text.split_once('/') {
        None => Some((text, Protocol::Tcp)),
        Some((number, "tcp")) => Some((number, Protocol::Tcp)),
        Some((number, "udp")) => Some((number, Protocol::Udp)),
        Some(_) => None,
    }
}

fn number(text: &str) -> Option<u16> {
    // Not what the parser of numbers takes besides digits.
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|n| *n > 0)
}

impl FromStr for GuestPort {
    type Err = PortError;
    fn from_str(text: &str) -> Result<GuestPort, PortError> {
        split_protocol(text)
            .and_then(|(n, protocol)| Some(GuestPort { port: number(n)?, protocol }))
            .ok_or_else(|| PortError { given: text.into(), wanted: "`PORT` or `PORT/udp`, from 1 to 65535" })
    }
}

impl fmt::Display for GuestPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol.as_str())
    }
}

impl Serialize for GuestPort {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GuestPort {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<GuestPort, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Forward {
    type Err = PortError;
    /// `HOST:GUEST`, or `PORT` for the same on both sides, with `/udp` where that is meant.
    fn from_str(text: &str) -> Result<Forward, PortError> {
        split_protocol(text)
            .and_then(|(ports, protocol)| {
                let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
                Some(Forward { host: number(host)?, guest: number(guest)?, protocol })
            })
            .ok_or_else(|| PortError {
                given: text.into(),
                wanted: "`HOST:GUEST`, `PORT`, or one of them with `/udp`, from 1 to 65535",
            })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.guest, self.protocol.as_str())
    }
}

impl Forward {
    /// The port in the machine.
    pub fn guest_port(&self) -> GuestPort {
        GuestPort { port: self.guest, protocol: self.protocol }
    }

    /// The port on the host, as people write it.
    pub fn shown_host(&self) -> String {
        match self.protocol {
            Protocol::Tcp => self.host.to_string(),
            Protocol::Udp => format!("{}/udp", self.host),
        }
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            HostPort::Port(n) => s.serialize_u16(*n),
            HostPort::Withheld => s.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<HostPort, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = HostPort;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535, or false")
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<HostPort, E> {
                match u16::try_from(n) {
                    Ok(n) if n > 0 => Ok(HostPort::Port(n)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Signed(n), &self)),
                }
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<HostPort, E> {
                self.visit_i64(i64::try_from(n).unwrap_or(-1))
            }
            fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<HostPort, E> {
                if b {
                    Err(E::invalid_value(serde::de::Unexpected::Bool(b), &self))
                } else {
                    Ok(HostPort::Withheld)
                }
            }
        }
        d.deserialize_any(Visitor)
    }
}

/// The ports that shall lead into a machine: a module's, unless the person says otherwise, and the person's own.
pub fn wanted(
    asked: &BTreeMap<String, manifest::Port>,
    own: &BTreeMap<GuestPort, HostPort>,
) -> Vec<(Forward, Origin)> {
    let mut all: BTreeMap<GuestPort, (u16, Origin)> = BTreeMap::new();
    for (guest, port) in asked {
        // What is no number here fails the evaluation.
        if let Some(number) = number(guest) {
            all.insert(GuestPort { port: number, protocol: port.protocol }, (port.host, Origin::Module));
        }
    }
    for (guest, host) in own {
        match host {
            HostPort::Port(host) => drop(all.insert(*guest, (*host, Origin::Person))),
            HostPort::Withheld => drop(all.remove(guest)),
        }
    }
    all.into_iter()
        .map(|(guest, (host, origin))| {
            (Forward { host, guest: guest.port, protocol: guest.protocol }, origin)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(text: &str) -> Forward {
        text.parse().unwrap()
    }

    #[test]
    fn a_forward_is_read_as_people_write_it() {
        let f = |host, guest, protocol| Forward { host, guest, protocol };
        assert_eq!(forward("8080:80"), f(8080, 80, Protocol::Tcp));
        assert_eq!(forward("80/tcp"), f(80, 80, Protocol::Tcp));
        assert_eq!(forward("5353:53/udp"), f(5353, 53, Protocol::Udp));
        for bad in
            ["", "0", "65536", "80:", ":80", "1:2:3", "+80", "80/sctp", "a", "80/udp/", "0.0.0.0:80:80"]
        {
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_person_has_the_last_word() {
        let asked = BTreeMap::from([
            ("80".to_string(), manifest::Port { host: 8080, protocol: Protocol::Tcp }),
            ("443".to_string(), manifest::Port { host: 8443, protocol: Protocol::Tcp }),
            ("53".to_string(), manifest::Port { host: 5353, protocol: Protocol::Udp }),
        ]);
        let own = BTreeMap::from([
            ("80/tcp".parse().unwrap(), HostPort::Port(18080)),
            ("443".parse().unwrap(), HostPort::Withheld),
            ("53/tcp".parse().unwrap(), HostPort::Port(5353)),
        ]);
        assert_eq!(
            wanted(&asked, &own),
            [
                (forward("5353:53"), Origin::Person),
                (forward("5353:53/udp"), Origin::Module),
                (forward("18080:80"), Origin::Person),
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_is_read_back(host in 1u16.., guest in 1u16.., udp: bool) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let f = Forward { host, guest, protocol };
            assert_eq!(f.to_string().parse::<Forward>().unwrap(), f);
            assert_eq!(f.guest_port().to_string().parse::<GuestPort>().unwrap(), f.guest_port());
        }
    }
}
