//! Fedora's packages, installed by dnf. Written from documentation; not tested on Fedora.

use std::process::Command;

use anyhow::Result;

use super::refusal::Refusal;
use crate::sh;

/// Installs packages without their weak dependencies; returns those that dnf refuses.
pub fn install(packages: &[&str]) -> Result<Vec<Refusal>> {
    if attempt(packages)?.is_ok() {
        return Ok(Vec::new());
    }
    let mut refused = Vec::new();
    for package in packages {
        if let Err(why) = attempt(&[package])? {
            let help = format!("see `dnf install {package}`");
            refused.push(Refusal { package: (*package).to_owned(), why: format!("dnf says: {why}"), help });
        }
    }
    Ok(refused)
}

fn attempt(packages: &[&str]) -> Result<Result<(), String>> {
    sh::note(&format!("installing {}", packages.join(" ")));
    let mut dnf: Command = sh::root("dnf", [("LC_ALL", "C")])?;
    dnf.args(["install", "--assumeyes", "--quiet", "--setopt=install_weak_deps=False"]).args(packages);
    let output = dnf.output()?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason");
    Ok(Err(line.trim().to_owned()))
}
