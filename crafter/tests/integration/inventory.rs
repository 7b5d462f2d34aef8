//! Compares lists in the documents with the source, and checks the source for what no test may do.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs" || ending == "py") {
            found.push(path);
        }
    }
}

/// The number of unsafe blocks, functions and implementations, outside of comments.
fn places(text: &str) -> usize {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let is_place = |rest: &&str| ["{", "impl", "fn"].iter().any(|begin| rest.starts_with(begin));
    text.lines().map(code).map(|line| line.split("unsafe ").skip(1).filter(is_place).count()).sum()
}

#[test]
fn unsafe_code_is_listed_in_unsafe_md() {
    let mut files = Vec::new();
    for package in ["crafter-common/src", "crafter-ebpf/src", "crafter/engine/src", "crafter/packet/src", "crafter/src"]
    {
        sources(&root().join(package), &mut files);
    }
    let counted = files.iter().map(|file| {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        (name, places(&fs::read_to_string(file).unwrap()))
    });
    let counted: BTreeMap<String, usize> = counted.filter(|(_, count)| *count > 0).collect();
    let page = fs::read_to_string(root().join("crafter/docs/unsafe.md")).unwrap();
    let listed = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.trim_end_matches('`').to_owned(), cells.next()?.parse().ok()?))
    });
    let listed: BTreeMap<String, usize> = listed.collect();
    assert!(counted.len() > 20, "the source was not found");
    assert_eq!(counted, listed, "left: the source; right: crafter/docs/unsafe.md");
    let sum: usize = counted.values().sum();
    assert!(page.contains(&format!("{sum} places.")), "the page's sum is not {sum}");
}

/// Calls that can write an executable. `crafter_tests::executable` says why tests must not make them.
const CALLS: [&str; 6] = ["fs::copy(", "set_permissions(", ".mode(0o7", "os.chmod(", "\"chmod\"", "new(\"setcap\")"];

/// The exceptions, in which the file is not executed: file, number of lines, reason.
const NOT_EXECUTED: [(&str, usize, &str); 15] = [
    ("crafter/build.rs", 1, "the kernel half's object"),
    ("crafter/python/tests/test_client.py", 1, "a socket"),
    ("crafter/src/cli/serve/socket.rs", 1, "the service's socket"),
    ("crafter/src/cli/shell/state.rs", 1, "a directory"),
    ("crafter/tests/integration/cli/config.rs", 1, "a configuration file"),
    ("crafter/tests/integration/cli/doctor_served.rs", 1, "a socket"),
    ("crafter/tests/integration/cli/service.rs", 1, "a socket"),
    ("tests/src/python.rs", 1, "directories and modules, copied by `cp`"),
    ("tests/src/service.rs", 1, "a directory"),
    ("tests/src/text_file_busy.rs", 1, "the positive control: executed, and expected to fail"),
    ("tests/tests/namespaces/service_faults/fence.rs", 1, "a socket"),
    ("xtask/src/fresh.rs", 1, "a certificate"),
    ("xtask/src/program/stand_in.rs", 2, "a directory and a list of calls"),
    ("xtask/src/setup/tools.rs", 1, "the name of a tool"),
    ("xtask/src/vm/image.rs", 1, "the name of a tool"),
];

/// Otherwise starting the file fails at random with ETXTBSY ("Text file busy").
#[test]
fn executables_are_written_only_by_the_helper() {
    let mut files = Vec::new();
    for package in ["crafter", "crafter-common", "crafter-ebpf", "tests", "xtask"] {
        sources(&root().join(package), &mut files);
    }
    let lines = |text: String| text.lines().filter(|line| CALLS.iter().any(|call| line.contains(call))).count();
    let found = files.iter().map(|file| {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        (name, lines(fs::read_to_string(file).unwrap()))
    });
    let this = |name: &str| name == "crafter/tests/integration/inventory.rs";
    let found: BTreeMap<String, usize> = found.filter(|(name, count)| *count > 0 && !this(name)).collect();
    let listed = NOT_EXECUTED.map(|(name, count, _)| (name.to_owned(), count));
    assert_eq!(found, listed.into(), "left: the source; right: NOT_EXECUTED. Use crafter_tests::executable");
}
