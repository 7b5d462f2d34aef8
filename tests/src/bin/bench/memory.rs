//! Resident memory of a 100 MB download.

use anyhow::{Context as _, Result, ensure};
use crafter::lab::{Lab, LabOptions, SERVER_V4};
use crafter_tests::peer::Nginx;
use nix::sys::resource::{UsageWho, getrusage};

use crate::table::{Row, Target};

pub fn measure() -> Result<Vec<Row>> {
    let lab = Lab::new(&LabOptions { web: false, dns: false, offloads: false, ..LabOptions::default() })?;
    let nginx = Nginx::with_big(lab.server());
    let page = nginx.big.as_ref().context("nginx has no big page")?;
    let binary = std::env::current_exe()?.with_file_name("crafter");
    let mut get = lab.client().command(&binary);
    get.args(["get", "-o", "/dev/null", &format!("http://{SERVER_V4}{}", page.path)]);
    let output = get.output().with_context(|| format!("{}; build it with `cargo xtask build`", binary.display()))?;
    ensure!(output.status.success(), "crafter get: {}", String::from_utf8_lossy(&output.stderr));
    // The maximum over all children waited for; this is the first one.
    let mib = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() as f64 / 1024.0;
    Ok(vec![Row {
        what: format!("resident memory, `crafter get` of {} MB", page.length / 1_000_000),
        crafter: format!("{mib:.1} MiB"),
        peer: "-".to_owned(),
        value: mib,
        unit: " MiB",
        target: Target::AtMost(64.0),
    }])
}
