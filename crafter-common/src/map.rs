//! Names and default sizes of the maps and of the constants set at load time.
//!
//! The kernel keeps the first 15 characters of a map's name; these are shorter, so that another
//! process finds the maps by name. All interfaces that share a load of the programs share its maps.

/// Version of the maps' layouts, raised with each change of a name, a key or a value. A test compares it with
/// `abi.txt`, the recorded layout.
pub const ABI: u32 = 5;

/// Hash: [`crate::port::OwnedKey`] to [`crate::port::OwnedPort`].
pub const OWNED: &str = "CRAFTER_OWNED";
/// Array of [`crate::attached::Attached`], indexed by slot.
pub const LINKS: &str = "CRAFTER_LINKS";
/// Array of [`crate::port::FilterWord`]: [`crate::port::FILTER_WORDS`] for each slot, in the order of
/// [`crate::port::filter_position`].
pub const FILTER: &str = "CRAFTER_FILTER";
/// Array of `u64`: the UDP ports that leases have on any address, in the order of [`crate::port::held_position`].
pub const HELD: &str = "CRAFTER_HELD";
/// Hash: [`crate::Address`] of this host to `u8`; a lease of any address receives packets to these only.
pub const LOCAL: &str = "CRAFTER_LOCAL";
/// LRU hash: [`crate::flow::FlowKey`] to [`crate::flow::FlowValue`].
pub const FLOWS: &str = "CRAFTER_FLOWS";
/// Hash: [`crate::flow::FlowKey`] to [`crate::flow::Peer`]: the peers of leases with [`crate::port::PEERS`].
pub const PEERS: &str = "CRAFTER_PEERS";
/// LRU hash: [`crate::flow::FragmentKey`] to [`crate::flow::FirstFragment`].
pub const FRAGMENTS: &str = "CRAFTER_FRAGS";
/// Per-CPU array of `u64`: [`crate::reason::REASONS`] for each slot, in the order of [`crate::reason::Reason`].
pub const COUNTERS: &str = "CRAFTER_COUNTS";
/// AF_XDP sockets: [`SOCKET_ENTRIES`] for each slot, by queue.
pub const SOCKETS: &str = "CRAFTER_XSKS";
/// Array of [`crate::share::Share`], which the user half maps into its memory.
pub const SHARES: &str = "CRAFTER_SHARES";
/// Hash of ring buffers by [`crate::attached::Attached::link`].
pub const RINGS: &str = "CRAFTER_RINGS";
/// Ring buffer of [`crate::reply::ReplyHeader`] + packet: a value of [`RINGS`].
pub const RING: &str = "CRAFTER_RING";

/// Owned (port, address) entries that fit by default. Memory is allocated for those that are there.
pub const OWNED_ENTRIES: u32 = 131_072;
/// Local addresses that fit.
pub const LOCAL_ENTRIES: u32 = 8_192;
/// Flows that fit by default.
pub const FLOW_ENTRIES: u32 = 1_000_000;
/// Peers of all leases that fit by default. Memory is allocated for those that are there.
pub const PEER_ENTRIES: u32 = 1_000_000;
/// Incomplete fragmented datagrams that fit by default.
pub const FRAGMENT_ENTRIES: u32 = 4_096;
/// Shares that fit: one for each pool of each interface, lease, and user of an interface.
pub const SHARE_ENTRIES: u32 = 32_768;
/// Queues of an interface that can have an AF_XDP socket.
pub const SOCKET_ENTRIES: u32 = 256;
/// Bytes of the ring buffer by default; a power of two and a multiple of the page size.
pub const RING_BYTES: u32 = 8 << 20;

/// `u32` set at load time: length of the link-layer header, 14 for Ethernet and 0 for none.
pub const LINK_HEADER: &str = "LINK_HEADER";
/// `u32` set at load time: bits of an interface's index that are the number of its slot.
pub const SLOT_MASK: &str = "SLOT_MASK";
/// `u32` set at load time: the socket mark of crafted packets.
pub const MARK: &str = "CRAFTED_MARK";
