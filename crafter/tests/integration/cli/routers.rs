//! A path of real Linux routers: client, three routers, server.
//!
//! Link `n` (from 0) is 10.N.0.0/24 and 2001:db8:N::/64; the end nearer to the client is `.1`, the other `.2`. So the
//! hops from the client are 10.0.0.2, 10.1.0.2, 10.2.0.2, and the server is 10.3.0.2.

use std::{
    ffi::OsStr,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crafter::lab::NetNs;

use super::{Done, run};

/// The server's addresses.
pub const SERVER: [&str; 2] = ["10.3.0.2", "2001:db8:3::2"];

/// The hops to it.
pub const HOPS: [[&str; 4]; 2] = [
    ["10.0.0.2", "10.1.0.2", "10.2.0.2", "10.3.0.2"],
    ["2001:db8::2", "2001:db8:1::2", "2001:db8:2::2", "2001:db8:3::2"],
];

/// Addresses to which no router has a route.
pub const NOWHERE: [&str; 2] = ["203.0.113.9", "2001:db8:ffff::9"];

/// The namespaces, from the client to the server.
pub struct Routers(Vec<NetNs>);

impl Routers {
    pub fn new() -> Self {
        let routers = Self((0..5).map(|_| NetNs::new().expect("a namespace; these tests run as root")).collect());
        for (at, ends) in routers.0.windows(2).enumerate() {
            let there = format!("/proc/{}/fd/{}", std::process::id(), ends[1].as_fd().as_raw_fd());
            ip(&ends[0], &["link", "add", "next", "type", "veth", "peer", "name", "prev", "netns", &there]);
            for (end, link, host) in [(&ends[0], "next", 1), (&ends[1], "prev", 2)] {
                ip(end, &["link", "set", link, "up"]);
                ip(end, &["address", "add", &format!("10.{at}.0.{host}/24"), "dev", link]);
                ip(end, &["address", "add", &format!("2001:db8:{at}::{host}/64"), "dev", link, "nodad"]);
            }
        }
        let last = routers.0.len() - 1;
        for (at, namespace) in routers.0.iter().enumerate() {
            if at > 0 && at < last {
                namespace
                    .run(|| {
                        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
                        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
                    })
                    .unwrap();
            }
            // Routes to all previous and all following links; the last router has no other route.
            for link in (0..last).filter(|link| *link + 1 < at || *link > at) {
                let (via, host) = if link < at { (at - 1, 1) } else { (at, 2) };
                ip(namespace, &["route", "add", &format!("10.{link}.0.0/24"), "via", &format!("10.{via}.0.{host}")]);
                let to = format!("2001:db8:{link}::/64");
                ip(namespace, &["-6", "route", "add", &to, "via", &format!("2001:db8:{via}::{host}")]);
            }
            if at + 1 < last {
                ip(namespace, &["route", "add", "default", "via", &format!("10.{at}.0.2")]);
                ip(namespace, &["-6", "route", "add", "default", "via", &format!("2001:db8:{at}::2")]);
            }
        }
        for server in SERVER {
            routers.wait_for(server);
        }
        routers
    }

    pub fn client(&self) -> &NetNs {
        &self.0[0]
    }

    pub fn server(&self) -> &NetNs {
        &self.0[4]
    }

    /// One of the three routers, numbered from 1.
    pub fn router(&self, number: usize) -> &NetNs {
        &self.0[number]
    }

    /// Removes the rate limits of ICMP errors of routers and server.
    pub fn answer_all(&self) {
        for namespace in &self.0 {
            namespace
                .run(|| {
                    fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").unwrap();
                    fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0").unwrap();
                })
                .unwrap();
        }
    }

    /// Runs the binary in the client's namespace.
    pub fn crafter(&self, args: &[&str]) -> Done {
        let mut command = self.client().command(env!("CARGO_BIN_EXE_crafter"));
        command.args(args);
        run(command)
    }

    /// Waits until a packet reaches the server and returns, since carrier and link-local addresses need time.
    fn wait_for(&self, server: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        let connect = || {
            std::net::TcpStream::connect_timeout(
                &format!("{}:9", bracketed(server)).parse().unwrap(),
                Duration::from_millis(200),
            )
        };
        while self.client().run(|| connect().expect_err("nobody listens").kind()).unwrap()
            != std::io::ErrorKind::ConnectionRefused
        {
            assert!(Instant::now() < until, "no route to {server}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// An address in the form that precedes a port.
pub fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn ip(namespace: &NetNs, args: &[&str]) {
    tool(namespace, "ip", args);
}

/// Runs a tool of the host in a namespace.
pub fn tool(namespace: &NetNs, program: impl AsRef<OsStr>, args: &[&str]) -> String {
    let mut command: Command = namespace.command(program);
    let output = command.args(args).output().unwrap_or_else(|error| panic!("{args:?}: {error}"));
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
