//! Damage to packets: what a broken or hostile sender makes of them.

use super::{Rng, world::World};

/// Bytes that mean something somewhere: versions, header lengths, protocols, flags, extremes.
const TELLING: [u8; 20] = [0, 1, 2, 3, 4, 5, 6, 0x44, 0x45, 0x46, 0x4f, 0x60, 0x20, 0x3f, 17, 43, 44, 51, 58, 0xff];

/// Where headers live, for most packets.
const HEADERS: usize = 110;

/// Damages `frame` in one to four ways. It keeps at least `least` bytes.
pub fn damage(rng: &mut Rng, world: &World, frame: &mut Vec<u8>, least: usize) {
    for _ in 0..rng.pick(&[1, 1, 1, 2, 2, 3, 4]) {
        let within = frame.len().min(HEADERS);
        let at = rng.below(within.max(1));
        match rng.below(11) {
            0 | 1 => frame[at] ^= 1 << rng.below(8),
            2 => frame[at] = rng.pick(&TELLING),
            3 => frame[at] = rng.bits() as u8,
            // Truncated: anywhere, or within the headers.
            4 => {
                let keep = rng.below(frame.len() + 1);
                frame.truncate(keep);
            }
            5 | 6 => frame.truncate(at),
            // A port, or the bytes of an address, where they do not belong.
            7 => splice(frame, at, &rng.pick(&world.ports).to_be_bytes()),
            8 => {
                let v6 = rng.chance(50);
                splice(frame, at, &crate::frame::octets(world.near(rng, v6)));
            }
            // Bytes lost, and bytes too many.
            9 => {
                let end = (at + 1 + rng.below(16)).min(frame.len());
                frame.drain(at..end);
            }
            _ => {
                let count = 1 + rng.below(60);
                let bytes = if rng.chance(50) { vec![0; count] } else { rng.bytes(count) };
                let at = if rng.chance(50) { frame.len() } else { at };
                frame.splice(at..at, bytes);
            }
        }
        // What is too short to be run is filled up with zeros.
        if frame.len() < least {
            frame.resize(least, 0);
        }
    }
}

fn splice(frame: &mut [u8], at: usize, bytes: &[u8]) {
    for (place, byte) in frame[at..].iter_mut().zip(bytes) {
        *place = *byte;
    }
}
