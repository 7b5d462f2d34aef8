//! Files that a test makes and then executes: programs where every user may run them, and scripts.
//!
//! The kernel refuses to execute a file that is open for writing anywhere (`ETXTBSY`, `deny_write_access` in
//! fs/namei.c and fs/exec.c). A test that writes such a file itself cannot prevent that: if another thread starts a
//! process at that moment, the child has a copy of the descriptor until its own `execve`, also of a descriptor with
//! `FD_CLOEXEC`. So this process never opens such a file for writing; a process with one thread does, and ends.
//!
//! `cargo xtask`'s own tests include this file: it needs nothing but the standard library.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
};

/// Writes its input to a file that does not exist yet (`set -C`): what exists may be a hard link to a program.
const WRITE: &str = r#"set -C && umask 022 && cat >"$1" && chmod 755 "$1""#;

/// Makes `program` available as `at`, which every user may execute if the directory lets them: a hard link, or a copy
/// where the file system has none.
///
/// # Errors
/// If `at` exists, or cannot be written.
pub fn place(program: &Path, at: &Path) -> io::Result<()> {
    if fs::hard_link(program, at).is_ok() {
        return Ok(());
    }
    copy(program, at)
}

/// Makes a copy of `program` at `at`, for tests that change it: a hard link has the owner, the mode and the capabilities
/// of the program itself.
///
/// # Errors
/// If `at` exists, or cannot be written.
pub fn copy(program: &Path, at: &Path) -> io::Result<()> {
    ended(writer(at, File::open(program)?.into())?, at)
}

/// Makes `at` a script with `text`, which every user may execute if the directory lets them.
///
/// # Errors
/// If `at` exists, or cannot be written.
pub fn script(text: &str, at: &Path) -> io::Result<()> {
    let mut writer = writer(at, Stdio::piped())?;
    let written = writer.stdin.take().expect("a pipe").write_all(text.as_bytes());
    // What the writer says explains a broken pipe.
    ended(writer, at).and(written)
}

fn writer(at: &Path, input: Stdio) -> io::Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", WRITE, "sh"]).arg(at).stdin(input).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn()
}

fn ended(writer: Child, at: &Path) -> io::Result<()> {
    let output = writer.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("cannot write {}: {}", at.display(), said.trim())))
}
