use aya::programs::{TestRun as _, TestRunOptions};
use crafter_common::reason::Reason;
use crafter_tests::frame;

use super::{
    super::{
        maps::Terms,
        program::{Attach, Hook, Kernel, LoadOptions},
        ring::Ring,
    },
    *,
};
use crate::packet::Transport;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn options() -> LoadOptions {
    LoadOptions { flow_entries: 1024, ring_bytes: 1 << 16, ..LoadOptions::default() }
}

/// The kernel's number of the egress program.
fn program(kernel: &Kernel) -> u32 {
    kernel.classifier(Hook::Egress, |program| Ok(program.info().unwrap().id())).unwrap()
}

/// The verdict on a segment to port 80; TEST_RUN has it arrive at `lo`.
fn verdict(kernel: &Kernel) -> u32 {
    let segment = frame::Tcp::new(frame::RST, 1, 1).ip((ip(THERE[0]), 7).into(), (ip(HERE[0]), 80).into());
    let frame = frame::framed(&segment);
    let run = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
    kernel.xdp(Hook::Xdp, |program| Ok(program.test_run(run).unwrap().return_value)).unwrap()
}

#[test]
fn interfaces_share_programs_and_own_ports_apart() {
    pair(|peer| async move {
        let open = async |name| Kernel::open(&interface(name).await.unwrap(), &options(), 14, 1792).unwrap();
        let (here, mut here_maps) = open("v0").await;
        let (lo, mut lo_maps) = open("lo").await;
        assert_eq!(program(&here), program(&lo));
        let mut ring = Ring::new(lo.ring().unwrap());

        here_maps.own(1, Transport::Tcp, ip(HERE[0]), 80, Terms::default()).unwrap();
        assert_eq!(verdict(&lo), XDP_PASS, "owned on another interface");
        lo_maps.own(2, Transport::Tcp, ip(HERE[0]), 80, Terms::default()).unwrap();
        assert_eq!(verdict(&lo), XDP_DROP, "owned");
        assert_eq!(ring.drain(|_, _| {}), 1);
        here_maps.disown(1, Transport::Tcp, ip(HERE[0]), 80).unwrap();
        assert_eq!(verdict(&lo), XDP_DROP, "owned, though no longer on another interface");
        assert_eq!((here_maps.flows().len(), lo_maps.flows().len()), (0, 1));
        assert_eq!(here_maps.counters().unwrap().ingress(), 0);
        assert_eq!(lo_maps.counters().unwrap().get(Reason::Copied), 2);

        // The next attachment of the interface starts without flows, counters and ports.
        let programs = program(&lo);
        drop((lo, lo_maps, ring));
        let (lo, lo_maps) = open("lo").await;
        assert_eq!(program(&lo), programs);
        assert_eq!((lo_maps.flows().len(), lo_maps.counters().unwrap().ingress()), (0, 0));
        assert_eq!(verdict(&lo), XDP_PASS, "owned before");

        // A load is not shared by two attachments of one interface, with other sizes, or with another namespace.
        let (again, _maps) = open("v0").await;
        assert_ne!(program(&again), programs);
        let larger = LoadOptions { flow_entries: 2048, ..options() };
        let (larger, _maps) = Kernel::open(&interface("lo").await.unwrap(), &larger, 14, 1792).unwrap();
        assert_ne!(program(&larger), programs);
        let there = peer.run(|| {
            let lo = block_on(interface("lo")).unwrap();
            Kernel::open(&lo, &options(), 14, 1792).map(|(kernel, _)| program(&kernel)).unwrap()
        });
        assert_ne!(there, programs);
    });
}

#[test]
fn programs_are_unloaded_with_their_last_interface() {
    pair(|_peer| async move {
        let loaded = |id| aya::programs::loaded_programs().flatten().any(|program| program.id() == id);
        let open = async |name| {
            let interface = interface(name).await.unwrap();
            let (mut kernel, maps) = Kernel::open(&interface, &options(), 14, 1792).unwrap();
            kernel.attach(&interface, Attach::Auto).unwrap();
            (kernel, maps)
        };
        let (here, lo) = (open("v0").await, open("lo").await);
        let id = program(&here.0);
        drop(here);
        assert!(loaded(id));
        assert_eq!(interface("v0").await.unwrap().xdp, None);
        drop(lo);
        // The kernel frees it a moment after the last reference.
        again(|| if loaded(id) { Err("still loaded") } else { Ok(()) });
    });
}
