//! Other programs at the same hooks, and firewalls.

use crafter::{
    LeaseRequest,
    datapath::program::{Attach, Mode},
    lab::INTERFACE,
};
use crafter_tests::{
    drop::{beside, drop_all},
    leak::{Serial, assert_detached, attached, has_tcx},
    peer::Nginx,
    stage::{self, ENDS, lab, open, run},
    within,
};

use super::{assert_rsts, handshake};

/// Who comes second to the XDP hook is refused by the kernel and disturbs nobody; crafter, second, takes the next hook
/// and says why, and has the first again when it is free.
#[test]
fn a_foreign_xdp_program() {
    let serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let objects = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        assert_eq!(crafter.report().mode, Mode::Native);
        let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
        let refused = drop_all(INTERFACE).expect_err("the hook is held");
        assert_eq!(refused.raw_os_error(), Some(nix::libc::EBUSY), "{refused}");
        handshake(&lease).await;
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
    let foreign = lab.client().run(|| drop_all(INTERFACE)).unwrap().expect("the hook is free");
    let objects = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        assert_eq!(crafter.report().mode, Mode::Tc);
        let notes = crafter.report().notes.join("; ");
        assert!(notes.contains("XDP") && notes.contains("pid"), "{notes}");
        let objects = serial.objects();
        // The other one leaves: what comes reaches us again.
        drop(foreign);
        let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
        handshake(&lease).await;
        objects
    });
    objects.wait_until_freed(crafter_tests::by_hand::PATIENCE);
    let objects = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        assert_eq!(crafter.report().mode, Mode::Native);
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
    assert_rsts(&lab, 2);
}

/// Foreign tcx programs before and behind ours, both ways, that leave the verdict to the next, or pass behind us.
#[test]
fn foreign_tcx_programs() {
    const NEXT: i32 = -1;
    const PASS: i32 = 0;
    if !has_tcx() {
        // Under clsact nobody is beside anybody: each filter has a priority of its own.
        return;
    }
    let _serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    for (verdict, before) in [(NEXT, true), (NEXT, false), (PASS, false)] {
        let mut theirs = Vec::new();
        let mut attach = |egress| theirs.push(lab.client().run(|| beside(INTERFACE, verdict, egress, before)).unwrap());
        // One comes before us, in time, the other while we work.
        attach(false);
        within(lab.client(), async || {
            let crafter = open(Attach::Tc).await;
            // The kernel answers, and its RST meets our egress program beside theirs.
            let lease = crafter.lease(LeaseRequest::tcp().observe(true)).await.unwrap();
            attach(true);
            handshake(&lease).await;
        });
        assert!(theirs.iter().all(Result::is_ok), "{theirs:?}");
        let left = attached(lab.client(), INTERFACE);
        assert_eq!(left.len(), 2, "theirs stay, ours go: {left:?}");
        drop(theirs);
        assert_detached(lab.client(), INTERFACE);
        assert_rsts(&lab, 1);
    }
}

/// Connection tracking that drops what it does not know, both ways: crafted packets pass beside it, the host's own
/// connections go through it.
#[test]
fn a_firewall_that_drops_invalid() {
    let serial = Serial::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    for (program, chain) in ["iptables", "ip6tables"].into_iter().flat_map(|one| [(one, "INPUT"), (one, "OUTPUT")]) {
        let rule = ["-A", chain, "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"];
        run(lab.client().command(program).args(rule));
    }
    for attach in [Attach::Native, Attach::Generic, Attach::Tc] {
        let objects = within(lab.client(), async || {
            let crafter = open(attach).await;
            let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
            handshake(&lease).await;
            for (_, server) in ENDS {
                stage::assert_curl_works(&lab, server, &nginx);
            }
            serial.objects()
        });
        serial.finish(&objects, lab.client(), INTERFACE);
    }
    // The control: the rules are there, and stay.
    assert!(run(lab.client().command("iptables").args(["-S"])).contains("INVALID"));
}
