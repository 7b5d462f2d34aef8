//! The init process of the virtual machines of `cargo xtask vm-test`: mounts file systems, runs the ordered programs,
//! reports as lines of JSON on the second serial port, and powers the machine off.
//!
//! As `vm_init probe`, a child of itself, it loads and attaches the kernel half and reports the result.

mod mounts;
mod orders;
mod probe;
mod runs;

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    process::Command,
    sync::Mutex,
    time::{Duration, Instant},
};

use nix::sys::termios;
use orders::Orders;
use serde_json::{Value, json};

/// Path of the orders in the initial file system.
const ORDERS: &str = "/vm-orders.json";

/// The serial port that xtask reads; the first one is the kernel's console.
const PORT: &str = "/dev/ttyS1";

/// Timeout for the kernel to free BPF objects and processes.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(20);

fn main() {
    if std::env::args().nth(1).as_deref() == Some("probe") {
        println!("{}", probe::report());
        return;
    }
    // Anywhere else this would power off the user's machine.
    if std::process::id() != 1 {
        eprintln!("vm_init is the first process of a virtual machine, see `cargo xtask vm-test`");
        std::process::exit(2);
    }
    if let Err(error) = work() {
        eprintln!("vm_init: {error:#}");
    }
    let _ = io::stdout().flush();
    // The init process must not exit. Without ACPI, reboot() does not return either.
    // SAFETY: reboot() takes no pointer.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    loop {
        std::thread::park();
    }
}

fn work() -> anyhow::Result<()> {
    mounts::all()?;
    let out = Port::open()?;
    let done = execute(&out);
    if let Err(error) = &done {
        out.say(&json!({"event": "error", "text": format!("{error:#}")}));
    }
    out.say(&json!({"event": "done"}));
    out.drain();
    done
}

fn execute(out: &Port) -> anyhow::Result<()> {
    let orders = Orders::read(ORDERS)?;
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    out.say(&json!({"event": "up", "release": release}));
    if orders.trial {
        return Ok(());
    }
    mounts::environment(&orders.modules);
    let mut probe = Command::new("/proc/self/exe");
    probe.arg("probe").env("PATH", mounts::PATH).env("CRAFTER_BIN", &orders.crafter);
    let probed = probe.output()?;
    out.say(&match serde_json::from_slice::<Value>(&probed.stdout) {
        Ok(report) => json!({"event": "probe", "report": report}),
        Err(_) => json!({"event": "error", "text": format!("the probe: {}", String::from_utf8_lossy(&probed.stderr))}),
    });
    let before = runs::bpf_objects();
    for (number, program) in orders.programs.iter().enumerate() {
        runs::run(out, number, program)?;
    }
    // Nothing else runs on this machine, so everything new was left by the programs.
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    let left = loop {
        let mut left: Vec<String> = runs::bpf_objects().difference(&before).cloned().collect();
        left.extend(runs::processes());
        if left.is_empty() || Instant::now() > deadline {
            break left;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    out.say(&json!({"event": "left", "what": left}));
    Ok(())
}

/// The serial port to xtask: one JSON value per line.
pub struct Port(Mutex<File>);

impl Port {
    fn open() -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(PORT)?;
        let mut settings = termios::tcgetattr(&file)?;
        termios::cfmakeraw(&mut settings);
        termios::tcsetattr(&file, termios::SetArg::TCSANOW, &settings)?;
        Ok(Self(Mutex::new(file)))
    }

    /// Writes one line. Errors are ignored: there is nowhere to report them.
    pub fn say(&self, value: &Value) {
        let mut line = value.to_string();
        line.push('\n');
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = file.write_all(line.as_bytes());
    }

    /// Waits until everything is transmitted: powering off would truncate it.
    fn drain(&self) {
        let file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = termios::tcdrain(&*file);
    }
}
