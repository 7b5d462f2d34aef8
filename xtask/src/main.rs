//! `cargo xtask JOB`: one command for each job of a contributor. Each job has a file of its own.

mod bench;
mod build;
mod cargo;
mod demo;
mod deny;
#[cfg(test)]
#[allow(dead_code)]
#[path = "../../tests/src/executable.rs"]
mod executable;
mod fresh;
mod fuzz;
mod host;
mod install;
mod program;
mod progress;
mod run;
mod setup;
mod sh;
mod terminal;
mod test;
mod toolchain;
mod vm;

use std::env;
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask JOB [ARGS]

  setup            install what all of these need; prints each step
  build            build everything for release
  run [--] ARGS    build, then run crafter as root
  demo             a conversation from the SYN to the FIN in a temporary network, explained step by step
  test [FILTER]    all tests, as root in network namespaces; FILTER: a module of the integration tests,
                   or part of a test's name; --long: the long forms (hours)
  fuzz [TARGET]    fuzz layers, text, policy, control_socket, ...; --seconds N (60)
  vm-test          the tests on other kernels, in virtual machines; --help
  bench [NAME]     measure crafter next to comparable tools
  fresh [SUITE]    run the demo in minimal chroots of Debian 12 and 13, and print its times; --test: all tests
  deny             check licences, sources and advisories of all dependencies
  install          install binary, units, man pages; --prefix DIR (/usr/local), --destdir DIR, --uninstall
  help             print this text

Each job installs only what it uses, as root or through sudo.
";

enum Job {
    Setup,
    Build,
    Run,
    Demo,
    Test,
    Fuzz,
    VmTest,
    Bench,
    Deny,
    Fresh,
    Install,
    HostState,
    Help,
}

impl Job {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "setup" => Self::Setup,
            "build" => Self::Build,
            "run" => Self::Run,
            "demo" => Self::Demo,
            "test" => Self::Test,
            "fuzz" => Self::Fuzz,
            "vm-test" => Self::VmTest,
            "bench" => Self::Bench,
            "deny" => Self::Deny,
            "fresh" => Self::Fresh,
            "install" => Self::Install,
            host::JOB => Self::HostState,
            "help" | "-h" | "--help" => Self::Help,
            _ => return None,
        })
    }

    /// Runs the job and returns its exit code.
    fn start(self, args: &[String]) -> anyhow::Result<ExitCode> {
        match self {
            Self::Setup => setup::job(args),
            Self::Build => build::job(args),
            Self::Run => run::job(args),
            Self::Demo => demo::job(args),
            Self::Test => test::job(args),
            Self::Fuzz => fuzz::job(args),
            Self::VmTest => vm::job(args),
            Self::Bench => bench::job(args),
            Self::Deny => deny::job(args),
            Self::Fresh => fresh::job(args),
            Self::Install => install::job(args),
            Self::HostState => host::job(args),
            Self::Help => {
                print!("{HELP}");
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((name, rest)) = args.split_first() else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    let Some(job) = Job::named(name) else {
        eprintln!("xtask: there is no job `{name}`; `cargo xtask help` lists them");
        return ExitCode::from(2);
    };
    // The virtual machines have options of their own, and `run` passes everything on to crafter.
    let own_help = matches!(job, Job::VmTest | Job::Run);
    let job = if !own_help && rest.iter().any(|arg| arg == "-h" || arg == "--help") { Job::Help } else { job };
    job.start(rest).unwrap_or_else(|error| {
        eprintln!("xtask {name}: {}", sh::without_credentials(&format!("{error:#}")));
        ExitCode::FAILURE
    })
}
