//! Summary of `crafter get`, as text and as JSON.

use std::{fmt, net::SocketAddr, path::Path, time::Duration};

use crate::cli::{exit, print, signals::Interruption};
use crafter::{
    Stream,
    datapath::{maps::Counters, program::Report},
    driver::Stats,
    engine::StreamStats,
};
use crafter_common::reason::Reason;
use hyper::StatusCode;
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{response::Head, target::Target};

/// The summary.
pub struct Summary {
    url: String,
    /// The URLs that redirected to `url`, in order.
    redirects: Vec<String>,
    /// Where the last response redirects to, with its status.
    pub redirect: Option<(u16, String)>,
    output: Option<String>,
    connection: Option<(SocketAddr, SocketAddr)>,
    status: Option<StatusCode>,
    content_length: Option<u64>,
    /// Bytes of the body written.
    pub body_bytes: u64,
    /// From the start to the connection: name lookup, attaching, handshake.
    setup: Duration,
    /// From the request to the last byte of the body.
    pub transfer: Option<Duration>,
    /// The stream's counters.
    pub stream: StreamStats,
    rsts_suppressed: u64,
    rsts_passed: u64,
    /// Received segments dropped because a queue to user space was full; the peer retransmits them.
    no_room: u64,
    report: Option<Report>,
    /// Remarks, a sentence each.
    pub notes: Vec<String>,
    /// The error that ended the command.
    pub error: Option<String>,
    /// The exit code.
    pub exit_code: u8,
}

impl Summary {
    /// A summary before the connection.
    pub fn new(target: &Target, output: Option<&Path>) -> Self {
        Self {
            url: target.url.to_string(),
            redirects: Vec::new(),
            redirect: None,
            output: output.map(|path| path.display().to_string()),
            connection: None,
            status: None,
            content_length: None,
            body_bytes: 0,
            setup: Duration::ZERO,
            transfer: None,
            stream: StreamStats::default(),
            rsts_suppressed: 0,
            rsts_passed: 0,
            no_room: 0,
            report: None,
            notes: Vec::new(),
            error: None,
            exit_code: exit::SUCCESS,
        }
    }

    /// Records a completed handshake.
    pub fn connected(&mut self, stream: &Stream, report: &Report, setup: Duration) {
        self.setup = setup;
        self.connection = Some((stream.local(), stream.remote()));
        self.report = Some(report.clone());
    }

    /// Records what has ended the transfer early.
    pub fn interrupt(&mut self, interruption: Interruption) {
        self.exit_code = interruption.code();
        self.error = Some(interruption.to_string());
    }

    /// Records the head of the response.
    pub fn head(&mut self, head: &Head) {
        self.status = Some(head.status);
        self.content_length = head.length;
        self.redirect = head
            .status
            .is_redirection()
            .then(|| head.values("location").next())
            .flatten()
            .map(|location| (head.status.as_u16(), location.to_owned()));
        if let Some(coding) = head.values("content-encoding").find(|coding| !coding.eq_ignore_ascii_case("identity")) {
            self.notes
                .push(format!("the body is encoded ({coding}), although the request asked for none; it is kept so"));
        }
        if head.status.as_u16() >= 400 {
            self.exit_code = exit::SERVER_ERROR;
        }
    }

    /// Follows a redirect: what is known so far is of the former URL.
    pub fn redirected(&mut self, target: &Target) {
        self.redirects.push(std::mem::replace(&mut self.url, target.url.to_string()));
        (self.status, self.content_length, self.transfer) = (None, None, None);
    }

    /// Number of redirects followed.
    pub fn redirects(&self) -> usize {
        self.redirects.len()
    }

    /// Records counters of the kernel half and of the driver; this command has the only lease.
    pub fn counted(&mut self, counters: &Counters, stats: &Stats) {
        self.rsts_suppressed = counters.get(Reason::RstSuppressed);
        self.rsts_passed = counters.get(Reason::RstAllowed);
        let dropped = counters.get(Reason::DeliveryFull) + counters.get(Reason::ObserveFull);
        self.no_room = stats.lost + dropped;
    }

    /// The HTTP status if it is an error.
    pub fn http_error(&self) -> Option<StatusCode> {
        self.status.filter(|status| status.as_u16() >= 400)
    }

    /// How much of the body was written before an error; for messages.
    pub fn partial(&self) -> String {
        let to = self.output.as_deref().unwrap_or("stdout");
        let written = self.body_bytes;
        match (self.status, self.content_length) {
            (None, _) => String::new(),
            (_, Some(all)) => format!(" ({to} has {written} of {all} bytes of the body)"),
            (_, None) => format!(" ({to} has the first {written} bytes of the body)"),
        }
    }

    fn bytes_per_second(&self) -> Option<f64> {
        let seconds = self.transfer?.as_secs_f64();
        (seconds > 0.0).then(|| self.body_bytes as f64 / seconds)
    }
}

/// Several lines; only the notes if no connection was established.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, .. } = self;
        if let (Some((local, remote)), Some(report)) = (self.connection, &self.report) {
            if !self.redirects.is_empty() {
                writeln!(f, "redirects: {} to {}", self.redirects.join(" to "), self.url)?;
            }
            if let (Some(status), Some(time)) = (self.status, self.transfer) {
                write!(f, "{status}: {} bytes in {:.3} s", self.body_bytes, time.as_secs_f64())?;
                writeln!(f, ", {:.1} MB/s", self.bytes_per_second().unwrap_or_default() / 1e6)?;
            }
            let handshake = stream.handshake.unwrap_or_default().as_secs_f64() * 1e3;
            let setup = self.setup.as_secs_f64() * 1e3;
            writeln!(f, "handshake: {handshake:.3} ms, {local} to {remote}; {setup:.0} ms with attaching")?;
            let (count, bytes, again) = (stream.segments_sent, stream.bytes_sent, stream.retransmissions);
            writeln!(f, "sent:      {count} segments, {bytes} bytes; {again} retransmissions")?;
            let (count, bytes) = (stream.segments_received, stream.bytes_received);
            let (twice, early) = (stream.duplicates, stream.out_of_order);
            writeln!(f, "received:  {count} segments, {bytes} bytes; {twice} duplicates, {early} out of order")?;
            if self.no_room > 0 {
                writeln!(
                    f,
                    "           {} segments dropped by full queues (the peer retransmitted them)",
                    self.no_room
                )?;
            }
            if stream.hook_drops > 0 {
                writeln!(f, "lost:      {} segments by --loss", stream.hook_drops)?;
            }
            write!(f, "kernel:    {} RSTs suppressed", self.rsts_suppressed)?;
            if self.rsts_passed > 0 {
                write!(f, ", {} passed", self.rsts_passed)?;
            }
            writeln!(f, "\nmechanism: {report}")?;
            for note in &report.notes {
                writeln!(f, "note:      {note}")?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note:      {note}")?;
        }
        Ok(())
    }
}

impl Serialize for Summary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { stream, .. } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("url", &self.url)?;
        map.serialize_entry("redirects", &self.redirects)?;
        map.serialize_entry("output", &self.output)?;
        map.serialize_entry("local", &self.connection.map(|(local, _)| local))?;
        map.serialize_entry("remote", &self.connection.map(|(_, remote)| remote))?;
        map.serialize_entry("status", &self.status.map(|status| status.as_u16()))?;
        map.serialize_entry("content_length", &self.content_length)?;
        map.serialize_entry("body_bytes", &self.body_bytes)?;
        map.serialize_entry("setup_ns", &self.connection.map(|_| print::nanoseconds(self.setup)))?;
        map.serialize_entry("duration_ns", &self.transfer.map(print::nanoseconds))?;
        map.serialize_entry("bytes_per_second", &self.bytes_per_second())?;
        map.serialize_entry("handshake_ns", &stream.handshake.map(print::nanoseconds))?;
        map.serialize_entry("timestamps", &stream.timestamps)?;
        map.serialize_entry("segments_sent", &stream.segments_sent)?;
        map.serialize_entry("segments_received", &stream.segments_received)?;
        map.serialize_entry("bytes_sent", &stream.bytes_sent)?;
        map.serialize_entry("bytes_received", &stream.bytes_received)?;
        map.serialize_entry("retransmissions", &stream.retransmissions)?;
        map.serialize_entry("duplicates", &stream.duplicates)?;
        map.serialize_entry("out_of_order", &stream.out_of_order)?;
        map.serialize_entry("resets", &stream.resets)?;
        map.serialize_entry("hook_drops", &stream.hook_drops)?;
        map.serialize_entry("no_room", &self.no_room)?;
        map.serialize_entry("rsts_suppressed", &self.rsts_suppressed)?;
        map.serialize_entry("rsts_passed", &self.rsts_passed)?;
        map.serialize_entry("mechanism", &self.report)?;
        map.serialize_entry("notes", &self.notes)?;
        map.serialize_entry("error", &self.error)?;
        map.serialize_entry("exit_code", &self.exit_code)?;
        map.end()
    }
}
