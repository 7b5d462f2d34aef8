//! Debian's packages, by apt-get.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::sh;

/// Installs the packages given as arguments, starting no service: `policy-rc.d`
/// is Debian's switch for that, here for as long as the installation takes. One
/// that the host has already is left alone, one of an interrupted set-up is
/// taken over. What was installed stays disabled over the next boot too, unless
/// the host had it before.
const INSTALL: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
mark='# by cargo xtask setup, for as long as it installs'
if [ ! -e "$policy" ] || grep -qxF "$mark" "$policy"; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT PIPE TERM
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
fi
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
had_nginx=no
if installed nginx; then had_nginx=yes; fi
# What an interrupted installation left; if another one is at it, apt-get waits.
dpkg --configure -a >&2 || true
apt-get -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 -qq install --yes \
    --no-install-recommends --no-remove "$@" >&2
if [ "$had_nginx" = no ] && installed nginx; then
    deb-systemd-helper disable nginx.service >/dev/null 2>&1 || true
    update-rc.d nginx disable >/dev/null 2>&1 || true
fi
"#;

/// Whether this host has apt.
pub fn available() -> bool {
    sh::find("apt-get").is_some() && sh::find("dpkg-query").is_some()
}

/// Whether apt could install a package, or has.
pub fn exists(package: &str) -> Result<bool> {
    update()?;
    let policy = sh::output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(candidate.is_some_and(|version| version != "(none)"))
}

/// Installs packages, with what they depend on and nothing else, removing none.
pub fn install(packages: &[&str]) -> Result<()> {
    update()?;
    println!("    installing {}", packages.join(" "));
    let mut shell = sh::root("sh", VARIABLES)?;
    shell.args(["-c", INSTALL, "sh"]).args(packages);
    sh::run_quietly(&mut shell).with_context(|| format!("installing {} by apt-get", packages.join(", ")))
}

const VARIABLES: [(&str, &str); 2] = [("DEBIAN_FRONTEND", "noninteractive"), ("LC_ALL", "C")];

/// Brings the lists up to date, once per run.
pub fn update() -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    println!("    bringing the package lists up to date");
    let mut update = sh::root("apt-get", VARIABLES)?;
    update.args(["-o", "DPkg::Lock::Timeout=120", "-qq", "update"]);
    if let Err(error) = sh::run_quietly(&mut update) {
        // One source out of reach is no reason to stop: the packages may come
        // from the others.
        println!("    going on with the lists as they are: {error:#}");
    }
    Ok(())
}
