//! Other hosts on which an engine runs machines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that names no remote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a remote: write `NAME` or `NAME:MEMBER`, as the engine's client calls them", crate::text::printable_line(.0))]
pub struct RemoteError(String);

/// An engine on another host, or a member of a cluster: `name`, `name:member`. `local` is the engine of this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Remote {
    /// As the engine's client calls it.
    pub name: String,
    /// The member of its cluster; none: the engine chooses.
    pub member: Option<String>,
}

impl FromStr for Remote {
    type Err = RemoteError;

    fn from_str(text: &str) -> Result<Remote, RemoteError> {
        let is_name = |s: &str| {
            let known = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
            (1..=253).contains(&s.len()) && s.bytes().all(known) && !s.starts_with(['-', '.'])
        };
        let (name, member) = match text.split_once(':') {
            Some((name, member)) => (name, Some(member)),
            None => (text, None),
        };
        if !is_name(name) || !member.is_none_or(is_name) {
            return Err(RemoteError(text.into()));
        }
        Ok(Remote { name: name.into(), member: member.map(String::from) })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.member.iter().try_for_each(|member| write!(f, ":{member}"))
    }
}

impl TryFrom<String> for Remote {
    type Error = RemoteError;

    fn try_from(text: String) -> Result<Remote, RemoteError> {
        text.parse()
    }
}

impl From<Remote> for String {
    fn from(remote: Remote) -> String {
        remote.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_are_written_as_they_are_read() {
        for text in ["lab", "lab:m1", "lab.example.org:node-2", "local:m_3"] {
            assert_eq!(text.parse::<Remote>().unwrap().to_string(), text);
        }
        for text in ["", ":", "a:", ":b", "a:b:c", "-x", "a/b", "a b", "../x", "lab:.."] {
            assert!(text.parse::<Remote>().is_err(), "{text}");
        }
    }
}
