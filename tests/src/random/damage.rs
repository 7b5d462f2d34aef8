//! Damages packets as a broken or hostile sender might.

use super::{Rng, world::World};

/// Bytes with a meaning in some header: versions, header lengths, protocols, flags, extremes.
const SIGNIFICANT: [u8; 20] = [0, 1, 2, 3, 4, 5, 6, 0x44, 0x45, 0x46, 0x4f, 0x60, 0x20, 0x3f, 17, 43, 44, 51, 58, 0xff];

/// Offset in bytes at which the headers of most packets end.
const HEADERS: usize = 110;

/// Applies one to four random changes to `frame`, which keeps at least `least` bytes.
pub fn damage(rng: &mut Rng, world: &World, frame: &mut Vec<u8>, least: usize) {
    for _ in 0..rng.pick(&[1, 1, 1, 2, 2, 3, 4]) {
        let within = frame.len().min(HEADERS);
        let at = rng.below(within.max(1));
        match rng.below(11) {
            0 | 1 => frame[at] ^= 1 << rng.below(8),
            2 => frame[at] = rng.pick(&SIGNIFICANT),
            3 => frame[at] = rng.bits() as u8,
            // Truncation: anywhere, or (below) within the headers.
            4 => {
                let keep = rng.below(frame.len() + 1);
                frame.truncate(keep);
            }
            5 | 6 => frame.truncate(at),
            // A port, or the bytes of an address, at an arbitrary offset.
            7 => splice(frame, at, &rng.pick(&world.ports).to_be_bytes()),
            8 => {
                let v6 = rng.chance(50);
                splice(frame, at, &crate::frame::octets(world.near(rng, v6)));
            }
            // Removed bytes, and inserted bytes.
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
        // Pads a frame that is too short to be run.
        if frame.len() < least {
            frame.resize(least, 0);
        }
    }
}

fn splice(frame: &mut [u8], at: usize, bytes: &[u8]) {
    for (target, byte) in frame[at..].iter_mut().zip(bytes) {
        *target = *byte;
    }
}
