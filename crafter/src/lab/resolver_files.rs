//! `/etc/resolv.conf` and `/etc/nsswitch.conf` of a command in the lab: its C library asks the lab's DNS server only.
//!
//! They are mounted over the host's files in the command's mount namespace. The sockets of systemd-resolved and nscd,
//! which resolve names of the host's network, are hidden. If the host replaces its `/etc/resolv.conf` while a lab runs,
//! the mount is removed with the old file: the command then resolves no names, because the host's servers are not
//! reachable from the lab.

use std::{
    fs::{self, FileType},
    io,
    path::{Path, PathBuf},
};

use super::{
    mounts::{Step, Steps, path},
    options::{SERVER_V4, SERVER_V6},
};

/// Directories with sockets of services outside of the lab: systemd-resolved, nscd, and the crafter service, which has
/// other interfaces.
const HIDDEN: [&str; 4] = ["/run/systemd/resolve", "/run/nscd", "/var/run/nscd", "/run/crafter"];

const ETC: &str = "/etc";
const RESOLV_CONF: &str = "resolv.conf";
const NSSWITCH_CONF: &str = "nsswitch.conf";

/// Directory in which files are created before they are mounted elsewhere; /proc is mounted over it later.
const STAGE: &str = "/proc";

/// The message if the files cannot be mounted.
const NOTICE: &str = "crafter: the lab's names do not resolve in this command: its /etc/resolv.conf cannot be \
                      replaced here (a chroot, or no mounts allowed); ask the DNS server at $CRAFTER_LAB_DNS by address\n";

/// The steps that mount the resolver's files; to be run before /proc is mounted.
pub(super) fn steps() -> Steps {
    // Without /etc the C library asks 127.0.0.1, where no server listens.
    let steps = plan(Path::new("/")).unwrap_or_else(|error| {
        log::warn!("the lab's names do not resolve in the command: read {ETC}: {error}; ask $CRAFTER_LAB_DNS");
        Vec::new()
    });
    Steps { steps, notice: NOTICE }
}

/// The steps for a host with the root directory `root`; all paths are below it, except for [`STAGE`].
fn plan(root: &Path) -> io::Result<Vec<Step>> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let mut hidden: Vec<PathBuf> =
        HIDDEN.iter().filter_map(|path| below(path).canonicalize().ok()).filter(|path| path.is_dir()).collect();
    hidden.sort();
    hidden.dedup();
    let mut steps: Vec<Step> = hidden.iter().map(|directory| Step::Tmpfs(path(directory))).collect();

    let etc = below(ETC);
    let real = |name: &str| etc.join(name).canonicalize().ok().filter(|path| path.is_file());
    let (resolv, nsswitch) = (real(RESOLV_CONF), real(NSSWITCH_CONF));
    let switch = switch(&nsswitch.as_deref().map(fs::read).transpose()?.unwrap_or_default());
    let is_hidden = |file: &PathBuf| hidden.iter().any(|directory| file.starts_with(directory));
    let mut over = Vec::new();
    match resolv {
        // systemd-resolved's file: its directory is hidden by an empty one.
        Some(file) if file.parent().is_some_and(|parent| hidden.iter().any(|directory| directory == parent)) => {
            steps.push(Step::File { path: path(file), content: resolv_conf() });
        }
        Some(file) if !is_hidden(&file) => over.push((file, RESOLV_CONF, resolv_conf())),
        // There is no file to mount over, and none may be created on the host.
        _ => {
            steps.extend(own_etc(&etc, switch)?);
            return Ok(steps);
        }
    }
    // Without nsswitch.conf, the C library reads /etc/hosts and asks DNS, like with the lab's file.
    over.extend(nsswitch.map(|file| (file, NSSWITCH_CONF, switch)));
    steps.push(Step::Tmpfs(path(STAGE)));
    for (file, name, content) in over {
        let staged = path(Path::new(STAGE).join(name));
        steps.push(Step::File { path: staged.clone(), content });
        steps.push(Step::Bind { from: staged, to: path(file) });
    }
    steps.push(Step::Detach(path(STAGE)));
    Ok(steps)
}

/// A directory with all entries of `etc`, but its own two files.
fn own_etc(etc: &Path, switch: Vec<u8>) -> io::Result<Vec<Step>> {
    let stage = Path::new(STAGE);
    let mut steps = vec![Step::Tmpfs(path(stage))];
    for entry in fs::read_dir(etc)? {
        let entry = entry?;
        let (from, to) = (entry.path(), path(stage.join(entry.file_name())));
        if [RESOLV_CONF, NSSWITCH_CONF].iter().any(|own| entry.file_name() == *own) {
            continue;
        }
        let is = |kind: fn(&FileType) -> bool| entry.file_type().is_ok_and(|found| kind(&found));
        if is(FileType::is_symlink) {
            // If it cannot be read, it was just removed.
            if let Ok(target) = fs::read_link(&from) {
                steps.push(Step::Link { path: to, target: path(target) });
            }
            continue;
        }
        steps.push(match is(FileType::is_dir) {
            true => Step::Directory(to.clone()),
            false => Step::File { path: to.clone(), content: Vec::new() },
        });
        steps.push(Step::Bind { from: path(from), to });
    }
    for (name, content) in [(RESOLV_CONF, resolv_conf()), (NSSWITCH_CONF, switch)] {
        steps.push(Step::File { path: path(stage.join(name)), content });
    }
    steps.push(Step::Move { from: path(stage), to: path(etc) });
    Ok(steps)
}

/// The lab's resolv.conf(5).
fn resolv_conf() -> Vec<u8> {
    format!("# crafter lab run: the DNS server of the lab\nnameserver {SERVER_V4}\nnameserver {SERVER_V6}\n")
        .into_bytes()
}

/// The host's nsswitch.conf(5), with host names from /etc/hosts and DNS only.
fn switch(host: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(host);
    let is_hosts = |line: &&str| line.trim_start().starts_with("hosts:");
    // nss-myhostname needs no service.
    let has_myhostname = text.lines().filter(is_hosts).any(|line| line.contains("myhostname"));
    let kept = text.lines().filter(|line| !is_hosts(line)).map(|line| format!("{line}\n"));
    let hosts = if has_myhostname { "hosts: files dns myhostname\n" } else { "hosts: files dns\n" };
    (kept.collect::<String>() + hosts).into_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn host(files: &[(&str, &str)], links: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        files.iter().for_each(|(name, text)| fs::write(place(name), text).unwrap());
        links.iter().for_each(|(name, target)| symlink(target, place(name)).unwrap());
        root
    }

    /// The steps as text, with paths relative to `root`.
    fn words(root: &tempfile::TempDir) -> Vec<String> {
        let root = root.path().canonicalize().unwrap();
        let short = |path: &std::ffi::CString| path.to_str().unwrap().replace(root.to_str().unwrap(), "");
        let mut words: Vec<String> = plan(&root)
            .unwrap()
            .iter()
            .map(|step| match step {
                Step::Tmpfs(at) => format!("tmpfs {}", short(at)),
                Step::Directory(path) => format!("mkdir {}", short(path)),
                Step::Link { path, target } => format!("ln {} {}", short(target), short(path)),
                Step::File { path, .. } => format!("file {}", short(path)),
                Step::Bind { from, to } => format!("bind {} {}", short(from), short(to)),
                Step::Move { from, to } => format!("move {} {}", short(from), short(to)),
                Step::Detach(at) => format!("detach {}", short(at)),
            })
            .collect();
        // Directory entries have no fixed order.
        if words.iter().any(|word| word.starts_with("move ")) {
            words.sort();
        }
        words
    }

    #[test]
    fn resolver_files_are_mounted_over() {
        let plain = host(&[("etc/resolv.conf", ""), ("etc/nsswitch.conf", "")], &[]);
        let expected = [
            "tmpfs /proc",
            "file /proc/resolv.conf",
            "bind /proc/resolv.conf /etc/resolv.conf",
            "file /proc/nsswitch.conf",
            "bind /proc/nsswitch.conf /etc/nsswitch.conf",
            "detach /proc",
        ];
        assert_eq!(words(&plain), expected);
        // Without nsswitch.conf, none is mounted.
        let musl = host(&[("etc/resolv.conf", "")], &[]);
        assert_eq!(words(&musl), ["tmpfs /proc", expected[1], expected[2], "detach /proc"]);
    }

    #[test]
    fn sockets_of_the_host_are_hidden() {
        let files = [("run/systemd/resolve/stub-resolv.conf", ""), ("etc/nsswitch.conf", ""), ("run/nscd/socket", "")];
        let links = [("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"), ("var/run", "../run")];
        let expected = [
            "tmpfs /run/nscd",
            "tmpfs /run/systemd/resolve",
            "file /run/systemd/resolve/stub-resolv.conf",
            "tmpfs /proc",
            "file /proc/nsswitch.conf",
            "bind /proc/nsswitch.conf /etc/nsswitch.conf",
            "detach /proc",
        ];
        assert_eq!(words(&host(&files, &links)), expected);
    }

    #[test]
    fn etc_is_mounted_over_without_resolv_conf() {
        let files = [("etc/hosts", ""), ("etc/ssl/openssl.cnf", ""), ("etc/nsswitch.conf", "")];
        for links in [&[("etc/mtab", "/proc/mounts")][..], &[("etc/mtab", "/proc/mounts"), ("etc/resolv.conf", "/no")]]
        {
            let expected = [
                "bind /etc/hosts /proc/hosts",
                "bind /etc/ssl /proc/ssl",
                "file /proc/hosts",
                "file /proc/nsswitch.conf",
                "file /proc/resolv.conf",
                "ln /proc/mounts /proc/mtab",
                "mkdir /proc/ssl",
                "move /proc /etc",
                "tmpfs /proc",
            ];
            assert_eq!(words(&host(&files, links)), expected);
        }
        assert!(plan(host(&[], &[]).path()).is_err());
    }

    #[test]
    fn hosts_are_looked_up_in_files_and_dns() {
        let switch = |text: &str| String::from_utf8(switch(text.as_bytes())).unwrap();
        let systemd =
            "passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\nnetworks: files";
        assert_eq!(switch(systemd), "passwd: files systemd\nnetworks: files\nhosts: files dns myhostname\n");
        assert_eq!(switch(" hosts:\tmdns4_minimal [NOTFOUND=return] dns\n"), "hosts: files dns\n");
        assert_eq!(switch(""), "hosts: files dns\n");
    }
}
