//! Room on the disk, asked for before anything is begun: a build that fails after five minutes for want of it is worse.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::tools::Purpose;
use crate::sh;

/// Mebibytes that a build from nothing takes below the target directory.
fn build(purposes: &[Purpose]) -> u64 {
    let tests = purposes.iter().any(|purpose| [Purpose::Test, Purpose::Machines].contains(purpose));
    if tests { 9_000 } else { 2_000 }
}

/// Mebibytes that the packages of the eBPF compiler and LLVM take.
const COMPILER: u64 = 1_300;

/// Looks whether there is room for what is missing.
///
/// # Errors
/// A sentence with how much there is and how much is needed.
pub fn check(purposes: &[Purpose], compiler: bool) -> Result<()> {
    let target = sh::release_directory();
    let target = target.parent().unwrap_or(Path::new("/"));
    let mut needs: Vec<(PathBuf, u64)> = Vec::new();
    if !target.join("CACHEDIR.TAG").is_file() {
        needs.push((existing(target), build(purposes)));
    }
    if compiler {
        needs.push(("/usr".into(), COMPILER));
    }
    let mut file_systems: Vec<(String, u64, u64, PathBuf)> = Vec::new();
    for (path, needed) in needs {
        // Where `df` does not answer, the build finds out.
        let Some((mount, free)) = free(&path) else { continue };
        match file_systems.iter_mut().find(|(other, ..)| *other == mount) {
            Some((_, _, sum, _)) => *sum += needed,
            None => file_systems.push((mount, free, needed, path)),
        }
    }
    for (mount, free, needed, path) in file_systems {
        if free < needed {
            bail!(
                "too little room in {} (file system {mount}): {free} MiB are free, about {needed} MiB are needed; free \
                 some space, or set CARGO_TARGET_DIR to a directory elsewhere",
                path.display()
            );
        }
    }
    Ok(())
}

/// The nearest directory above that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// The mount point of a path's file system, and its free room in MiB.
fn free(path: &Path) -> Option<(String, u64)> {
    let text = sh::output(Command::new("df").args(["-P", "-k"]).arg(path).env("LC_ALL", "C")).ok()?;
    read(&text)
}

fn read(df: &str) -> Option<(String, u64)> {
    let mut fields = df.lines().nth(1)?.split_whitespace().skip(3);
    let free: u64 = fields.next()?.parse().ok()?;
    Some((fields.nth(1)?.to_owned(), free / 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_df() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 264090404 11 83886080 13% /\n";
        assert_eq!(read(text), Some(("/".into(), 81_920)));
        assert_eq!(read("df: no such file\n"), None);
    }
}
