use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

use socket2::{Domain, Socket, Type};

use super::{
    super::{
        interface::interface,
        maps::Terms,
        program::{Kernel, LoadOptions},
        reserve::{Acquisition, DYNAMIC, Reservation, reserve, reserve_free, reserve_range},
    },
    *,
};
use crate::{
    error::{Error, Result},
    packet::Transport::{self, Tcp, Udp},
};

const PORT: u16 = 6000;

/// What another program would do: bind with SO_REUSEADDR, which conflicts with the fewest sockets, and listen.
fn bind(transport: Transport, address: &str, port: u16) -> std::io::Result<Socket> {
    let address = SocketAddr::new(ip(address), port);
    let kind = if transport == Tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    if transport == Tcp {
        socket.listen(8)?;
    }
    Ok(socket)
}

fn holder(result: Result<Reservation>) -> String {
    match result {
        Err(error @ Error::PortTaken { .. }) => error.to_string(),
        other => panic!("expected PortTaken, not {other:?}"),
    }
}

/// This process, as others would name it.
fn this() -> String {
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    format!("{} (pid {})", comm.trim(), std::process::id())
}

#[test]
fn reserved_port_cannot_be_bound_by_others() {
    pair(|_peer| async move {
        let index = interface("v0").await.unwrap().ifindex;
        for transport in [Tcp, Udp] {
            let held = reserve(transport, ip("0.0.0.0"), PORT, index).unwrap();
            for address in ["0.0.0.0", "::", "127.0.0.1", "::1", HERE[0], HERE[1]] {
                let kind = bind(transport, address, PORT).map(drop).map_err(|error| error.kind());
                assert_eq!(kind, Err(ErrorKind::AddrInUse), "{transport} any, {address}");
            }
            // Also one that binds to a device.
            let bound =
                Socket::new(Domain::IPV4, if transport == Tcp { Type::STREAM } else { Type::DGRAM }, None).unwrap();
            bound.bind_device(Some(b"v0")).unwrap();
            let any: SocketAddr = (ip("0.0.0.0"), PORT).into();
            assert_eq!(bound.bind(&any.into()).unwrap_err().kind(), ErrorKind::AddrInUse);
            drop(held);
            for address in ["0.0.0.0", "::"] {
                again(|| bind(transport, address, PORT));
            }

            for (address, other) in [(HERE[0], "127.0.0.1"), (HERE[1], "::1")] {
                let held = again(|| reserve(transport, ip(address), PORT, index));
                for taken in [address, if ip(address).is_ipv4() { "0.0.0.0" } else { "::" }] {
                    let kind = bind(transport, taken, PORT).map(drop).map_err(|error| error.kind());
                    assert_eq!(kind, Err(ErrorKind::AddrInUse), "{transport} {address}, {taken}");
                }
                again(|| bind(transport, other, PORT));
                drop(held);
                again(|| bind(transport, address, PORT));
            }
        }
    });
}

/// The refusals of one reservation, by what another program of the same user would bind, and with which options.
#[test]
fn no_socket_option_or_address_bypasses_a_reservation() {
    pair(|_peer| async move {
        let index = interface("v0").await.unwrap().ifindex;
        let try_to_bind = |transport, address: &str, (address_reuse, port_reuse, device): (bool, bool, bool)| {
            let address = SocketAddr::new(ip(address), PORT);
            let kind = if transport == Tcp { Type::STREAM } else { Type::DGRAM };
            let socket = Socket::new(Domain::for_address(address), kind, None).unwrap();
            socket.set_reuse_address(address_reuse).unwrap();
            socket.set_reuse_port(port_reuse).unwrap();
            if device {
                socket.bind_device(Some(b"v0")).unwrap();
            }
            socket.bind(&address.into()).map_err(|error| error.kind())
        };
        let options = (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0));
        for transport in [Tcp, Udp] {
            for (leased, refused, free) in [
                ("0.0.0.0", vec!["0.0.0.0", "::", "127.0.0.1", "::1", HERE[0], HERE[1], "127.9.9.9"], vec![]),
                (HERE[0], vec![HERE[0], "0.0.0.0"], vec!["127.0.0.1", "::1", HERE[1]]),
                (HERE[1], vec![HERE[1], "::"], vec!["127.0.0.1", "::1", HERE[0], "0.0.0.0"]),
            ] {
                let held = again(|| reserve(transport, ip(leased), PORT, index));
                for options in options.clone() {
                    for address in &refused {
                        let bound = try_to_bind(transport, address, options);
                        let row = format!("{transport} {leased}: {address} {options:?}");
                        // No address of lo can be bound with the device v0.
                        let on_lo = options.2 && bound == Err(ErrorKind::AddrNotAvailable);
                        assert!(bound == Err(ErrorKind::AddrInUse) || on_lo, "{row}: {bound:?}");
                    }
                }
                for address in free {
                    again(|| try_to_bind(transport, address, (false, false, false)));
                }
                drop(held);
            }
            // Held by a program with every option: never reserved.
            let socket = Socket::new(Domain::IPV4, if transport == Tcp { Type::STREAM } else { Type::DGRAM }, None);
            let socket = socket.unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.set_reuse_port(true).unwrap();
            again(|| socket.bind(&SocketAddr::new(ip("127.0.0.1"), PORT).into()));
            holder(reserve(transport, ip("0.0.0.0"), PORT, index));
        }
    });
}

/// Other tests open descriptors in this process, too, so this test reserves many more ports than those.
#[test]
fn port_costs_one_descriptor_for_any_number_of_addresses() {
    alone(|| async {
        let lo = interface("lo").await.unwrap().ifindex;
        for at in 0..300_u16 {
            let [high, low] = at.to_be_bytes();
            let address = std::net::Ipv4Addr::new(198, 18, high, low).into();
            netlink().address().add(lo, address, 32).execute().await.unwrap();
        }
        let sockets = || fs::read_dir("/proc/self/fd").unwrap().count();
        for transport in [Tcp, Udp] {
            let before = sockets();
            let held = again(|| reserve_range(transport, ip("0.0.0.0"), 7000..=7999, 1));
            let more = sockets().saturating_sub(before);
            assert!((700..=1300).contains(&more), "{transport}: {more} descriptors for 1,000 ports");
            assert_eq!(bind(transport, "198.18.1.5", 7500).unwrap_err().kind(), ErrorKind::AddrInUse);
            drop(held);
        }
    });
}

/// An acquisition in turns while sockets of another program are spread over the range.
#[test]
fn consecutive_ports_between_used_ones_are_found_or_refused() {
    alone(|| async {
        for transport in [Tcp, Udp] {
            let sockets: Vec<_> =
                (1..=17).map(|at| again(|| bind(transport, "127.0.0.1", 49_152 + at * 910))).collect();
            let search = || {
                let mut row = Acquisition::free(transport, ip("0.0.0.0"), &[DYNAMIC], 1024, 1).unwrap();
                loop {
                    match row.turn(|_| false) {
                        Ok(Some(row)) => return Ok(row.len()),
                        Ok(None) => {}
                        Err(error) => return Err(error),
                    }
                }
            };
            let refused = search().unwrap_err();
            assert!(matches!(refused, Error::NoFreePorts { count: 1024, .. }), "{refused}");
            drop(sockets);
            assert_eq!(again(search), 1024, "{transport}");
        }
    });
}

#[test]
fn connect_never_uses_a_reserved_port() {
    pair(|_peer| async move {
        sysctl("net/ipv4/ip_local_port_range", "50000 50003");
        let listener = TcpListener::bind("127.0.0.1:80").unwrap();
        for (transport, address) in [(Tcp, "0.0.0.0"), (Tcp, "127.0.0.1"), (Udp, "0.0.0.0"), (Udp, "127.0.0.1")] {
            let held = again(|| reserve_range(transport, ip(address), 50000..=50002, 1));
            for _ in 0..8 {
                let (domain, kind) = (Domain::IPV4, if transport == Tcp { Type::STREAM } else { Type::DGRAM });
                let socket = again(|| {
                    let socket = Socket::new(domain, kind, None)?;
                    socket.connect(&listener.local_addr()?.into()).map(|()| socket)
                });
                let port = socket.local_addr().unwrap().as_socket().unwrap().port();
                assert_eq!(port, 50003, "{transport} {address}");
                // Close with a RST: TIME-WAIT would occupy the only free port for a minute.
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(held);
        }
    });
}

/// What the kernel answers to a SYN and to a datagram: the error that the sender gets.
fn answer(transport: Transport, to: SocketAddr) -> ErrorKind {
    if transport == Tcp {
        return TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap_err().kind();
    }
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send(b"anyone?").unwrap();
    socket.recv(&mut [0; 16]).unwrap_err().kind()
}

#[test]
fn kernel_answers_for_reserved_ports_are_unchanged() {
    pair(|peer| async move {
        let index = interface("v0").await.unwrap().ifindex;
        // By default the kernel sends one port-unreachable per second and destination; the test needs more.
        sysctl("net/ipv4/icmp_ratelimit", "0");
        sysctl("net/ipv6/icmp/ratelimit", "0");
        let options = LoadOptions { flow_entries: 1024, ..LoadOptions::default() };
        let (_kernel, mut maps) = Kernel::open(&interface("v0").await.unwrap(), &options, 14, 1792).unwrap();
        for transport in [Tcp, Udp] {
            for address in ["0.0.0.0", "::", HERE[0], HERE[1]] {
                let held = again(|| reserve(transport, ip(address), PORT, index));
                maps.own(1, transport, ip(address), PORT, Terms::default()).unwrap();
                for to in HERE {
                    let to = SocketAddr::new(ip(to), PORT);
                    let refused = peer.run(move || answer(transport, to));
                    assert_eq!(refused, ErrorKind::ConnectionRefused, "{transport} {address}, from the peer to {to}");
                }
                for to in ["127.0.0.1", "::1", HERE[0], HERE[1]] {
                    let refused = answer(transport, SocketAddr::new(ip(to), PORT));
                    assert_eq!(refused, ErrorKind::ConnectionRefused, "{transport} {address}, over lo to {to}");
                }
                maps.disown(1, transport, ip(address), PORT).unwrap();
                drop(held);
            }
        }
        // The next owner of the port has its datagrams.
        let next = again(|| UdpSocket::bind(("127.0.0.1", PORT)));
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"hello", next.local_addr().unwrap()).unwrap();
        next.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(next.recv(&mut [0; 16]).unwrap(), 5);
        drop(next);
        // Control: with a socket that is only bound, the kernel sends no port-unreachable.
        let _swallows = again(|| UdpSocket::bind((ip(HERE[0]), PORT)));
        let quiet = peer.run(|| answer(Udp, SocketAddr::new(ip(HERE[0]), PORT)));
        assert_eq!(quiet, ErrorKind::WouldBlock);
    });
}

#[test]
fn holders_are_named() {
    pair(|_peer| async move {
        for transport in [Tcp, Udp] {
            for held in ["0.0.0.0", "::", HERE[0], HERE[1]] {
                let socket = again(|| bind(transport, held, PORT));
                for wanted in [held, "0.0.0.0"] {
                    let said = holder(reserve(transport, ip(wanted), PORT, 1));
                    assert!(said.contains(&this()) && said.contains("6000"), "{transport} {held} {wanted}: {said}");
                }
                drop(socket);
            }
            // A wildcard conflicts with a reservation of one address; a dual-stack [::] also one of IPv4.
            let socket = again(|| bind(transport, "0.0.0.0", PORT));
            assert!(holder(reserve(transport, ip(HERE[0]), PORT, 1)).contains(&this()));
            drop(socket);
            let socket = again(|| bind(transport, "::", PORT));
            assert!(holder(reserve(transport, ip(HERE[0]), PORT, 1)).contains(&this()));
            drop(socket);
            // Another lease.
            let lease = again(|| reserve(transport, ip(HERE[0]), PORT, 1));
            assert!(holder(reserve(transport, ip("0.0.0.0"), PORT, 1)).contains(&this()));
            drop(lease);
            again(|| reserve(transport, ip("0.0.0.0"), PORT, 1));
        }
    });
}

#[test]
fn time_wait_is_named() {
    alone(|| async {
        let listener = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"bye").unwrap();
        // The end that closes first waits.
        drop(server);
        client.read_to_end(&mut Vec::new()).unwrap();
        drop((client, listener));
        again(|| {
            let said = holder(reserve(Tcp, ip("127.0.0.1"), PORT, 1));
            if said.contains("TIME-WAIT") { Ok(()) } else { Err(said) }
        });
    });
}

#[test]
fn free_ports_and_ranges() {
    alone(|| async {
        for transport in [Tcp, Udp] {
            let first = reserve_free(transport, ip("0.0.0.0"), DYNAMIC, 1).unwrap();
            assert!(DYNAMIC.contains(&first.port()));
            let range = || reserve_free(transport, ip("127.0.0.1"), 7000..=7003, 1);
            let mut four: Vec<_> = (0..4).map(|_| again(range)).collect();
            let none = range().unwrap_err().to_string();
            assert!(none.contains("4 of 4 ports tried are in use"), "{none}");
            let freed = four.pop().unwrap().port();
            assert_eq!(again(range).port(), freed);
            drop(four);

            let taken = again(|| bind(transport, "127.0.0.1", 7002));
            let all = reserve_range(transport, ip("127.0.0.1"), 7000..=7003, 1);
            assert!(matches!(all, Err(Error::PortTaken { port: 7002, .. })), "{all:?}");
            // All or nothing.
            again(|| bind(transport, "127.0.0.1", 7000));
            drop(taken);
            assert_eq!(again(|| reserve_range(transport, ip("127.0.0.1"), 7000..=7003, 1)).len(), 4);
        }
        assert!(matches!(reserve(Tcp, ip("127.0.0.1"), 0, 1), Err(Error::Invalid { .. })));
        assert!(matches!(reserve(Udp, ip("192.0.2.200"), PORT, 1), Err(Error::Invalid { .. })));
        let empty = RangeOf(9, 8);
        assert!(matches!(reserve_range(Tcp, ip("0.0.0.0"), empty.0..=empty.1, 1), Err(Error::Invalid { .. })));
    });
}

/// Keeps clippy from pointing out that a range of literals is empty.
struct RangeOf(u16, u16);

#[test]
fn reservation_covers_addresses_added_later() {
    pair(|_peer| async move {
        for transport in [Tcp, Udp] {
            let held = again(|| reserve(transport, ip("0.0.0.0"), PORT, 1));
            let address = if transport == Tcp { "192.0.2.9" } else { "192.0.2.10" };
            let index = interface("v0").await.unwrap().ifindex;
            netlink().address().add(index, ip(address), 24).execute().await.unwrap();
            assert_eq!(bind(transport, address, PORT).unwrap_err().kind(), ErrorKind::AddrInUse);
            drop(held);
        }
    });
}

/// On a host without IPv6 addresses, a socket of IPv4 holds the port.
#[test]
fn host_without_ipv6_addresses_reserves_over_ipv4() {
    alone(|| async {
        sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        for transport in [Tcp, Udp] {
            let held = again(|| reserve(transport, ip("0.0.0.0"), PORT, 1));
            assert_eq!(bind(transport, "127.0.0.1", PORT).unwrap_err().kind(), ErrorKind::AddrInUse);
            drop(held);
        }
    });
}
