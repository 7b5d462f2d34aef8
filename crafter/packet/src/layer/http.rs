//! Heads of HTTP/1 requests and responses, parsed by httparse.
#![allow(non_snake_case, reason = "the names of Scapy")]

use std::fmt;

use super::{
    AnyLayer, Kind,
    protocol::{Fixed as _, Parsed, Protocol},
    table::{FieldError, layer},
    value::{Element, IntoField, Value},
};

layer! {
    /// HTTP/1 request head; the body is payload
    pub struct HttpRequest: "HTTPRequest", "RFC 9112, section 3" {}
    tail {
        /// Method; if unset, GET
        Method: Vec<u8>;
        /// Target of the request line; if unset, /
        Path: Vec<u8>;
        /// Version; if unset, HTTP/1.1
        Http_Version: Vec<u8>;
        /// Header fields: tuples of name and value, or bytes for a line in another format
        Headers: Vec<HttpHeader>;
    }
}

layer! {
    /// HTTP/1 response head; the body is payload
    pub struct HttpResponse: "HTTPResponse", "RFC 9112, section 4" {}
    tail {
        /// Version; if unset, HTTP/1.1
        Http_Version: Vec<u8>;
        /// Status code; if unset, 200
        Status_Code: Vec<u8>;
        /// Reason phrase; if unset, OK
        Reason_Phrase: Vec<u8>;
        /// Header fields: tuples of name and value, or bytes for a line in another format
        Headers: Vec<HttpHeader>;
    }
}

/// A header field of HTTP/1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpHeader {
    /// Name and value, separated by a colon and a space.
    Field(Vec<u8>, Vec<u8>),
    /// Any other line, such as one without a space after the colon; without its line end.
    Line(Vec<u8>),
}

impl HttpHeader {
    fn read(line: &[u8]) -> Self {
        match line.windows(2).position(|pair| pair == b": ") {
            Some(at) => Self::Field(line[..at].to_vec(), line[at + 2..].to_vec()),
            None => Self::Line(line.to_vec()),
        }
    }
}

impl IntoField<Vec<HttpHeader>> for &[(&str, &str)] {
    fn into_field(self) -> Vec<HttpHeader> {
        self.iter().map(|(name, value)| HttpHeader::Field((*name).into(), (*value).into())).collect()
    }
}

impl Element for HttpHeader {
    fn to_value(&self) -> Value {
        let value = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains(char::is_control) => Value::Text(text.to_owned()),
            _ => Value::Bytes(bytes.to_vec()),
        };
        match self {
            Self::Field(name, content) => Value::Tuple(vec![value(name), value(content)]),
            Self::Line(line) => Value::Bytes(line.clone()),
        }
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        match value {
            Value::Tuple(values) => match &values[..] {
                [name, content] => Ok(Self::Field(name.bytes()?, content.bytes()?)),
                _ => Err(r#"a header is a name with its value, such as ("Host", "example.org")"#.to_owned()),
            },
            line => Ok(Self::Line(line.bytes()?)),
        }
    }
}

/// More than servers accept.
const MAX_HEADERS: usize = 128;

/// The message at the start of the bytes, if its head is complete.
#[inline]
pub(crate) fn message(bytes: &[u8]) -> Option<Kind> {
    let word = bytes.iter().take(20).position(|byte| !byte.is_ascii_uppercase() && *byte != b'-')?;
    match bytes.get(word)? {
        b' ' if word > 2 => Some(Kind::HttpRequest),
        b'/' if &bytes[..word] == b"HTTP" => Some(Kind::HttpResponse),
        _ => None,
    }
}

/// Splits a head into the three parts of its first line, and its header lines.
fn split(head: &[u8]) -> Option<([&[u8]; 3], Vec<HttpHeader>)> {
    let mut rest = head.strip_suffix(b"\r\n")?;
    let mut lines = Vec::new();
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    let (first, headers) = lines.split_first().filter(|_| rest.is_empty())?;
    let mut parts = first.splitn(3, |byte| *byte == b' ');
    let parts = [parts.next()?, parts.next()?, parts.next()?];
    Some((parts, headers.iter().map(|line| HttpHeader::read(line)).collect()))
}

fn write(first: [&[u8]; 3], headers: Option<&Vec<HttpHeader>>, out: &mut Vec<u8>) {
    for (at, part) in first.iter().enumerate() {
        out.extend_from_slice(if at > 0 { b" " } else { b"" });
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
    for header in headers.into_iter().flatten() {
        match header {
            HttpHeader::Field(name, value) => {
                out.extend_from_slice(name);
                out.extend_from_slice(b": ");
                out.extend_from_slice(value);
            }
            HttpHeader::Line(line) => out.extend_from_slice(line),
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn or<'a>(set: Option<&'a Vec<u8>>, default: &'a [u8]) -> &'a [u8] {
    set.map_or(default, Vec::as_slice)
}

/// The layer, if it is built to the same bytes.
fn exact<T: Protocol>(layer: T, head: &[u8]) -> Option<Parsed<T>> {
    let mut again = Vec::with_capacity(head.len());
    layer.write(&mut again).ok()?;
    (again == head).then(|| Parsed { layer, header: head.len(), end: usize::MAX, next: Kind::Raw })
}

impl HttpRequest {
    fn first(&self) -> [&[u8]; 3] {
        [
            or(self.Method.as_ref(), b"GET"),
            or(self.Path.as_ref(), b"/"),
            or(self.Http_Version.as_ref(), b"HTTP/1.1"),
        ]
    }
}

impl Protocol for HttpRequest {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let httparse::Status::Complete(length) = httparse::Request::new(&mut headers).parse(bytes).ok()? else {
            return None;
        };
        let head = &bytes[..length];
        let ([method, path, version], headers) = split(head)?;
        let headers = (!headers.is_empty()).then_some(headers);
        let layer = Self {
            Method: Some(method.into()),
            Path: Some(path.into()),
            Http_Version: Some(version.into()),
            Headers: headers,
        };
        exact(layer, head)
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)?;
        write(self.first(), self.Headers.as_ref(), out);
        Ok(())
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        let [method, path, _] = self.first().map(String::from_utf8_lossy);
        write!(f, "HTTP {} {}", method.escape_debug(), path.escape_debug())
    }
}

impl HttpResponse {
    fn first(&self) -> [&[u8]; 3] {
        [
            or(self.Http_Version.as_ref(), b"HTTP/1.1"),
            or(self.Status_Code.as_ref(), b"200"),
            or(self.Reason_Phrase.as_ref(), b"OK"),
        ]
    }
}

impl Protocol for HttpResponse {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let httparse::Status::Complete(length) = httparse::Response::new(&mut headers).parse(bytes).ok()? else {
            return None;
        };
        let head = &bytes[..length];
        let ([version, status, reason], headers) = split(head)?;
        let headers = (!headers.is_empty()).then_some(headers);
        let layer = Self {
            Http_Version: Some(version.into()),
            Status_Code: Some(status.into()),
            Reason_Phrase: Some(reason.into()),
            Headers: headers,
        };
        exact(layer, head)
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)?;
        write(self.first(), self.Headers.as_ref(), out);
        Ok(())
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        let [_, status, reason] = self.first().map(String::from_utf8_lossy);
        write!(f, "HTTP {} {}", status.escape_debug(), reason.escape_debug())
    }
}

macro_rules! header {
    ($($layer:ident),*) => {$(
        impl $layer {
            /// The value of the first header field with a name, ignoring case.
            pub fn header(&self, name: &str) -> Option<&[u8]> {
                self.Headers.iter().flatten().find_map(|header| match header {
                    HttpHeader::Field(known, value) if known.eq_ignore_ascii_case(name.as_bytes()) => Some(value.as_slice()),
                    HttpHeader::Line(line) => {
                        let at = line.iter().position(|byte| *byte == b':')?;
                        line[..at].eq_ignore_ascii_case(name.as_bytes()).then(|| line[at + 1..].trim_ascii())
                    }
                    HttpHeader::Field(..) => None,
                })
            }
        }
    )*};
}

header!(HttpRequest, HttpResponse);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Ip, Packet, Raw, Tcp};

    fn read(payload: &[u8]) -> Packet {
        let bytes = (Ip::to("192.0.2.1") / Tcp::to(8080).flags("PA") / payload).build().unwrap();
        let packet = Packet::from_ip(&bytes);
        assert_eq!(packet.build().unwrap(), bytes);
        let printed = packet.to_string();
        assert_eq!(printed.parse::<Packet>().unwrap(), packet, "{printed}");
        packet
    }

    #[test]
    fn request() {
        let packet = read(b"POST /a?b=c HTTP/1.1\r\nHost: example.org\r\nX-Odd:no-space\r\nAccept:  two \r\nHost: second\r\n\r\nbody");
        let http = packet.get::<HttpRequest>().unwrap();
        assert_eq!(http.Method.as_deref(), Some(&b"POST"[..]));
        assert_eq!(http.Path.as_deref(), Some(&b"/a?b=c"[..]));
        assert_eq!(http.header("host"), Some(&b"example.org"[..]));
        assert_eq!(http.header("x-odd"), Some(&b"no-space"[..]));
        assert_eq!(packet.get::<Raw>().unwrap().load.as_deref(), Some(&b"body"[..]));
        assert_eq!(packet.summary(), "IP / TCP 0.0.0.0:20 > 192.0.2.1:8080 PA / HTTP POST /a?b=c / Raw(4)");
        let plain = HttpRequest::new().Path("/x").Headers(&[("Host", "example.org")][..]);
        let bytes = Packet::from(plain.clone()).build().unwrap();
        assert_eq!(bytes, b"GET /x HTTP/1.1\r\nHost: example.org\r\n\r\n");
        let text: Packet = r#"HTTPRequest(Path="/x", Headers=[("Host", "example.org")])"#.parse().unwrap();
        assert_eq!(text, Packet::from(plain));
    }

    #[test]
    fn response() {
        let packet = read(b"HTTP/1.0 404 Not Found\r\nContent-Length: 100\r\n\r\ncut off");
        let http = packet.get::<HttpResponse>().unwrap();
        assert_eq!(http.Status_Code.as_deref(), Some(&b"404"[..]));
        assert_eq!(http.Reason_Phrase.as_deref(), Some(&b"Not Found"[..]));
        assert_eq!(packet.get::<Raw>().unwrap().load.as_deref(), Some(&b"cut off"[..]));
        assert_eq!(Packet::from(HttpResponse::new()).build().unwrap(), b"HTTP/1.1 200 OK\r\n\r\n");
        assert!(read(b"HTTP/1.1 200 \r\n\r\n").get::<HttpResponse>().is_some());
    }

    #[test]
    fn incomplete_head_is_raw() {
        for payload in [
            &b"GET / HTTP/1.1\r\nHost: exam"[..],
            b"GET / HTTP/1.1\nHost: a\n\n",
            b"GET  / HTTP/1.1\r\n\r\n",
            b"get / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET /\r\n\r\n",
            b"HTTP/1.1 200\r\n\r\n",
            b"HTTP/1.1 2x0 OK\r\n\r\n",
            b"\r\nGET / HTTP/1.1\r\n\r\n",
            b"EHLO example.org\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let packet = read(payload);
            assert_eq!(packet.get::<Raw>().and_then(|raw| raw.load.as_deref()), Some(payload), "{packet}");
        }
    }
}
