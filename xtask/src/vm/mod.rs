//! `cargo xtask vm-test`: the integration tests on other kernels, each in a virtual machine without network or disk.

mod apt;
mod cpio;
mod emulator;
mod files;
mod image;
mod kernels;
mod plan;
mod qemu;
mod report;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::program::{self, TestProgram};
use crate::progress::Progress;
use crate::setup::{self, Purpose};
use crate::{cargo, sh};
pub use apt::mirrors;
use emulator::Emulator;
use image::Base;
use kernels::Kernel;
pub use plan::PEERS;
use plan::{Chosen, Plan};
use qemu::{Accelerator, Machine};
pub use report::Run;

const HELP: &str = "\
cargo xtask vm-test [--kernel V]... [OPTIONS] [FILTER]...

Runs the tests that depend on the kernel on Debian's kernels 6.1 and 6.12, in QEMU.

  --kernel V       6.1, 6.12, 5.10, another series, `newest`, or the path of a bzImage; can be repeated
  --modules DIR    lib/modules/VERSION of the bzImage, with its modules.dep
  --program NAME   only this module of tests (verdict, conversation, ...); can be repeated
  --accel NAME     kvm or tcg (default: kvm if it works)
  --short          the selection of `cargo xtask test`
  FILTER           part of a test's name
";

/// Seconds for one program, and for a whole machine.
const PROGRAM_LIMIT: u64 = 3600;
const MACHINE_LIMIT: u64 = 10_800;
const SHORT_PROGRAM_LIMIT: u64 = 300;
const SHORT_MACHINE_LIMIT: u64 = 420;

/// The parsed command line.
struct Arguments {
    kernels: Vec<String>,
    modules: Option<PathBuf>,
    accelerator: Option<Accelerator>,
    plan: Plan,
}

/// Sets up, builds, boots each kernel, and prints the table.
pub fn job(args: &[String]) -> Result<ExitCode> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    let arguments = Arguments::parse(args)?;
    check_host(env::consts::ARCH)?;
    let missing = setup::begin(&[Purpose::Test, Purpose::Machines])?.finish()?;
    if let Some(missing) = missing.iter().find(|missing| PEERS.contains(&missing.command.as_str())) {
        bail!("the virtual machines run this host's programs, and one is missing: {missing}");
    }
    setup::ensure_scapy(false);
    ensure_emulator()?;
    let progress = Progress::start(cargo::RELEASE_TIME * 3 / 2);
    sh::step("Building the tests for release");
    // All packages: selecting some would change features, and cargo would build dependencies again.
    let programs = program::build_tests(&["--test", "*"])?;
    drop(progress);
    let runs = all(&arguments, &programs)?;
    let good = runs.iter().all(Run::is_good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks the architecture: the machines run this host's programs on Debian's kernels for x86-64.
fn check_host(architecture: &str) -> Result<()> {
    match architecture {
        "x86_64" => Ok(()),
        other => bail!(
            "the virtual machines boot kernels for x86-64 with this host's programs, which are for {other}: run them on \
             an x86-64 host"
        ),
    }
}

/// Makes sure that there is a QEMU: the system's if it is or can be installed, otherwise Debian's packages, unpacked.
///
/// # Errors
/// If neither is possible; the error says why.
pub fn ensure_emulator() -> Result<()> {
    check_host(env::consts::ARCH)?;
    if emulator::is_present() || setup::system_qemu() {
        return Ok(());
    }
    emulator::ensure(&directory()?).map(drop)
}

/// Makes sure that there is a QEMU and that the default kernels are downloaded.
///
/// # Errors
/// If there is no QEMU or no kernel; the error says why.
pub fn ensure_short() -> Result<()> {
    ensure_emulator()?;
    let directory = directory()?;
    Plan::kernels().iter().try_for_each(|name| Kernel::find(&directory, name, None).map(drop))
}

/// Runs the short form on the default kernels, with programs that are already built.
pub fn short(programs: &[TestProgram]) -> Result<Vec<Run>> {
    let plan = Plan { short: true, programs: Vec::new(), filters: Vec::new() };
    all(&Arguments { kernels: Plan::kernels(), modules: None, accelerator: None, plan }, programs)
}

/// The directory of kernels, apt's lists and logs.
fn directory() -> Result<PathBuf> {
    let directory = sh::release_directory().with_file_name("vm");
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}

fn all(arguments: &Arguments, programs: &[TestProgram]) -> Result<Vec<Run>> {
    let directory = directory()?;
    // First, since everything else needs it.
    let emulator = emulator::ensure(&directory)?;
    let find = |name: &String| Kernel::find(&directory, name, arguments.modules.as_deref());
    let kernels: Vec<Kernel> = arguments.kernels.iter().map(find).collect::<Result<_>>()?;
    let chosen = arguments.plan.choose(programs);
    if chosen.is_empty() {
        let Plan { programs, filters, .. } = &arguments.plan;
        let names: Vec<&str> = programs.iter().chain(filters).map(String::as_str).collect();
        bail!("no module of the tests, and no test in one, matches {}", names.join(" or "));
    }
    sh::step("File system of the virtual machines");
    let executables: Vec<PathBuf> = chosen.iter().map(|program| program.executable.clone()).collect();
    let base = Base::make(&directory, &executables)?;
    println!("    QEMU: {}", emulator.describe());
    let accelerator = match (arguments.accelerator, kernels.first()) {
        (Some(accelerator), _) => accelerator,
        (None, Some(kernel)) => {
            let archive = Base::trial(&directory)?.with(None, &json!({"trial": true}))?;
            Accelerator::find(&emulator, &directory, &kernel.image, &archive)?
        }
        (None, None) => bail!("no kernel"),
    };
    let surroundings = Surroundings {
        directory: &directory,
        emulator: &emulator,
        accelerator,
        base: &base,
        is_short: arguments.plan.short,
    };
    let mut runs = Vec::new();
    for kernel in &kernels {
        let mut run = surroundings.run(kernel, &plan::on(kernel, &chosen), "")?;
        let failed = run.failed();
        if !failed.is_empty() {
            let again: Vec<Chosen> = failed
                .iter()
                .filter_map(|(title, names)| Some(chosen.iter().find(|one| one.title == *title)?.only(names)))
                .collect();
            sh::step("Once more: what failed");
            match surroundings.run(kernel, &again, "-again") {
                Ok(second) => run.settle(&second),
                Err(error) => run.failures.push(format!("run once more: {error:#}")),
            }
        }
        runs.push(run);
    }
    sh::step("Kernels");
    print!("{}", report::table(&runs));
    Ok(runs)
}

/// What the machines of one run share.
struct Surroundings<'a> {
    directory: &'a Path,
    emulator: &'a Emulator,
    accelerator: Accelerator,
    base: &'a Base,
    is_short: bool,
}

impl Surroundings<'_> {
    /// Boots a kernel and runs these programs; `suffix` is appended to the name of the machine's log.
    fn run(&self, kernel: &Kernel, chosen: &[Chosen], suffix: &str) -> Result<Run> {
        let &Self { directory, emulator, accelerator, base, is_short } = self;
        sh::step(&format!("Tests on Linux {} ({})", kernel.name, accelerator.name()));
        let (program, machine) =
            if is_short { (SHORT_PROGRAM_LIMIT, SHORT_MACHINE_LIMIT) } else { (PROGRAM_LIMIT, MACHINE_LIMIT) };
        if chosen.is_empty() {
            bail!("crafter does not support Linux {}: only the module kernel_age runs there", kernel.name);
        }
        let titles: Vec<&str> = chosen.iter().map(|program| program.title.as_str()).collect();
        let log = directory.join(format!("{}{suffix}.log", kernel.name.replace('/', "_")));
        let limit = Duration::from_secs(machine);
        let mut run = Run::new(&kernel.name, accelerator, &titles, log.clone());
        let mut processors = if accelerator == Accelerator::Kvm { 2 } else { kernel.processors() };
        loop {
            let left: Vec<Chosen> = run.begin().iter().map(|&place| chosen[place].clone()).collect();
            let orders = plan::orders(&left, accelerator == Accelerator::Tcg, program);
            let archive = base.with(Some(kernel), &orders)?;
            let log = log.clone();
            let machine = Machine { emulator, accelerator, processors, kernel: &kernel.image, archive: &archive, log };
            let ended = machine.run(limit, |event| run.handle_event(event));
            if ended.is_err() && processors > 1 && machine.has_run_stale_code() {
                run.note(
                    "the emulator executed half-patched kernel code (oops at int3): the rest runs on one processor",
                );
                processors = 1;
                continue;
            }
            run.end(ended);
            return Ok(run);
        }
    }
}

impl Arguments {
    fn parse(args: &[String]) -> Result<Self> {
        let mut parsed = Self {
            kernels: Vec::new(),
            modules: None,
            accelerator: None,
            plan: Plan { short: false, programs: Vec::new(), filters: Vec::new() },
        };
        let mut args = args.iter().filter(|arg| *arg != "--");
        while let Some(arg) = args.next() {
            let mut value = || args.next().cloned().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--kernel" => parsed.kernels.push(value()?),
                "--modules" => parsed.modules = Some(value()?.into()),
                "--program" => parsed.plan.programs.push(value()?),
                "--accel" => {
                    parsed.accelerator = Some(match value()?.as_str() {
                        "kvm" => Accelerator::Kvm,
                        "tcg" => Accelerator::Tcg,
                        other => bail!("--accel is kvm or tcg, not {other}"),
                    });
                }
                "--short" => parsed.plan.short = true,
                option if option.starts_with("--") => bail!("unknown option {option}\n{HELP}"),
                filter => parsed.plan.filters.push(filter.to_owned()),
            }
        }
        if parsed.kernels.is_empty() {
            parsed.kernels = Plan::kernels();
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_need_x86_64() {
        assert!(check_host("x86_64").is_ok());
        for other in ["aarch64", "riscv64"] {
            let sentence = check_host(other).unwrap_err().to_string();
            assert!(sentence.contains(&format!("for {other}: run them on an x86-64 host")), "{sentence}");
        }
    }
}
