//! Reports how long loading and attaching the kernel half takes on this kernel, and which mechanisms are available.

use std::{collections::BTreeSet, fs, time::Instant};

use crafter::{
    Crafter,
    datapath::{
        program::{Attach, Hook, Kernel, LoadOptions},
        xsk::Frames,
    },
    error::Error,
    lab::INTERFACE,
};
use crafter_tests::testbed;
use serde_json::{Value, json};

/// A JSON object with `programs` and `attached`, or with `refused`.
pub fn report() -> Value {
    let programs = [Hook::Xdp, Hook::Ingress, Hook::Egress].map(program);
    if let Some(Err(error)) = programs.iter().find(|program| program.is_err()) {
        return json!({"refused": error.to_string(), "code": crafter_tests::exit::code(error)});
    }
    let attached =
        [(Attach::Auto, "auto"), (Attach::Native, "native"), (Attach::Generic, "generic"), (Attach::Tc, "tc")];
    json!({
        "programs": programs.into_iter().flatten().collect::<Vec<_>>(),
        "attached": attached.map(|(attach, name)| mechanism(attach, name)),
        "doctor": doctor(),
    })
}

/// Loads one program into a separate kernel half, so that its time is not shared.
fn program(hook: Hook) -> Result<Value, Error> {
    let frames = Frames::plan(1500, 1, LoadOptions::default().frame_bytes);
    let (kernel, _maps) = Kernel::load(&LoadOptions::default(), 14, frames.longest())?;
    let began = Instant::now();
    let info = match hook {
        Hook::Xdp => kernel.xdp(hook, |program| Ok(program.info()))?,
        _ => kernel.classifier(hook, |program| Ok(program.info()))?,
    };
    let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
    let info = info.map_err(|e| Error::Bpf { action: format!("ask for {}", hook.program()), reason: e.to_string() })?;
    Ok(json!({
        "name": hook.program(),
        "verified": info.verified_instruction_count(),
        "translated_bytes": info.size_translated(),
        "jitted_bytes": info.size_jitted(),
        "milliseconds": milliseconds,
    }))
}

/// Opens the lab's interface; returns crafter's report and the types of BPF links that it uses.
fn mechanism(attach: Attach, name: &str) -> Value {
    let lab = testbed::lab();
    let opened = crafter_tests::within(lab.client(), || async {
        let crafter = Crafter::open(INTERFACE, testbed::options(attach)).await?;
        let report = crafter.report().clone();
        Ok::<_, Error>((report, links()))
    });
    match opened {
        Ok((report, links)) => json!({"asked": name, "got": report.to_string(), "links": links, "notes": report.notes}),
        Err(error) => json!({"asked": name, "refused": error.to_string()}),
    }
}

/// Types of the BPF links held by this process; attachments without a link are not listed.
fn links() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| Some(line.strip_prefix("link_type:")?.trim().to_owned())));
    }
    found
}

/// Output of `crafter doctor` in the lab.
fn doctor() -> String {
    let lab = testbed::lab();
    let output = lab.client().command(crafter_tests::service::built()).arg("doctor").output();
    output.map_or_else(|e| e.to_string(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
}
