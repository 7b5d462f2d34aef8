//! Which test programs run in the machines, and for how long at most.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::kernels::{DEFAULT, Kernel};
use crate::setup;
use crate::sh;
use crate::test::{TestProgram, modules};

/// Modules of crafter's own integration tests that ask the kernel for something; the rest is the same on every kernel.
const OF_CRAFTER: [&str; 4] = ["cli", "doctor", "lab", "lab_run"];

/// Of the tests' package, what the kernel has no part in, or what takes hours under emulation.
const LEFT_OUT: [(&str, &str); 6] = [
    ("soak", "sends each segment once, and an emulated link's queue overflows unseen"),
    ("engine_pair", "streams on a virtual wire, the same on every kernel"),
    ("scripted", "the same"),
    ("fuzz", "parsers in user space, the same on every kernel"),
    ("fuzz_service", "the service's parsers, the same on every kernel"),
    ("scapy_service", "Python against the service, minutes of interpreting under emulation"),
];

/// Programs of this host without which the tests in the machines say nothing.
pub const PEERS: [&str; 8] = ["curl", "depmod", "dnsmasq", "ip", "nginx", "python3", "python3-scapy", "tcpdump"];

/// The short form: module and the tests in it; none named: all.
const SHORT: [(&str, &[&str]); 6] = [
    // Not the branches of the bytecode and every row cut anywhere: minutes of an emulated processor.
    ("verdict", &["named_rows", "every_reason", "flow_entries", "every_size_class", "truncated_packets", "disowned"]),
    ("kernel_age", &[]),
    ("conversation", &["native", "tc", "policy_pass"]),
    ("neighbours", &[]),
    ("faults", &["clsact", "sigkill"]),
    ("clock", &["download_survives", "kernel_half", "leases_and_their_ages", "record_timestamps"]),
];

/// Single tests that are left out, by module and part of the name, and why.
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
    /// Names of modules, each of which is a program of its own there; none: all.
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
    /// For libtest.
    arguments: Vec<String>,
}

impl Chosen {
    /// These tests of it, and no other.
    pub fn only(&self, names: &[String]) -> Self {
        let mut arguments = vec!["--exact".to_owned(), "--include-ignored".to_owned()];
        arguments.extend(names.iter().cloned());
        Self { arguments, ..self.clone() }
    }
}

impl Plan {
    /// Kernels, if none is named.
    pub fn kernels() -> Vec<String> {
        DEFAULT.map(str::to_owned).to_vec()
    }

    /// Of all test programs those that are wanted, the quick ones that say most first.
    pub fn choose(&self, all: &[TestProgram]) -> Vec<Chosen> {
        let mut chosen: Vec<(usize, Chosen)> = Vec::new();
        let modules = modules(all);
        for program in all {
            let Some(name) = program.module.as_ref().map(|module| module.name.as_str()) else { continue };
            let short = SHORT.iter().position(|(one, _)| *one == name);
            let wanted = if !self.programs.is_empty() {
                self.programs.iter().any(|wanted| wanted == name)
            } else if self.short {
                short.is_some()
            } else if program.package_name() == "crafter" {
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
            let Some(arguments) = program.arguments(&filters, &modules) else { continue };
            let place = short.unwrap_or(SHORT.len());
            let (executable, directory) = (program.executable.clone(), program.package.clone());
            chosen.push((place, Chosen { title: program.title.clone(), executable, directory, arguments }));
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
            command.extend(program.arguments.iter().cloned());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::Module;

    /// A program of the integration tests of `package`.
    fn program(package: &str, name: &str, tests: &[&str]) -> TestProgram {
        TestProgram {
            title: format!("{package}: {name}"),
            module: Some(Module {
                name: name.to_owned(),
                tests: tests.iter().map(|test| format!("{name}::{test}")).collect(),
            }),
            executable: PathBuf::from("executable"),
            package: PathBuf::from("/crafter").join(package),
        }
    }

    /// What of some programs is chosen: title and arguments.
    fn chosen(plan: &Plan) -> Vec<String> {
        let unit = TestProgram { module: None, ..program("crafter", "lib crafter", &[]) };
        let programs = [
            unit,
            program("crafter", "cli", &["man::a", "ping::a", "ping::answers_that_are_not_as_they_should_be"]),
            program("crafter", "layers", &["a"]),
            program("tests", "clock", &["exchange::download_survives_clock_steps", "service::other"]),
            program("tests", "fuzz", &["layers"]),
            program("tests", "verdict", &["coverage::a", "named_rows_reach_every_reason", "sixty"]),
        ];
        let chosen = plan.choose(&programs);
        chosen.iter().map(|one| format!("{} {}", one.title, one.arguments.join(" "))).collect()
    }

    fn plan(short: bool, programs: &[&str], filters: &[&str]) -> Plan {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Plan { short, programs: owned(programs), filters: owned(filters) }
    }

    #[test]
    fn what_asks_the_kernel_is_chosen() {
        assert_eq!(
            chosen(&plan(false, &[], &[])),
            [
                "tests: verdict --exact verdict::named_rows_reach_every_reason verdict::sixty",
                "tests: clock --exact clock::exchange::download_survives_clock_steps clock::service::other --ignored",
                "crafter: cli --exact cli::ping::a",
            ]
        );
    }

    #[test]
    fn the_short_form_has_some_tests_of_some_modules() {
        assert_eq!(
            chosen(&plan(true, &[], &[])),
            [
                "tests: verdict --exact verdict::named_rows_reach_every_reason",
                "tests: clock --exact clock::exchange::download_survives_clock_steps --ignored",
            ]
        );
    }

    #[test]
    fn a_named_module_and_a_filter() {
        assert_eq!(chosen(&plan(false, &["fuzz"], &[])), ["tests: fuzz --exact fuzz::layers"]);
        assert_eq!(chosen(&plan(false, &["cli", "fuzz"], &["ping"])), ["crafter: cli --exact cli::ping::a"]);
        assert!(chosen(&plan(false, &["cli"], &["nothing"])).is_empty());
    }

    /// A module that is renamed would silently be left out, or not be.
    #[test]
    fn every_module_that_is_named_here_is_there() {
        let of_tests = LEFT_OUT.map(|(name, _)| name).into_iter().chain(SHORT.map(|(name, _)| name)).chain(ONLY_HERE);
        let of_tests = of_tests.map(|name| (sh::workspace().join("tests/tests/namespaces"), name));
        let of_crafter = OF_CRAFTER.map(|name| (sh::workspace().join("crafter/tests/integration"), name));
        for (folder, name) in of_tests.chain(of_crafter) {
            let there = [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")];
            assert!(there.iter().any(|path| path.is_file()), "{name} is not in {}", folder.display());
        }
        assert!(SKIPPED.iter().all(|(name, ..)| OF_CRAFTER.contains(name) || SHORT.iter().any(|(one, _)| one == name)));
    }
}
