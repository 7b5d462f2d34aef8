//! Where the history is kept.

use std::{
    env,
    ffi::OsString,
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

/// The history's file, made if it is not there, for this user alone; `None` without a home.
///
/// # Errors
/// What the system says of making it.
pub fn history() -> io::Result<Option<PathBuf>> {
    let Some(directory) = directory(env::var_os("XDG_STATE_HOME"), env::var_os("HOME")) else { return Ok(None) };
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let file = directory.join("history");
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&file)?;
    Ok(Some(file))
}

/// XDG Base Directory Specification: what is not absolute does not count.
fn directory(state: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: Option<OsString>| path.map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute(state).or_else(|| absolute(home).map(|home| home.join(".local/state")));
    state.map(|state| state.join("crafter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_is() {
        let directory = |state: &str, home: &str| directory(Some(state.into()), Some(home.into()));
        assert_eq!(directory("/state", "/u"), Some("/state/crafter".into()));
        assert_eq!(directory("", "/u"), Some("/u/.local/state/crafter".into()));
        assert_eq!(directory("relative", ""), None);
    }
}
