//! Commit and date of the sources, for `crafter --version`.
//!
//! Both are properties of the sources, not of the build: the same commit gives the same program on every machine. A
//! build of the profile `dev` gets neither, because it would be compiled again after each commit.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The commit of sources that are not in a git repository, e.g. those of a package.
const COMMIT: &str = "CRAFTER_COMMIT";
/// Seconds since 1970 that replace the date of the commit (reproducible-builds.org).
const DATE: &str = "SOURCE_DATE_EPOCH";

/// The environment variables that this depends on.
pub const VARIABLES: [&str; 2] = [COMMIT, DATE];

const UNKNOWN: &str = "unknown";

/// Sets `CRAFTER_COMMIT` and `CRAFTER_DATE` for the compiler; returns the files of git that they depend on.
pub fn stamp(workspace: &Path) -> Vec<PathBuf> {
    let given = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let is_dev = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let (head, watched) = if is_dev { (None, Vec::new()) } else { git_head(workspace) };
    let (commit, seconds) = head.unzip();
    let unknown = if is_dev { "unknown (development build)" } else { UNKNOWN };
    let seconds = given(DATE).or(seconds).and_then(|seconds| seconds.parse().ok());
    println!("cargo::rustc-env=CRAFTER_COMMIT={}", given(COMMIT).or(commit).as_deref().unwrap_or(unknown));
    println!("cargo::rustc-env=CRAFTER_DATE={}", seconds.map_or_else(|| unknown.to_owned(), date));
    watched
}

/// The commit and its time in seconds since 1970, and the files that change with it. `None` if the workspace is not the
/// root of a git repository: sources of a package may be unpacked inside a repository of something else.
fn git_head(workspace: &Path) -> (Option<(String, String)>, Vec<PathBuf>) {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(workspace).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let is_root = git(&["rev-parse", "--show-toplevel"])
        .is_some_and(|root| Path::new(&root).canonicalize().ok() == workspace.canonicalize().ok());
    if !is_root {
        return (None, Vec::new());
    }
    let head = git(&["log", "-1", "--format=%H %ct"])
        .and_then(|line| line.split_once(' ').map(|(commit, time)| (commit.to_owned(), time.to_owned())));
    let path = |name: &str| git(&["rev-parse", "--git-path", name]).map(|path| workspace.join(path));
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]).and_then(|name| path(&name));
    // A branch without a file of its own is in packed-refs; the next commit creates the file in the directory. Cargo
    // runs this script on every build if a file that it watches does not exist.
    let branch = branch.and_then(|file| file.ancestors().find(|path| path.exists()).map(Path::to_owned));
    let files = [path("HEAD"), path("packed-refs").filter(|file| file.exists()), branch];
    (head, files.into_iter().flatten().collect())
}

/// `YYYY-MM-DD`, UTC (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn date(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
