//! The model drawn on a screen in memory; a real terminal after a panic.

use std::{
    fs::File,
    io::Read as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crafter::protocol::wire::{Flow, Info, InterfaceCounters, Lease};
use nix::{
    pty::openpty,
    sys::termios::{LocalFlags, tcgetattr},
};
use ratatui::{Terminal, backend::TestBackend};

use super::{
    draw,
    model::{Key, Model, Snapshot, Tab},
    screen::Screen,
};
use crate::cli::leases::NamedLease;

fn named(number: u64, user: &str, delivered: u64, sent: u64) -> NamedLease {
    let lease = Lease {
        lease: number,
        interface: "lab0".into(),
        protocol: "tcp".into(),
        first_port: Some(50_000),
        last_port: Some(50_059),
        delivered,
        delivered_bytes: delivered * 100,
        sent,
        sent_bytes: sent * 40,
        suppressed: number,
        lost: 2,
        refused: 3,
        ..Lease::default()
    };
    NamedLease { lease, user_name: Some(user.into()), process: (number == 1).then(|| "curl".to_owned()) }
}

fn snapshot(leases: Vec<NamedLease>) -> Snapshot {
    let info = Info {
        version: "1.2.3".into(),
        pid: 7,
        policy: "shipped".into(),
        leases: leases.len() as u64,
        ..Info::default()
    };
    Snapshot { info, leases, ..Snapshot::default() }
}

fn minute(_: u64) -> Duration {
    Duration::from_secs(60)
}

fn drawn(model: &mut Model, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| row(y).trim_end().to_owned()).collect()
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn leases_have_rates() {
    let mut model = Model::new();
    let start = Instant::now();
    model.take(snapshot(vec![named(1, "alice", 100, 10), named(2, "bob", 0, 0)]), start, minute);
    let lines = drawn(&mut model, 140, 8);
    assert_eq!(lines[0], "crafter 1.2.3, process 7, up 1m00s, leases 2, policy shipped");
    let expected = "1 alice curl lab0 tcp 50000-50059 - - - - 1 2 3 1m00s";
    assert_eq!(words(&lines[4]).join(" "), expected, "rates are unknown after one snapshot");

    // Two seconds later, with a new lease.
    let later = start + Duration::from_secs(2);
    model.take(
        snapshot(vec![named(1, "alice", 110, 10), named(2, "bob", 60_000, 1), named(3, "carol", 5, 0)]),
        later,
        minute,
    );
    let lines = drawn(&mut model, 140, 8);
    assert_eq!(
        lines[1],
        "in 30.0k packets/s 3.0M bytes/s, out 0.5 packets/s 20 bytes/s, RSTs suppressed 6, lost 6, refused 9"
    );
    assert_eq!(words(&lines[2]), ["leases", "flows", "interfaces"]);
    assert!(lines[3].contains(" IN/sv ") && lines[3].ends_with("AGE"), "{}", lines[3]);
    let rows: Vec<Vec<&str>> = lines[4..7].iter().map(|line| words(line)).collect();
    assert_eq!(
        rows[0][1..],
        ["bob", "-", "lab0", "tcp", "50000-50059", "30.0k", "3.0M", "0.5", "20", "2", "2", "3", "1m00s"]
    );
    assert_eq!(rows[1][1..9], ["alice", "curl", "lab0", "tcp", "50000-50059", "5.0", "500", "0"]);
    assert_eq!(rows[2][1..9], ["carol", "-", "lab0", "tcp", "50000-50059", "2.5", "250", "0"]);
    assert!(lines[7].starts_with("q quit"), "{lines:?}");

    // A lease that has ended is not shown; a counter that decreased has started again from 0.
    model.take(snapshot(vec![named(2, "bob", 10, 1)]), later + Duration::from_secs(1), minute);
    let lines = drawn(&mut model, 140, 8);
    assert_eq!((words(&lines[4])[6], lines[5].as_str()), ("10", ""), "{lines:?}");
}

#[test]
fn keys_sort_and_move() {
    let mut model = Model::new();
    let many = (1..=50).map(|number| named(number, &format!("user{:02}", 99 - number), 0, 0)).collect();
    model.take(snapshot(many), Instant::now(), minute);
    let users = |model: &mut Model| -> Vec<String> {
        drawn(model, 140, 15)[4..14].iter().map(|line| words(line)[1].to_owned()).collect()
    };
    // Cycle from the rate to the user name.
    for _ in 0..9 {
        model.press(Key::Sort);
    }
    assert_eq!(model.order(), (Some(1), false));
    assert_eq!(users(&mut model)[0], "user49");
    model.press(Key::Reverse);
    assert_eq!(users(&mut model)[0], "user98");
    model.press(Key::Page(1));
    assert_eq!(users(&mut model)[9], "user88", "the selected row is visible");
    model.press(Key::End);
    assert_eq!(users(&mut model)[9], "user49");
    model.press(Key::Move(-1));
    assert_eq!(model.window(10), (40, 48));
    model.press(Key::Move(-10));
    assert_eq!(model.window(10), (38, 38));
    model.press(Key::Home);
    model.press(Key::Move(-1));
    assert_eq!(model.window(10), (0, 0));
    // The remaining rows are visible after most have ended.
    model.press(Key::End);
    assert_eq!(model.window(10), (40, 49));
    model.take(snapshot(vec![named(1, "a", 0, 0), named(2, "b", 0, 0)]), Instant::now(), minute);
    assert_eq!(model.window(10), (0, 1));
}

#[test]
fn tabs_show_flows_and_counters() {
    let mut model = Model::new();
    let flow = |rx_packets| Flow {
        interface: "lab0".into(),
        protocol: "tcp".into(),
        local: "192.0.2.2:50000".into(),
        remote: "192.0.2.1:80".into(),
        rx_packets,
        last_flags: 0x12,
        suppressed: 4,
        ..Flow::default()
    };
    let counters = |redirected| InterfaceCounters {
        interface: "lab0".into(),
        ingress: redirected + 1,
        egress: 0,
        counters: [("redirected".to_owned(), redirected), ("crafted".to_owned(), 0)].into(),
    };
    let start = Instant::now();
    let all =
        |n| Snapshot { flows: Some((vec![flow(n)], n > 1)), counters: Some(vec![counters(n)]), ..snapshot(vec![]) };
    model.take(all(1), start, minute);
    model.take(all(9), start + Duration::from_secs(4), minute);
    model.press(Key::NextTab);
    assert_eq!(model.tab(), Tab::Flows);
    let lines = drawn(&mut model, 120, 10);
    let expected = "lab0 tcp 192.0.2.2:50000 192.0.2.1:80 2.0 0 0 0 S. 4";
    assert_eq!(words(&lines[4]).join(" "), expected);
    assert_eq!(lines[9], "only 1 flows are shown");
    model.press(Key::NextTab);
    let lines = drawn(&mut model, 120, 10);
    assert_eq!(words(&lines[4]).join(" "), "lab0 ingress total 10 2.0");
    assert_eq!(words(&lines[5]).join(" "), "lab0 ingress redirected redirect 9 2.0");
    assert_eq!(words(&lines[6]).join(" "), "lab0 egress total 0 0");
    model.press(Key::NextTab);
    assert_eq!(model.tab(), Tab::Leases);
    model.press(Key::PreviousTab);
    assert_eq!(model.tab(), Tab::Interfaces);

    // The last snapshot stays visible, with the error.
    model.fail("the crafter service has stopped".into());
    let lines = drawn(&mut model, 120, 10);
    assert_eq!((words(&lines[4])[3], lines[9].as_str()), ("10", "the crafter service has stopped"));
    model.take(all(1), start + Duration::from_secs(5), minute);
    assert_eq!(drawn(&mut model, 120, 10)[9], draw::KEYS);
}

#[test]
fn every_screen_size_is_drawn() {
    let mut model = Model::new();
    model.take(snapshot((1..40).map(|number| named(number, "user", 0, 0)).collect()), Instant::now(), minute);
    for key in [Key::Home, Key::NextTab, Key::NextTab] {
        model.press(key);
        for (width, height) in [(1, 1), (2, 3), (10, 4), (20, 5), (40, 6), (80, 24), (300, 60)] {
            drawn(&mut model, width, height);
        }
    }
}

/// Runs in the terminal of the test below.
#[test]
#[ignore = "run by panic_restores_the_terminal, in a terminal"]
fn panics() {
    let mut screen = Screen::open().unwrap();
    screen.draw(&mut Model::new()).unwrap();
    panic!("on purpose");
}

#[test]
fn panic_restores_the_terminal() {
    let pty = openpty(None, None).unwrap();
    let before = tcgetattr(&pty.slave).unwrap();
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "cli::top::tests::panics"]).env("TERM", "xterm");
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    drop(command);
    let mut master = File::from(pty.master);
    let reading = std::thread::spawn(move || {
        let (mut output, mut bytes) = (String::new(), [0; 4096]);
        while let Ok(count @ 1..) = master.read(&mut bytes) {
            output += &String::from_utf8_lossy(&bytes[..count]);
        }
        output
    });
    let status = child.wait().unwrap();
    let after = tcgetattr(&pty.slave).unwrap();
    drop(pty.slave);
    let output = reading.join().unwrap();
    assert!(!status.success() && output.contains("on purpose"), "{output}");
    let (entered, left) = (output.find("\x1b[?1049h").unwrap(), output.find("\x1b[?1049l").unwrap());
    assert!(
        entered < left && left < output.find("on purpose").unwrap(),
        "the message is printed on the normal screen: {output:?}"
    );
    assert_eq!(after.local_flags & LocalFlags::all(), before.local_flags & LocalFlags::all());
}
