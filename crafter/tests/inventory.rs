//! What the documents list is what the source has.

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
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Blocks, functions and implementations that are unsafe, outside of comments.
fn places(text: &str) -> usize {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let is_place = |rest: &&str| ["{", "impl", "fn"].iter().any(|begin| rest.starts_with(begin));
    text.lines().map(code).map(|line| line.split("unsafe ").skip(1).filter(is_place).count()).sum()
}

#[test]
fn unsafe_code_is_all_listed() {
    let mut files = Vec::new();
    for package in ["crafter-common/src", "crafter-ebpf/src", "crafter/src"] {
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
    assert!(counted.len() > 20, "the source is not found");
    assert_eq!(counted, listed, "left: the source; right: crafter/docs/unsafe.md");
    let sum: usize = counted.values().sum();
    assert!(page.contains(&format!("{sum} places.")), "the page's sum is not {sum}");
}
