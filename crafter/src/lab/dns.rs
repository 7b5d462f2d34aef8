//! The lab's DNS server: authoritative for `lab.test.` and the reverse zones.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::rr::{
    Name, RData, Record, RecordSet, RecordType, RrKey,
    rdata::{CNAME, MX, NS, PTR, SOA, TXT},
};
use hickory_server::{
    Server,
    store::in_memory::InMemoryZoneHandler,
    zone_handler::{AxfrPolicy, Catalog, ZoneHandler, ZoneType},
};
use tokio::net::{TcpListener, UdpSocket};

use super::{
    netns::NetNs,
    options::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    server_thread::ServerThread,
};
use crate::Result;

/// The zone that the lab's DNS server is authoritative for.
pub const ZONE: &str = "lab.test.";
/// Length in bytes of the text at `long.lab.test TXT`: the response exceeds 1232 bytes, the usual EDNS size, and still
/// fits one Ethernet frame.
pub const LONG_TXT_BYTES: usize = 1300;
/// Length in bytes of the text at `big.lab.test TXT`: over UDP the response has three fragments for an EDNS size of
/// 4096, and is truncated (TC) for less.
pub const BIG_TXT_BYTES: usize = 3500;

const PORT: u16 = 53;
const TTL: u32 = 300;
/// How long a TCP connection may be idle.
const TCP_IDLE: Duration = Duration::from_secs(30);
/// Responses queued on one TCP connection at most.
const TCP_ANSWERS: usize = 32;

/// The reverse zones of 192.0.2.0/24 and 2001:db8::/64.
const REVERSE_V4: &str = "2.0.192.in-addr.arpa.";
const REVERSE_V6: &str = "0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.";

/// Starts the server on the IPv4 and the IPv6 address of `server`, UDP and TCP.
///
/// # Errors
/// Those of the sockets.
pub(super) fn start(server: &NetNs) -> Result<ServerThread> {
    ServerThread::start(server, "DNS server", async || {
        let mut dns = Server::new(catalog().map_err(io::Error::other)?);
        // One socket per address: responses must have the address that was asked as source.
        for address in [IpAddr::from(SERVER_V4), IpAddr::from(SERVER_V6)] {
            let address = SocketAddr::new(address, PORT);
            dns.register_socket(UdpSocket::bind(address).await?);
            dns.register_listener(TcpListener::bind(address).await?, TCP_IDLE, TCP_ANSWERS);
        }
        Ok(async move {
            if let Err(error) = dns.block_until_done().await {
                log::error!("lab DNS server: {error}");
            }
        })
    })
}

fn catalog() -> std::result::Result<Catalog, String> {
    let mut catalog = Catalog::new();
    for (origin, records) in [(ZONE, forward()?), (REVERSE_V4, reverse(false)?), (REVERSE_V6, reverse(true)?)] {
        let origin = name(origin)?;
        let mut zone = Zone { origin: origin.clone(), sets: BTreeMap::new() };
        let (server, hostmaster) = (name("ns.lab.test.")?, name("hostmaster.lab.test.")?);
        zone.add(&origin, RData::SOA(SOA::new(server.clone(), hostmaster, 1, 3600, 600, 86400, 60)));
        zone.add(&origin, RData::NS(NS(server)));
        for (owner, data) in records {
            zone.add(&owner, data);
        }
        catalog.upsert(origin.into(), vec![zone.handler()?]);
    }
    Ok(catalog)
}

fn forward() -> std::result::Result<Vec<(Name, RData)>, String> {
    let zone = name(ZONE)?;
    let owner = |label: &str| name(&format!("{label}.{ZONE}"));
    let mut records = vec![
        (zone.clone(), RData::from(IpAddr::from(SERVER_V4))),
        (zone.clone(), IpAddr::from(SERVER_V6).into()),
        (zone.clone(), RData::MX(MX::new(10, owner("mail")?))),
        (zone.clone(), RData::MX(MX::new(20, owner("web")?))),
        (zone, RData::TXT(TXT::new(vec!["v=spf1 a mx -all".into()]))),
        (owner("www")?, RData::CNAME(CNAME(owner("web")?))),
        (owner("text")?, RData::TXT(TXT::new(vec!["hello".into(), "lab".into()]))),
        (owner("long")?, RData::TXT(long_text(LONG_TXT_BYTES))),
        (owner("big")?, RData::TXT(long_text(BIG_TXT_BYTES))),
    ];
    for label in ["web", "ns", "mail"] {
        records.push((owner(label)?, IpAddr::from(SERVER_V4).into()));
        records.push((owner(label)?, IpAddr::from(SERVER_V6).into()));
    }
    records.push((owner("client")?, IpAddr::from(CLIENT_V4).into()));
    records.push((owner("client")?, IpAddr::from(CLIENT_V6).into()));
    Ok(records)
}

fn reverse(v6: bool) -> std::result::Result<Vec<(Name, RData)>, String> {
    let pointers = [
        (IpAddr::from(SERVER_V4), "web"),
        (SERVER_V6.into(), "web"),
        (CLIENT_V4.into(), "client"),
        (CLIENT_V6.into(), "client"),
    ];
    let of_version = pointers.into_iter().filter(|(address, _)| address.is_ipv6() == v6);
    of_version
        .map(|(address, label)| Ok((Name::from(address), RData::PTR(PTR(name(&format!("{label}.{ZONE}"))?)))))
        .collect()
}

/// Text of `length` bytes that contains its own offsets, in strings of at most 250 bytes: the length of a TXT string
/// has one byte (RFC 1035, section 3.3.14).
fn long_text(length: usize) -> TXT {
    let mut text: String = (0..length).step_by(10).map(|offset| format!("{offset:08}, ")).collect();
    text.truncate(length);
    TXT::from_bytes(text.as_bytes().chunks(250).collect())
}

fn name(text: &str) -> std::result::Result<Name, String> {
    Name::from_ascii(text).map_err(|error| format!("{text}: {error}"))
}

struct Zone {
    origin: Name,
    sets: BTreeMap<RrKey, RecordSet>,
}

impl Zone {
    fn add(&mut self, owner: &Name, data: RData) {
        let kind: RecordType = data.record_type();
        let set = self
            .sets
            .entry(RrKey::new(owner.into(), kind))
            .or_insert_with(|| RecordSet::with_ttl(owner.clone(), kind, TTL));
        set.insert(Record::from_rdata(owner.clone(), TTL, data), 1);
    }

    fn handler(self) -> std::result::Result<Arc<dyn ZoneHandler>, String> {
        let zone: InMemoryZoneHandler =
            InMemoryZoneHandler::new(self.origin, self.sets, ZoneType::Primary, AxfrPolicy::Deny)?;
        Ok(Arc::new(zone))
    }
}
