//! Checks the order of modules on ARCHITECTURE.md: a module must not import a module that is listed below it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The modules of `crafter/src` in the order of the page.
fn modules(page: &str) -> Vec<String> {
    let listed = page.lines().skip_while(|line| !line.starts_with("  src/")).skip(1);
    let listed = listed.take_while(|line| line.starts_with("    "));
    listed.filter_map(|line| Some(line.trim_start().split_once('/')?.0.to_owned())).collect()
}

/// The text of a file without comments and without its module of tests.
fn code(text: &str) -> String {
    let (before, tests) = text.split_once("#[cfg(test)]\nmod tests {").unwrap_or((text, ""));
    let behind = tests.split_once("\n}").map_or("", |(_, behind)| behind);
    let lines = before.lines().chain(behind.lines()).map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The first segments of the paths in `text`, which follows `crate::`: one, or those of a list in braces.
fn heads(text: &str) -> Vec<&str> {
    let segment = |text: &'_ str| text.find(|letter: char| letter != '_' && !letter.is_alphanumeric());
    let segment = |text| &text[..segment(text).unwrap_or(text.len())];
    let Some(list) = text.strip_prefix('{') else { return vec![segment(text)] };
    let mut depth = 0;
    let end = list.find(|letter| {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        depth < 0
    });
    let mut depth = 0;
    let items = list[..end.unwrap_or(list.len())].split(|letter| {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        letter == ',' && depth == 0
    });
    items.map(str::trim_start).map(segment).filter(|head| !head.is_empty()).collect()
}

/// What `lib.rs` re-exports, as (name, module).
fn reexports(lib: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for statement in lib.split("pub use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        let Some((module, names)) = statement.split_once("::") else { continue };
        found.extend(heads(names).into_iter().map(|name| (name.to_owned(), module.to_owned())));
    }
    found
}

/// Modules that `code` names.
fn imported(code: &str, reexports: &[(String, String)]) -> BTreeSet<String> {
    let heads = code.split("crate::").skip(1).flat_map(heads);
    let module = |head: &str| {
        reexports.iter().find(|(name, _)| name == head).map_or(head.to_owned(), |(_, module)| module.clone())
    };
    heads.map(module).collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        match name.to_str().unwrap() {
            "tests" | "tests.rs" => {}
            _ if path.is_dir() => sources(&path, found),
            name if name.ends_with(".rs") => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn modules_import_only_modules_above_them() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = modules(&fs::read_to_string(package.join("../ARCHITECTURE.md")).unwrap());
    let reexports = reexports(&code(&fs::read_to_string(package.join("src/lib.rs")).unwrap()));
    let is_room = |name: &String| package.join("src").join(name).is_dir();
    assert!(modules.len() >= 10 && modules.iter().all(is_room), "ARCHITECTURE.md lists {modules:?}");
    assert!(reexports.contains(&("Crafter".to_owned(), "driver".to_owned())), "{reexports:?}");
    let mut faults = Vec::new();
    for (place, module) in modules.iter().enumerate() {
        let mut files = Vec::new();
        sources(&package.join("src").join(module), &mut files);
        for file in files {
            let imported = imported(&code(&fs::read_to_string(&file).unwrap()), &reexports);
            let below = modules[place + 1..].iter().filter(|below| imported.contains(*below));
            let name = file.strip_prefix(package).unwrap().display().to_string();
            faults.extend(below.map(|below| format!("{name} imports {below}")));
        }
    }
    assert!(faults.is_empty(), "a module must not import a module below it on ARCHITECTURE.md:\n{}", faults.join("\n"));
    let all: BTreeSet<String> = fs::read_dir(package.join("src"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(all, modules.into_iter().collect(), "left: directories of crafter/src; right: ARCHITECTURE.md");
}

/// String literals in `code` that begin with the name of a command-line option.
fn option_names(code: &str) -> Vec<&str> {
    let literals = code.match_indices("\"--").map(|(place, _)| &code[place + 1..]);
    let names = literals.filter(|text| text[2..].starts_with(|letter: char| letter.is_ascii_alphabetic()));
    names.map(|text| text.split(['"', ' ', ':']).next().unwrap_or_default()).collect()
}

#[test]
fn only_the_command_line_names_its_options() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&package.join("src"), &mut files);
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| !file.starts_with(package.join("src/cli"))) {
        let text = code(&fs::read_to_string(file).unwrap());
        // An option of bash.
        let found = option_names(&text).into_iter().filter(|name| *name != "--rcfile").map(str::to_owned);
        faults.extend(found.map(|name| format!("{} names {name}", file.strip_prefix(package).unwrap().display())));
    }
    assert!(faults.is_empty(), "options are names of crafter/src/cli:\n{}", faults.join("\n"));
    assert_eq!(option_names("invalid(\"--user\", 1 - \"--\", \"--loss: is\")"), ["--user", "--loss"]);
}

#[test]
fn every_form_of_import_is_found() {
    let reexports = [("Crafter".to_owned(), "driver".to_owned())];
    let text = "use crate::{\n    Crafter, Error,\n    policy::{self, Rule},\n    session::Link, // crate::lab\n};\n\
        fn f() -> crate::probe::Ping { crate::shell() }\n#[serde(skip_if = \"crate::protocol::is_null\")]\n\
        #[cfg(test)]\nmod tests {\n    use crate::cli;\n}\n";
    let found = imported(&code(text), &reexports);
    let found: Vec<&str> = found.iter().map(String::as_str).collect();
    assert_eq!(found, ["Error", "driver", "policy", "probe", "protocol", "session", "shell"]);
}
