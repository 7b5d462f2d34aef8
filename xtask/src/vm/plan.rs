//! The test programs that run in the virtual machines, and their time limits.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::kernels::{DEFAULT, Kernel};
use crate::program::{TestProgram, modules};
use crate::setup;
use crate::sh;

/// Modules of crafter's own integration tests that depend on the kernel.
const OF_CRAFTER: [&str; 4] = ["cli", "doctor", "lab", "lab_run"];

/// Modules of the tests' package that do not depend on the kernel, or that take hours under emulation.
const LEFT_OUT: [(&str, &str); 6] = [
    ("soak", "sends each segment once, and the queue of an emulated link overflows without an error"),
    ("engine_pair", "streams on a virtual wire, the same on every kernel"),
    ("scripted", "the same"),
    ("fuzz", "parsers in user space, the same on every kernel"),
    ("fuzz_service", "the service's parsers, the same on every kernel"),
    ("scapy_service", "Python against the service takes minutes under emulation"),
];

/// Programs of this host that the tests in the machines need.
pub const PEERS: [&str; 8] = ["curl", "depmod", "dnsmasq", "ip", "nginx", "python3", "python3-scapy", "tcpdump"];

/// The short form: modules and their tests; an empty list means all tests.
const SHORT: [(&str, &[&str]); 6] = [
    // Branch coverage of the bytecode and all truncations take minutes under emulation.
    ("verdict", &["named_rows", "every_reason", "flow_entries", "every_size_class", "truncated_packets", "disowned"]),
    ("kernel_age", &[]),
    ("conversation", &["native", "tc", "policy_pass"]),
    ("coexistence", &[]),
    ("faults", &["clsact", "sigkill"]),
    ("clock", &["download_survives", "kernel_half", "leases_and_their_ages", "record_timestamps"]),
];

/// Tests that are skipped: module, part of the name, and reason.
const SKIPPED: [(&str, &str, &str); 5] = [
    (
        "cli",
        "guide::crafter_examples_of_the_page_work",
        "under emulation, the server retransmits after the shell has ended",
    ),
    ("cli", "man::", "groff's output is the same on every kernel"),
    (
        "cli",
        "ping::altered_duplicate_and_unexpected_answers_are_reported",
        "under emulation, Scapy answers after ping has timed out",
    ),
    ("cli", "traceroute::mpls_labels_are_printed", "the same"),
    ("verdict", "coverage::", "runs the bytecode in user space, and reads its source, which the machine does not have"),
];

/// Programs that need a separate machine: their tests are marked `#[ignore]`, so that they do not run elsewhere.
const ONLY_HERE: [&str; 2] = ["clock", "memory_limit"];

/// The test program that expects refusals on an old kernel.
const REFUSALS: &str = " kernel_age";

/// Factor for the tests' time-outs on an emulated processor.
const SLOWNESS: u32 = 10;

/// Number of system calls at which the kill tests end a process under emulation, instead of 40: each needs one run
/// under strace.
const POINTS: &str = "15";

/// The selection of tests.
pub struct Plan {
    /// The selection of `cargo xtask test`.
    pub short: bool,
    /// Names of modules; empty: all.
    pub programs: Vec<String>,
    /// Filters for libtest.
    pub filters: Vec<String>,
}

/// One program for the machine.
#[derive(Clone)]
pub struct Chosen {
    /// The title that `cargo xtask test` uses.
    pub title: String,
    /// The path on the host and in the machine.
    pub executable: PathBuf,
    directory: PathBuf,
    /// The arguments for libtest.
    arguments: Vec<String>,
}

impl Chosen {
    /// The same program with only these tests.
    pub fn only(&self, names: &[String]) -> Self {
        let mut arguments = vec!["--exact".to_owned(), "--include-ignored".to_owned()];
        arguments.extend(names.iter().cloned());
        Self { arguments, ..self.clone() }
    }
}

impl Plan {
    /// The default kernels.
    pub fn kernels() -> Vec<String> {
        DEFAULT.map(str::to_owned).to_vec()
    }

    /// The selected test programs; those of the short form first.
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

/// The programs for this kernel: on one that is too old, only the program that expects refusals.
pub fn on(kernel: &Kernel, chosen: &[Chosen]) -> Vec<Chosen> {
    let suits = |program: &&Chosen| !kernel.is_too_old() || program.title.ends_with(REFUSALS);
    chosen.iter().filter(suits).cloned().collect()
}

/// The orders for the machine's init process.
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
            // One test at a time, since there are at most two emulated processors.
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
    use crate::program::Module;

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

    /// The titles and arguments of the programs that a plan selects.
    fn chosen(plan: &Plan) -> Vec<String> {
        let unit = TestProgram { module: None, ..program("crafter", "lib crafter", &[]) };
        let programs = [
            unit,
            program(
                "crafter",
                "cli",
                &["man::a", "ping::a", "ping::altered_duplicate_and_unexpected_answers_are_reported"],
            ),
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
    fn modules_that_depend_on_the_kernel_are_selected() {
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
    fn short_form_selects_few_tests() {
        assert_eq!(
            chosen(&plan(true, &[], &[])),
            [
                "tests: verdict --exact verdict::named_rows_reach_every_reason",
                "tests: clock --exact clock::exchange::download_survives_clock_steps --ignored",
            ]
        );
    }

    #[test]
    fn modules_and_filters_are_combined() {
        assert_eq!(chosen(&plan(false, &["fuzz"], &[])), ["tests: fuzz --exact fuzz::layers"]);
        assert_eq!(chosen(&plan(false, &["cli", "fuzz"], &["ping"])), ["crafter: cli --exact cli::ping::a"]);
        assert!(chosen(&plan(false, &["cli"], &["nothing"])).is_empty());
    }

    /// Without this test, a renamed module would silently not be selected.
    #[test]
    fn named_modules_exist() {
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
