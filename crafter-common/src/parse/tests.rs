extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// An IPv6 header, a chain of extension headers of 8 bytes each, and 20 bytes of transport.
fn v6(chain: &[u8], transport: u8) -> Vec<u8> {
    let mut bytes = Vec::from([0x60, 0, 0, 0, 0, 0, *chain.first().unwrap_or(&transport), 64]);
    bytes.extend([1; 16]);
    bytes.extend([2; 16]);
    for (position, kind) in chain.iter().enumerate() {
        let next = *chain.get(position + 1).unwrap_or(&transport);
        // Length 0 means 8 bytes for most; 51 counts in fours and less two: 0 too.
        bytes.extend([next, 0, 0, 0, 9, 9, 9, 9]);
        assert!(matches!(kind, 0 | 43 | 44 | 51 | 60 | 135));
    }
    bytes.extend([0, 80, 0xc0, 0]);
    bytes.extend([0; 16]);
    bytes
}

fn v4(options: usize, fragment: u16) -> Vec<u8> {
    let mut bytes = Vec::from([0x45 + (options / 4) as u8, 0, 0, 0, 7, 8]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, TCP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    bytes.extend(core::iter::repeat_n(1, options));
    bytes.extend([0, 80, 0xc0, 0]);
    bytes.extend([0; 16]);
    bytes
}

#[test]
fn ipv4_options_and_fragments() {
    for options in (0..=40).step_by(4) {
        let bytes = v4(options, 0x4000);
        let net = network(&bytes[..], 0, false).unwrap();
        assert_eq!((net.transport, net.protocol, net.fragment), (20 + options, TCP, Fragment::Whole));
        assert_eq!(ports(&bytes[..], net.transport), Some(([0, 80], [0xc0, 0])));
        assert_eq!(net.addresses(&bytes[..]), Some((mapped([192, 0, 2, 1]), mapped([192, 0, 2, 2]))));
    }
    assert_eq!(network(&v4(0, 0x2000)[..], 0, false).unwrap().fragment, Fragment::First);
    assert_eq!(network(&v4(0, 0x2001)[..], 0, false).unwrap().fragment, Fragment::Later);
    assert_eq!(network(&v4(0, 1)[..], 0, false).unwrap().identification, [0, 0, 7, 8]);
    let mut short = v4(0, 0);
    short[0] = 0x44;
    assert_eq!(network(&short[..], 0, false), Err(Reason::Malformed));
    assert_eq!(network(&v4(0, 0)[..19], 0, false), Err(Reason::Malformed));
}

#[test]
fn ipv6_chains() {
    for chain in [&[][..], &[0], &[0, 43, 60], &[0, 51, 60], &[60; 8]] {
        let bytes = v6(chain, UDP);
        let net = network(&bytes[..], 0, true).unwrap();
        assert_eq!((net.transport, net.protocol), (40 + 8 * chain.len(), UDP), "{chain:?}");
        assert_eq!(net.fragment, Fragment::Whole);
    }
    assert_eq!(network(&v6(&[60; 9], UDP)[..], 0, true), Err(Reason::OtherProtocol));
    // The ninth is not walked, whatever it is, and whether it is there.
    let mut ninth = v6(&[60, 60, 60, 60, 60, 60, 60, 60, 44], UDP);
    ninth[40 + 64 + 2] = 1;
    assert_eq!(network(&ninth[..], 0, true), Err(Reason::OtherProtocol));
    assert_eq!(network(&ninth[..40 + 64], 0, true), Err(Reason::OtherProtocol));
    // Segments left, in any of the routing headers.
    let mut routed = v6(&[43, 60, 43], UDP);
    assert_eq!(network(&routed[..], 0, true).unwrap().left, 0);
    routed[43] = 2;
    assert_ne!(network(&routed[..], 0, true).unwrap().left, 0);
    let mut first = v6(&[0, 44], TCP);
    first[51] = 1;
    let net = network(&first[..], 0, true).unwrap();
    assert_eq!((net.fragment, net.identification, net.transport), (Fragment::First, [9; 4], 56));
    first[50] = 1;
    assert_eq!(network(&first[..], 0, true).unwrap().fragment, Fragment::Later);
    assert_eq!(network(&v6(&[0], TCP)[..41], 0, true), Err(Reason::Malformed));
    assert_eq!(network(&v6(&[], TCP)[..39], 0, true), Err(Reason::Malformed));
}

#[test]
fn addresses_that_no_ipv6_packet_has() {
    let mut net = network(&v6(&[], TCP)[..], 0, true).unwrap();
    let loopback = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(net.end(loopback), Some(loopback));
    assert_eq!((net.end(crate::ANY), net.end(mapped([192, 0, 2, 1]))), (None, None));
    net.v6 = false;
    assert_eq!(net.end(mapped([192, 0, 2, 1])), Some(mapped([192, 0, 2, 1])));
}

proptest! {
    #[test]
    fn damaged_packets_do_not_panic_and_offsets_stay_inside(bytes in proptest::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>()) {
        let _ = link(&bytes[..], 14);
        if let Ok(net) = network(&bytes[..], 0, v6) {
            prop_assert!(net.addresses(&bytes[..]).is_some());
            if ports(&bytes[..], net.transport).is_some() {
                prop_assert!(net.transport + 4 <= bytes.len());
            }
            if icmp(&bytes[..], &net).is_some() {
                let _ = quoted(&bytes[..], &net);
            }
        }
    }
}
