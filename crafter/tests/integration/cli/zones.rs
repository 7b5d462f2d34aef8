//! Zones of IPv6 addresses: `fe80::1%lab0` names the interface in every command that takes an address.

use std::io::{Read as _, Write as _};

use crafter::lab::Lab;
use crafter_tests::exit;

use super::{crafter, lab};

/// The link-local address of the lab's server.
fn link_local(lab: &Lab) -> String {
    let shown = lab.server().command("ip").args(["-6", "-br", "address", "show", "scope", "link"]).output().unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    let address = text.split_whitespace().find(|word| word.starts_with("fe80::")).expect("a link-local address");
    address.split('/').next().unwrap().to_owned()
}

/// A web server that answers `count` requests on the link-local address; the index of its interface is part of it.
fn serve(lab: &Lab, address: &str, count: usize) -> std::thread::JoinHandle<Vec<String>> {
    let device = lab.server().command("ip").args(["-br", "link", "show", "type", "veth"]).output().unwrap();
    let name = String::from_utf8(device.stdout).unwrap().split(['@', ' ']).next().unwrap().to_owned();
    let listener = lab.server().run(|| {
        let index = nix::net::if_::if_nametoindex(name.as_str()).unwrap();
        let address = std::net::SocketAddrV6::new(address.parse().unwrap(), 8080, 0, index);
        std::net::TcpListener::bind(address).unwrap()
    });
    let listener = listener.unwrap();
    std::thread::spawn(move || {
        let answer = |_| {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let length = client.read(&mut request).unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        };
        (0..count).map(answer).collect()
    })
}

#[test]
fn commands_send_over_the_interface_of_the_zone() {
    let lab = lab();
    let address = link_local(&lab);
    let index = lab.client().run(|| nix::net::if_::if_nametoindex("lab0").unwrap()).unwrap();
    for zone in ["lab0".to_owned(), index.to_string()] {
        crafter(&lab, &["ping", "-c", "1", &format!("{address}%{zone}")]).succeeds();
        crafter(&lab, &["ping", "-c", "1", "-i", "lab0", &format!("[{address}%{zone}]")]).succeeds();
        crafter(&lab, &["traceroute", &format!("{address}%{zone}")]).succeeds();
    }
    let urls = [
        format!("http://[{address}%lab0]:8080/a"),
        format!("[{address}%25lab0]:8080/b"),
        format!("http://[{address}%{index}]:8080/c"),
    ];
    let server = serve(&lab, &address, urls.len());
    for url in &urls {
        let done = crafter(&lab, &["get", "-q", url]);
        assert_eq!((done.code, done.text()), (0, "ok"), "{url}: {done:?}");
    }
    for request in server.join().unwrap() {
        // The zone has no meaning for the server (RFC 6874, section 3).
        assert!(request.contains(&format!("\r\nHost: [{address}]:8080\r\n")), "{request}");
    }
    // Nothing listens there: the port unreachable comes from the server itself.
    let refused = crafter(&lab, &["dns", &format!("@[{address}%lab0]:5353"), "web.lab.test"]);
    refused.fails(exit::REFUSED, &address);
}

#[test]
fn unknown_and_conflicting_zones_are_refused() {
    let lab = lab();
    let address = link_local(&lab);
    let scoped = |zone: &str| format!("{address}%{zone}");
    crafter(&lab, &["ping", "-c", "1", &scoped("nope0")]).fails(exit::NO_ROUTE, "no interface named 'nope0'");
    crafter(&lab, &["ping", "-c", "1", &scoped("77")]).fails(exit::NO_ROUTE, "no interface named '77'");
    crafter(&lab, &["get", &format!("[{}]", scoped("nope0"))]).fails(exit::NO_ROUTE, "no interface named 'nope0'");
    let both = crafter(&lab, &["ping", "-c", "1", "-i", "lo", &scoped("lab0")]);
    both.fails(exit::USAGE, "--interface lo: the zone of the address is lab0; leave out one of them");
    // Packets have no zone: the interface is named by an option.
    let packet = crafter(&lab, &["sr1", &format!(r#"IPv6(dst="{}")/ICMPv6EchoRequest()"#, scoped("lab0"))]);
    packet.fails(exit::USAGE, "and name the interface: -i lab0");
    crafter(&lab, &["sr1", "-i", "lab0", &format!(r#"IPv6(dst="{address}")/ICMPv6EchoRequest()"#)]).succeeds();
    assert_eq!(lab.tap().count().unwrap(), 0, "RSTs reached the server");
}
