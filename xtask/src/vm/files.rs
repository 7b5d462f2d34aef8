//! The contents of a virtual machine's file system: files of this host at the same paths, with the symbolic links on
//! their paths and the libraries that they load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cpio::{Archive, Entry};

/// Maximum number of symbolic links on the path of a file; more are a loop.
const LINKS: usize = 40;

/// Directories that are not copied: caches and development files.
const SKIPPED: [&str; 10] =
    ["test", "tests", "idlelib", "ensurepip", "tkinter", "lib2to3", "pydoc_data", "pip", "setuptools", ".git"];

/// Entries by path.
#[derive(Default)]
pub struct Files {
    entries: BTreeMap<PathBuf, Entry>,
    /// ELF files whose libraries have not been added yet.
    linked: BTreeSet<PathBuf>,
}

impl Files {
    /// Sets the entry at `path` and adds its parent directories.
    pub fn put(&mut self, path: &Path, entry: Entry) {
        let parents: Vec<&Path> = path.ancestors().skip(1).filter(|parent| *parent != Path::new("/")).collect();
        for parent in parents {
            self.entries.entry(parent.to_owned()).or_insert(Entry::Directory(0o755));
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Adds a file of this host, or a directory with its contents, at its path.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        let real = self.resolve(path)?;
        if !real.is_dir() {
            return self.file(real);
        }
        self.put(&real, Entry::Directory(permissions(&real)?));
        let mut entries: Vec<PathBuf> =
            fs::read_dir(&real)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        entries.sort();
        for path in entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let skipped = SKIPPED.contains(&name.as_ref()) || name.ends_with(".a");
            // Skip dangling symbolic links.
            if !skipped && path.exists() {
                self.add(&path)?;
            }
        }
        Ok(())
    }

    /// Adds a copy of `source` at `path`.
    pub fn add_from(&mut self, path: &Path, source: &Path) -> Result<()> {
        self.link(source)?;
        self.put(path, Entry::Copy(source.to_owned()));
        Ok(())
    }

    fn file(&mut self, path: PathBuf) -> Result<()> {
        // Skip devices and sockets.
        if path.is_file() && !self.entries.contains_key(&path) {
            self.link(&path)?;
            self.put(&path, Entry::Copy(path.clone()));
        }
        Ok(())
    }

    /// Records an ELF file for [`Files::add_libraries`].
    fn link(&mut self, path: &Path) -> Result<()> {
        let mut magic = [0; 4];
        let mut file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
        if file.read_exact(&mut magic).is_ok() && magic == *b"\x7fELF" {
            self.linked.insert(path.to_owned());
        }
        Ok(())
    }

    /// Adds the symbolic links on `path`; returns the path that they resolve to.
    fn resolve(&mut self, path: &Path) -> Result<PathBuf> {
        let mut real = PathBuf::from("/");
        let mut todo: Vec<PathBuf> = parts(path);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == Path::new("..") {
                real.pop();
                continue;
            }
            real.push(part);
            let metadata = real.symlink_metadata().with_context(|| format!("cannot read {}", real.display()))?;
            if metadata.is_symlink() {
                links += 1;
                if links > LINKS {
                    bail!("{}: too many symbolic links", path.display());
                }
                let target = fs::read_link(&real)?;
                self.put(&real.clone(), Entry::Link(target.clone()));
                if target.is_absolute() {
                    real = PathBuf::from("/");
                } else {
                    real.pop();
                }
                todo.extend(parts(&target));
            } else if metadata.is_dir() {
                self.put(&real.clone(), Entry::Directory(metadata.permissions().mode() & 0o7777));
            }
        }
        Ok(real)
    }

    /// Adds the libraries of all ELF files, as found by the dynamic loader.
    pub fn add_libraries(&mut self) -> Result<()> {
        let linked = std::mem::take(&mut self.linked);
        let files: Vec<PathBuf> = linked.into_iter().collect();
        let mut libraries = BTreeSet::new();
        for some in files.chunks(100) {
            // The exit code is ignored: it is 1 for static executables, which need no libraries.
            let output = Command::new("ldd").args(some).stdin(Stdio::null()).stderr(Stdio::null()).output();
            let output = output.context("`ldd` does not start")?;
            libraries.extend(libraries_of(&String::from_utf8_lossy(&output.stdout)));
        }
        for library in libraries {
            self.add(&library)?;
        }
        Ok(())
    }

    /// Writes an archive of all entries.
    pub fn write(&self, out: impl io::Write) -> Result<()> {
        let mut archive = Archive::new(out);
        for (path, entry) in &self.entries {
            archive.add(path, entry).with_context(|| format!("pack {}", path.display()))?;
        }
        archive.finish().context("end the archive")
    }
}

/// The parts of a path, last first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    };
    path.components().rev().filter_map(part).collect()
}

fn permissions(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
}

/// Parses the output of `ldd`: `libc.so.6 => /lib/.../libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn libraries_of(text: &str) -> Vec<PathBuf> {
    let library = |line: &str| {
        let (path, _) = line.trim().rsplit_once(" (0x")?;
        let path = path.split_once(" => ").map_or(path, |(_, path)| path).trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(library).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_ldd_is_parsed() {
        let text = "/bin/a:\n\tlinux-vdso.so.1 (0x00007fff)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux.so.2 (0x00)\n\tlibq.so => not found\n/bin/b:\n\tnot a dynamic executable\n";
        assert_eq!(libraries_of(text), [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld-linux.so.2")]);
    }

    #[test]
    fn symbolic_links_are_added_with_their_target() {
        let mut files = Files::default();
        files.add(Path::new("/proc/self/../self/status")).expect("a file behind a link");
        assert!(matches!(files.entries.get(Path::new("/proc/self")), Some(Entry::Link(_))));
        let pid = std::process::id().to_string();
        assert!(files.entries.contains_key(&Path::new("/proc").join(pid).join("status")));
    }
}
