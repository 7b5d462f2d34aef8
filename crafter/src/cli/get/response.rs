//! A decoder of HTTP/1 responses (RFC 9112) that accepts what servers really send: any number of header fields, folded
//! ones, a space before the colon, control characters in values, other versions in the status line, and lines that end
//! with LF alone. Pure: no IO.
//!
//! hyper's client refuses the last three, whatever its options.

use hyper::{StatusCode, body::Bytes};

/// The maximum length in bytes of a head, of the line with the size of a chunk, and of a line of the trailers.
const LINE_LIMIT: usize = 300 << 10;

/// What the status line begins with.
const NAME: &[u8] = b"HTTP/";

/// The head of a response.
#[derive(Debug)]
pub struct Head {
    /// The status code.
    pub status: StatusCode,
    /// Length of the body in bytes, if it is known before the body.
    pub length: Option<u64>,
    /// The status line, the header fields and the empty line after them, as received.
    pub text: Bytes,
    fields: Vec<(String, String)>,
}

/// A part of a response.
#[derive(Debug)]
pub enum Piece {
    /// The head of the response; not those of interim responses (1xx), which are skipped.
    Head(Head),
    /// Some bytes of the body.
    Body(Bytes),
}

/// Decodes one response.
pub struct Decoder {
    state: State,
    /// The head or the line that is incomplete.
    text: Vec<u8>,
    /// Where the incomplete line begins in `text`.
    line: usize,
    /// Whether the request was a HEAD request, whose response has no body.
    is_bodyless: bool,
    /// Bytes of the body so far.
    received: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Sized { left: u64, length: u64 },
    ChunkSize,
    Chunk { left: u64 },
    ChunkEnd,
    Trailers,
    UntilClose,
    Done,
}

impl Head {
    /// The values of a header field, in order; the name in lower case.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Parses the lines of a head.
    fn parse(text: Vec<u8>) -> Result<Self, String> {
        let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let status = status(lines.next().unwrap_or_default())?;
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in lines.map(String::from_utf8_lossy) {
            // A folded line continues the value before it (RFC 9112, section 5.2).
            if line.starts_with([' ', '\t'])
                && let Some((_, value)) = fields.last_mut()
            {
                value.push(' ');
                value.push_str(line.trim());
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        Ok(Self { status, length: None, text: text.into(), fields })
    }

    /// Whether the last transfer coding is `chunked`.
    fn is_chunked(&self) -> bool {
        let codings = self.values("transfer-encoding").flat_map(|value| value.split(','));
        codings.last().is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"))
    }

    /// The value of Content-Length; several equal values count as one (RFC 9112, section 6.3).
    fn content_length(&self) -> Result<Option<u64>, String> {
        let mut found = None;
        for text in self.values("content-length").flat_map(|value| value.split(',')).map(str::trim) {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let Some(length) = text.parse::<u64>().ok().filter(|_| is_number) else {
                return Err(format!("its Content-Length is {text:?}, not a number"));
            };
            if found.replace(length).is_some_and(|other| other != length) {
                return Err(format!("its Content-Length has two values, {length} and another"));
            }
        }
        Ok(found)
    }
}

/// Parses a status line: `HTTP/`, a version, a status code of three digits, and a reason, which may be missing.
fn status(line: &[u8]) -> Result<StatusCode, String> {
    let text = String::from_utf8_lossy(line);
    let mut words = text.split_ascii_whitespace();
    let version = words.next().and_then(|word| word.strip_prefix("HTTP/")).unwrap_or_default();
    let is_version = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let code = words.next().filter(|code| code.len() == 3).and_then(|code| code.parse().ok());
    match code.and_then(|code| StatusCode::from_u16(code).ok()) {
        Some(status) if is_version => Ok(status),
        _ => Err(format!("its status line is {:?}", excerpt(line))),
    }
}

/// The beginning of bytes, for a message.
fn excerpt(bytes: &[u8]) -> String {
    const LENGTH: usize = 40;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LENGTH)]);
    if bytes.len() > LENGTH { format!("{text}...") } else { text.into_owned() }
}

impl Decoder {
    /// A decoder for the response to one request; `is_bodyless` for a HEAD request.
    pub fn new(is_bodyless: bool) -> Self {
        Self { state: State::Head, text: Vec::new(), line: 0, is_bodyless, received: 0 }
    }

    /// Whether the response is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Decodes the next bytes and appends what they contain to `pieces`. Bytes after the response are ignored.
    ///
    /// # Errors
    /// Why the bytes are not an HTTP/1 response, to follow "the response is not valid HTTP/1:".
    pub fn push(&mut self, mut bytes: Bytes, pieces: &mut Vec<Piece>) -> Result<(), String> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Done => break,
                State::UntilClose => self.body(bytes.split_off(0), pieces),
                State::Sized { left, .. } | State::Chunk { left } => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= taken as u64;
                    if *left == 0 {
                        let is_chunk = matches!(self.state, State::Chunk { .. });
                        self.state = if is_chunk { State::ChunkEnd } else { State::Done };
                    }
                    self.body(bytes.split_to(taken), pieces);
                }
                State::Head | State::ChunkSize | State::ChunkEnd | State::Trailers => self.line(&mut bytes, pieces)?,
            }
        }
        Ok(())
    }

    /// The server has closed the connection.
    ///
    /// # Errors
    /// What is missing, to follow "the server closed the connection".
    pub fn end(&self) -> Result<(), String> {
        let received = self.received;
        match self.state {
            State::Done | State::UntilClose => Ok(()),
            State::Head if self.text.is_empty() => Err("without a response".to_owned()),
            State::Head => Err("before the head of its response was complete".to_owned()),
            State::Sized { length, .. } => Err(format!("after {received} of {length} bytes of the body")),
            _ => Err(format!("after {received} bytes of the body, before its last chunk")),
        }
    }

    fn body(&mut self, bytes: Bytes, pieces: &mut Vec<Piece>) {
        self.received += bytes.len() as u64;
        pieces.push(Piece::Body(bytes));
    }

    /// Takes bytes up to the end of a line, which ends with LF or CRLF.
    fn line(&mut self, bytes: &mut Bytes, pieces: &mut Vec<Piece>) -> Result<(), String> {
        let end = bytes.iter().position(|byte| *byte == b'\n').map(|index| index + 1);
        self.text.extend_from_slice(&bytes.split_to(end.unwrap_or(bytes.len())));
        if self.text.len() > LINE_LIMIT {
            return Err(format!("its head, or a line of its chunks, exceeds {} KiB", LINE_LIMIT >> 10));
        }
        // Another protocol is not waited for: its first message may have no line.
        let known = self.text.len().min(NAME.len());
        if self.state == State::Head && self.text[..known] != NAME[..known] {
            return Err(format!("it begins with {:?}", excerpt(&self.text)));
        }
        if end.is_none() {
            return Ok(());
        }
        let line = &self.text[self.line..self.text.len() - 1];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.state {
            State::Head if line.is_empty() => {
                let text = std::mem::take(&mut self.text);
                self.line = 0;
                return self.head(text, pieces);
            }
            // The next line is of the same head.
            State::Head => {
                self.line = self.text.len();
                return Ok(());
            }
            State::ChunkSize => {
                let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                let digits = std::str::from_utf8(size).ok().filter(|digits| !digits.starts_with('+'));
                self.state = match digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
                    Some(0) => State::Trailers,
                    Some(left) => State::Chunk { left },
                    None => return Err(format!("the size of a chunk is {:?}", excerpt(line))),
                };
            }
            State::ChunkEnd if line.is_empty() => self.state = State::ChunkSize,
            State::ChunkEnd => return Err(format!("after a chunk comes {:?}, not a line end", excerpt(line))),
            State::Trailers if line.is_empty() => self.state = State::Done,
            _ => {}
        }
        self.text.clear();
        Ok(())
    }

    fn head(&mut self, text: Vec<u8>, pieces: &mut Vec<Piece>) -> Result<(), String> {
        let mut head = Head::parse(text)?;
        let (status, is_switching) = (head.status, head.status == StatusCode::SWITCHING_PROTOCOLS);
        if status.is_informational() && !is_switching {
            return Ok(());
        }
        let is_bodyless =
            self.is_bodyless || is_switching || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.state = if is_bodyless {
            State::Done
        } else if head.is_chunked() {
            State::ChunkSize
        } else {
            match head.content_length()? {
                Some(0) => State::Done,
                Some(length) => State::Sized { left: length, length },
                None => State::UntilClose,
            }
        };
        head.length = match self.state {
            State::Done => Some(0),
            State::Sized { length, .. } => Some(length),
            _ => None,
        };
        pieces.push(Piece::Head(head));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes a response that arrives in parts of this size; the head, the body, and what [`Decoder::end`] says.
    fn decode(response: &str, part: usize, is_bodyless: bool) -> Result<(Head, String, Result<(), String>), String> {
        let (mut decoder, mut pieces) = (Decoder::new(is_bodyless), Vec::new());
        for bytes in response.as_bytes().chunks(part) {
            decoder.push(Bytes::copy_from_slice(bytes), &mut pieces)?;
        }
        let (mut head, mut body) = (None, Vec::new());
        for piece in pieces {
            match piece {
                Piece::Head(found) => assert!(head.replace(found).is_none(), "two heads"),
                Piece::Body(bytes) => body.extend_from_slice(&bytes),
            }
        }
        let end = decoder.end();
        match head {
            Some(head) => Ok((head, String::from_utf8(body).unwrap(), end)),
            None => Err(end.expect_err("a response without a head")),
        }
    }

    fn body(response: &str) -> String {
        let bodies = [1, 2, 3, 7, 4096].map(|part| {
            let (_, body, end) = decode(response, part, false).unwrap_or_else(|e| panic!("{response:?}: {e}"));
            assert_eq!(end, Ok(()), "{response:?}");
            body
        });
        assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
        bodies[0].clone()
    }

    #[test]
    fn responses_that_curl_accepts_are_decoded() {
        let many = (0..2000).map(|number| format!("x-{number}: y\r\n")).collect::<String>();
        for response in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.0 200 OK\r\n\r\nok",
            "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/2 200\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
            "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\no\n1\nk\n0\n\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n002 ; a=\"b\"\r\nok\r\n0\r\nTrailer: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            &format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nok"),
        ] {
            assert_eq!(body(response), "ok", "{response:?}");
        }
    }

    #[test]
    fn responses_without_a_body_end_with_the_head() {
        for status in ["204 No Content", "304 Not Modified", "101 Switching Protocols"] {
            assert_eq!(body(&format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\nrest")), "", "{status}");
        }
        let (head, body, end) = decode("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 64, true).unwrap();
        assert_eq!((head.status, body.as_str(), end), (StatusCode::OK, "", Ok(())));
    }

    #[test]
    fn head_is_kept_as_received() {
        let text = "HTTP/1.1 299 Odd\r\nSet-Cookie: a=1\r\nSET-COOKIE: b=2;\r\n\tPath=/\r\n\r\n";
        let (head, ..) = decode(text, 5, false).unwrap();
        assert_eq!((head.status.as_u16(), &*head.text), (299, text.as_bytes()));
        assert_eq!(head.values("set-cookie").collect::<Vec<_>>(), ["a=1", "b=2; Path=/"]);
    }

    #[test]
    fn short_responses_are_named() {
        for (response, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "after 2 of 9 bytes of the body"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok", "after 2 bytes of the body, before"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", "before its last chunk"),
        ] {
            let (.., end) = decode(response, 3, false).unwrap();
            assert!(end.clone().is_err_and(|reason| reason.contains(expected)), "{response:?}: {end:?}");
        }
        for (response, expected) in [("HTTP/1.1 200 OK\r\nContent-", "before the head"), ("", "without a response")] {
            let error = decode(response, 3, false).expect_err(response);
            assert!(error.contains(expected), "{response:?}: {error}");
        }
    }

    #[test]
    fn what_is_not_http_is_rejected() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(LINE_LIMIT));
        for (response, expected) in [
            ("SSH-2.0-OpenSSH_9.2\r\n", "begins with \"S"),
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", "begins with"),
            ("HTTP/x 200 OK\r\n\r\n", "status line"),
            ("HTTP/1.1 20 OK\r\n\r\n", "status line"),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "\"-1\", not a number"),
            ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", "not a number"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "two values"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "size of a chunk"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1ffffffffffffffff\r\n", "size of a chunk"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n", "after a chunk comes"),
            (&long, "exceeds 300 KiB"),
        ] {
            for part in [1, 4096] {
                let error = decode(response, part, false).expect_err(response);
                assert!(error.contains(expected), "{response:?}: {error}");
            }
        }
    }
}
