//! The program `crafter`.

use std::{array, io, os::unix::net::UnixStream, process::ExitCode};

use crate::cli::{exit, signals::Interruption};

mod cli;

fn main() -> ExitCode {
    cli::signals::hold();
    cli::complete::answer();
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if !cli.command.handles_signals() {
        cli::signals::release();
    }
    cli::logger::start(cli.globals.log);
    if let Err(error) = can_open_descriptors() {
        let advice = "cannot start: the limit of open files is too low; raise it with `ulimit -n`";
        cli::print::error(&anyhow::Error::new(error).context(advice));
        return exit::FAILURE.into();
    }
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // Polls sockets more often than the default (61): the busy-polling service rarely lets the thread sleep.
    builder.enable_all().event_interval(4).max_blocking_threads(crafter::service::MAX_BLOCKING_THREADS);
    let runtime = match builder.build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::print::error(&anyhow::Error::new(error).context("cannot start the async runtime"));
            return exit::FAILURE.into();
        }
    };
    let code = match runtime.block_on(cli.command.run(&cli.globals)) {
        Ok(code) => code,
        Err(error) => match error.downcast_ref() {
            Some(interruption @ Interruption::Signal(_)) => interruption.code(),
            // The results could not be written to the terminal.
            None if cli::hang_up::has_arrived() => exit::signal(libc::SIGHUP),
            interruption => {
                cli::print::error(&error);
                interruption.map_or_else(|| exit::code_of(&error), |interruption| interruption.code())
            }
        },
    };
    // Does not wait for blocking tasks: their results are not needed.
    runtime.shutdown_background();
    code.into()
}

/// Tests whether file descriptors are available for the runtime, which panics if it cannot create socket pairs.
fn can_open_descriptors() -> io::Result<()> {
    let pairs: [io::Result<_>; 3] = array::from_fn(|_| UnixStream::pair());
    pairs.into_iter().try_for_each(|pair| pair.map(drop))
}
