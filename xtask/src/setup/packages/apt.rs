//! Debian's packages, installed by apt-get. A simulation finds the packages that conflict, which takes half a second,
//! so that the others can be installed.

use std::env;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use super::refusal::Refusal;
use crate::sh;

/// Installs the packages given as arguments without starting services: a temporary `policy-rc.d`, Debian's mechanism
/// for that, forbids it. An existing `policy-rc.d` is kept, except one left by an interrupted set-up. A newly installed
/// nginx is disabled, so that it does not start at the next boot either.
const INSTALL: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
mark='# by cargo xtask setup, while it installs packages'
if [ ! -e "$policy" ] || grep -qxF "$mark" "$policy"; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT PIPE TERM
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
fi
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
had_nginx=no
if installed nginx; then had_nginx=yes; fi
apt-get -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 -qq install --yes \
    --no-install-recommends --no-remove "$@" >&2
if [ "$had_nginx" = no ] && installed nginx; then
    deb-systemd-helper disable nginx.service >/dev/null 2>&1 || true
    update-rc.d nginx disable >/dev/null 2>&1 || true
fi
"#;

/// Configures unpacked packages and installs their dependencies. While another package manager runs, dpkg's state looks
/// interrupted: the script waits until dpkg's lock is free, as apt-get does with `DPkg::Lock::Timeout`.
const REPAIR: &str = r#"
tries=0
while said=$(dpkg --configure -a 2>&1); status=$?
    case $said in *"locked by another process"*) [ "$tries" -lt "${1-120}" ] ;; *) false ;; esac
do
    tries=$((tries + 1))
    sleep 1
done
printf '%s\n' "$said" >&2
case $said in *"locked by another process"*) exit "$status" ;; esac
apt-get -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 -qq --fix-broken --yes --no-remove install >&2
"#;

/// The variables that tell apt which proxy to use; sudo drops them.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy"];

/// The environment of apt-get as root.
fn variables() -> Vec<(&'static str, &'static str)> {
    static SET: OnceLock<Vec<(&str, String)>> = OnceLock::new();
    let proxies =
        SET.get_or_init(|| PROXIES.into_iter().filter_map(|name| Some((name, env::var(name).ok()?))).collect());
    let mut variables = vec![("DEBIAN_FRONTEND", "noninteractive"), ("LC_ALL", "C")];
    variables.extend(proxies.iter().map(|(name, value)| (*name, value.as_str())));
    variables
}

/// Whether apt knows a version of this package, installed or not.
pub fn exists(package: &str) -> Result<bool> {
    update()?;
    let policy = sh::output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(candidate.is_some_and(|version| version != "(none)"))
}

/// Installs packages with their dependencies and removes none; returns those that apt refuses.
pub fn install(packages: &[&str]) -> Result<Vec<Refusal>> {
    update()?;
    repair()?;
    let (accepted, refused) = divide(packages, &mut |packages| simulate(packages, &[]));
    if accepted.is_empty() {
        return Ok(refused);
    }
    sh::note(&format!("installing {}", accepted.join(" ")));
    let mut shell = sh::root("sh", variables())?;
    let output = shell.args(["-c", INSTALL, "sh"]).args(&accepted).output()?;
    if !output.status.success() {
        bail!("installing {} by apt-get: {}", accepted.join(", "), failure(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(refused)
}

/// Completes an interrupted installation; until then apt refuses every package.
fn repair() -> Result<()> {
    let is_whole = |program: &str, arg: &str| {
        let output = Command::new(program).arg(arg).env("LC_ALL", "C").output();
        output.is_ok_and(|output| output.status.success() && (program != "dpkg" || output.stdout.is_empty()))
    };
    if is_whole("dpkg", "--audit") && is_whole("apt-get", "check") {
        return Ok(());
    }
    sh::note("finishing an interrupted installation of packages");
    let mut shell = sh::root("sh", variables())?;
    let output = shell.args(["-c", REPAIR]).output()?;
    if !output.status.success() {
        bail!("dpkg was interrupted: {}", failure(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(())
}

/// Divides packages into those that apt installs together and those that it refuses.
fn divide<'p>(
    packages: &[&'p str],
    simulate: &mut dyn FnMut(&[&str]) -> Result<(), Refusal>,
) -> (Vec<&'p str>, Vec<Refusal>) {
    if packages.is_empty() || simulate(packages).is_ok() {
        return (packages.to_vec(), Vec::new());
    }
    let (mut accepted, mut refused): (Vec<&str>, _) = (Vec::new(), Vec::new());
    for &package in packages {
        // Together with those accepted so far: two packages may conflict with each other.
        let together = [accepted.as_slice(), &[package]].concat();
        match simulate(&together) {
            Ok(()) => accepted = together,
            Err(refusal) => refused.push(Refusal { package: package.to_owned(), ..refusal }),
        }
    }
    (accepted, refused)
}

/// Simulates the installation of these packages with these options of apt.
fn simulate(packages: &[&str], options: &[String]) -> Result<(), Refusal> {
    let apt = |remove: bool| -> Option<Output> {
        let mut apt = Command::new("apt-get");
        apt.args(["-q", "--simulate", "install", "--no-install-recommends"]).env("LC_ALL", "C");
        for option in options {
            apt.args(["-o", option]);
        }
        if !remove {
            apt.arg("--no-remove");
        }
        apt.args(packages).output().ok()
    };
    let refusal = |why: String, help: String| Refusal { package: packages.join(" "), why, help };
    let Some(output) = apt(false) else {
        return Err(refusal("apt-get does not start".into(), "repair apt".into()));
    };
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    // If apt would have to remove packages, find out which.
    let removed = apt(true).filter(|output| output.status.success()).map(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = text.lines().filter_map(|line| line.strip_prefix("Remv ")?.split(' ').next().map(str::to_owned));
        names.collect::<Vec<String>>().join(" ")
    });
    let (why, help) = explain(&errors, removed.as_deref(), packages.last().copied().unwrap_or_default());
    Err(refusal(why, help))
}

/// Why apt refuses a package, and what to do about it.
fn explain(errors: &str, removed: Option<&str>, package: &str) -> (String, String) {
    if let Some(removed) = removed.filter(|removed| !removed.is_empty()) {
        return (
            format!("apt would have to remove {removed}, and set-up removes nothing"),
            format!("if you do not need {removed}: `apt-get install {package}`"),
        );
    }
    let line = |part: &str| errors.lines().map(str::trim).find(|line| line.contains(part));
    if line("Unable to locate package").or(line("has no installation candidate")).is_some() {
        return (
            "no suite in apt's sources has this package".into(),
            "add the suite or component that has it (Debian: main, security; Ubuntu: universe) to apt's sources".into(),
        );
    }
    let why = line("Depends:")
        .or(line("Conflicts:"))
        .or(line("Breaks:"))
        .or(line("Held packages"))
        .or(line("E:"))
        .unwrap_or("no reason");
    (
        format!("apt says: {}", why.trim_start_matches("E: ")),
        format!("see `apt-get install {package}`, and `apt-mark showhold` for held packages"),
    )
}

/// Parts of apt's messages about files and certificates that are not valid yet or have expired.
const CLOCK: [&str; 4] = ["is not valid yet", "is expired (", "not yet valid certificate", "expired certificate"];

/// Why an installation failed, and what to do.
fn failure(stderr: &str) -> String {
    let said = |part: &str| stderr.contains(part);
    let error = stderr.lines().find(|line| line.starts_with("E:"));
    let error = error.or_else(|| stderr.lines().find_map(|line| line.strip_prefix("dpkg: error: ")));
    let error = error.unwrap_or("apt-get gave no reason");
    let help = if said("No space left") || said("don't have enough free space") {
        "the disk is full: free some space, then try again"
    } else if CLOCK.into_iter().any(said) {
        "this host's clock seems wrong, since the archive's files or certificate are outside their validity period: set \
         the clock, then try again"
    } else if said("Certificate") || said("certificate") {
        "the archive's certificate is not trusted here: if a proxy has replaced it, add the proxy's to \
         /usr/local/share/ca-certificates and run update-ca-certificates"
    } else if said("Could not resolve") || said("Failed to fetch") || said("Could not connect") {
        "the archive cannot be reached: check that `apt-get update` works, then try again"
    } else if said("Could not get lock") || said("lock-frontend") || said("locked by another process") {
        "another program holds dpkg's lock: wait until it ends, then try again"
    } else {
        "see `apt-get -f install`, then try again"
    };
    format!("{}; {help}", error.trim_start_matches("E: "))
}

/// Updates the package lists, once per run.
pub fn update() -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    sh::note("updating the package lists");
    let mut update = sh::root("apt-get", variables())?;
    update.args(["-o", "DPkg::Lock::Timeout=120", "-qq", "update"]);
    let output = update.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || stderr.lines().any(|line| line.starts_with("E:")) {
        // The packages may be available from other sources.
        sh::note(&format!("continuing with the existing package lists: {}", failure(&stderr)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates an apt in which `qemu` conflicts with an installed package, `absent` is in no suite, and `a` conflicts
    /// with `b`.
    fn stand_in(packages: &[&str]) -> Result<(), Refusal> {
        let refused = packages.iter().find(|name| ["qemu", "absent"].contains(name)).copied();
        let both = packages.contains(&"a") && packages.contains(&"b");
        match refused.or(both.then_some("b")) {
            None => Ok(()),
            Some(name) => Err(Refusal { package: packages.join(" "), why: name.into(), help: String::new() }),
        }
    }

    fn divided(packages: &[&'static str]) -> (Vec<&'static str>, Vec<String>) {
        let (accepted, refused) = divide(packages, &mut stand_in);
        (accepted, refused.into_iter().map(|refusal| refusal.package).collect())
    }

    #[test]
    fn a_refused_package_does_not_stop_the_others() {
        assert_eq!(divided(&["curl", "nginx"]), (vec!["curl", "nginx"], vec![]));
        assert_eq!(divided(&["curl", "qemu", "nginx", "absent"]).0, ["curl", "nginx"]);
        assert_eq!(divided(&["curl", "qemu", "nginx", "absent"]).1, ["qemu", "absent"]);
        assert_eq!(divided(&["a", "b", "curl"]), (vec!["a", "curl"], vec!["b".into()]));
        assert_eq!(divided(&["qemu"]), (vec![], vec!["qemu".into()]));
    }

    /// The real apt with a private archive and status file: `emulator` conflicts with the installed `utils`, `old`
    /// depends on an older `utils`, and `absent` is in no suite.
    #[test]
    fn real_apt_accepts_installable_packages_and_refuses_others() {
        const ARCHIVE: &str = "Package: emulator\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\n\
            Conflicts: utils (>= 2)\nFilename: ./emulator.deb\nSize: 1\nDescription: x\n\nPackage: curl-like\n\
            Version: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nFilename: ./curl.deb\nSize: 1\n\
            Description: x\n\nPackage: old\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\n\
            Depends: utils (<< 2)\nFilename: ./old.deb\nSize: 1\nDescription: x\n\n";
        const STATUS: &str = "Package: utils\nStatus: install ok installed\nVersion: 2\nArchitecture: all\n\
            Maintainer: x <x@example.org>\nDescription: x\n\n";
        if sh::find("apt-get").is_none() {
            println!("not run: apt is not installed");
            return;
        }
        let directory = std::env::temp_dir().join(format!("xtask-apt-{}", std::process::id()));
        for folder in ["lists/partial", "archives/partial", "none"] {
            std::fs::create_dir_all(directory.join(folder)).unwrap();
        }
        let at = |name: &str| directory.join(name).display().to_string();
        std::fs::write(at("Packages"), ARCHIVE).unwrap();
        std::fs::write(at("status"), STATUS).unwrap();
        std::fs::write(at("sources.list"), format!("deb [trusted=yes] file:{} ./\n", directory.display())).unwrap();
        let options = [
            format!("Dir::State::status={}", at("status")),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", directory.display()),
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            format!("Dir::Etc::sourceparts={}", at("none")),
            format!("Dir::Etc::preferencesparts={}", at("none")),
            "APT::Sandbox::User=root".to_owned(),
        ];
        let mut update = Command::new("apt-get");
        update.args(options.iter().flat_map(|option| ["-o", option]));
        sh::output(update.args(["-qq", "update"])).unwrap();
        let packages = ["emulator", "curl-like", "old", "absent"];
        let (accepted, refused) = divide(&packages, &mut |packages| simulate(packages, &options));
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(accepted, ["curl-like"]);
        let why = |name: &str| &refused.iter().find(|refusal| refusal.package == name).unwrap().why;
        assert!(why("emulator").contains("apt would have to remove utils"), "{refused:?}");
        assert!(why("old").contains("Depends: utils (< 2)"), "{refused:?}");
        assert!(why("absent").contains("no suite"), "{refused:?}");
    }

    #[test]
    fn refusals_name_cause_and_remedy() {
        let conflict = explain("E: Packages need to be removed but remove is disabled.", Some("qemu-utils"), "qemu");
        assert!(
            conflict.0.contains("remove qemu-utils") && conflict.1.contains("apt-get install qemu"),
            "{conflict:?}"
        );
        let absent = explain("E: Unable to locate package rustc-web", None, "rustc-web");
        assert!(absent.0.contains("no suite") && absent.1.contains("sources"), "{absent:?}");
        let unmet = "The following packages have unmet dependencies:\n tshark : Depends: libpcap0.8 (>= 2) but 1 is \
                     to be installed\nE: Unable to correct problems, you have held broken packages.\n";
        let unmet = explain(unmet, None, "tshark");
        assert!(unmet.0.contains("Depends: libpcap0.8") && unmet.1.contains("showhold"), "{unmet:?}");
    }

    #[test]
    fn failures_name_remedy() {
        for (said, expected) in [
            ("E: Failed to fetch http://a/b  Could not resolve 'a'", "cannot be reached"),
            ("E: You don't have enough free space in /var/cache/apt/archives/.", "the disk is full"),
            ("E: Failed to fetch https://a  Certificate verification failed", "not trusted"),
            ("E: Could not get lock /var/lib/dpkg/lock-frontend.", "another program holds"),
            ("dpkg: error: dpkg frontend lock was locked by another process with pid 7", "another program holds"),
            ("E: Release file for http://a is not valid yet (invalid for another 3h)", "set the clock"),
            ("E: Failed to fetch https://a  The certificate chain uses not yet valid certificate.", "set the clock"),
            ("E: Release file for http://a is expired (invalid since 3d 1h)", "set the clock"),
            ("E: Sub-process /usr/bin/dpkg returned an error code (1)", "apt-get -f install"),
        ] {
            assert!(failure(said).contains(expected), "{said}: {}", failure(said));
        }
    }
}
