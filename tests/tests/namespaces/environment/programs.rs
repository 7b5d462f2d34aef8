//! Foreign programs on the same hooks, and firewalls.

use crafter::{
    LeaseRequest,
    datapath::program::{Attach, Mode},
    lab::{INTERFACE, SERVER_V4},
};
use crafter_tests::{
    foreign::{attach_tcx, drop_all},
    leak::{Serial, assert_detached, attached, has_tcx},
    peer::Nginx,
    service::built,
    testbed::{self, ENDS, lab, open, run},
    within,
};

use super::{assert_rsts, handshake};

/// The kernel refuses a foreign program on a hook held by crafter. If a foreign program holds the hook, crafter uses
/// the next one and notes why, and uses the first again when it is free.
#[test]
fn foreign_xdp_program_causes_fallback_to_tc() {
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
        // Without the foreign program, packets reach crafter again.
        drop(foreign);
        let lease = crafter.lease(LeaseRequest::tcp()).await.unwrap();
        handshake(&lease).await;
        objects
    });
    objects.wait_until_freed(crafter_tests::manual::REPLY_TIMEOUT);
    let objects = within(lab.client(), async || {
        let crafter = open(Attach::Auto).await;
        assert_eq!(crafter.report().mode, Mode::Native);
        serial.objects()
    });
    serial.finish(&objects, lab.client(), INTERFACE);
    assert_rsts(&lab, 2);
}

/// Foreign tcx programs before and after crafter's, in both directions, that continue with the next program or pass.
#[test]
fn foreign_tcx_programs_coexist() {
    const NEXT: i32 = -1;
    const PASS: i32 = 0;
    if !has_tcx() {
        // With clsact each filter has a priority of its own, so nothing can conflict.
        return;
    }
    let _serial = Serial::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    for (verdict, before) in [(NEXT, true), (NEXT, false), (PASS, false)] {
        let mut theirs = Vec::new();
        let mut attach =
            |egress| theirs.push(lab.client().run(|| attach_tcx(INTERFACE, verdict, egress, before)).unwrap());
        // One is attached before crafter's programs, the other while they are attached.
        attach(false);
        within(lab.client(), async || {
            let crafter = open(Attach::Tc).await;
            // The kernel answers with a RST, which passes both egress programs.
            let lease = crafter.lease(LeaseRequest::tcp().observe(true)).await.unwrap();
            attach(true);
            handshake(&lease).await;
        });
        assert!(theirs.iter().all(Result::is_ok), "{theirs:?}");
        let left = attached(lab.client(), INTERFACE);
        assert_eq!(left.len(), 2, "only the foreign programs must stay: {left:?}");
        drop(theirs);
        assert_detached(lab.client(), INTERFACE);
        assert_rsts(&lab, 1);
    }
}

/// Whatever a command has attached is detached when it returns, although several threads close it at once.
#[test]
fn command_has_detached_when_it_returns() {
    let _serial = Serial::begin();
    let lab = lab();
    let packet = format!("IP(dst='{SERVER_V4}')/TCP(dport=9, flags='S')");
    for mode in ["native", "generic", "tc"] {
        let mut command = lab.client().command(built());
        let output = command.args(["sr1", "--direct", "--attach", mode, &packet]).output().expect("crafter");
        let left = attached(lab.client(), INTERFACE);
        assert!(output.status.success(), "{mode}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(left, Vec::<String>::new(), "{mode}");
    }
}

/// A firewall drops what connection tracking does not know, in both directions: crafted packets bypass it, the host's
/// own connections work through it.
#[test]
fn crafted_packets_bypass_a_firewall() {
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
                testbed::assert_curl_works(&lab, server, &nginx);
            }
            serial.objects()
        });
        serial.finish(&objects, lab.client(), INTERFACE);
    }
    // Positive control: the rules are still active.
    assert!(run(lab.client().command("iptables").args(["-S"])).contains("INVALID"));
}
