//! The setting of most tests: the lab's network, and checks that the kernel treats unowned ports as usual.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use crafter::{
    Crafter, Options,
    datapath::program::Attach,
    lab::{CLIENT_V4, CLIENT_V6, INTERFACE, Lab, LabOptions, SERVER_V4, SERVER_V6},
};

use crate::{
    frame::{SYN, Tcp},
    guarded::GuardedLab,
    peer::{Nginx, wait_for},
    wire::{Wire, mac},
};

/// The client's and the server's address, for each IP version.
pub const ENDS: [(IpAddr, IpAddr); 2] =
    [(IpAddr::V4(CLIENT_V4), IpAddr::V4(SERVER_V4)), (IpAddr::V6(CLIENT_V6), IpAddr::V6(SERVER_V6))];

/// The lab without its own web and DNS server.
pub fn lab() -> GuardedLab {
    GuardedLab::new(&LabOptions { web: false, dns: false, ..LabOptions::default() })
}

/// Default options with this attach mode.
pub fn options(attach: Attach) -> Options {
    Options { attach, ..Options::default() }
}

/// Opens the lab's interface from the calling thread's namespace.
pub async fn open(attach: Attach) -> Crafter {
    Crafter::open(INTERFACE, options(attach)).await.expect("open the interface")
}

/// A port of the client that is not owned and has no listener.
pub const CONTROL_PORT: u16 = 40_000;

/// Positive control: sends a SYN from an unowned port to port 80 of `server`. The client's kernel answers the SYN-ACK
/// with a RST, because it has no such connection.
pub fn unowned_syn(lab: &Lab, (client, server): (IpAddr, IpAddr), port: u16) {
    let neighbour = lab.server().run(|| mac(INTERFACE)).expect("enter the server");
    let syn = Tcp::new(SYN, 0x1000, 0).ip(SocketAddr::new(client, port), SocketAddr::new(server, 80));
    lab.client()
        .run(|| Wire::open(INTERFACE, neighbour).and_then(|wire| wire.send(&syn)))
        .expect("enter the client")
        .expect("send a SYN");
}

/// Waits until the server has received a RST from `source`.
pub fn wait_for_rst(lab: &Lab, source: SocketAddr) {
    wait_for(&format!("a RST from {source}"), Duration::from_secs(10), || {
        let rsts = lab.tap().segments().expect("the tap");
        rsts.iter().any(|rst| SocketAddr::new(rst.source, rst.port) == source).then_some(())
    });
}

/// Connects from the server's kernel to a port of the client.
pub fn connect_from_server(lab: &Lab, to: SocketAddr) -> io::Result<()> {
    lab.server().run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(drop)).expect("enter the server")
}

/// Asserts that the client's kernel refuses connections to an unowned port.
pub fn assert_refuses(lab: &Lab, to: SocketAddr) {
    let refused = connect_from_server(lab, to).expect_err("a refused connection");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{to}");
}

/// Asserts that curl, which uses the kernel's TCP, downloads the small page.
pub fn assert_curl_works(lab: &Lab, server: IpAddr, nginx: &Nginx) {
    let url = format!("http://{}{}", SocketAddr::new(server, 80), nginx.small.path);
    let mut curl = lab.client().command("curl");
    let output = curl.args(["-sS", "-g", "--max-time", "20", &url]).output().expect("curl");
    assert!(output.status.success(), "curl {url}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(crate::manual::sha256(&output.stdout), nginx.small.sha256, "curl {url}");
}

/// State of the server's socket connected to `peer`, as named by `ss`; `None` if there is no such socket.
pub fn server_socket(lab: &Lab, peer: SocketAddr) -> Option<String> {
    let output = lab.server().command("ss").args(["-Htan"]).output().expect("ss");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let peer = peer.to_string();
    text.lines()
        .find(|line| line.split_whitespace().any(|word| word == peer))
        .map(|line| line.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Runs `command`, which must succeed; returns its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("a command");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
