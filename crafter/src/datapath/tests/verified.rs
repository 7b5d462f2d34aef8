use super::super::{
    features::host,
    program::{Hook, Kernel, LoadOptions},
};

/// Instructions that the verifier of Linux 6.18 processes, plus a tenth. It takes about a microsecond for each, and a
/// command waits for it at its start. A fifth of it, for XDP a sixth, is the question whether the kernel would take the
/// packet: station, VLAN, source, and up to ten words of options in the checksum.
const LIMITS: [(Hook, u32); 3] = [(Hook::Xdp, 21_400), (Hook::Ingress, 17_100), (Hook::Egress, 12_300)];

#[test]
fn programs_stay_cheap_to_verify() {
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
