//! Writes an initramfs archive: cpio in "newc" format (kernel documentation,
//! driver-api/early-userspace/buffer-format).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// File types in the mode.
const DIRECTORY: u32 = 0o040_000;
const CHARACTERS: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An entry of an archive; its owner is root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory with these permissions.
    Directory(u32),
    /// A symbolic link to this path.
    Link(PathBuf),
    /// A copy of this file, with its permissions.
    Copy(PathBuf),
    /// A file with these permissions and contents.
    Bytes(u32, Vec<u8>),
    /// A character device with these permissions: major, minor.
    Characters(u32, u32, u32),
}

/// Writes an archive entry by entry. Directories must be added before their contents.
pub struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self { out, written: 0, inode: 0 }
    }

    /// Adds `entry` as `path`, which is absolute.
    pub fn add(&mut self, path: &Path, entry: &Entry) -> io::Result<()> {
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy().into_owned();
        match entry {
            Entry::Directory(mode) => self.header(&name, DIRECTORY | mode, 0, 0, (0, 0)),
            Entry::Characters(mode, major, minor) => self.header(&name, CHARACTERS | mode, 0, 0, (*major, *minor)),
            Entry::Link(target) => {
                let target = target.to_string_lossy();
                self.header(&name, LINK | 0o777, target.len() as u64, 0, (0, 0))?;
                self.write(target.as_bytes())?;
                self.pad()
            }
            Entry::Bytes(mode, bytes) => {
                self.header(&name, REGULAR | mode, bytes.len() as u64, 0, (0, 0))?;
                self.write(bytes)?;
                self.pad()
            }
            Entry::Copy(source) => {
                let mut file = File::open(source)?;
                let metadata = file.metadata()?;
                let mode = REGULAR | (metadata.mode() & 0o7777);
                self.header(&name, mode, metadata.len(), metadata.mtime(), (0, 0))?;
                let copied = io::copy(&mut file, &mut self.out)?;
                if copied != metadata.len() {
                    return Err(io::Error::other(format!("{} changed while it was read", source.display())));
                }
                self.written += copied;
                self.pad()
            }
        }
    }

    /// Writes the trailer. Another archive may follow.
    pub fn finish(mut self) -> io::Result<()> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0, 0, (0, 0))?;
        self.out.flush()
    }

    fn header(&mut self, name: &str, mode: u32, size: u64, time: i64, device: (u32, u32)) -> io::Result<()> {
        let size = u32::try_from(size).map_err(|_| io::Error::other(format!("{name} is too long for an archive")))?;
        self.inode += 1;
        // Inode, mode, user, group, links, time, size, device of the file, device that it is, name, checksum.
        let time = u32::try_from(time).unwrap_or(0);
        let length = name.len() as u32 + 1;
        let fields = [self.inode, mode, 0, 0, 1, time, size, 0, 0, device.0, device.1, length, 0];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08X}");
        }
        header += name;
        header.push('\0');
        self.write(header.as_bytes())?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Pads to a multiple of four bytes, at which headers and contents begin.
    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.write(&[0; 3][..missing as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_contents_are_aligned() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.add(Path::new("/a"), &Entry::Bytes(0o644, b"hello".to_vec())).expect("memory");
        archive.add(Path::new("/l"), &Entry::Link("a".into())).expect("memory");
        archive.finish().expect("memory");
        let magic = |at: usize| &bytes[at..at + 6] == b"070701";
        // 110 bytes of header and two of name, then five of contents, each padded.
        assert!(magic(0) && magic(112 + 8) && magic(112 + 8 + 112 + 4), "{}", String::from_utf8_lossy(&bytes));
        assert_eq!(&bytes[14..22], b"000081A4");
        assert_eq!(&bytes[54..62], b"00000005");
        assert!(bytes.len() % 4 == 0);
    }
}
