//! `cargo xtask install`: installs the binary, the systemd units, the service's user, the policy, man pages and
//! completions, for hosts without a package of crafter.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{build, sh};

/// The destination.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The prefix of all paths, also in the units.
    prefix: PathBuf,
    /// The root of a package's tree, prepended to all paths; empty for this host.
    destdir: PathBuf,
}

/// A file to install.
struct Item {
    from: PathBuf,
    /// Below the destination directory.
    to: PathBuf,
    mode: &'static str,
    /// Whether the administrator edits the file, so that an existing one is kept.
    is_configuration: bool,
}

const SHELLS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/crafter"),
    ("fish", "share/fish/vendor_completions.d/crafter.fish"),
    ("zsh", "share/zsh/site-functions/_crafter"),
];

/// Installs or uninstalls.
pub fn job(args: &[String]) -> Result<ExitCode> {
    let (place, uninstall) = read(args)?;
    if uninstall {
        place.uninstall()?;
        return Ok(ExitCode::SUCCESS);
    }
    build::release(&["--package", "crafter", "--bins"])?;
    place.install(&sh::release_directory().join("crafter"))?;
    if place.destdir.as_os_str().is_empty() {
        println!("The service is installed. To enable its socket, which starts it on demand:");
        println!("    systemd-sysusers && systemctl daemon-reload && systemctl enable --now crafter.socket");
        println!("    usermod --append --groups crafter USER      for each user who may use it");
    }
    Ok(ExitCode::SUCCESS)
}

fn read(args: &[String]) -> Result<(Place, bool)> {
    let mut place = Place { prefix: "/usr/local".into(), destdir: PathBuf::new() };
    let mut uninstall = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (name, value) = arg.split_once('=').map_or((arg.as_str(), None), |(name, value)| (name, Some(value)));
        let mut value =
            || value.or_else(|| args.next().map(String::as_str)).context(format!("{name} needs a directory"));
        match name {
            "--uninstall" => uninstall = true,
            "--prefix" => place.prefix = value()?.into(),
            "--destdir" => place.destdir = std::path::absolute(value()?)?,
            _ => bail!("unknown argument `{arg}`; install takes --prefix DIR, --destdir DIR and --uninstall"),
        }
    }
    if !place.prefix.is_absolute() {
        bail!("--prefix {} is not absolute: systemd requires absolute paths", place.prefix.display());
    }
    Ok((place, uninstall))
}

impl Place {
    fn install(&self, binary: &Path) -> Result<()> {
        sh::step(&format!("Installing to {}", self.at(&self.prefix).display()));
        let made = Made::new()?;
        for item in self.items(binary, &made.0)? {
            let to = self.at(&item.to);
            if item.is_configuration && to.exists() {
                println!("    {} is kept", to.display());
                continue;
            }
            sh::run_quietly(self.program("install")?.args(["-D", "-m", item.mode]).arg(&item.from).arg(&to))?;
            println!("    {}", to.display());
        }
        Ok(())
    }

    /// The files to install. Generated files are written to the directory `made`.
    fn items(&self, binary: &Path, made: &Path) -> Result<Vec<Item>> {
        let data = sh::workspace().join("crafter/data");
        let own = |from: PathBuf, to: PathBuf, mode| Item { from, to, mode, is_configuration: false };
        let mut items = vec![own(binary.to_owned(), self.prefix.join("bin/crafter"), "755")];

        let unit = fs::read_to_string(data.join("systemd/crafter.service")).context("the unit cannot be read")?;
        let program = self.prefix.join("bin/crafter");
        let edited = made.join("crafter.service");
        fs::write(&edited, unit.replace("/usr/bin/crafter", &program.to_string_lossy()))?;
        items.push(own(edited, self.units().join("crafter.service"), "644"));
        items.push(own(data.join("systemd/crafter.socket"), self.units().join("crafter.socket"), "644"));
        items.push(own(data.join("systemd/crafter.conf"), self.sysusers(), "644"));

        let pages = made.join("man1");
        sh::output(Command::new(binary).arg("man").arg("--out").arg(&pages))?;
        let mut pages: Vec<PathBuf> = fs::read_dir(&pages)?.flatten().map(|page| page.path()).collect();
        pages.sort();
        for page in pages {
            let name = page.file_name().context("a page without a name")?;
            let to = self.pages().join(name);
            items.push(own(page, to, "644"));
        }
        for (shell, to) in SHELLS {
            let script = made.join(shell);
            fs::write(&script, sh::output(Command::new(binary).args(["completions", shell]))?)?;
            items.push(own(script, self.prefix.join(to), "644"));
        }
        let policy = Item { from: data.join("crafter.toml"), to: POLICY.into(), mode: "644", is_configuration: true };
        items.push(policy);
        Ok(items)
    }

    fn uninstall(&self) -> Result<()> {
        sh::step(&format!("Removing from {}", self.at(&self.prefix).display()));
        let mut paths = vec![
            self.prefix.join("bin/crafter"),
            self.units().join("crafter.service"),
            self.units().join("crafter.socket"),
            self.sysusers(),
        ];
        paths.extend(SHELLS.map(|(_, to)| self.prefix.join(to)));
        let pages = fs::read_dir(self.at(&self.pages())).into_iter().flatten().flatten().map(|page| page.file_name());
        let ours = |name: &str| name == "crafter.1" || name.starts_with("crafter-") && name.ends_with(".1");
        paths.extend(pages.filter(|name| name.to_str().is_some_and(ours)).map(|name| self.pages().join(name)));
        for path in paths.iter().map(|path| self.at(path)).filter(|path| path.exists()) {
            sh::run_quietly(self.program("rm")?.arg(&path))?;
            println!("    {}", path.display());
        }
        println!("{POLICY} and the user crafter are kept.");
        Ok(())
    }

    fn units(&self) -> PathBuf {
        self.prefix.join("lib/systemd/system")
    }

    fn sysusers(&self) -> PathBuf {
        self.prefix.join("lib/sysusers.d/crafter.conf")
    }

    fn pages(&self) -> PathBuf {
        self.prefix.join("share/man/man1")
    }

    fn at(&self, path: &Path) -> PathBuf {
        if self.destdir.as_os_str().is_empty() {
            return path.to_owned();
        }
        self.destdir.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A command that runs as root to install on this host, and as the user to fill a package's tree.
    fn program(&self, name: &str) -> Result<Command> {
        if self.destdir.as_os_str().is_empty() { sh::root(name, []) } else { Ok(Command::new(name)) }
    }
}

const POLICY: &str = "/etc/crafter/crafter.toml";

/// A temporary directory, removed when dropped.
struct Made(PathBuf);

impl Made {
    fn new() -> Result<Self> {
        let made = sh::output(Command::new("mktemp").args(["--directory", "--tmpdir", "crafter-install.XXXXXX"]))?;
        Ok(Self(made.trim_end().into()))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::executable;

    /// A replacement for `crafter man` and `crafter completions`.
    const STAND_IN: &str = "#!/bin/sh
case $1 in
man) mkdir -p \"$3\" && echo page >\"$3/crafter.1\" && echo page >\"$3/crafter-serve.1\" ;;
completions) echo \"script for $2\" ;;
esac
";

    fn files(directory: &Path) -> Vec<String> {
        let find = sh::output(Command::new("find").arg(".").args(["-type", "f"]).current_dir(directory)).unwrap();
        let mut files: Vec<String> = find.lines().map(|line| line[2..].to_owned()).collect();
        files.sort();
        files
    }

    #[test]
    fn files_are_installed_and_removed() {
        let directory = Made::new().unwrap();
        let binary = directory.0.join("crafter");
        executable::script(STAND_IN, &binary).unwrap();
        let tree = directory.0.join("tree");
        let place = Place { prefix: "/opt/crafter".into(), destdir: tree.clone() };
        place.install(&binary).unwrap();
        let expected = [
            "etc/crafter/crafter.toml",
            "opt/crafter/bin/crafter",
            "opt/crafter/lib/systemd/system/crafter.service",
            "opt/crafter/lib/systemd/system/crafter.socket",
            "opt/crafter/lib/sysusers.d/crafter.conf",
            "opt/crafter/share/bash-completion/completions/crafter",
            "opt/crafter/share/fish/vendor_completions.d/crafter.fish",
            "opt/crafter/share/man/man1/crafter-serve.1",
            "opt/crafter/share/man/man1/crafter.1",
            "opt/crafter/share/zsh/site-functions/_crafter",
        ];
        assert_eq!(files(&tree), expected);
        let mode = |path: &str| fs::metadata(tree.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(expected[1]), mode(expected[2])), (0o755, 0o644));
        let unit = fs::read_to_string(tree.join(expected[2])).unwrap();
        assert!(unit.contains("\nExecStart=/opt/crafter/bin/crafter serve\n"), "{unit}");
        assert!(!unit.contains("/usr/bin"), "{unit}");
        // The edited policy is kept; other files are replaced.
        fs::write(tree.join(expected[0]), "theirs").unwrap();
        fs::write(tree.join(expected[3]), "old").unwrap();
        fs::write(tree.join("opt/crafter/share/man/man1/another.1"), "not ours").unwrap();
        place.install(&binary).unwrap();
        assert_eq!(fs::read_to_string(tree.join(expected[0])).unwrap(), "theirs");
        assert_ne!(fs::read_to_string(tree.join(expected[3])).unwrap(), "old");
        place.uninstall().unwrap();
        assert_eq!(files(&tree), ["etc/crafter/crafter.toml", "opt/crafter/share/man/man1/another.1"]);
        place.uninstall().unwrap();
    }

    #[test]
    fn arguments_are_parsed() {
        let read = |args: &[&str]| read(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        let (place, uninstall) = read(&[]).unwrap();
        assert_eq!((place.prefix.as_path(), uninstall), (Path::new("/usr/local"), false));
        assert_eq!(place.at(&place.units()), Path::new("/usr/local/lib/systemd/system"));
        let (place, uninstall) = read(&["--prefix=/usr", "--destdir", "/tmp/tree", "--uninstall"]).unwrap();
        assert_eq!((place.at(&place.prefix), uninstall), (PathBuf::from("/tmp/tree/usr"), true));
        for wrong in [&["--prefix"][..], &["--prefix", "usr"], &["--root", "/"], &["here"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
