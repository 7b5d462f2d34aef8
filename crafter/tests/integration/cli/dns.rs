//! `crafter dns`

use crafter::lab::{BIG_TXT_BYTES, LONG_TXT_BYTES, Lab};
use crafter_tests::exit;
use serde_json::json;

use super::{Done, crafter, crafter_without, lab, on_server, run};

fn dns(lab: &Lab, args: &[&str]) -> Done {
    crafter(lab, &[&["dns", "--server", "192.0.2.1"], args].concat())
}

/// The contents of all quoted strings.
fn text_length(line: &str) -> usize {
    line.split('"').skip(1).step_by(2).map(str::len).sum()
}

#[test]
fn records_are_printed_in_zone_file_format() {
    let lab = lab();
    for (args, lines) in [
        (&["lab.test"][..], &["lab.test.\t300\tIN\tA\t192.0.2.1"][..]),
        (&["lab.test", "--type", "aaaa"], &["lab.test.\t300\tIN\tAAAA\t2001:db8::1"]),
        (
            &["lab.test.", "--type", "MX"],
            &["lab.test.\t300\tIN\tMX\t10 mail.lab.test.", "lab.test.\t300\tIN\tMX\t20 web.lab.test."],
        ),
        (&["text.lab.test", "--type", "TXT"], &["text.lab.test.\t300\tIN\tTXT\t\"hello\" \"lab\""]),
        (&["lab.test", "--type", "NS"], &["lab.test.\t300\tIN\tNS\tns.lab.test."]),
        (&["192.0.2.2"], &["2.2.0.192.in-addr.arpa.\t300\tIN\tPTR\tclient.lab.test."]),
        (&["2001:db8::1", "--type", "PTR"], &["PTR\tweb.lab.test."]),
        (&["www.lab.test"], &["www.lab.test.\t300\tIN\tCNAME\tweb.lab.test.", "web.lab.test.\t300\tIN\tA\t192.0.2.1"]),
        (&["lab.test", "--type", "SOA"], &["SOA\tns.lab.test. hostmaster.lab.test. 1 3600 600 86400 60"]),
        // The name exists, but has no record of that type.
        (&["lab.test", "--type", "SRV"], &[]),
    ] {
        let done = dns(&lab, args);
        done.succeeds();
        let mut printed: Vec<&str> = done.text().lines().collect();
        printed.sort_unstable_by_key(|line| lines.iter().position(|wanted| line.ends_with(wanted)));
        assert!(printed.len() == lines.len() && printed.iter().zip(lines).all(|(a, b)| a.ends_with(b)), "{done:?}");
        assert!(done.stderr.starts_with(";; NOERROR, flags: qr aa rd; "), "{done:?}");
        assert!(done.stderr.contains(" UDP 192.0.2.1:53, "), "{done:?}");
    }
}

#[test]
fn answers_arrive_in_every_receive_mode_and_over_ipv6() {
    let lab = lab();
    for server in ["192.0.2.1:53", "[2001:db8::1]", "2001:db8::1"] {
        for mode in ["native", "generic", "tc"] {
            for tcp in [&[][..], &["--tcp"]] {
                let args = ["dns", "lab.test", "--server", server, "--attach", mode];
                let done = crafter(&lab, &[&args[..], tcp].concat());
                assert_eq!((done.code, done.text()), (0, "lab.test.\t300\tIN\tA\t192.0.2.1\n"), "{done:?}");
            }
        }
    }
    assert_eq!(lab.tap().count().unwrap(), 0, "RSTs reached the server");
}

#[test]
fn long_answers_arrive_over_tcp_or_in_fragments() {
    let lab = lab();
    let report = dns(&lab, &["big.lab.test", "--type", "TXT", "--json"]).object("dns");
    assert_eq!((&report["transport"], &report["truncated_over_udp"]), (&json!("tcp"), &json!(true)), "{report}");
    let data = report["answers"][0]["data"].as_str().unwrap();
    assert_eq!(text_length(data), BIG_TXT_BYTES);
    // Strings of 250 bytes whose contents encode their position.
    assert!(data.starts_with("\"00000000, 00000010, ") && data.contains("00003490, "), "{data}");

    for mode in ["native", "generic", "tc"] {
        let args = ["big.lab.test", "--type", "TXT", "--edns", "4096", "--json", "--attach", mode];
        let fragments = dns(&lab, &args).object("dns");
        assert_eq!(fragments["transport"], json!("udp"), "{fragments}");
        assert_eq!(fragments["answers"][0]["data"].as_str(), Some(data));
        assert!(fragments["bytes"].as_u64().unwrap() > BIG_TXT_BYTES as u64);
    }
    // Without EDNS, an answer has at most 512 bytes; this one does not fit the usual EDNS size either.
    for edns in ["0", "1232"] {
        let long = dns(&lab, &["long.lab.test", "--type", "TXT", "--edns", edns]);
        assert_eq!(text_length(long.text()), LONG_TXT_BYTES);
        assert!(long.stderr.contains("TCP 192.0.2.1:53") && long.stderr.contains("truncated over UDP"), "{long:?}");
    }
}

#[test]
fn json_contains_all_records() {
    let lab = lab();
    let report = dns(&lab, &["lab.test", "--json"]).object("dns");
    assert_eq!(
        report["answers"],
        json!([{ "name": "lab.test.", "ttl": 300, "class": "IN", "type": "A", "data": "192.0.2.1" }])
    );
    for (key, value) in [
        ("name", json!("lab.test.")),
        ("type", json!("A")),
        ("server", json!("192.0.2.1:53")),
        ("transport", json!("udp")),
        ("rcode", json!("NOERROR")),
        ("flags", json!(["qr", "aa", "rd"])),
        ("attempts", json!(1)),
    ] {
        assert_eq!(report[key], value, "{key}: {report}");
    }
    assert!(report["rtt_ns"].as_u64().unwrap() > 0 && report["bytes"].as_u64().unwrap() > 12);
}

#[test]
fn failures_have_exit_codes_and_messages() {
    let lab = lab();
    let missing = dns(&lab, &["nothing.lab.test"]);
    assert_eq!((missing.code, missing.text()), (exit::SERVER_ERROR.into(), ""), "{missing:?}");
    assert!(missing.stderr.starts_with(";; NXDOMAIN"), "{missing:?}");
    let foreign = dns(&lab, &["example.org", "--json"]);
    assert_eq!((foreign.code, &foreign.object("dns")["rcode"]), (exit::SERVER_ERROR.into(), &json!("REFUSED")));
    for name in ["a..b", "", &"a".repeat(64)] {
        dns(&lab, &[name]).fails(exit::USAGE, "NAME: ");
    }
    dns(&lab, &["lab.test", "--type", "AXFR"]).fails(exit::USAGE, "zone transfers");
    crafter(&lab, &["dns", "lab.test", "--server", "nowhere"]).fails(exit::USAGE, "--server");
    for server in ["192.0.2.1:54", "[2001:db8::1]:54"] {
        let closed = crafter(&lab, &["dns", "lab.test", "--server", server]);
        closed.fails(exit::REFUSED, "is unreachable: port unreachable");
        let refused = crafter(&lab, &["dns", "lab.test", "--tcp", "--server", server]);
        refused.fails(exit::REFUSED, "refused the connection");
    }
    on_server(&lab, "ip", &["route", "add", "blackhole", "198.51.100.0/24"]);
    // The limit and the last attempt end at the same time.
    for (limit, message) in [
        (["--wait", "0.2"], "no answer from 198.51.100.1:53 within 600ms (DNS answer)"),
        (["--timeout", "600ms"], "within 600ms"),
    ] {
        let hole = [&["dns", "lab.test", "--server", "198.51.100.1", "--tries", "3"][..], &limit].concat();
        crafter(&lab, &hole).fails(exit::TIMED_OUT, message);
    }
    crafter_without(&lab, "-net_raw", &["dns", "lab.test", "--server", "192.0.2.1"])
        .fails(exit::PERMISSION, "CAP_NET_RAW");
}

#[test]
fn arguments_follow_dig() {
    let lab = lab();
    for args in [
        &["@192.0.2.1", "web.lab.test", "AAAA"][..],
        &["aaaa", "web.lab.test", "@192.0.2.1"],
        &["web.lab.test", "@[2001:db8::1]:53", "TYPE28"],
        &["web.lab.test", "aaaa", "--server", "192.0.2.1"],
        &["@192.0.2.1", "web.lab.test", "IN", "AAAA"],
        &["--type", "AAAA", "@192.0.2.1", "web.lab.test", "-s", "192.0.2.1", "aaaa"],
    ] {
        let done = crafter(&lab, &[&["dns"], args].concat());
        assert_eq!((done.code, done.text()), (0, "web.lab.test.\t300\tIN\tAAAA\t2001:db8::1\n"), "{done:?}");
    }
    for (args, said) in [
        (&["@192.0.2.1", "web.lab.test", "--server", "192.0.2.2"][..], "--server: @SERVER has a different value"),
        (&["@192.0.2.1", "web.lab.test", "A", "--type", "mx"], "--type: TYPE has a different value"),
        (&["@192.0.2.1", "web.lab.test", "www.lab.test"], "TYPE: neither 'web.lab.test' nor 'www.lab.test' is"),
        (&["@192.0.2.1"], "NAME: missing"),
        (&["@192.0.2.1", "lab.test", "axfr"], "zone transfers"),
        (&["@192.0.2.1", "lab.test", "mx", "any"], "CLASS: no server answers for class ANY; use IN, CH or HS"),
    ] {
        crafter(&lab, &[&["dns"], args].concat()).fails(exit::USAGE, said);
    }
}

/// Runs in a mount namespace with this /etc/resolv.conf, or with an empty /etc.
fn with_resolv_conf(lab: &Lab, resolv_conf: Option<&str>, before: &str, args: &[&str]) -> Done {
    let mut command = lab.command("unshare");
    let conf = "mount -t tmpfs none /etc && { [ -z \"$CONF\" ] || printf \"$CONF\" > /etc/resolv.conf; }";
    let script = format!("{conf} && {{ {before} }} && \"$@\"");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_crafter")]);
    command.arg("dns").args(args).env("CONF", resolv_conf.unwrap_or_default());
    run(command)
}

#[test]
fn servers_of_resolv_conf_are_asked_in_turn() {
    let lab = lab();
    let ask = |conf, args: &[&str]| with_resolv_conf(&lab, conf, "true;", args);
    let answer = "lab.test.\t300\tIN\tA\t192.0.2.1\n";
    let done = ask(Some("search x\nnameserver 192.0.2.1\n"), &["lab.test"]);
    assert_eq!((done.code, done.text()), (0, answer), "{done:?}");
    on_server(&lab, "ip", &["route", "add", "blackhole", "198.51.100.0/24"]);
    // A server that does not answer, an unused address, a host without a server; then the lab's server.
    let conf = "nameserver 198.51.100.1\nnameserver 192.0.2.9\nnameserver 192.0.2.2\nnameserver 2001:db8::1\n";
    let done = ask(Some(conf), &["lab.test", "--wait", "0.3", "--tries", "1", "--json"]);
    assert_eq!((done.code, &done.object("dns")["server"]), (0, &json!("[2001:db8::1]:53")), "{done:?}");
    // A negative answer is an answer, too.
    let refused = Some("nameserver 192.0.2.1\nnameserver 198.51.100.1\n");
    let done = ask(refused, &["example.org", "--wait", "0.3", "--tries", "1"]);
    assert_eq!((done.code, done.stderr.contains("REFUSED")), (exit::SERVER_ERROR.into(), true), "{done:?}");
    let done = ask(Some("nameserver 198.51.100.1\n"), &["lab.test", "--wait", "0.2", "--tries", "1"]);
    done.fails(
        exit::TIMED_OUT,
        "query 198.51.100.1:53 from /etc/resolv.conf (@SERVER selects another server): no answer",
    );
    for conf in [None, Some("search lab.test\n")] {
        ask(conf, &["lab.test"]).fails(exit::USAGE, "/etc/resolv.conf has none (");
    }
}

#[test]
fn stub_resolver_on_loopback_answers() {
    let lab = lab();
    // Forwards datagrams for 127.0.0.53, as systemd-resolved and dnsmasq do.
    let stub = "python3 -c '
import socket
stub = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
stub.bind((\"127.0.0.53\", 53))
open(\"/etc/ready\", \"w\").close()
while True:
    query, client = stub.recvfrom(4096)
    upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    upstream.sendto(query, (\"192.0.2.1\", 53))
    stub.sendto(upstream.recv(4096), client)
' & trap \"kill $!\" EXIT; until [ -e /etc/ready ]; do sleep 0.05; done;";
    let done = with_resolv_conf(&lab, Some("nameserver 127.0.0.53\n"), stub, &["web.lab.test", "aaaa"]);
    assert_eq!((done.code, done.text()), (0, "web.lab.test.\t300\tIN\tAAAA\t2001:db8::1\n"), "{done:?}");
    assert!(done.stderr.contains(" UDP 127.0.0.53:53, "), "{done:?}");
}

/// A server that answers each query with this response code, and with a TXT record in the question's class if it is 0.
fn answering(address: &str, code: u8) -> String {
    format!(
        "python3 -c '
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((\"{address}\", 53))
open(\"/etc/ready-{address}\", \"w\").close()
while True:
    query, client = server.recvfrom(4096)
    end = query.index(0, 12) + 5
    record = b\"\\xc0\\x0c\" + query[end - 4:end] + bytes([0, 0, 0, 0, 0, 3, 2]) + b\"ok\"
    answer = query[:2] + bytes([0x81, {code}, 0, 1, 0, int({code} == 0), 0, 0, 0, 0]) + query[12:end]
    server.sendto(answer + (record if {code} == 0 else b\"\"), client)
' & servers=\"$servers $!\"; until [ -e /etc/ready-{address} ]; do sleep 0.05; done;"
    )
}

#[test]
fn next_server_is_asked_after_an_error() {
    let lab = lab();
    for (code, name) in [(2, "SERVFAIL"), (4, "NOTIMP"), (5, "REFUSED")] {
        let servers =
            format!("trap 'kill $servers' EXIT; {} {}", answering("127.0.0.52", code), answering("127.0.0.53", 0));
        let ask = |conf: &str| with_resolv_conf(&lab, Some(conf), &servers, &["version.bind", "txt", "ch"]);
        let done = ask("nameserver 127.0.0.52\nnameserver 127.0.0.53\n");
        // The class of the question is that of the answer.
        assert_eq!((done.code, done.text()), (0, "version.bind.\t0\tCH\tTXT\t\"ok\"\n"), "{done:?}");
        let warning = format!("127.0.0.52:53 answered {name}; querying the next server");
        assert!(done.stderr.contains(&warning) && done.stderr.contains(" UDP 127.0.0.53:53, "), "{done:?}");
        // If no other server answers, the first server's error is reported.
        let done = ask("nameserver 127.0.0.52\nnameserver 127.0.0.54\n");
        assert_eq!((done.code, done.text()), (exit::SERVER_ERROR.into(), ""), "{done:?}");
        assert!(done.stderr.contains(&format!(";; {name}, ")), "{done:?}");
        // NXDOMAIN is an answer.
        let final_answer = format!("trap 'kill $servers' EXIT; {}", answering("127.0.0.52", 3));
        let conf = "nameserver 127.0.0.52\nnameserver 127.0.0.54\n";
        let done = with_resolv_conf(&lab, Some(conf), &final_answer, &["version.bind", "txt", "ch"]);
        assert!(done.stderr.starts_with(";; NXDOMAIN, "), "{done:?}");
    }
}
