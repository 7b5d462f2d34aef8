use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

use rtnetlink::LinkUnspec;
use socket2::{Domain, Socket, Type};

use super::{
    super::{
        interface::interface,
        reserve::{DYNAMIC, Reservation, reserve, reserve_free, reserve_range},
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
fn nobody_else_gets_a_reserved_port() {
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

#[test]
fn connect_never_gets_a_reserved_port() {
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
fn the_kernel_answers_as_before() {
    pair(|peer| async move {
        let index = interface("v0").await.unwrap().ifindex;
        // By default one port-unreachable per second and destination; the test wants more.
        sysctl("net/ipv4/icmp_ratelimit", "0");
        sysctl("net/ipv6/icmp/ratelimit", "0");
        for transport in [Tcp, Udp] {
            for address in ["0.0.0.0", "::", HERE[0], HERE[1]] {
                let held = again(|| reserve(transport, ip(address), PORT, index));
                for to in HERE {
                    let to = SocketAddr::new(ip(to), PORT);
                    let refused = peer.run(move || answer(transport, to));
                    assert_eq!(refused, ErrorKind::ConnectionRefused, "{transport} {address}, from the peer to {to}");
                }
                for to in ["127.0.0.1", "::1", HERE[0], HERE[1]] {
                    let refused = answer(transport, SocketAddr::new(ip(to), PORT));
                    assert_eq!(refused, ErrorKind::ConnectionRefused, "{transport} {address}, over lo to {to}");
                }
                drop(held);
            }
        }
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
            assert!(holder(range()).contains("every other port up to 7003"));
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
fn a_new_address_is_covered() {
    pair(|peer| async move {
        let mut held = reserve(Udp, ip("0.0.0.0"), PORT, 1).unwrap();
        let index = interface("v0").await.unwrap().ifindex;
        netlink().address().add(index, ip("192.0.2.9"), 24).execute().await.unwrap();
        held.cover(ip("192.0.2.9")).unwrap();
        held.cover(ip("192.0.2.9")).unwrap();
        assert_eq!(bind(Udp, "192.0.2.9", PORT).unwrap_err().kind(), ErrorKind::AddrInUse);
        let refused = peer.run(|| answer(Udp, SocketAddr::new(ip("192.0.2.9"), PORT)));
        assert_eq!(refused, ErrorKind::ConnectionRefused);

        // A host without any address has nothing to connect to, yet nobody else gets the port.
        netlink().link().del(index).execute().await.unwrap();
        drop(held);
        set(LinkUnspec::new_with_name("lo").down().build()).await;
        let lo = netlink();
        let mut listed = futures_util::StreamExt::boxed(lo.address().get().execute());
        while let Some(Ok(address)) = futures_util::StreamExt::next(&mut listed).await {
            lo.address().del(address).execute().await.unwrap();
        }
        let mut held = reserve(Udp, ip("0.0.0.0"), PORT, 1).unwrap();
        assert_eq!(bind(Udp, "0.0.0.0", PORT).unwrap_err().kind(), ErrorKind::AddrInUse);
        configure("lo", ["127.0.0.1", "::1"]).await;
        usable(["127.0.0.1", "::1"]);
        held.cover(ip("127.0.0.1")).unwrap();
        assert_eq!(bind(Udp, "0.0.0.0", PORT).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(answer(Udp, SocketAddr::new(ip("127.0.0.1"), PORT)), ErrorKind::ConnectionRefused);
    });
}
