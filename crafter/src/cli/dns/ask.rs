//! Queries over a crafted datagram or a crafted stream.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crafter::{
    Crafter, Error, Result, Stream, StreamOptions,
    capture::Direction,
    engine::{self, Observer},
    layer::Udp,
    packet::{Checksum, IcmpError, Transport, UdpView, ip},
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cli::{interface, recording::Recording};

/// Time limit for closing a stream after the answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A query and the server to send it to.
pub struct Asker<'a> {
    pub crafter: &'a Crafter,
    pub port: &'a interface::Args,
    pub server: SocketAddr,
    pub query: Message,
    /// How long to wait for the answer to each query.
    pub timeout: Duration,
    pub tries: u32,
    /// How long all queries together wait over UDP.
    pub total: Duration,
    pub recording: &'a Recording,
    /// Called when a query is sent.
    pub on_query: &'a dyn Fn(),
}

/// An answer.
pub struct Answer {
    pub message: Message,
    pub transport: Transport,
    /// Length of the DNS message in bytes, without headers of lower layers.
    pub size: usize,
    /// From the query to the answer; over TCP from the SYN.
    pub time: Duration,
    /// Number of times the query was sent.
    pub attempts: u32,
}

/// A recursive query with a random id; `edns`: the size offered for answers over UDP, 0 for none.
///
/// # Errors
/// [`Error::Io`] if the system provides no random bytes.
pub fn query(name: Name, kind: RecordType, class: DNSClass, edns: u16) -> Result<Message> {
    let mut id = [0; 2];
    getrandom::fill(&mut id)
        .map_err(|e| Error::Io { action: "read random bytes".into(), source: io::Error::other(e.to_string()) })?;
    let mut message = Message::new(u16::from_ne_bytes(id), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut question = Query::query(name, kind);
    question.query_class = class;
    message.add_query(question);
    if edns > 0 {
        let mut options = Edns::new();
        options.set_max_payload(edns).set_version(0);
        message.set_edns(options);
    }
    Ok(message)
}

impl Asker<'_> {
    /// Queries over UDP, and again after each timeout.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Unreachable`], and those of leasing and sending.
    pub async fn udp(&self) -> Result<Answer> {
        let lease = self.crafter.lease(self.port.request(Transport::Udp)).await?;
        let local = lease.local(self.server.ip()).await?;
        let packet = (Udp::new().between(local, self.server) / self.encode()?).build()?;
        for attempts in 1..=self.tries {
            let start = Instant::now();
            lease.send(&packet).await?;
            (self.on_query)();
            let interface = &self.crafter.interface().name;
            self.recording.packet(interface, Direction::Out, &packet, "sent");
            while let Some(left) = self.timeout.checked_sub(start.elapsed()) {
                let Some(received) = lease.recv_timeout(left).await? else { break };
                self.recording.packet(interface, Direction::In, &received.ip, "received");
                if received.checksum == Checksum::Invalid {
                    log::info!("ignored a packet with a wrong checksum");
                    continue;
                }
                self.check_icmp(&received.ip, local)?;
                let Ok(datagram) = UdpView::read(&received.ip) else { continue };
                if (datagram.source(), datagram.destination()) != (self.server, local) {
                    log::info!("ignored a datagram from {}", datagram.source());
                    continue;
                }
                if let Some(message) = self.decode(datagram.payload()) {
                    let (time, size) = (start.elapsed(), datagram.payload().len());
                    return Ok(Answer { message, transport: Transport::Udp, size, time, attempts });
                }
            }
        }
        Err(Error::TimedOut { remote: self.server, after: self.total, waiting_for: "DNS answer" })
    }

    /// Fails for an ICMP unreachable that quotes the query.
    fn check_icmp(&self, ip: &[u8], local: SocketAddr) -> Result<()> {
        let Ok(IcmpError { from, reason, quoted, .. }) = IcmpError::parse(ip) else { return Ok(()) };
        let ours = (quoted.protocol, quoted.source, quoted.destination) == (ip::UDP, local, self.server);
        match ours && reason.is_unreachable() {
            true => Err(Error::Unreachable { remote: self.server, from, reason: reason.to_string() }),
            false => Ok(()),
        }
    }

    /// Queries over TCP (RFC 7766), once: TCP retransmits.
    ///
    /// # Errors
    /// Those of connecting, [`Error::TimedOut`], [`Error::Reset`].
    pub async fn tcp(&self) -> Result<Answer> {
        let lease = self.crafter.lease(self.port.request(Transport::Tcp)).await?;
        let start = Instant::now();
        (self.on_query)();
        let (recording, interface) = (self.recording.clone(), self.crafter.interface().name.clone());
        let record = move |direction, ip: &[u8]| match direction {
            engine::Direction::Sent => recording.packet(&interface, Direction::Out, ip, "sent"),
            engine::Direction::Received => recording.packet(&interface, Direction::In, ip, "received"),
        };
        let options = StreamOptions {
            hook: self.recording.is_active().then(|| Box::new(Observer(record)) as _),
            connect_timeout: Some(self.timeout),
            // Long enough to acknowledge a retransmitted FIN (Linux: after 200 ms).
            time_wait: Some(Duration::from_millis(300)),
            ..StreamOptions::default()
        };
        let mut stream = lease.connect(self.server, options).await?;
        let exchange = tokio::time::timeout(self.timeout, self.exchange(&mut stream));
        let (message, size) = match exchange.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(source)) => {
                return Err(stream
                    .error()
                    .unwrap_or_else(|| Error::Io { action: format!("query {} over TCP", self.server), source }));
            }
            Err(_) => {
                let (remote, after) = (self.server, self.timeout);
                return Err(Error::TimedOut { remote, after, waiting_for: "DNS answer" });
            }
        };
        let time = start.elapsed();
        let _ = stream.shutdown().await;
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, stream.closed()).await;
        Ok(Answer { message, transport: Transport::Tcp, size, time, attempts: 1 })
    }

    /// Sends the query and receives the answer, each after a length of two bytes (RFC 1035, section 4.2.2).
    async fn exchange(&self, stream: &mut Stream) -> io::Result<(Message, usize)> {
        let query = self.encode().map_err(io::Error::other)?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), &query[..]].concat()).await?;
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        let message = self.decode(&answer);
        let reason = "the message from the server does not answer the query; try another server";
        message.map(|message| (message, answer.len())).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, reason))
    }

    fn encode(&self) -> Result<Vec<u8>> {
        self.query.to_vec().map_err(|e| Error::invalid("NAME", e))
    }

    /// The message, if it answers the query: same id and question (RFC 5452, section 9.1).
    fn decode(&self, bytes: &[u8]) -> Option<Message> {
        let message = match Message::from_vec(bytes) {
            Ok(message) => message,
            Err(e) => {
                log::warn!("ignored a malformed answer: {e}");
                return None;
            }
        };
        let meta = &message.metadata;
        // A server that does not understand the query need not repeat its question.
        let understood = !matches!(meta.response_code, ResponseCode::FormErr | ResponseCode::NotImp);
        let same = message.queries == self.query.queries || message.queries.is_empty() && !understood;
        let ours = meta.id == self.query.metadata.id && meta.message_type == MessageType::Response && same;
        if !ours {
            log::info!("ignored a message that does not answer the query");
        }
        ours.then_some(message)
    }
}
