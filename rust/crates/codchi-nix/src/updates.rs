//! Whether the sources of a machine have moved on, told by asking git servers for their branches: no fetch, no evaluation.

use serde_json::Value;

use crate::lock;

/// An input of a machine flake that comes from a git server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The input.
    pub input: String,
    /// Address for git.
    pub url: String,
    /// What is followed there, by the names that it may have; none: a commit is pinned, and nothing moves.
    pub refs: Option<Vec<String>>,
    /// The revision that is locked.
    pub locked: String,
}

/// The inputs of a lock that come from git servers, by name. Codchi and its nixpkgs move with Codchi.
pub fn remotes(text: &str) -> Vec<Remote> {
    let lock: Value = serde_json::from_str(text).unwrap_or_default();
    let root = lock["root"].as_str().unwrap_or("root");
    let inputs = lock["nodes"][root]["inputs"].as_object();
    let mut all = Vec::new();
    for (input, node) in inputs.into_iter().flatten() {
        let (Some(node), false) = (node.as_str(), input == "codchi" || input == "nixpkgs") else { continue };
        let node = &lock["nodes"][node];
        let (original, locked) = (&node["original"], node["locked"]["rev"].as_str());
        let text = |key: &str| original[key].as_str();
        let (Some(url), Some(locked)) = (address(original), locked) else { continue };
        let refs = match (text("rev"), text("ref")) {
            (Some(_), _) => None,
            (None, None) => Some(vec!["HEAD".into()]),
            (None, Some(full)) if full.starts_with("refs/") || full == "HEAD" => Some(vec![full.into()]),
            (None, Some(branch)) if text("type") == Some("git") => Some(vec![format!("refs/heads/{branch}")]),
            // A forge takes a tag for the same word.
            (None, Some(name)) => Some(vec![format!("refs/heads/{name}"), format!("refs/tags/{name}")]),
        };
        all.push(Remote { input: input.clone(), url, refs, locked: locked.into() });
    }
    all
}

fn address(original: &Value) -> Option<String> {
    let text = |key: &str| original[key].as_str();
    let forge = |usual: &str| {
        let host = text("host").unwrap_or(usual);
        Some(format!("https://{host}/{}/{}", text("owner")?, text("repo")?))
    };
    match text("type")? {
        // What is a folder of this host is compared by its files.
        "git" => text("url").filter(|_| lock::local_original(original).is_none()).map(str::to_owned),
        "github" => forge("github.com"),
        "gitlab" => forge("gitlab.com"),
        "sourcehut" => forge("git.sr.ht"),
        _ => None,
    }
}

/// What `git ls-remote` says is newest; the locked revision where that is what it says, be it by an annotated tag.
pub fn newest(remote: &Remote, answer: &str) -> Option<String> {
    let lines: Vec<(&str, &str)> = answer.lines().filter_map(|l| l.split_once('\t')).collect();
    for name in remote.refs.iter().flatten() {
        let peeled = format!("{name}^{{}}");
        let of: Vec<&str> =
            lines.iter().filter(|(_, r)| r == name || *r == peeled).map(|(rev, _)| *rev).collect();
        if of.contains(&remote.locked.as_str()) {
            return Some(remote.locked.clone());
        }
        if let Some(last) = of.last() {
            return Some((*last).to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"{ "root": "root", "version": 7, "nodes": {
      "root": { "inputs": { "codchi": "codchi", "a": "a", "b": "b", "c": "c", "d": "d", "e": "e", "nixpkgs": ["codchi", "nixpkgs"] } },
      "codchi": { "locked": { "rev": "0" }, "original": { "type": "github", "owner": "o", "repo": "codchi" } },
      "a": { "locked": { "rev": "a1" }, "original": { "type": "git", "url": "https://h/a" } },
      "b": { "locked": { "rev": "b1" }, "original": { "type": "git", "url": "ssh://git@h/b", "ref": "main" } },
      "c": { "locked": { "rev": "c1" }, "original": { "type": "gitlab", "owner": "o", "repo": "r", "ref": "v1", "host": "g" } },
      "d": { "locked": { "rev": "d1" }, "original": { "type": "git", "url": "https://h/d", "rev": "d1" } },
      "e": { "locked": { "rev": "e1" }, "original": { "type": "git", "url": "file:///home/me/e" } } } }"#;

    #[test]
    fn what_comes_from_servers_is_read_from_the_lock() {
        let all = remotes(LOCK);
        let of = |i: &str| all.iter().find(|r| r.input == i).map(|r| (r.url.as_str(), r.refs.clone()));
        assert_eq!(all.len(), 4);
        assert_eq!(of("a"), Some(("https://h/a", Some(vec!["HEAD".into()]))));
        assert_eq!(of("b"), Some(("ssh://git@h/b", Some(vec!["refs/heads/main".into()]))));
        assert_eq!(
            of("c"),
            Some(("https://g/o/r", Some(vec!["refs/heads/v1".into(), "refs/tags/v1".into()])))
        );
        assert_eq!(of("d"), Some(("https://h/d", None)));
        assert!(remotes("nonsense").is_empty() && remotes("{}").is_empty());
    }

    #[test]
    fn the_newest_is_what_the_server_says_now() {
        let all = remotes(LOCK);
        let newest = |i: usize, answer: &str| newest(&all[i], answer);
        assert_eq!(newest(0, "a2\tHEAD\n").as_deref(), Some("a2"));
        assert_eq!(newest(1, "b0\trefs/heads/other\nb1\trefs/heads/main\n").as_deref(), Some("b1"));
        assert_eq!(newest(2, "t1\trefs/tags/v1\nc1\trefs/tags/v1^{}\n").as_deref(), Some("c1"));
        assert_eq!(newest(2, "t2\trefs/tags/v1\nc2\trefs/tags/v1^{}\n").as_deref(), Some("c2"));
        assert_eq!(newest(1, "b0\trefs/heads/other\n"), None);
    }
}
