//! What the pure crates, and the library without features, must not depend on.

use anyhow::{Context, Result};

use crate::sh;

/// A package, the features that it is asked with, and what must not be among all that it depends on.
const FORBIDDEN: [(&str, &[&str], &[&str]); 3] = [
    ("crafter-packet", &[], &["tokio", "aya", "nix", "memmap2", "pnet_datalink", "pnet_transport"]),
    ("crafter-engine", &[], &["tokio", "aya", "nix", "memmap2", "pnet_datalink", "pnet_transport"]),
    (
        "crafter",
        &["--no-default-features"],
        &["clap", "ratatui", "rustyline", "hyper", "hickory-server", "seccompiler", "toml"],
    ),
];

/// Each dependency that should not be there, in a sentence.
///
/// # Errors
/// If cargo does not say what a package depends on.
pub fn check() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (package, features, forbidden) in FORBIDDEN {
        let mut tree = sh::cargo();
        // Build scripts count for nothing: they run on another machine, perhaps.
        tree.args(["tree", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
        let tree = sh::output(tree.args(features)).with_context(|| format!("what {package} depends on"))?;
        let found = found(&tree, forbidden);
        faults.extend(found.into_iter().map(|name| format!("{package} depends on {name}, which it must not")));
    }
    Ok(faults)
}

/// Those of `names` that `cargo tree` lists.
fn found<'n>(tree: &str, names: &[&'n str]) -> Vec<&'n str> {
    let listed: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    names.iter().copied().filter(|name| listed.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_of_packages() {
        let tree = "crafter-packet v0.1.0 (/w)\nhickory-proto v0.26.3\ntokio-macros v2.5.0 (proc-macro)\nnix v0.30.1\n";
        assert_eq!(found(tree, &["tokio", "aya", "nix"]), ["nix"]);
        assert!(found(tree, &["tokio"]).is_empty());
    }
}
