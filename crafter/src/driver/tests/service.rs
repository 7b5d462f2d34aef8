//! The service's backend on socket pairs of the test.

use std::{os::fd::OwnedFd, os::unix::net::UnixListener};

use socket2::{Domain, Socket, Type};

use super::*;
use crate::{
    driver::{
        backend::{Backend, NoRoom, ServiceCalls as _, TxPacket},
        service::ServiceBackend,
        table::Table,
    },
    error::Error,
    mmsg::Inbox,
    protocol::{
        Control,
        record::{Code, DeliveryKind, Header, Kind},
    },
};

/// The service's ends: of the lease without ports, of UDP port 5000 and of UDP port 5001.
struct Service {
    backend: ServiceBackend,
    ends: [Socket; 3],
    inbox: Inbox,
    _directory: tempfile::TempDir,
}

/// The longest message between service and client.
fn message(kind: Kind, length: usize, rest: &[u8]) -> Vec<u8> {
    let header = Header { kind, ifindex: 1, time_ns: 9, length: length as u32, lost: 0 };
    [&header.encode()[..], rest].concat()
}

impl Service {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let control = runtime.block_on(Control::connect(&path)).unwrap();
        let pairs: Vec<_> = (0..3).map(|_| Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap()).collect();
        let [(base, end), (first, first_end), (second, second_end)] = pairs.try_into().unwrap();
        let mut backend = ServiceBackend::new(Arc::new(control), 1, OwnedFd::from(base)).unwrap();
        for (id, socket, port) in [(7, first, 5000), (8, second, 5001)] {
            backend.add_socket(LeaseId(id), socket.into()).unwrap();
            let ports = Ports { transport: Transport::Udp, address: ip(HERE), ports: vec![port] };
            backend.own(LeaseId(id), &ports, Terms::default()).unwrap();
        }
        let ends = [end, first_end, second_end];
        ends.iter().for_each(|end| end.set_nonblocking(true).unwrap());
        Self { backend, ends, inbox: Inbox::new(2000), _directory: directory }
    }

    /// The messages at one of the ends.
    fn read(&mut self, end: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let Ok(Some(_)) = self.inbox.receive(&self.ends[end]) {
            all.extend(self.inbox.messages().map(|(bytes, _)| bytes.to_vec()));
        }
        all
    }
}

/// The `number`th datagram from a port.
fn datagram(port: u16, number: u32) -> Vec<u8> {
    udp(at(HERE, port), at(THERE, 53), &[&number.to_be_bytes()[..], &[0; 1000]].concat())
}

#[test]
fn packet_is_sent_through_the_lease_of_its_port() {
    let mut service = Service::new();
    let packets = [datagram(5000, 0), datagram(5001, 1), datagram(5002, 2), datagram(5000, 3)];
    let (here, mut elsewhere) = (route(), Route::clone(&route()));
    elsewhere.ifindex = 2;
    let mut batch: Vec<_> = packets.iter().map(|packet| TxPacket::Ip(&here, packet)).collect();
    batch.insert(1, TxPacket::Ip(&elsewhere, &packets[0]));
    batch.push(TxPacket::Frame(&packets[0]));
    for on_no_room in [NoRoom::Refuse, NoRoom::Stop] {
        let sent = service.backend.send_batch(&batch, on_no_room);
        assert_eq!((sent.sent, sent.refused, sent.tried), (4, 0, 6));
        assert!(matches!(sent.error, Some(Error::Invalid { what, .. }) if what == "route"), "the first error");
        assert_eq!(service.read(1), [packets[0].clone(), packets[3].clone()]);
        assert_eq!(service.read(2), [packets[1].clone()]);
        assert_eq!(service.read(0), [packets[2].clone()], "a port without a lease");
    }
    // Without a lease, packets from the port are sent through the lease without ports.
    let ports = Ports { transport: Transport::Udp, address: ip(HERE), ports: vec![5000] };
    service.backend.disown(LeaseId(7), &ports);
    assert!(service.backend.is_closing());
    let sent = service.backend.send_batch(&batch[..1], NoRoom::Refuse);
    assert_eq!((sent.sent, service.read(0)), (1, vec![packets[0].clone()]));
    assert_eq!(service.backend.statistics().sent, 9);
}

#[test]
fn full_socket_stops_the_batch_or_only_its_own_packets() {
    let mut service = Service::new();
    let packets: Vec<_> = (0..3000).map(|number| datagram(5000 + (number % 2) as u16, number)).collect();
    let route = route();
    let batch: Vec<_> = packets.iter().map(|packet| TxPacket::Ip(&route, packet)).collect();
    let mut taken = [Vec::new(), Vec::new()];
    let mut done = 0;
    while done < batch.len() {
        let sent = service.backend.send_batch(&batch[done..], NoRoom::Stop);
        assert_eq!((sent.sent, sent.refused), (sent.tried as u64, 0), "exactly the tried packets were accepted");
        assert!(sent.tried > 0 && sent.error.is_none());
        done += sent.tried;
        (1..3).for_each(|end| taken[end - 1].extend(service.read(end)));
    }
    for (port, taken) in taken.iter().enumerate() {
        let expected: Vec<_> = packets.iter().skip(port).step_by(2).cloned().collect();
        assert!(*taken == expected, "{} packets, or in another order", taken.len());
    }

    // With NoRoom::Refuse, the other socket is not affected.
    let fill: Vec<_> = batch.iter().step_by(2).copied().collect();
    let filled = service.backend.send_batch(&fill, NoRoom::Stop).tried;
    assert!((1..fill.len()).contains(&filled));
    let sent = service.backend.send_batch(&batch[..20], NoRoom::Refuse);
    assert_eq!((sent.sent, sent.refused, sent.tried), (10, 10, 20));
    assert_eq!(service.read(2).len(), 10);
    assert_eq!(service.backend.statistics().not_sent, 10);
}

#[test]
fn messages_become_deliveries() {
    let mut service = Service::new();
    let mut table = Table::new(false);
    let now = Instant::now();
    let ports = Ports { transport: Transport::Udp, address: ip(HERE), ports: vec![5000] };
    table.add_lease(LeaseId(7), crate::driver::entry::LeaseState::new(ports, false));
    let reply = udp(at(THERE, 53), at(HERE, 5000), b"reply");
    let answer = icmp(HERE, THERE, 3, 3, [0; 4], &udp(at(THERE, 53), at(HERE, 5000), b"x"));
    let sent = datagram(5000, 0);
    let refusal = b"no such port";
    for message in [
        message(Kind::Packet { delivery: DeliveryKind::Redirected, flags: 0 }, reply.len(), &reply),
        message(Kind::Packet { delivery: DeliveryKind::UnreachableSuppressed, flags: 0 }, answer.len(), &answer),
        message(Kind::Refusal { code: Code::Policy, rule: 2 }, refusal.len(), &[refusal, &sent[..28]].concat()),
    ] {
        service.ends[1].send(&message).unwrap();
    }
    assert_eq!(service.backend.drain(&mut |delivery| table.handle_delivery(now, delivery)), 3);
    assert_eq!(service.backend.drain(&mut |delivery| table.handle_delivery(now, delivery)), 0);
    let lease = table.lease(LeaseId(7)).unwrap();
    assert_eq!(lease.pop().map(|received| (received.ip, received.timestamp_ns)), Some((reply, Some(9))));
    assert_eq!(lease.suppressed.pop_front().map(|received| received.ip), Some(answer));
    let (count, error) = service.backend.take_refusals();
    assert!(matches!((count, &error), (1, Some(Error::Forbidden { rule: Some(2), .. }))), "{error:?}");
    assert_eq!(service.backend.take_refusals().0, 0);
    table.check_alive("fake0").unwrap();

    // The end of a lease ends the whole backend, unless the lease was released.
    service.ends[2].send(&message(Kind::End { code: Code::Released }, 0, &[])).unwrap();
    service.backend.drain(&mut |delivery| table.handle_delivery(now, delivery));
    table.check_alive("fake0").unwrap();
    let [_, first, _] = service.ends;
    drop(first);
    service.backend.drain(&mut |delivery| table.handle_delivery(now, delivery));
    let error = table.check_alive("fake0").unwrap_err();
    assert!(matches!(&error, Error::Service { reason, .. } if reason == "it closed a lease"), "{error}");
}
