//! The command line of crafter.

use std::{array, io, os::unix::net::UnixStream, process::ExitCode};

use crate::cli::exit;
use clap::Parser;

mod cli;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::print::usage(&error),
    };
    cli::logger::start(cli.globals.log);
    if let Err(error) = can_open_descriptors() {
        let advice = "start: this process may open too few file descriptors (raise `ulimit -n`)";
        cli::print::error(&anyhow::Error::new(error).context(advice));
        return exit::FAILURE.into();
    }
    // Sockets are looked at often: the service keeps its thread awake while packets come.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().event_interval(4).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::print::error(&anyhow::Error::new(error).context("cannot start the async runtime"));
            return exit::FAILURE.into();
        }
    };
    let code = match runtime.block_on(cli.command.run(&cli.globals)) {
        Ok(code) => code,
        Err(error) => {
            cli::print::error(&error);
            exit::code_of(&error)
        }
    };
    // Not waiting for blocking tasks, which have nothing left to report to.
    runtime.shutdown_background();
    code.into()
}

/// Whether there are descriptors for the runtime, which panics where it gets no socket pair for its signals.
fn can_open_descriptors() -> io::Result<()> {
    let pairs: [io::Result<_>; 3] = array::from_fn(|_| UnixStream::pair());
    pairs.into_iter().try_for_each(|pair| pair.map(drop))
}
