//! Checks for free disk space before anything is started, rather than failing minutes later.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::tools::Purpose;
use crate::sh;

/// MiB that a build from an empty target directory takes.
fn build(purposes: &[Purpose]) -> u64 {
    let tests = purposes.iter().any(|purpose| [Purpose::Test, Purpose::Machines].contains(purpose));
    if tests { 9_000 } else { 2_000 }
}

/// MiB that the packages of the eBPF compiler and LLVM take.
const COMPILER: u64 = 1_300;

/// Checks that there is enough disk space for what is missing.
///
/// # Errors
/// If there is not; the error says how much is free and how much is needed.
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
        // If `df` fails, the build reports a full disk.
        let Some((mount, free)) = free(&path) else { continue };
        match file_systems.iter_mut().find(|(other, ..)| *other == mount) {
            Some((_, _, sum, _)) => *sum += needed,
            None => file_systems.push((mount, free, needed, path)),
        }
    }
    for (mount, free, needed, path) in file_systems {
        if free < needed {
            bail!(
                "not enough disk space in {} (file system {mount}): {free} MiB are free, about {needed} MiB are needed; \
                 free some space, or set CARGO_TARGET_DIR to a directory on another file system",
                path.display()
            );
        }
    }
    Ok(())
}

/// The nearest existing ancestor directory.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// The mount point of a path's file system, and its free space in MiB.
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
    fn output_of_df_is_parsed() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 264090404 11 83886080 13% /\n";
        assert_eq!(read(text), Some(("/".into(), 81_920)));
        assert_eq!(read("df: no such file\n"), None);
    }
}
