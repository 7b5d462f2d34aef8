//! The history file.

use std::{
    env,
    ffi::OsString,
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

/// Path of the history file, which is created with access for this user only. `None` without a home directory.
///
/// # Errors
/// Those of creating it.
pub fn history() -> io::Result<Option<PathBuf>> {
    let Some(directory) = directory(env::var_os("XDG_STATE_HOME"), env::var_os("HOME")) else { return Ok(None) };
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let file = directory.join("history");
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&file)?;
    Ok(Some(file))
}

/// The state directory. Relative paths are ignored, as the XDG Base Directory Specification requires.
fn directory(state: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: Option<OsString>| path.map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute(state).or_else(|| absolute(home).map(|home| home.join(".local/state")));
    state.map(|state| state.join("crafter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_are_ignored() {
        let directory = |state: &str, home: &str| directory(Some(state.into()), Some(home.into()));
        assert_eq!(directory("/state", "/u"), Some("/state/crafter".into()));
        assert_eq!(directory("", "/u"), Some("/u/.local/state/crafter".into()));
        assert_eq!(directory("relative", ""), None);
    }
}
