//! crafter's kernel half: the entry points, and the one place where a reason becomes an action.

#![no_std]
#![no_main]
// For a few instructions, see maps.rs and packet.rs.
#![feature(asm_experimental_arch)]

mod deliver;
mod egress;
mod ingress;
mod maps;
mod packet;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, sk_action, xdp_action},
    macros::{classifier, sk_lookup, xdp},
    programs::{SkLookupContext, TcContext, XdpContext},
};
use aya_log_ebpf::debug;
use crafter_common::reason::{Reason, Verdict};
use packet::{Packet as _, SkbPacket, XdpPacket};

/// Ingress where the device or the kernel's generic hook runs XDP. `frags`: devices with an MTU
/// above a page attach only programs that understand fragmented buffers.
#[xdp(frags)]
pub fn crafter_xdp(ctx: XdpContext) -> u32 {
    let packet = XdpPacket::new(&ctx);
    let reason = ingress::decide(&packet);
    maps::count(packet.slot(), reason);
    let verdict = reason.verdict();
    if verdict != Verdict::Pass {
        debug!(&ctx, "XDP: consumed, reason {}", reason as u32);
    }
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        // bpf_redirect_map has set the target; only its return value makes it happen.
        Verdict::Redirect => xdp_action::XDP_REDIRECT,
    }
}

/// Does nothing. Only benchmarks load it, to measure the other programs against it.
#[xdp(frags)]
pub fn crafter_empty(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Ingress if XDP is not available, or another program holds its hook.
#[classifier]
pub fn crafter_ingress(ctx: TcContext) -> i32 {
    let reason = match SkbPacket::new(&ctx) {
        Some(packet) => ingress::decide(&packet),
        None => Reason::Malformed,
    };
    act(&ctx, reason)
}

/// Egress: the kernel's answers to what it does not know.
#[classifier]
pub fn crafter_egress(ctx: TcContext) -> i32 {
    let reason = match SkbPacket::new(&ctx) {
        Some(packet) => egress::decide(&packet, packet::mark(&ctx)),
        None => Reason::EgressOther,
    };
    act(&ctx, reason)
}

/// The lookup of the socket that a datagram is for: no socket, if only a lease has the port. The socket that reserves
/// the port would receive the datagram, and nothing reads it; without a socket the kernel answers as if the port were
/// free.
#[sk_lookup]
pub fn crafter_lookup(ctx: SkLookupContext) -> u32 {
    match packet::looked_up(&ctx) {
        Some(port) if maps::is_reserved(port) => sk_action::SK_DROP,
        _ => sk_action::SK_PASS,
    }
}

/// A classifier's reason as its action. `TC_ACT_UNSPEC` and `TCX_NEXT` are one number: programs
/// after ours still run, under tcx and under clsact.
#[inline(always)]
fn act(ctx: &TcContext, reason: Reason) -> i32 {
    maps::count(maps::slot(packet::ifindex(ctx)), reason);
    match reason.verdict() {
        Verdict::Pass | Verdict::Redirect => TC_ACT_UNSPEC,
        Verdict::Drop => {
            debug!(ctx, "tc: dropped, reason {}", reason as u32);
            TC_ACT_SHOT as i32
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier would refuse a program that could get here.
    loop {}
}

/// The bpf_link keeps the programs loaded; helpers that only GPL programs may call are used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
