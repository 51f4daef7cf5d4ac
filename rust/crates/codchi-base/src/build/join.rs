//! Joins packages into one tree of links, as an environment shows them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::package::link;
use crate::Result;

/// Request of `join`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Earlier ones win.
    paths: Vec<PathBuf>,
    /// Which folders; `/` is all.
    #[serde(default)]
    paths_to_link: Vec<String>,
    /// A script that runs afterwards, with its shell and search path.
    #[serde(default)]
    post_build: String,
    #[serde(default)]
    shell: PathBuf,
    #[serde(default)]
    path: String,
}

/// A node of the joined tree.
enum Node {
    Leaf(PathBuf),
    Dir(BTreeMap<String, Node>),
}

/// Joins packages.
pub fn run(out: &Path, request: &Request) -> Result<()> {
    let mut root = BTreeMap::new();
    for p in request.paths.iter().filter(|p| p.is_dir()) {
        collect(p, &mut root, "", &request.paths_to_link)?;
    }
    codchi_fs::create_dir_all(out)?;
    write(&root, out)?;
    super::toplevel::shell(&request.shell, &request.path, &request.post_build, out)
}

fn wanted(path: &str, to_link: &[String]) -> bool {
    to_link.is_empty()
        || to_link.iter().any(|l| {
            let l = l.trim_end_matches('/');
            l.is_empty() || path == l || path.starts_with(&format!("{l}/")) || l.starts_with(&format!("{path}/"))
        })
}

fn collect(dir: &Path, into: &mut BTreeMap<String, Node>, at: &str, to_link: &[String]) -> Result<()> {
    for e in codchi_fs::read_dir(dir)? {
        let name = e.file_name().to_string_lossy().into_owned();
        let path = format!("{at}/{name}");
        if path == "/nix-support" || !wanted(&path, to_link) {
            continue;
        }
        let whole = to_link.iter().any(|l| path.starts_with(l.trim_end_matches('/'))) || to_link.is_empty();
        match into.get_mut(&name) {
            None if whole || !e.path().is_dir() => {
                into.insert(name, Node::Leaf(e.path()));
            }
            None => {
                let mut inner = BTreeMap::new();
                collect(&e.path(), &mut inner, &path, to_link)?;
                into.insert(name, Node::Dir(inner));
            }
            Some(node) => {
                // The second package with this folder opens it; the first keeps what both have.
                if !e.path().is_dir() {
                    continue;
                }
                if let Node::Leaf(first) = node {
                    if !first.is_dir() {
                        continue;
                    }
                    let mut inner = BTreeMap::new();
                    collect(&first.clone(), &mut inner, &path, to_link)?;
                    *node = Node::Dir(inner);
                }
                if let Node::Dir(inner) = node {
                    collect(&e.path(), inner, &path, to_link)?;
                }
            }
        }
    }
    Ok(())
}

fn write(nodes: &BTreeMap<String, Node>, to: &Path) -> Result<()> {
    for (name, node) in nodes {
        let at = to.join(name);
        match node {
            Node::Leaf(path) => link(path, &at)?,
            Node::Dir(inner) => {
                codchi_fs::create_dir_all(&at)?;
                write(inner, &at)?;
            }
        }
    }
    Ok(())
}
