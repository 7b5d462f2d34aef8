//! The first process of the machines of `cargo xtask vm-test`: mounts what programs expect, runs what its orders name,
//! tells all of it as lines of JSON on the second serial port, and turns the machine off.
//!
//! As `vm_init probe` it is a child of itself, which loads and attaches the kernel half to tell what that took.

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

/// Where the orders are in the file system that the kernel unpacks.
const ORDERS: &str = "/vm-orders.json";

/// The port that xtask reads; the first one is the kernel's console.
const PORT: &str = "/dev/ttyS1";

/// How long the kernel may take to free what was freed.
const SETTLE: Duration = Duration::from_secs(20);

fn main() {
    if std::env::args().nth(1).as_deref() == Some("probe") {
        println!("{}", probe::report());
        return;
    }
    // Anywhere else this would turn somebody's machine off.
    if std::process::id() != 1 {
        eprintln!("vm_init is the first process of a virtual machine, see `cargo xtask vm-test`");
        std::process::exit(2);
    }
    if let Err(error) = work() {
        eprintln!("vm_init: {error:#}");
    }
    let _ = io::stdout().flush();
    // The first process must not end; without ACPI this does not return either.
    // SAFETY: no memory is involved.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    loop {
        std::thread::park();
    }
}

fn work() -> anyhow::Result<()> {
    mounts::all()?;
    let out = Port::open()?;
    let done = obey(&out);
    if let Err(error) = &done {
        out.say(&json!({"event": "error", "text": format!("{error:#}")}));
    }
    out.say(&json!({"event": "done"}));
    out.drain();
    done
}

fn obey(out: &Port) -> anyhow::Result<()> {
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
    // Nothing else runs here: what is there now and was not before, was left behind.
    let deadline = Instant::now() + SETTLE;
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

    /// Writes one line. Errors are nobody's to hear.
    pub fn say(&self, value: &Value) {
        let mut line = value.to_string();
        line.push('\n');
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = file.write_all(line.as_bytes());
    }

    /// Waits until all is out: turning off would cut it.
    fn drain(&self) {
        let file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = termios::tcdrain(&*file);
    }
}
