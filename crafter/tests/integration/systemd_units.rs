//! The systemd units, checked by systemd's tools. Needs no running systemd.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/systemd")
}

fn run(command: &mut Command) -> (String, String) {
    let Output { status, stdout, stderr } = command.env("LC_ALL", "C").output().expect("package systemd is installed");
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{command:?}: {stdout}{stderr}");
    (stdout, stderr)
}

/// The values of a setting in a unit, over all of its lines.
fn setting(unit: &str, name: &str) -> String {
    let text = fs::read_to_string(units().join(unit)).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn security_exposure_is_at_most_two() {
    let (table, _) = run(Command::new("systemd-analyze")
        .args(["--no-pager", "security", "--offline=true"])
        .arg(units().join("crafter.service")));
    let level =
        table.split("Overall exposure level for crafter.service: ").nth(1).and_then(|end| end.split(' ').next());
    let level: f64 = level.unwrap_or_else(|| panic!("{table}")).parse().unwrap();
    assert!(level <= 2.0, "{level}: {table}");
}

#[test]
fn systemd_accepts_every_setting() {
    let directory = tempfile::tempdir().unwrap();
    let verify = |change: fn(String) -> String| {
        let mut paths = Vec::new();
        for unit in ["crafter.service", "crafter.socket"] {
            let text = fs::read_to_string(units().join(unit)).unwrap();
            // The only path that does not exist before an installation.
            let text = change(text.replace("/usr/bin/crafter", env!("CARGO_BIN_EXE_crafter")));
            let path = directory.path().join(unit);
            fs::write(&path, text).unwrap();
            paths.push(path);
        }
        run(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(paths)).1
    };
    assert_eq!(verify(|text| text), "");
    // Positive control: systemd reports a wrong setting.
    let said = verify(|text| text.replace("AF_ALG", "AF_NEVER"));
    assert!(said.contains("AF_NEVER"), "{said}");
    let said = verify(|text| text.replace("WatchdogSec", "WatchdogSecs"));
    assert!(said.contains("Unknown key 'WatchdogSecs'"), "{said}");
}

#[test]
fn all_but_six_address_families_are_refused() {
    // The numbers begin at 1 and are consecutive.
    let families = "UNIX INET AX25 IPX APPLETALK NETROM BRIDGE ATMPVC X25 INET6 ROSE DECnet NETBEUI SECURITY KEY NETLINK \
                    PACKET ASH ECONET ATMSVC RDS SNA IRDA PPPOX WANPIPE LLC IB MPLS CAN TIPC BLUETOOTH IUCV RXRPC ISDN \
                    PHONET IEEE802154 CAIF ALG NFC VSOCK KCM QIPCRTR SMC XDP MCTP";
    let numbers: BTreeMap<String, usize> =
        families.split(' ').enumerate().map(|(at, name)| (format!("AF_{name}"), at + 1)).collect();
    for (name, number) in [("AF_INET6", 10), ("AF_PACKET", 17), ("AF_BLUETOOTH", 31), ("AF_XDP", 44), ("AF_MCTP", 45)] {
        assert_eq!(numbers[name], number, "{name} of bits/socket.h: one is missing before it");
    }
    let needed = ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_XDP"];
    let expected: BTreeSet<&str> = numbers.keys().map(String::as_str).filter(|name| !needed.contains(name)).collect();
    let text = setting("crafter.service", "RestrictAddressFamilies");
    let refused: Vec<&str> = text.split_whitespace().map(|name| name.trim_start_matches('~')).collect();
    assert_eq!(refused.iter().copied().collect::<BTreeSet<_>>(), expected);
    assert_eq!(refused.len(), expected.len(), "one of them twice");
}

#[test]
fn service_and_socket_units_match() {
    let (_, output) = run(Command::new("systemd-sysusers").arg("--dry-run").arg(units().join("crafter.conf")));
    // systemd-sysusers prints nothing if the host already has them.
    let exists = |file: &str| fs::read_to_string(file).unwrap().lines().any(|line| line.starts_with("crafter:"));
    assert!(output.contains("Creating user 'crafter'") || exists("/etc/passwd"), "{output}");
    assert!(output.contains("Creating group 'crafter'") || exists("/etc/group"), "{output}");
    assert_eq!(setting("crafter.service", "User"), "crafter");
    assert_eq!(setting("crafter.socket", "SocketGroup"), "crafter");
    assert_eq!(setting("crafter.socket", "SocketMode"), "0660");
    assert_eq!(setting("crafter.socket", "ListenStream"), "/run/crafter/crafter.sock");
    // The unit grants exactly the capabilities that the service keeps.
    let needed = crafter::service::host::privileges::NEEDED.map(|(_, name, _)| name).join(" ");
    assert_eq!(setting("crafter.service", "AmbientCapabilities"), needed);
    assert_eq!(setting("crafter.service", "CapabilityBoundingSet"), needed);
}
