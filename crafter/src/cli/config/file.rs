//! The file with the user's defaults: where it is, and whether it may be used.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crafter::{Error, Result};
use nix::unistd::{User, geteuid};

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

/// The text of the file; `None` if there is no file of this user. With `setpriv` or `sudo`, the variables of the
/// environment may name the directory of another user, whose file must not have an effect.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Invalid`] if every user could have written it, or if it is too long.
pub fn read(path: &Path) -> Result<Option<String>> {
    let failed = |source| Error::Io { action: format!("read {}", path.display()), source };
    let is_missing = |error: &io::Error| {
        // Without permission to look the file up, it is in a directory of another user.
        use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.uid() != geteuid().as_raw() => return Ok(None),
        Ok(metadata) if !metadata.is_file() => {
            return Err(Error::invalid(path.display().to_string(), "it is not a regular file; remove it"));
        }
        Ok(_) => {}
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let file = File::open(path).map_err(failed)?;
    // Of the open file: the path may have another by now.
    let metadata = file.metadata().map_err(failed)?;
    if metadata.uid() != geteuid().as_raw() {
        return Ok(None);
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
