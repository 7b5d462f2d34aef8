//! Runs test programs with a time limit and forwards their output line by line.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::json;

use crate::{Port, orders::Program};

/// Interval at which the exit of a program is polled and orphans are reaped.
const POLL: Duration = Duration::from_millis(20);

/// Maximum length of a forwarded line in bytes; longer lines are split.
const LINE: usize = 4000;

/// Runs one program until it exits, and reports its exit code.
pub fn run(out: &Port, number: usize, program: &Program) -> anyhow::Result<()> {
    let began = Instant::now();
    let (reader, writer) = std::io::pipe()?;
    let errors: OwnedFd = writer.try_clone()?.into();
    let mut command = Command::new(&program.command[0]);
    command.args(&program.command[1..]).current_dir(&program.directory).envs(program.variables.iter().cloned());
    // A process group, so that its children can be killed with it.
    command.process_group(0).stdin(Stdio::null()).stdout(writer).stderr(errors);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let text = format!("cannot start {}: {error}", program.command[0]);
            out.say(&json!({"event": "line", "program": number, "text": text}));
            out.say(&json!({"event": "end", "program": number, "code": 127, "seconds": 0}));
            return Ok(());
        }
    };
    // The command holds a copy of the pipe's write end.
    drop(command);
    let pid = Pid::from_raw(child.id() as i32);
    let ended = AtomicBool::new(false);
    let (code, timed_out) = thread::scope(|scope| {
        scope.spawn(|| forward(out, number, reader, &ended));
        let mut timed_out = false;
        let code = loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(exited, code)) if exited == pid => break code,
                Ok(WaitStatus::Signaled(exited, signal, _)) if exited == pid => break 128 + signal as i32,
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => thread::sleep(POLL),
                // An orphan, which init must reap.
                Ok(_) => {}
                Err(_) => break 255,
            }
            if began.elapsed() > program.limit && !timed_out {
                timed_out = true;
                let _ = killpg(pid, Signal::SIGKILL);
            }
        };
        // Group members that are still alive would keep the pipe open.
        if timed_out {
            let _ = killpg(pid, Signal::SIGKILL);
        }
        ended.store(true, Ordering::Relaxed);
        (code, timed_out)
    });
    let seconds = began.elapsed().as_secs_f64();
    out.say(&json!({"event": "end", "program": number, "code": code, "seconds": seconds, "timed_out": timed_out}));
    Ok(())
}

/// Forwards complete lines, and after 200 ms also an incomplete one, such as the name of a test that hangs.
fn forward(out: &Port, number: usize, mut reader: std::io::PipeReader, ended: &AtomicBool) {
    let mut held = Vec::new();
    let mut buffer = [0; 4096];
    let say = |bytes: &[u8]| {
        out.say(&json!({"event": "line", "program": number, "text": String::from_utf8_lossy(bytes)}));
    };
    loop {
        let ready = {
            use std::os::fd::AsFd as _;
            let mut fds = [nix::poll::PollFd::new(reader.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, 200_u16).unwrap_or(0)
        };
        if ready == 0 {
            // Another process may still hold the pipe.
            if ended.load(Ordering::Relaxed) {
                break;
            }
            continue;
        }
        let Ok(count @ 1..) = reader.read(&mut buffer) else { break };
        held.extend_from_slice(&buffer[..count]);
        while let Some(end) = held.iter().position(|byte| *byte == b'\n').or((held.len() > LINE).then_some(LINE)) {
            say(&held[..end]);
            held.drain(..=end);
        }
    }
    if !held.is_empty() {
        say(&held);
    }
}

/// Type, id and name of all programs, maps and links in this kernel.
pub fn bpf_objects() -> BTreeSet<String> {
    let programs = loaded_programs()
        .flatten()
        .map(|program| format!("program {} {}", program.id(), program.name_as_str().unwrap_or_default()));
    let maps = loaded_maps().flatten().map(|map| format!("map {} {}", map.id(), map.name_as_str().unwrap_or_default()));
    let links = loaded_links().flatten().map(|link| format!("link {}", link.id()));
    programs.chain(maps).chain(links).collect()
}

/// Every user process except this one; reaps exited children first.
pub fn processes() -> Vec<String> {
    while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Kernel threads have no command line.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid != 1 && !line.is_empty() && kill(Pid::from_raw(pid), None).is_ok() {
            found.push(format!("process {pid} {}", String::from_utf8_lossy(&line).replace('\0', " ").trim()));
        }
    }
    found
}
