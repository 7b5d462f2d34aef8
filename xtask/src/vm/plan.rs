//! Which test programs run in the machines, and for how long at most.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::kernels::{DEFAULT, Kernel};
use crate::setup;
use crate::sh;
use crate::test::TestProgram;

/// Test programs of crafter itself that ask the kernel for something; the rest is the same on every kernel.
const OF_CRAFTER: [&str; 4] = ["cli", "doctor", "lab", "lab_run"];

/// Of the tests' package, what the kernel has no part in, or what takes hours under emulation.
const LEFT_OUT: [(&str, &str); 6] = [
    ("soak", "sends each segment once, and an emulated link's queue overflows unseen"),
    ("engine_pair", "streams on a virtual wire, the same on every kernel"),
    ("stories", "the same"),
    ("fuzz", "parsers in user space, the same on every kernel"),
    ("fuzz_service", "the service's parsers, the same on every kernel"),
    ("scapy_service", "Python against the service, minutes of interpreting under emulation"),
];

/// Programs of this host without which the tests in the machines say nothing.
pub const PEERS: [&str; 8] = ["curl", "depmod", "dnsmasq", "ip", "nginx", "python3", "python3-scapy", "tcpdump"];

/// The short form: program and the tests in it; none named: all.
const SHORT: [(&str, &[&str]); 6] = [
    // Not the branches of the bytecode and every row cut anywhere: minutes of an emulated processor.
    ("verdict", &["named_rows", "every_reason", "flows_tell", "every_size_class", "truncated", "given_back"]),
    ("kernel_age", &[]),
    ("conversation", &["native", "tc", "policy_pass"]),
    ("neighbours", &[]),
    ("faults", &["clsact", "sigkill"]),
    ("clock", &["a_download", "the_kernel_half", "leases_live", "records_are_in_order"]),
];

/// Single tests that are left out, by program and name, and why.
const SKIPPED: [(&str, &str, &str); 5] = [
    ("cli", "guide::crafters_lines", "what a server sends again, as slow as this, comes after the shell has ended"),
    ("cli", "man::", "what groff makes of the manual is the same on every kernel"),
    ("cli", "ping::answers_that_are_not_as_they_should_be", "Scapy answers later than ping waits, under emulation"),
    ("cli", "traceroute::labels_of_mpls", "the same"),
    ("verdict", "coverage::", "runs the bytecode in user space, beside its source, which is not there"),
];

/// Programs that need a machine of their own: their tests are marked `#[ignore]`, so that nobody runs them elsewhere.
const ONLY_HERE: [&str; 2] = ["clock", "memory_limit"];

/// The test program that is the same everywhere but expects refusals on an old kernel.
const REFUSALS: &str = " kernel_age";

/// How many times slower than the processor itself an emulated one is taken to be, for timeouts of tests.
const SLOWNESS: u32 = 10;

/// At how many system calls a process is ended there, instead of 40: each takes a start of it under strace.
const POINTS: &str = "15";

/// What of the tests is wanted.
pub struct Plan {
    /// The selection of `cargo xtask test`.
    pub short: bool,
    /// Names of programs; none: all.
    pub programs: Vec<String>,
    /// What libtest filters by.
    pub filters: Vec<String>,
}

/// One program for the machine.
#[derive(Clone)]
pub struct Chosen {
    /// As `cargo xtask test` calls it.
    pub title: String,
    /// On the host, and in the machine.
    pub executable: PathBuf,
    directory: PathBuf,
    filters: Vec<String>,
}

impl Chosen {
    /// These tests of it, and no other.
    pub fn only(&self, names: &[String]) -> Self {
        let mut filters = vec!["--exact".to_owned(), "--include-ignored".to_owned()];
        filters.extend(names.iter().cloned());
        Self { filters, ..self.clone() }
    }
}

impl Plan {
    /// Kernels, if none is named.
    pub fn kernels() -> Vec<String> {
        DEFAULT.map(str::to_owned).to_vec()
    }

    /// What cargo builds of them.
    pub fn selection(&self) -> Vec<String> {
        // Of all packages: with some of them alone, cargo would build their dependencies once more, with other features.
        let mut selection = Vec::new();
        let names = match (self.programs.is_empty(), self.short) {
            (false, _) => self.programs.clone(),
            (true, true) => SHORT.iter().map(|(name, _)| (*name).to_owned()).collect(),
            (true, false) => vec!["*".to_owned()],
        };
        selection.extend(names.into_iter().flat_map(|name| ["--test".to_owned(), name]));
        selection
    }

    /// Of all test programs those that are wanted, the quick ones that say most first.
    pub fn choose(&self, all: &[TestProgram]) -> Vec<Chosen> {
        let mut chosen: Vec<(usize, Chosen)> = Vec::new();
        for program in all {
            let mut words = program.title.split([':', ' ']).filter(|word| !word.is_empty());
            let (Some(package), Some("test"), Some(name)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let short = SHORT.iter().position(|(one, _)| *one == name);
            let wanted = if !self.programs.is_empty() {
                self.programs.iter().any(|wanted| wanted == name)
            } else if self.short {
                short.is_some()
            } else if package == "crafter" {
                OF_CRAFTER.contains(&name)
            } else {
                LEFT_OUT.iter().all(|(left, _)| *left != name)
            };
            if !wanted {
                continue;
            }
            let mut filters = self.filters.clone();
            if self.short {
                filters.extend(short.iter().flat_map(|place| SHORT[*place].1).map(|filter| (*filter).to_owned()));
            }
            let skipped = SKIPPED.iter().filter(|(program, ..)| *program == name);
            filters.extend(skipped.flat_map(|(_, test, _)| ["--skip".to_owned(), (*test).to_owned()]));
            if ONLY_HERE.contains(&name) {
                filters.push("--ignored".to_owned());
            }
            let place = short.unwrap_or(SHORT.len());
            let (executable, directory) = (program.executable.clone(), program.package.clone());
            chosen.push((place, Chosen { title: program.title.clone(), executable, directory, filters }));
        }
        chosen.sort_by_key(|(place, _)| *place);
        chosen.into_iter().map(|(_, chosen)| chosen).collect()
    }
}

/// Of them those that say something on a kernel that is too old: that everything refuses there.
pub fn on(kernel: &Kernel, chosen: &[Chosen]) -> Vec<Chosen> {
    let suits = |program: &&Chosen| !kernel.is_too_old() || program.title.ends_with(REFUSALS);
    chosen.iter().filter(suits).cloned().collect()
}

/// What the machine's first process is told to do.
pub fn orders(chosen: &[Chosen], emulated: bool, seconds: u64) -> Value {
    let crafter = sh::release_directory().join("crafter");
    let slowness = if emulated { SLOWNESS } else { 1 }.to_string();
    let points = if emulated { POINTS } else { "40" };
    let scapy = setup::scapy_packages().unwrap_or_default();
    let programs: Vec<Value> = chosen
        .iter()
        .map(|program| {
            let mut command = vec![program.executable.to_string_lossy().into_owned()];
            command.extend(program.filters.iter().cloned());
            // One after the other: two emulated processors have enough to do with one.
            command.push("--test-threads=1".into());
            json!({
                "command": command,
                "directory": program.directory,
                "seconds": seconds,
                "variables": {
                    "CARGO_MANIFEST_DIR": program.directory,
                    "CRAFTER_BIN": crafter,
                    "CRAFTER_SCAPY": scapy,
                    "CRAFTER_TEST_MACHINE": "virtual",
                    "CRAFTER_TEST_POINTS": points,
                    "CRAFTER_TEST_SLOWNESS": slowness,
                    "HOME": "/root",
                    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "RUST_BACKTRACE": "1",
                },
            })
        })
        .collect();
    json!({"trial": false, "crafter": crafter, "modules": ["veth", "sch_ingress", "cls_bpf", "tun"], "programs": programs})
}
