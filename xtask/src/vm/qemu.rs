//! Runs one virtual machine: QEMU without network device or disk. Its output is reported line by line, and QEMU is
//! always ended.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::emulator::Emulator;
use super::image;
use crate::sh;

/// MiB of memory: the archive, twice while it is unpacked, and the tests.
const MEMORY: &str = "3072";

/// Time limit for booting a kernel with KVM to test whether it works.
const TRIAL: Duration = Duration::from_secs(12);

/// QEMU's accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualisation by KVM.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accelerator {
    /// QEMU's name of it.
    pub fn name(self) -> &'static str {
        if self == Self::Kvm { "kvm" } else { "tcg" }
    }

    /// KVM if a kernel boots with it; being able to open /dev/kvm is not enough.
    pub fn find(emulator: &Emulator, directory: &Path, kernel: &Path, archive: &Path) -> Result<Self> {
        if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            println!("    /dev/kvm cannot be opened: the processor is emulated");
            return Ok(Self::Tcg);
        }
        let began = Instant::now();
        let mut up = false;
        let log = directory.join("trial.log");
        let machine = Machine { emulator, accelerator: Self::Kvm, processors: 2, kernel, archive, log };
        let ended = machine.run(TRIAL, |event| up |= event["event"] == "up");
        let seconds = began.elapsed().as_secs_f32();
        if up && ended.is_ok() {
            println!("    KVM works: a kernel booted in {seconds:.1} s");
            return Ok(Self::Kvm);
        }
        let why = ended.err().map_or_else(|| "the kernel did not boot".to_owned(), |error| format!("{error:#}"));
        println!("    KVM does not work here ({why}): the processor is emulated");
        Ok(Self::Tcg)
    }
}

/// The parts of a machine.
pub struct Machine<'a> {
    /// The QEMU that runs it.
    pub emulator: &'a Emulator,
    /// QEMU's accelerator.
    pub accelerator: Accelerator,
    /// Number of processors; each is a thread of QEMU.
    pub processors: u32,
    /// The kernel's image.
    pub kernel: &'a Path,
    /// Its initramfs.
    pub archive: &'a Path,
    /// The file for the kernel's console.
    pub log: PathBuf,
}

/// Output of the machine and of QEMU.
enum Message {
    /// A line of JSON from the machine's init process.
    Event(Box<Value>),
    /// Any other line.
    Text(String),
    End,
}

impl Machine<'_> {
    /// Runs it until it powers off.
    ///
    /// # Errors
    /// If it does not power off within `limit`.
    pub fn run(&self, limit: Duration, mut on_event: impl FnMut(&Value)) -> Result<()> {
        let mut child = self.start(limit)?;
        let (sender, receiver) = mpsc::channel();
        let (out, errors) = (child.0.stdout.take(), child.0.stderr.take());
        let to = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(out.into_iter().next()?).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                let said = match serde_json::from_str(&line) {
                    Ok(event) => Message::Event(Box::new(event)),
                    Err(_) => Message::Text(line),
                };
                to.send(said).ok()?;
            }
            to.send(Message::End).ok()
        });
        thread::spawn(move || {
            for line in BufReader::new(errors.into_iter().next()?).lines().map_while(Result::ok) {
                sender.send(Message::Text(line)).ok()?;
            }
            Some(())
        });
        let deadline = Instant::now() + limit;
        let mut done = false;
        let mut lines_of_qemu = Vec::new();
        loop {
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Message::Event(event)) => {
                    done |= event["event"] == "done";
                    on_event(&event);
                }
                // QEMU stops the machine then and waits for a debugger.
                Ok(Message::Text(line)) if line.contains("KVM internal error") => bail!("{line}"),
                // Warnings about features that the emulated processor lacks.
                Ok(Message::Text(line)) if line.is_empty() || line.contains("warning: ") => {}
                Ok(Message::Text(line)) => lines_of_qemu.push(line),
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("it did not end within {} s; {}", limit.as_secs(), self.last_output(&lines_of_qemu))
                }
            }
        }
        let status = child.0.wait()?;
        if !done || !status.success() {
            bail!("the machine ended early ({status}); {}", self.last_output(&lines_of_qemu));
        }
        Ok(())
    }

    /// Whether its kernel ended as QEMU 7.2 makes it end now and then with several processors: one sees half of what
    /// another one patches into the kernel's code.
    pub fn has_run_stale_code(&self) -> bool {
        let log = fs::read(&self.log).unwrap_or_default();
        self.accelerator == Accelerator::Tcg && String::from_utf8_lossy(&log).contains("Oops: int3")
    }

    fn start(&self, limit: Duration) -> Result<EndOnDrop> {
        let processor = if self.accelerator == Accelerator::Kvm { "host" } else { "max" };
        let accelerator = match self.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        };
        let init = image::init();
        let append = format!("console=ttyS0 quiet loglevel=4 panic=-1 rdinit={}", init.display());
        // When xtask ends, setpriv's signal ends `timeout`, which ends QEMU.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "timeout", "--kill-after=5"]).arg((limit.as_secs() + 10).to_string());
        self.emulator.add_to(&mut command);
        command
            .args(["-accel", accelerator, "-cpu", processor, "-smp", &self.processors.to_string(), "-m", MEMORY])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"])
            .arg("-serial")
            .arg(format!("file:{}", self.log.display()))
            .args(["-serial", "stdio", "-kernel"])
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.archive)
            .args(["-append", &append]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(EndOnDrop(command.spawn().context("setpriv does not start")?))
    }

    fn last_output(&self, lines_of_qemu: &[String]) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(12)..].join("\n        ");
        format!("QEMU printed {lines_of_qemu:?}, and the kernel's console ends with\n        {last}")
    }
}

/// A process that is ended when this is dropped.
struct EndOnDrop(Child);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // SIGTERM and not SIGKILL, so that `timeout` forwards it to QEMU.
            let _ = sh::kill("TERM", self.0.id());
        }
        let _ = self.0.wait();
    }
}
