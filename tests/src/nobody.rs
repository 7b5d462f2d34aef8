//! Programs that are run as a user who is not root and has one more group.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use crafter::lab::NetNs;

use crate::service::NOBODY;

/// A group that has no name here: the one that may use the service.
pub const GROUP: u32 = 61_234;

/// A program in `namespace`, run as `nobody` with [`GROUP`] as its only other group, and with no capability.
pub fn as_nobody(namespace: &NetNs, program: impl AsRef<OsStr>) -> Command {
    let mut command = namespace.command("setpriv");
    let (user, group) = (NOBODY.user.to_string(), GROUP.to_string());
    command.args(["--reuid", &user, "--regid", &user, "--groups", &group, "--inh-caps=-all", "--"]).arg(program);
    command.env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}
