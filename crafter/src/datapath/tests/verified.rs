use super::super::{
    features::host,
    program::{Hook, Kernel, LoadOptions},
};

/// Instructions that the verifier of Linux 6.18 processes, plus a tenth. It takes about a microsecond for each, and a
/// command waits for it at its start. Four places at ingress ask whether the sender is a peer of the lease; a fifth of it,
/// for XDP a sixth, is the question whether the kernel would take the packet: station, VLAN, source, and up to ten words
/// of options in the checksum.
const LIMITS: [(Hook, u32); 3] = [(Hook::Xdp, 27_000), (Hook::Ingress, 20_000), (Hook::Egress, 13_000)];

#[test]
fn verified_instructions_stay_below_the_limits() {
    for (hook, limit) in LIMITS {
        let options = LoadOptions { flow_entries: 1024, ..LoadOptions::default() };
        let (kernel, _maps) = Kernel::load(&options, 14, 1792).unwrap();
        let began = std::time::Instant::now();
        let info = match hook {
            Hook::Xdp => kernel.xdp(hook, |program| Ok(program.info())).unwrap(),
            _ => kernel.classifier(hook, |program| Ok(program.info())).unwrap(),
        };
        let took = began.elapsed();
        let verified = info.unwrap().verified_instruction_count().unwrap();
        println!("{}: {verified} instructions verified in {took:?}", hook.program());
        // Other kernels prune other paths.
        if host().unwrap().kernel.starts_with("6.18.") {
            assert!(verified <= limit, "{}: {verified} instructions to verify, not {limit}", hook.program());
        }
    }
}
