//! Rebuilds every packet of real captures: the test data of tcpdump and Scapy, which `cargo xtask setup` downloads from
//! Debian's source packages. Needs neither root nor network.
//!
//! `CRAFTER_CORPORA` names another directory, with a subdirectory per corpus.

use std::{
    collections::BTreeMap,
    env, fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::Duration,
};

use crafter::{
    capture::{Capture, Captured, Format, Link, Reader, Writer},
    expr::PacketSet,
    layer::Packet,
    packet::Error,
};

/// The minimum size of each corpus in any Debian release: files, packets.
const CORPORA: [(&str, usize, usize); 2] = [("tcpdump", 500, 8000), ("scapy", 30, 500)];

/// Number of packets per file that get all checks; later packets get only the fast ones.
const THOROUGH: usize = 3000;

/// Files with times that do not fit a counter of nanoseconds.
const TOO_LATE: Duration = Duration::from_nanos(u64::MAX);

fn folder() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CRAFTER_CORPORA").unwrap_or_else(|| {
        let data = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
        data.expect("HOME or XDG_DATA_HOME is set").join("crafter/corpora")
    })
}

/// The files of a corpus; `None` if set-up could not download its source package.
fn files(corpus: &str) -> Option<Vec<PathBuf>> {
    let folder = folder();
    if let Ok(reason) = fs::read_to_string(folder.join(format!("{corpus}.missing"))) {
        println!("NOT RUN on {corpus}'s captures, which set-up could not fetch: {}", reason.trim());
        return None;
    }
    let mut files = Vec::new();
    let mut folders = vec![folder.join(corpus)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}; `cargo xtask setup` fetches it", folder.display()));
        for entry in entries.map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Some(files)
}

/// A file's bytes, unpacked if it is compressed.
fn bytes(path: &Path) -> Vec<u8> {
    if path.extension().is_none_or(|extension| extension != "gz") {
        return fs::read(path).unwrap();
    }
    let output = Command::new("gzip").args(["-dc"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Runs all checks on one packet; the error says which one failed.
fn packet(captured: &Captured, thorough: bool) -> Result<(), String> {
    let packet = captured.packet();
    let wrong = |what: &str| Err(format!("{what}\n{packet}"));
    let built = packet.build().map_err(|error| format!("build: {error}\n{packet}"))?;
    if built != captured.bytes {
        return wrong("built again, the bytes are others");
    }
    if packet.summary().is_empty() != packet.layers().is_empty() {
        return wrong("no summary");
    }
    if !thorough {
        return Ok(());
    }
    let text = packet.to_string();
    same_text(&text, &captured.bytes, Some(&packet))?;
    let error = |error: Error| error.to_string();
    let shown = packet.show().map_err(error)?;
    packet.hexdump().map_err(error)?;
    packet.layout().map_err(error)?;
    for layer in packet.layers() {
        if !shown.contains(layer.kind().name()) {
            return wrong("a layer is not shown");
        }
    }
    let json = serde_json::to_string(&packet.to_json().map_err(error)?).map_err(|error| error.to_string())?;
    let json: serde_json::Value = serde_json::from_str(&json).map_err(|error| error.to_string())?;
    if json["layers"].as_array().map(Vec::len) != Some(packet.layers().len()) {
        return wrong("not all layers are in the JSON");
    }
    let mut simple = packet.clone();
    simple.simplify().map_err(error)?;
    same_text(&simple.to_string(), &captured.bytes, None)
}

/// Checks that a text form denotes this packet and these bytes.
fn same_text(text: &str, bytes: &[u8], packet: Option<&Packet>) -> Result<(), String> {
    if packet.is_some_and(|packet| packet.layers().is_empty()) || bytes.is_empty() {
        return Ok(());
    }
    let failure = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}\n{text}");
    let set = PacketSet::parse(text).map_err(|error| failure("text", &error))?;
    let mut packets = set.packets(1).map_err(|error| failure("text", &error))?;
    let read = packets.next().ok_or_else(|| failure("text", &"no packet"))?;
    if packet.is_some_and(|packet| *packet != read) {
        return Err(failure("read from its text, the packet is another", &read));
    }
    match read.build() {
        Ok(built) if built == bytes => Ok(()),
        Ok(_) => Err(failure("built from its text, the bytes are others", &"")),
        Err(error) => Err(failure("build from text", &error)),
    }
}

#[derive(Default)]
struct Found {
    packets: usize,
    layers: BTreeMap<&'static str, usize>,
    /// Truncated or broken files.
    broken: usize,
    /// Files that cannot be read at all, with the reason.
    refused: Vec<String>,
    wrong: Vec<String>,
    /// Name, number of packets and sum of their original lengths for each readable file.
    files: BTreeMap<PathBuf, (usize, u64)>,
}

fn file(path: &Path, found: &Mutex<Found>) {
    let bytes = bytes(path);
    let name = path.file_name().unwrap().to_string_lossy();
    let reader = match Reader::new(&bytes[..]) {
        Ok(reader) => reader,
        Err(error) => return found.lock().unwrap().refused.push(format!("{name}: {error}")),
    };
    let (mut packets, mut length, mut broken) = (0, 0, 0);
    let (mut layers, mut wrong) = (BTreeMap::<_, usize>::new(), Vec::new());
    let mut again = Writer::new(Vec::new(), Format::PcapNg).unwrap();
    let mut all = Vec::new();
    for captured in reader {
        let captured = match captured {
            Ok(captured) => captured,
            Err(Error::Invalid { .. }) => {
                broken += 1;
                break;
            }
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                break;
            }
        };
        packets += 1;
        // capinfos does not count the 4 bytes of a SunATM header.
        let pseudo = if captured.link == Link(123) { 4 } else { 0 };
        length += u64::from(captured.original_length.saturating_sub(pseudo));
        let done = panic::catch_unwind(AssertUnwindSafe(|| packet(&captured, packets <= THOROUGH)));
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => wrong.push(format!("{name}, packet {packets}: {error}")),
            Err(_) => wrong.push(format!("{name}, packet {packets}: panic")),
        }
        for layer in captured.packet().layers() {
            *layers.entry(layer.kind().name()).or_default() += 1;
        }
        if captured.link != Link::UNKNOWN && captured.time.is_some_and(|time| time < TOO_LATE) {
            match again.write(&captured.entry()) {
                Ok(()) => all.push(captured),
                Err(error) => wrong.push(format!("{name}, packet {packets}: written again: {error}")),
            }
        }
    }
    let again = Capture::read(&again.finish().unwrap()).unwrap();
    for (packet, (once, again)) in all.iter().zip(&again.packets).enumerate() {
        let long = u64::try_from(once.bytes.len()).unwrap() > once.original_length.into();
        if once != again && !long {
            wrong.push(format!("{name}, packet {}: written and read, it is another", packet + 1));
        }
    }
    if again.packets.len() != all.len() || again.broken.is_some() {
        wrong.push(format!("{name}: written again, it is another"));
    }
    let mut found = found.lock().unwrap();
    found.packets += packets;
    found.broken += broken;
    found.wrong.extend(wrong);
    found.files.insert(path.to_owned(), (packets, length));
    for (layer, count) in layers {
        *found.layers.entry(layer).or_default() += count;
    }
}

fn corpus(corpus: &str, least_files: usize, least_packets: usize) {
    let Some(files) = files(corpus) else { return };
    assert!(files.len() >= least_files, "only {} files: `cargo xtask setup` was not done?", files.len());
    let found = Mutex::new(Found::default());
    let rest = Mutex::new(files.iter());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let next = rest.lock().unwrap().next();
                    let Some(path) = next else { break };
                    file(path, &found);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    println!(
        "{corpus}: {} packets in {} files, of which {} end within a packet or are broken",
        found.packets,
        found.files.len(),
        found.broken
    );
    println!("layers: {:?}", found.layers);
    println!("not captures: {:#?}", found.refused);
    let differing = judged(&found.files);
    found.wrong.extend(differing);
    assert!(found.wrong.is_empty(), "{} wrong:\n{}", found.wrong.len(), found.wrong.join("\n"));
    assert!(found.packets >= least_packets, "suspiciously few packets: {}", found.packets);
}

/// Compares the counts with those of capinfos, for files that it reads to the end.
fn judged(files: &BTreeMap<PathBuf, (usize, u64)>) -> Vec<String> {
    let paths: Vec<&PathBuf> = files.keys().collect();
    let mut differing = Vec::new();
    let mut judged = 0;
    for paths in paths.chunks(100) {
        // Columns separated by tabs: name, packets, bytes.
        let output = Command::new("capinfos").args(["-TMrcd"]).args(paths).stderr(Stdio::null()).output();
        let output = output.expect("capinfos, of Debian's wireshark-common");
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let [name, packets, length] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let (Ok(packets), length) = (packets.parse::<usize>(), length.parse::<u64>().unwrap_or(0)) else {
                continue;
            };
            judged += 1;
            if files[Path::new(name)] != (packets, length) {
                differing.push(format!("{name}: {:?}, capinfos counts {packets} and {length}", files[Path::new(name)]));
            }
        }
    }
    println!("capinfos read {judged} of them");
    assert!(judged * 10 >= files.len() * 9, "capinfos read {judged} files of {} only", files.len());
    differing
}

#[test]
fn captures_of_tcpdump_are_rebuilt() {
    let (name, files, packets) = CORPORA[0];
    corpus(name, files, packets);
}

#[test]
fn captures_of_scapy_are_rebuilt() {
    let (name, files, packets) = CORPORA[1];
    corpus(name, files, packets);
}
