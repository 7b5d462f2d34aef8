//! Checks the dependencies of the pure crates and of the library without features.

use anyhow::{Context, Result};

use crate::sh;

/// A package, cargo's options for it, and the packages that it must not depend on, directly or indirectly.
const FORBIDDEN: [(&str, &[&str], &[&str]); 3] = [
    ("crafter-packet", &[], &["tokio", "aya", "nix", "memmap2", "pnet_datalink", "pnet_transport"]),
    ("crafter-engine", &[], &["tokio", "aya", "nix", "memmap2", "pnet_datalink", "pnet_transport"]),
    ("crafter", &["--no-default-features"], &["clap", "ratatui", "rustyline", "hyper", "hickory-server", "toml"]),
];

/// Describes each forbidden dependency.
///
/// # Errors
/// If `cargo tree` fails.
pub fn check() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (package, features, forbidden) in FORBIDDEN {
        let mut tree = sh::cargo();
        // Dependencies of build scripts are not part of the library.
        tree.args(["tree", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
        let tree =
            sh::output(tree.args(features)).with_context(|| format!("cannot list the dependencies of {package}"))?;
        let found = found(&tree, forbidden);
        faults.extend(found.into_iter().map(|name| format!("{package} must not depend on {name}")));
    }
    Ok(faults)
}

/// The packages of `names` in the output of `cargo tree`.
fn found<'n>(tree: &str, names: &[&'n str]) -> Vec<&'n str> {
    let listed: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    names.iter().copied().filter(|name| listed.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_packages_match_completely() {
        let tree = "crafter-packet v0.1.0 (/w)\nhickory-proto v0.26.3\ntokio-macros v2.5.0 (proc-macro)\nnix v0.30.1\n";
        assert_eq!(found(tree, &["tokio", "aya", "nix"]), ["nix"]);
        assert!(found(tree, &["tokio"]).is_empty());
    }
}
