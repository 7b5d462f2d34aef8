//! `crafter top`

use crafter_tests::exit;
use nix::{
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};
use serde_json::json;

use super::{served::Served, terminal::Terminal, wait};

const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

/// Checks that the terminal's settings are restored.
#[track_caller]
fn is_restored(terminal: &mut Terminal) {
    terminal.shows(LEAVE);
    let flags = tcgetattr(&terminal.keys).unwrap().local_flags;
    assert!(flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG), "{flags:?}");
}

#[test]
fn leases_flows_and_counters() {
    let served = Served::new();
    let _lease = served.handshake(true, 50_004);
    let mut top = Terminal::new(served.command(&["top", "--interval", "0.2"]));
    top.shows(ENTER);
    top.shows(&format!("process {}", served.pid()));
    for text in ["IN-BYTES/s", "nobody", "python3", "lab0", "50004"] {
        top.shows(text);
    }
    let flags = tcgetattr(&top.keys).unwrap().local_flags;
    assert!(!flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO), "raw");
    // A new lease is shown.
    let _other = served.lease(false, &json!({ "interface": "lab0", "protocol": "tcp", "port": 40_777 }));
    top.shows("40777");
    top.keys("\t");
    top.shows("192.0.2.2:50004");
    top.shows("192.0.2.1:80");
    top.keys("\t");
    top.shows("rst_suppressed");
    top.keys("q");
    assert_eq!(wait(&mut top.child), 0);
    is_restored(&mut top);
}

#[test]
fn unprivileged_user_sees_only_own_leases() {
    let served = Served::new();
    let _theirs = served.lease(true, &json!({ "interface": "lab0", "protocol": "tcp", "port": 50_005 }));
    let _ours = served.lease(false, &json!({ "interface": "lab0", "protocol": "tcp", "port": 40_005 }));
    let mut top = Terminal::new(served.command_as_nobody(&["top", "--interval", "0.1"]));
    top.shows("leases 2");
    top.shows("50005");
    std::thread::sleep(std::time::Duration::from_millis(300));
    top.keys("\x03");
    assert_eq!(wait(&mut top.child), 0);
    top.shows(LEAVE);
    assert!(!top.said().contains("40005") && !top.said().contains("root"), "{}", top.said());
}

#[test]
fn signals_restore_the_terminal() {
    let served = Served::new();
    for (signal, code) in
        [(Signal::SIGTERM, 128 + libc::SIGTERM), (Signal::SIGINT, 0), (Signal::SIGHUP, 128 + libc::SIGHUP)]
    {
        let mut top = Terminal::new(served.command(&["top"]));
        top.shows("IN-BYTES/s");
        kill(Pid::from_raw(top.child.id() as i32), signal).unwrap();
        assert_eq!(wait(&mut top.child), code, "{signal}");
        is_restored(&mut top);
    }
}

#[test]
fn top_follows_the_size_of_the_terminal() {
    let served = Served::new();
    // 0: unknown.
    for columns in [0, 40, 200] {
        let mut top = Terminal::with_size(served.command(&["top", "--interval", "0.1"]), (40, columns));
        top.shows(ENTER);
        super::interrupted::handles_signals(&top.child);
        top.resize(100);
        top.shows("IN-BYTES/s");
        top.keys("q");
        assert_eq!(top.wait(), 0, "{columns}: {}", top.said());
        is_restored(&mut top);
    }
}

/// The window is closed.
#[test]
fn top_ends_with_its_terminal() {
    let served = Served::new();
    let mut command = served.lab.command("setsid");
    command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_crafter"), "top", "--socket"]).arg(&served.socket);
    let mut top = Terminal::new(command);
    top.shows("IN-BYTES/s");
    // Drawing or reading keys may fail before the signal arrives.
    let code = top.close();
    assert!([128 + libc::SIGHUP, 1, 0].contains(&code), "{code}");
}

#[test]
fn top_survives_a_restart_of_the_service() {
    let mut served = Served::new();
    let mut top = Terminal::new(served.command(&["top", "--interval", "0.1"]));
    top.shows("IN-BYTES/s");
    assert_eq!(served.stop(), 0);
    top.shows("crafter service at");
    served.restart();
    let _lease = served.lease(false, &json!({ "interface": "lab0", "protocol": "tcp", "port": 40_006 }));
    top.shows("40006");
    top.keys("q");
    assert_eq!(wait(&mut top.child), 0);
    is_restored(&mut top);
}

#[test]
fn top_without_terminal_is_refused() {
    let mut served = Served::new();
    served.root(&["top"]).fails(exit::USAGE, "`crafter leases --json`");
    served.root(&["top", "--json"]).fails(exit::USAGE, "`crafter leases --json`");
    served.stop();
    let mut top = Terminal::new(served.command(&["top"]));
    assert_eq!(wait(&mut top.child), i32::from(exit::FAILURE));
    top.shows("no crafter service at");
    assert!(!top.said().contains(ENTER));
}
