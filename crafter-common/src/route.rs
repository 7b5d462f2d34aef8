//! Source routes (RFC 791 section 3.1) and IPv6 routing headers (RFC 8200 section 4.4): the addresses that a packet
//! itself names. Only user space reads them, in packets that it checks before they are sent; the kernel half recognizes
//! packets in transit by an IPv6 routing header by [`Network::left`].

use crate::{
    Address, mapped,
    parse::{Bytes as _, IPV4_HEADER, Network},
};

/// Addresses that are read of a route at most: as many as IPv4's options have room for.
pub const MAX_WAYPOINTS: usize = 9;

/// Loose and strict source route (RFC 791 section 3.1).
const LOOSE: u8 = 131;
const STRICT: u8 = 137;

/// Types of IPv6 routing headers: source route (RFC 2460 section 4.4, deprecated by RFC 5095), home address (RFC 6275
/// section 6.4), segments (RFC 8754).
const SOURCE: u8 = 0;
const HOME_ADDRESS: u8 = 2;
const SEGMENTS: u8 = 4;

/// The source route that a packet contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// No route: it is sent to the destination of its header.
    None,
    /// It names these addresses, which the packet visits or has visited. None of them where an IPv6 routing header has
    /// no segments left, as it is then ignored (RFC 8200 section 4.4).
    Through(Waypoints),
    /// Its addresses cannot be read with certainty: a routing header of another type, more than [`MAX_WAYPOINTS`]
    /// addresses, several routes, or a route after an IPv4 option with an invalid length.
    Unreadable,
}

/// The addresses of a route, the final destination among them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Waypoints {
    /// Unused ones are zero.
    addresses: [Address; MAX_WAYPOINTS],
    count: usize,
}

impl Waypoints {
    const EMPTY: Self = Self { addresses: [[0; 16]; MAX_WAYPOINTS], count: 0 };

    /// `None` for more than there is room for.
    fn of(addresses: impl Iterator<Item = Address>) -> Option<Self> {
        let mut found = Self::EMPTY;
        for address in addresses {
            *found.addresses.get_mut(found.count)? = address;
            found.count += 1;
        }
        Some(found)
    }

    /// The addresses, in 16-byte form.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses[..self.count]
    }
}

impl core::fmt::Debug for Waypoints {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.addresses()).finish()
    }
}

impl Route {
    /// The route of a packet, whose headers are at `net`.
    pub fn read(bytes: &[u8], net: &Network) -> Self {
        if net.v6 {
            match net.extensions.routings {
                0 => Self::None,
                _ if net.left == 0 => Self::Through(Waypoints::EMPTY),
                1 => routing_header(bytes, net.extensions.routing).map_or(Self::Unreadable, Self::Through),
                _ => Self::Unreadable,
            }
        } else {
            options(bytes.get(net.start + IPV4_HEADER..net.transport).unwrap_or_default())
        }
    }
}

/// The route among IPv4 options.
fn options(mut rest: &[u8]) -> Route {
    let mut route = Route::None;
    while let [kind, behind @ ..] = rest {
        let length = match (kind, behind.first()) {
            (0, _) => break,
            (1, _) => 1,
            (_, Some(&length @ 2..)) => usize::from(length),
            // Readers differ on what follows a length that is none.
            _ => return Route::Unreadable,
        };
        if matches!(*kind, LOOSE | STRICT) {
            let read = rest.get(..length).and_then(slots);
            route = match (route, read) {
                (Route::None, Some(waypoints)) => Route::Through(waypoints),
                _ => return Route::Unreadable,
            };
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    route
}

/// The addresses in a source route option. All of them count, wherever the pointer is: those after it are to be
/// visited, and those before it are not trusted to have been.
fn slots(option: &[u8]) -> Option<Waypoints> {
    let [_, _, pointer, slots @ ..] = option else { return None };
    // Linux takes any pointer from 4 on (`ip_options_rcv_srr()`): between two slots it would read another address.
    if *pointer < 4 || pointer % 4 != 0 || slots.len() % 4 != 0 {
        return None;
    }
    Waypoints::of(slots.chunks_exact(4).map(|slot| mapped([slot[0], slot[1], slot[2], slot[3]])))
}

/// The addresses in the routing header at `at`, which has segments left.
fn routing_header(bytes: &[u8], at: usize) -> Option<Waypoints> {
    let [_, units, kind, left, last, ..] = bytes.load::<8>(at)?;
    let data = bytes.get(at + 8..at + 8 + usize::from(units) * 8)?;
    let list = match kind {
        SOURCE | HOME_ADDRESS => data,
        // Others may follow the list.
        SEGMENTS => data.get(..16 * (usize::from(last) + 1))?,
        _ => return None,
    };
    let count = list.len() / 16;
    if list.len() % 16 != 0 || usize::from(left) > count || (kind == HOME_ADDRESS && count != 1) {
        return None;
    }
    Waypoints::of(list.chunks_exact(16).filter_map(|address| address.try_into().ok()))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::{TCP, parse::network};

    fn v4(options: &[u8]) -> Route {
        let mut packet = Vec::from([0x45 + (options.len() / 4) as u8, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0]);
        packet.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        packet.extend(options);
        let net = network(&packet[..], 0, false).expect("an IPv4 header");
        Route::read(&packet, &net)
    }

    /// `headers`: the type of each, and its bytes after the field "next header".
    fn v6(headers: &[(u8, Vec<u8>)]) -> Route {
        let mut packet = Vec::from([0x60, 0, 0, 0, 0, 0, headers.first().map_or(TCP, |first| first.0), 64]);
        packet.extend([1; 32]);
        for (place, (_, bytes)) in headers.iter().enumerate() {
            packet.push(headers.get(place + 1).map_or(TCP, |next| next.0));
            packet.extend(bytes);
        }
        let net = network(&packet[..], 0, true).expect("an IPv6 header");
        Route::read(&packet, &net)
    }

    fn through(addresses: &[Address]) -> Route {
        Route::Through(Waypoints::of(addresses.iter().copied()).expect("room"))
    }

    #[test]
    fn routes_among_ipv4_options() {
        let ten = mapped([10, 0, 0, 1]);
        for (options, route) in [
            (&[][..], Route::None),
            (&[1, 1, 1, 0], Route::None),
            // Record route; a route after the end of options; an option beyond the header.
            (&[7, 7, 4, 0, 0, 0, 0, 0], Route::None),
            (&[0, 131, 7, 4, 10, 0, 0, 1], Route::None),
            (&[7, 40, 4, 0], Route::None),
            (&[131, 7, 4, 10, 0, 0, 1, 0], through(&[ten])),
            (&[1, 137, 7, 8, 10, 0, 0, 1], through(&[ten])),
            (&[137, 11, 4, 10, 0, 0, 1, 10, 0, 0, 1, 0], through(&[ten, ten])),
            (&[131, 3, 4, 0], through(&[])),
            // No length, less than one, one beyond the header.
            (&[1, 1, 1, 131], Route::Unreadable),
            (&[7, 0, 131, 3], Route::Unreadable),
            (&[131, 2, 0, 0], Route::Unreadable),
            (&[131, 11, 4, 10, 0, 0, 1, 0], Route::Unreadable),
            // Half an address; a pointer before and between the addresses; two routes.
            (&[131, 9, 4, 10, 0, 0, 1, 10, 0, 0, 0, 0], Route::Unreadable),
            (&[131, 7, 0, 10, 0, 0, 1, 0], Route::Unreadable),
            (&[131, 7, 5, 10, 0, 0, 1, 0], Route::Unreadable),
            (&[131, 7, 4, 10, 0, 0, 1, 137, 7, 4, 10, 0, 0, 1, 0, 0], Route::Unreadable),
        ] {
            assert_eq!(v4(options), route, "{options:?}");
        }
        let full = [&[131, 39, 4][..], &[10, 0, 0, 1].repeat(9), &[0]].concat();
        assert_eq!(v4(&full), through(&[ten; 9]));
    }

    #[test]
    fn routes_in_ipv6_routing_headers() {
        let header = |kind: u8, left: u8, last: u8, data: &[u8]| {
            (43, [&[(data.len() / 8) as u8, kind, left, last, 0, 0, 0], data].concat())
        };
        let (one, two) = ([7; 16], [8; 16]);
        let both = [one, two].concat();
        assert_eq!(v6(&[]), Route::None);
        assert_eq!(v6(&[(60, Vec::from([0; 7]))]), Route::None);
        for kind in [0, 2, 3, 4, 253] {
            assert_eq!(v6(&[header(kind, 0, 1, &both)]), through(&[]), "{kind}");
        }
        assert_eq!(v6(&[header(0, 2, 0, &both)]), through(&[one, two]));
        assert_eq!(v6(&[header(4, 1, 1, &both)]), through(&[one, two]));
        // Others follow the list.
        assert_eq!(v6(&[header(4, 1, 0, &both)]), through(&[one]));
        assert_eq!(v6(&[header(2, 1, 0, &one)]), through(&[one]));
        assert_eq!(v6(&[(0, Vec::from([0; 7])), header(2, 1, 0, &one)]), through(&[one]));
        for unreadable in [
            header(0, 3, 0, &both),
            header(0, 1, 0, &both[..24]),
            header(0, 1, 0, &one.repeat(10)),
            header(2, 1, 0, &both),
            header(4, 2, 2, &both),
            header(4, 1, 0, &[]),
            // Compressed (RFC 6554), and of a type that only experiments know.
            header(3, 1, 0, &both),
            header(253, 1, 0, &both),
        ] {
            assert_eq!(v6(core::slice::from_ref(&unreadable)), Route::Unreadable, "{unreadable:?}");
        }
        let finished = header(0, 0, 0, &both);
        assert_eq!(v6(&[header(0, 1, 0, &both), finished.clone()]), Route::Unreadable);
        assert_eq!(v6(&[finished.clone(), finished]), through(&[]));
    }
}
