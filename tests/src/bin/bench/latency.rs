//! How long a call of one user takes while two other users make the calls that cost the service most.

use std::{
    os::fd::AsFd as _,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use crafter::{
    lab::{INTERFACE, Lab},
    protocol::{Control, socket_path, wire::InfoCall},
};
use crafter_tests::raw::{Raw, call};
use serde_json::json;

use crate::{
    service::{Service, quiet},
    table::{Row, Target},
};

/// The users who disturb, each with a process for each disturbance.
const OTHERS: [&str; 2] = ["72001", "72002"];

/// How long the calls are measured with each disturbance, and how long the disturbance runs before.
const TIME: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_millis(500);

/// The disturbances. `all`: all of them at once.
const DISTURBANCES: [&str; 8] =
    ["ports", "leases", "flows", "lists", "routes", "neighbours", "descriptors", "connections"];

/// The longest time of a disturbance, if the benchmark does not end it.
const LIFETIME: Duration = Duration::from_secs(30);

/// Ends its process when dropped.
struct Disturber(Child);

impl Drop for Disturber {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures `Info` without disturbance, with each, and with all at once.
pub fn measure() -> Result<Vec<Row>> {
    let lab = Lab::new(&quiet())?;
    let service = Service::start(&lab)?;
    let mut rows = row("nobody", measured(&service, &lab, &[])?);
    for one in DISTURBANCES {
        rows.extend(row(one, measured(&service, &lab, &[one])?));
    }
    rows.extend(row("all of these", measured(&service, &lab, &DISTURBANCES)?));
    Ok(rows)
}

/// Median, 99th percentile and maximum in milliseconds while two users do `what`.
fn measured(service: &Service, lab: &Lab, what: &[&str]) -> Result<[f64; 3]> {
    let mut disturbers = Vec::new();
    for user in OTHERS {
        for one in what {
            let mut command = service.client_of(user, lab, &["disturb", one])?;
            disturbers.push(Disturber(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?));
        }
    }
    thread::sleep(WARM_UP);
    let output = service.client(lab, &["info", &TIME.as_millis().to_string()])?.output()?;
    ensure!(output.status.success(), "bench client info: {}", output.status);
    for disturber in &mut disturbers {
        ensure!(disturber.0.try_wait()?.is_none(), "a disturbance of {what:?} has ended by itself");
    }
    let numbers: Vec<f64> =
        String::from_utf8(output.stdout)?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    numbers.try_into().map_err(|numbers| anyhow::anyhow!("not three numbers: {numbers:?}"))
}

fn row(who: &str, [median, high, most]: [f64; 3]) -> Vec<Row> {
    let row = |which: &str, value: f64, limit: f64| Row {
        what: format!("`Info`, {which}, disturbed by {who}"),
        crafter: format!("{value:.2} ms"),
        peer: format!("99th percentile {high:.2} ms"),
        value,
        unit: " ms",
        target: Target::AtMost(limit),
    };
    vec![row("median", median, 2.0), row("maximum", most, 50.0)]
}

/// Calls `Info` for a time; prints median, 99th percentile and maximum in milliseconds.
pub async fn observe(control: &Control, time: Duration) -> Result<()> {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < time {
        let start = Instant::now();
        control.call(&InfoCall {}).await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("{} {} {}", at(0.5), at(0.99), at(1.0));
    Ok(())
}

/// Makes one kind of call as fast as the service answers.
pub fn disturb(what: &str) -> Result<()> {
    let (path, begin) = (socket_path(), Instant::now());
    let lease = |count: u64, protocol: &str| json!({ "interface": INTERFACE, "protocol": protocol, "count": count });
    let mut client = Raw::connect(&path);
    let mut number = 0_u64;
    while begin.elapsed() < LIFETIME {
        number += 1;
        match what {
            "ports" => drop(client.call("Lease", &lease(1024, "udp"))),
            // Its descriptor is closed by the kernel: the reply is read without room for it.
            "leases" => drop(client.call("Lease", &lease(1, "tcp"))),
            "flows" => pages(&mut client, "ListFlows")?,
            "lists" => drop(client.call("ListLeases", &json!({ "limit": 1 }))),
            "routes" => drop(client.call("Route", &json!({ "destination": format!("192.0.2.{}", number % 254 + 1) }))),
            "neighbours" => {
                let absent = format!("2001:db8::{:x}:{:x}", number >> 16 & 0xffff, number & 0xffff);
                client.write(&call("Route", &json!({ "destination": absent })))?;
                if number.is_multiple_of(64) {
                    client = Raw::connect(&path);
                }
            }
            "descriptors" => {
                let passed = client.stream().try_clone()?;
                // Refused on Linux 6.16 and newer; otherwise the service ends the connection.
                let _ = client.write_with(&call("Info", &json!({})), &[passed.as_fd(); 64]);
                client = Raw::connect(&path);
            }
            "connections" => {
                client = Raw::connect(&path);
                // The service may close a connection beyond the user's share without an answer.
                let _ = client.write(&call("Info", &json!({})));
                client.answer();
            }
            other => bail!("{other} is no disturbance"),
        }
    }
    Ok(())
}

/// Reads all pages of a list, one entry each.
fn pages(client: &mut Raw, method: &str) -> Result<()> {
    let mut bytes = serde_json::to_vec(&json!({
        "method": format!("org.crafter.v1.{method}"), "parameters": { "limit": 1 }, "more": true
    }))?;
    bytes.push(0);
    client.write(&bytes)?;
    while client.answer().context("the service closed the connection")?["continues"] == true {}
    Ok(())
}
