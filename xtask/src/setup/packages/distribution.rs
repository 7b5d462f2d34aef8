//! The host's package manager, from os-release(5): an installed command is not enough, since Fedora packages apt and
//! Debian packages dnf.

/// The package manager of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Debian, Ubuntu and their derivatives.
    Apt,
    /// Fedora and its derivatives.
    Dnf,
}

/// Distributions and their package managers; `None`: a package manager that set-up does not support.
const KNOWN: [(&str, Option<Manager>); 17] = [
    ("debian", Some(Manager::Apt)),
    ("ubuntu", Some(Manager::Apt)),
    ("fedora", Some(Manager::Dnf)),
    ("rhel", Some(Manager::Dnf)),
    ("centos", Some(Manager::Dnf)),
    ("alpine", None),
    // Its apt handles packages in RPM format.
    ("altlinux", None),
    ("arch", None),
    ("gentoo", None),
    ("guix", None),
    ("nixos", None),
    ("opensuse", None),
    ("openwrt", None),
    ("slackware", None),
    ("sles", None),
    ("suse", None),
    ("void", None),
];

/// The programs of a package manager that set-up calls.
fn programs(manager: Manager) -> &'static [&'static str] {
    match manager {
        Manager::Apt => &["apt-get", "apt-cache", "dpkg-query"],
        Manager::Dnf => &["dnf"],
    }
}

/// The package manager of a host: that of its distribution (`ID`), or of the first known distribution in `ID_LIKE`. If
/// os-release names no known distribution, the installed commands decide. `has` returns whether a command is installed.
pub fn manager(os_release: &str, has: &dyn Fn(&str) -> bool) -> Option<Manager> {
    let is_there = |manager: &Manager| programs(*manager).iter().all(|program| has(program));
    let names = [value(os_release, "ID"), value(os_release, "ID_LIKE")].map(Option::unwrap_or_default).join(" ");
    let known =
        names.split_whitespace().find_map(|name| KNOWN.iter().find(|(known, _)| *known == name).map(|found| found.1));
    match known {
        // `None` if the command is missing, as dnf is on an image-based Fedora.
        Some(manager) => manager.filter(is_there),
        None => [Manager::Apt, Manager::Dnf].into_iter().find(is_there),
    }
}

/// The value of a variable; the last assignment applies, as in a shell.
fn value(os_release: &str, name: &str) -> Option<String> {
    let mut assignments = os_release.lines().filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
    let value = assignments.next_back()?.trim();
    let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    Some(quoted.unwrap_or(value).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN_12: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\n\
        VERSION_ID=\"12\"\nVERSION=\"12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n\
        HOME_URL=\"https://www.debian.org/\"\n";
    const DEBIAN_13: &str = "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nNAME=\"Debian GNU/Linux\"\n\
        VERSION_ID=\"13\"\nVERSION_CODENAME=trixie\nDEBIAN_VERSION_FULL=13.1\nID=debian\n";
    const UBUNTU: &str = "PRETTY_NAME=\"Ubuntu 24.04.1 LTS\"\nNAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\n\
        VERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME=noble\n";
    const MINT: &str = "NAME=\"Linux Mint\"\nVERSION=\"22 (Wilma)\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n";
    const RASPBIAN: &str = "PRETTY_NAME=\"Raspbian GNU/Linux 12 (bookworm)\"\nID=raspbian\nID_LIKE=debian\n";
    const FEDORA: &str = "NAME=\"Fedora Linux\"\nVERSION=\"41 (Workstation Edition)\"\nID=fedora\nVERSION_ID=41\n";
    const ALMA: &str = "NAME=\"AlmaLinux\"\nVERSION=\"9.4\"\nID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"\n";
    const RHEL: &str = "NAME=\"Red Hat Enterprise Linux\"\nID=\"rhel\"\nID_LIKE=\"fedora\"\n";
    const ARCH: &str = "NAME=\"Arch Linux\"\nPRETTY_NAME=\"Arch Linux\"\nID=arch\nBUILD_ID=rolling\n";
    const MANJARO: &str = "NAME='Manjaro Linux'\nID='manjaro'\nID_LIKE='arch'\n";
    const TUMBLEWEED: &str = "NAME=\"openSUSE Tumbleweed\"\nID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n";
    const UNKNOWN: &str = "# ID=debian\nNAME=Home-made\nID=home-made\nOS_ID=debian\n";

    fn has_apt(program: &str) -> bool {
        ["apt-get", "apt-cache", "dpkg-query"].contains(&program)
    }

    fn has_dnf(program: &str) -> bool {
        program == "dnf"
    }

    #[test]
    fn the_distribution_decides_before_the_commands() {
        for (sample, expected) in [
            (DEBIAN_12, Some(Manager::Apt)),
            (DEBIAN_13, Some(Manager::Apt)),
            (UBUNTU, Some(Manager::Apt)),
            (MINT, Some(Manager::Apt)),
            (RASPBIAN, Some(Manager::Apt)),
            (FEDORA, Some(Manager::Dnf)),
            (ALMA, Some(Manager::Dnf)),
            (RHEL, Some(Manager::Dnf)),
            (ARCH, None),
            (MANJARO, None),
            (TUMBLEWEED, None),
        ] {
            assert_eq!(manager(sample, &|_| true), expected, "{sample}");
            assert_eq!(manager(sample, &|_| false), None, "{sample}");
        }
        // The command of another distribution is not used instead.
        assert_eq!(manager(FEDORA, &has_apt), None);
        assert_eq!(manager(DEBIAN_13, &has_dnf), None);
    }

    #[test]
    fn the_commands_decide_where_the_distribution_is_unknown() {
        for sample in ["", UNKNOWN, "ID=\nID_LIKE=\"\"\n", "no assignment"] {
            assert_eq!(manager(sample, &has_apt), Some(Manager::Apt), "{sample}");
            assert_eq!(manager(sample, &has_dnf), Some(Manager::Dnf), "{sample}");
            // apt-get alone may be the one for packages in RPM format.
            assert_eq!(manager(sample, &|program| program == "apt-get"), None, "{sample}");
        }
    }

    #[test]
    fn values_as_a_shell_reads_them() {
        assert_eq!(value("ID=a\nID=\"b c\"\n", "ID").as_deref(), Some("b c"));
        assert_eq!(value("ID='Q'", "ID").as_deref(), Some("q"));
        assert_eq!(value("ID_LIKE=x\n", "ID"), None);
    }
}
