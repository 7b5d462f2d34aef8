//! The packet expressions of Scapy's own test files, built by crafter and by the Scapy that set-up installed: the bytes
//! must be equal. The files are in Scapy's source package, which `cargo xtask setup` downloads; `CRAFTER_CORPORA` names
//! another directory, with the files below `scapy`.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crafter_packet::expr::PacketSet;

/// The test files whose expressions are judged.
const FILES: [&str; 11] = [
    "inet.uts",
    "inet6.uts",
    "l2.uts",
    "dns.uts",
    "dns_edns0.uts",
    "dns_dnssec.uts",
    "vxlan.uts",
    "mpls.uts",
    "http.uts",
    "fields.uts",
    "regression.uts",
];

/// Minimum number of expressions, and share of them with equal bytes, in per cent.
const EXPRESSIONS: usize = 500;
const SHARE: usize = 97;

/// Largest set of packets of an expression.
const LIMIT: u128 = 512;

fn corpora() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CRAFTER_CORPORA").unwrap_or_else(|| {
        let data = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
        data.expect("HOME or XDG_DATA_HOME is set").join("crafter/corpora")
    })
}

/// Scapy's test files, or why there are none.
fn files() -> Result<Vec<PathBuf>, String> {
    let folder = corpora();
    if let Ok(reason) = fs::read_to_string(folder.join("scapy.missing")) {
        return Err(reason.trim().to_owned());
    }
    let mut found = Vec::new();
    let mut folders = vec![folder.join("scapy")];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .map_err(|error| format!("{}: {error}; `cargo xtask setup` fetches it", folder.display()))?;
        for entry in entries.flatten() {
            let kind = entry.file_type().map_err(|error| error.to_string())?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if FILES.iter().any(|name| entry.file_name() == *name) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    if found.is_empty() { Err(format!("{} has no test files", folder.display())) } else { Ok(found) }
}

/// The interpreter with Scapy: that of set-up's environment, else the system's.
fn python() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a workspace");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let installed = target.join("scapy/bin/python");
    if installed.exists() { installed } else { "/usr/bin/python3".into() }
}

/// Builds an expression: the packets in hex, or why not.
fn build(text: &str) -> Result<Vec<String>, String> {
    let set = PacketSet::parse(text).map_err(|error| error.to_string())?;
    let packets = set.packets(LIMIT).map_err(|error| error.to_string())?;
    let bytes = packets.map(|packet| packet.build().map_err(|error| error.to_string()));
    bytes.map(|bytes| Ok(bytes?.iter().map(|byte| format!("{byte:02x}")).collect())).collect()
}

#[derive(Default)]
struct Count {
    all: usize,
    equal: usize,
}

#[test]
fn expressions_of_scapys_tests_give_scapys_bytes() {
    let files = match files() {
        Ok(files) => files,
        Err(reason) => return println!("NOT RUN on the expressions of Scapy's tests: {reason}"),
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scapy_expressions.py");
    let output = Command::new(python()).arg(script).args(&files).env("PYTHONDONTWRITEBYTECODE", "1").output();
    let output = output.expect("python starts");
    assert!(output.status.success(), "Scapy is installed by `cargo xtask setup`: {output:?}");
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    let (mut failures, mut skipped) = (Vec::new(), BTreeMap::<String, usize>::new());
    for line in String::from_utf8(output.stdout).expect("UTF-8").lines() {
        let found: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        if found["version"].is_string() {
            println!("Scapy {} and {} of its test files", field("version"), files.len());
            continue;
        }
        if found["skipped"].is_string() {
            *skipped.entry(field("skipped")).or_default() += 1;
            continue;
        }
        let expected: Vec<&str> =
            found["packets"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str).collect();
        let count = counts.entry(field("kind")).or_default();
        count.all += 1;
        let reason = match build(&field("text")) {
            Ok(built) if built == expected => {
                count.equal += 1;
                continue;
            }
            Ok(built) if built.len() != expected.len() => {
                format!("{} packets instead of {}", built.len(), expected.len())
            }
            Ok(built) => {
                let differ = built.iter().zip(&expected).find(|(built, expected)| built != *expected);
                let (built, expected) = differ.expect("they differ");
                format!("other bytes\n    crafter {built}\n    Scapy   {expected}")
            }
            Err(reason) => reason,
        };
        let file = Path::new(&field("file")).file_name().unwrap_or_default().to_string_lossy().into_owned();
        failures.push(format!("{file}:{}: {}\n    {reason}", found["line"], field("text")));
    }
    println!("{}", failures.join("\n"));
    println!("not judged: {skipped:?}");
    let percent = |count: &Count| (count.equal * 1000).checked_div(count.all).unwrap_or(0);
    for (kind, count) in &counts {
        let percent = percent(count);
        println!("{kind}: {} of {} equal, {}.{} %", count.equal, count.all, percent / 10, percent % 10);
    }
    let built = &counts["built"];
    assert!(built.all >= EXPRESSIONS, "only {} expressions", built.all);
    for (kind, count) in &counts {
        assert!(percent(count) >= SHARE * 10, "{kind}: {} of {}", count.equal, count.all);
    }
}
