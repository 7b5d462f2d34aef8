//! The conversation of the tutorial, packet by packet (a DNS query, a TCP handshake, a GET), and the same download over
//! a stream.

use std::{net::SocketAddr, time::Duration};

use crafter::{
    Crafter, Lease, LeaseRequest, Stream, StreamOptions,
    engine::Cursor,
    layer::{Packet, Udp},
    packet::{Checksum, UdpView},
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dns;

/// Timeout for one reply; generous, because the machine may be busy.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends a crafted DNS query and returns the answer.
pub async fn dns(lease: &Lease, server: SocketAddr, name: &str, kind: u16, edns: Option<u16>) -> dns::Answer {
    let local = lease.local(server.ip()).await.expect("a route to the DNS server");
    let id = 0x4000 + kind;
    let query = Udp::new().between(local, server) / dns::query(id, name, kind, edns);
    lease.send(&query.build().expect("a query")).await.expect("send the query");
    let received = lease.recv_timeout(REPLY_TIMEOUT).await.expect("the lease").expect("an answer");
    assert_ne!(received.checksum, Checksum::Invalid);
    let datagram = UdpView::parse(&received.ip).expect("a datagram");
    assert_eq!((datagram.source(), datagram.destination()), (server, local));
    let answer = dns::read(datagram.payload()).expect("a complete answer");
    assert_eq!((answer.id, answer.code), (id, 0));
    answer
}

/// A TCP connection driven segment by segment.
pub struct ManualConnection<'l> {
    lease: &'l Lease,
    /// Sequence and acknowledgment numbers.
    pub cursor: Cursor,
}

impl<'l> ManualConnection<'l> {
    /// Prepares a connection between the lease's port and `remote`; sends nothing.
    pub async fn new(lease: &'l Lease, remote: SocketAddr) -> Self {
        let local = lease.local(remote.ip()).await.expect("a route to the server");
        Self { lease, cursor: Cursor::new(local, remote) }
    }

    /// Sends a segment.
    pub async fn send(&self, segment: &Packet) {
        self.lease.send(&segment.build().expect("a segment")).await.expect("send a segment");
    }

    /// Receives the next segment and updates the cursor; does not acknowledge.
    pub async fn receive(&mut self) {
        let received = self.lease.recv_timeout(REPLY_TIMEOUT).await.expect("the lease").expect("a segment");
        assert_ne!(received.checksum, Checksum::Invalid);
        assert!(!received.cut);
        self.cursor.handle(&received.ip);
    }

    /// SYN, SYN-ACK, ACK.
    pub async fn handshake(&mut self) {
        let syn = self.cursor.syn();
        self.send(&syn).await;
        while !self.cursor.is_established() {
            assert!(!self.cursor.is_reset(), "reset by the server during the handshake");
            self.receive().await;
        }
        let ack = self.cursor.ack();
        self.send(&ack).await;
    }

    /// Sends a GET request and receives until the server closes, acknowledging every segment; then sends FIN and waits
    /// for its acknowledgment. Returns the HTTP response.
    pub async fn get(&mut self, path: &str) -> Vec<u8> {
        for segment in self.cursor.data(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()) {
            self.send(&segment).await;
        }
        let mut answer = Vec::new();
        while !self.cursor.peer_closed() {
            self.receive().await;
            assert!(!self.cursor.is_reset(), "reset by the server");
            answer.extend(self.cursor.take_data());
            if self.cursor.needs_ack() && !self.cursor.peer_closed() {
                let ack = self.cursor.ack();
                self.send(&ack).await;
            }
        }
        // This FIN also acknowledges the server's FIN.
        let fin = self.cursor.fin();
        self.send(&fin).await;
        while !self.cursor.is_closed() {
            self.receive().await;
        }
        assert!(!self.cursor.is_reset());
        answer
    }
}

/// The body of an HTTP response.
pub fn body(answer: &[u8]) -> &[u8] {
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..answer.len().min(200)]));
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("the end of the header");
    &answer[end + 4..]
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Leases a port and connects a stream from it.
pub async fn connect(crafter: &Crafter, request: LeaseRequest, remote: SocketAddr, options: StreamOptions) -> Stream {
    let lease = crafter.lease(request).await.expect("a lease");
    lease.connect(remote, options).await.expect("a connection")
}

/// Downloads `path` over `stream` and leaves it open. Returns length in bytes and SHA-256 of the body.
pub async fn download(stream: &mut Stream, path: &str) -> (u64, [u8; 32]) {
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.expect("send the request");
    let mut buffer = vec![0; 1 << 18];
    let (mut head, mut length, mut hasher, mut in_body) = (Vec::new(), 0, Sha256::new(), false);
    loop {
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut buffer)).await;
        let count = read.unwrap_or_else(|_| panic!("stalled: {:?}", stream.stats())).expect("read the body");
        if count == 0 {
            break;
        }
        let mut part = &buffer[..count];
        if !in_body {
            head.extend_from_slice(part);
            if !head.windows(4).any(|window| window == b"\r\n\r\n") {
                continue;
            }
            in_body = true;
            part = body(&head);
        }
        length += part.len() as u64;
        hasher.update(part);
    }
    (length, hasher.finalize().into())
}

/// Closes this end and waits until both ends are closed.
pub async fn close(stream: &mut Stream) {
    stream.shutdown().await.expect("shut down");
    tokio::time::timeout(REPLY_TIMEOUT, stream.closed())
        .await
        .expect("closed in time")
        .expect("closed without an error");
}
