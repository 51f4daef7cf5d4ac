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
            l.is_empty()
                || path == l
                || path.starts_with(&format!("{l}/"))
                || l.starts_with(&format!("{path}/"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn package(dir: &Path, files: &[&str]) -> PathBuf {
        for f in files {
            let at = dir.join(f);
            codchi_fs::create_dir_all(at.parent().unwrap()).unwrap();
            codchi_fs::write(at, *f).unwrap();
        }
        dir.to_owned()
    }

    fn joined(paths: Vec<PathBuf>, to_link: &[&str], out: &Path) {
        let request = Request {
            paths,
            paths_to_link: to_link.iter().map(|s| (*s).to_owned()).collect(),
            post_build: String::new(),
            shell: PathBuf::new(),
            path: String::new(),
        };
        run(out, &request).unwrap();
    }

    #[test]
    fn a_folder_of_one_package_is_one_link_and_of_two_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let a = package(&dir.path().join("a"), &["bin/a", "bin/both", "share/only/x", "nix-support/y"]);
        let b = package(&dir.path().join("b"), &["bin/b", "bin/both"]);
        let out = dir.path().join("out");
        joined(vec![a.clone(), b.clone()], &[], &out);
        assert_eq!(std::fs::read_link(out.join("share")).unwrap(), a.join("share"));
        assert!(out.join("bin").symlink_metadata().unwrap().is_dir());
        assert_eq!(
            std::fs::read_link(out.join("bin/both")).unwrap(),
            a.join("bin/both"),
            "the earlier package wins"
        );
        assert_eq!(std::fs::read_link(out.join("bin/b")).unwrap(), b.join("bin/b"));
        assert!(!out.join("nix-support").exists());
    }

    #[test]
    fn only_the_folders_asked_for_are_linked() {
        let dir = tempfile::tempdir().unwrap();
        let a = package(&dir.path().join("a"), &["bin/a", "share/doc/x", "share/applications/y", "lib/z"]);
        let out = dir.path().join("out");
        joined(vec![a], &["/bin", "/share/applications"], &out);
        assert!(out.join("bin/a").exists() && out.join("share/applications/y").exists());
        assert!(!out.join("share/doc").exists() && !out.join("lib").exists());
    }
}
