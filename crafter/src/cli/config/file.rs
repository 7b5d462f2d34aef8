//! The file with the user's defaults: where it is, and whether it may be used.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crafter::{Error, Result};
use nix::unistd::{Uid, User, geteuid};

/// The maximum length of the file in bytes.
const MAX_LENGTH: u64 = 1 << 20;
/// Permission bit: users other than owner and group may write.
const OTHERS_WRITE: u32 = 0o002;

/// The path of the file: below `$XDG_CONFIG_HOME`, else below `.config` in the user's home. root's home is that of the
/// user database: with sudo, `HOME` may be another user's. `None` without a home.
pub fn path() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || match geteuid() {
        root if root.is_root() => User::from_uid(root).ok().flatten().map(|user| user.dir),
        _ => variable("HOME"),
    };
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")))?;
    Some(config.join("crafter/config.toml"))
}

/// The text of the file; `None` if there is no file, or if root would read another user's.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Invalid`] if another user could have written it, or if it is too long.
pub fn read(path: &Path) -> Result<Option<String>> {
    let failed = |source| Error::Io { action: format!("read {}", path.display()), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(Error::invalid(path.display().to_string(), "it is not a regular file; remove it"));
    }
    let (owner, user) = (Uid::from_raw(metadata.uid()), geteuid());
    if owner != user && !owner.is_root() {
        if user.is_root() {
            log::info!("{} belongs to uid {owner}, not to root; it is not read", path.display());
            return Ok(None);
        }
        let reason = format_args!("it belongs to uid {owner}; make it yours with `chown`, or remove it");
        return Err(Error::invalid(path.display().to_string(), reason));
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        let reason = "every user may write it; run `chmod o-w` on it";
        return Err(Error::invalid(path.display().to_string(), reason));
    }
    let mut text = String::new();
    file.take(MAX_LENGTH + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_LENGTH {
        let reason = format_args!("it is longer than {MAX_LENGTH} bytes; shorten it");
        return Err(Error::invalid(path.display().to_string(), reason));
    }
    Ok(Some(text))
}
