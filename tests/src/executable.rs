//! Executable files made by tests: programs that every user may run, and scripts.
//!
//! The kernel refuses to execute a file that any process has open for writing (`ETXTBSY`, `deny_write_access` in
//! fs/namei.c and fs/exec.c). A test that writes such a file itself cannot prevent that: if another thread forks at
//! that moment, the child holds a copy of the descriptor until its own `execve`, even of a descriptor with
//! `FD_CLOEXEC`. So this process never opens such a file for writing; a single-threaded child process does, and exits.
//!
//! The tests of `cargo xtask` include this file, so it uses only the standard library.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
};

/// Writes standard input to a new file. `set -C` refuses an existing file, which may be a hard link to a program.
const WRITE: &str = r#"set -C && umask 022 && cat >"$1" && chmod 755 "$1""#;

/// Makes `program` available at `at`, executable for every user who may enter the directory: as a hard link, or as a
/// copy if the file system has no hard links.
///
/// # Errors
/// If `at` exists or cannot be written.
pub fn place(program: &Path, at: &Path) -> io::Result<()> {
    if fs::hard_link(program, at).is_ok() {
        return Ok(());
    }
    copy(program, at)
}

/// Copies `program` to `at`, for tests that modify it: a hard link would share owner, mode and capabilities with the
/// program itself.
///
/// # Errors
/// If `at` exists or cannot be written.
pub fn copy(program: &Path, at: &Path) -> io::Result<()> {
    finish(writer(at, File::open(program)?.into())?, at)
}

/// Writes `text` as a script to `at`, executable for every user who may enter the directory.
///
/// # Errors
/// If `at` exists or cannot be written.
pub fn script(text: &str, at: &Path) -> io::Result<()> {
    let mut writer = writer(at, Stdio::piped())?;
    let written = writer.stdin.take().expect("a pipe").write_all(text.as_bytes());
    // The writer's own error explains a broken pipe.
    finish(writer, at).and(written)
}

fn writer(at: &Path, input: Stdio) -> io::Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", WRITE, "sh"]).arg(at).stdin(input).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn()
}

fn finish(writer: Child, at: &Path) -> io::Result<()> {
    let output = writer.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("cannot write {}: {}", at.display(), message.trim())))
}
