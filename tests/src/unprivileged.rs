//! Commands that run as an unprivileged user with one supplementary group.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use crafter::lab::NetNs;

use crate::service::NOBODY;

/// A group id without a name: the group that may use the service.
pub const GROUP: u32 = 61_234;

/// A command in `namespace` that runs as `nobody`, with [`GROUP`] as its only supplementary group and no capability.
pub fn as_nobody(namespace: &NetNs, program: impl AsRef<OsStr>) -> Command {
    let mut command = namespace.command("setpriv");
    let (user, group) = (NOBODY.user.to_string(), GROUP.to_string());
    command.args(["--reuid", &user, "--regid", &user, "--groups", &group, "--inh-caps=-all", "--"]).arg(program);
    command.env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}
