//! Sends packets of any layers and matches the replies to them: `send`, `sr` and `sr1` of Scapy.
//!
//! ```no_run
//! use crafter::{expr::PacketSet, session::{Session, SessionOptions, SrOptions}};
//!
//! # async fn scan() -> crafter::Result<()> {
//! let session = Session::new(SessionOptions::default());
//! let set = PacketSet::parse(r#"IP(dst="192.0.2.1")/TCP(dport=(1,1024), flags="S")"#)?;
//! let exchanged = session.sr(set.packets(1 << 20)?, &SrOptions::default()).await?;
//! for pair in &exchanged.answered {
//!     println!("{} ==> {} in {:?}", pair.request.summary(), pair.reply.packet.summary(), pair.rtt);
//! }
//! println!("{}", exchanged.account);
//! session.close().await;
//! # Ok(()) }
//! ```
//!
//! - A packet begins with `IP`, `IPv6`, `Ether` or `ARP`. Unset fields are filled in from the route and the lease:
//!   source addresses, the next hop's Ethernet address, TCP and UDP source ports, ICMP identifiers.
//! - The source port, or identifier, of each packet is leased before it is sent, so that the session receives the
//!   reply and the kernel does not reset the connection. A session keeps the ports that packets name until it ends; of
//!   the ports that it chooses itself, it keeps the 256 most recently used.
//! - A SYN-ACK to a SYN of the session that none of its packets acknowledges leaves a half-open connection. The session
//!   resets it before the lease of its port ends: otherwise the peer retransmits its SYN-ACK, and the kernel answers
//!   with a RST. It does not with [`SessionOptions::leave_open`], or if the process is killed.
//! - No port is leased for source addresses of other hosts and for other protocols: the kernel receives their replies,
//!   and the session a copy of them.
//! - The hooks of an interface are attached when the first packet is sent on it.
//!
//! From the bottom up: `clock`, `options`, `event`, `script`, `stop` and `account` are values; `half_open`, `reply_matcher` and
//! `unset_fields` are pure; `sniffer`, `link`, `resets` and `links` hold what is open; `exchange` runs one exchange;
//! `send_receive` is the session.

mod account;
mod clock;
mod event;
mod exchange;
mod exchanged;
mod half_open;
mod link;
mod links;
mod options;
mod reply_matcher;
mod resets;
mod script;
mod send_receive;
mod sniffer;
mod stop;
mod unset_fields;

pub use self::{
    account::{Account, Kernel},
    event::{Event, Outcome},
    exchanged::{Exchanged, Pair, Reply},
    options::{Fragment, Pace, SessionOptions, SrOptions},
    reply_matcher::{Match, ReplyMatcher},
    script::{Script, Step},
    send_receive::Session,
    sniffer::Sniffer,
    stop::Stop,
};
