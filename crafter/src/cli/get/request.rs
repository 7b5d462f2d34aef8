//! The HTTP/1.1 request (RFC 9112, section 3).

use std::{fs::File, io::Read as _, path::Path};

use crafter::{Error, Result};

use super::target::Target;

/// The maximum size of the file of `--data @FILE`, in bytes.
const DATA_LIMIT: u64 = 16 << 20;

/// The options that change the request.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Request method [default: GET, with --data POST, with --head HEAD]
    #[arg(short = 'X', long = "request", visible_alias = "method", value_name = "METHOD")]
    method: Option<String>,
    /// Request the head only, and write it to stdout
    #[arg(short = 'I', long)]
    pub head: bool,
    /// Add this header field to the request; 'NAME:' removes a field, 'NAME;' sends it without a value
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Send this Host header field instead of the URL's host and port
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Send this body with a POST request; @FILE: the content of a file, of at most 16 MiB
    #[arg(short = 'd', long, value_name = "DATA", conflicts_with = "head")]
    data: Option<String>,
}

/// A request, apart from its target.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    /// The header fields given by the user: the name, and the value; `None` removes the field.
    fields: Vec<(String, Option<String>)>,
    body: Option<Vec<u8>>,
}

impl Args {
    /// The request; reads the file of `--data`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a method or a header field that cannot be sent; [`Error::Io`] for the file.
    pub fn request(&self) -> Result<Request> {
        let method = match (&self.method, self.head, &self.data) {
            (Some(method), ..) => method,
            (None, true, _) => "HEAD",
            (None, false, Some(_)) => "POST",
            (None, false, None) => "GET",
        };
        if !is_token(method) {
            let reason = format!("{method:?} is not a method; use letters and digits, such as PUT");
            return Err(Error::invalid("--request", reason));
        }
        let mut fields = self.headers.iter().map(|text| field(text)).collect::<Result<Vec<_>>>()?;
        if let Some(host) = &self.host {
            fields.push(("Host".to_owned(), Some(value("--host", host)?)));
        }
        let body = self.data.as_deref().map(data).transpose()?;
        Ok(Request { method: method.to_owned(), fields, body })
    }
}

/// Reads the value of `--data`.
fn data(text: &str) -> Result<Vec<u8>> {
    let Some(path) = text.strip_prefix('@') else { return Ok(text.as_bytes().to_owned()) };
    let failed = |source| Error::Io { action: format!("read {path} for --data"), source };
    let mut body = Vec::new();
    let path = if path == "-" { Path::new("/dev/stdin") } else { Path::new(path) };
    File::open(path).map_err(failed)?.take(DATA_LIMIT + 1).read_to_end(&mut body).map_err(failed)?;
    if body.len() as u64 > DATA_LIMIT {
        let reason = format!("{} has more than 16 MiB; send a smaller file", path.display());
        return Err(Error::invalid("--data", reason));
    }
    Ok(body)
}

/// Parses `NAME: VALUE`, `NAME:` and `NAME;`.
fn field(text: &str) -> Result<(String, Option<String>)> {
    let (name, rest) = text.split_at(text.find([':', ';']).unwrap_or(text.len()));
    let content = match (rest.get(..1), rest.get(1..).map(str::trim)) {
        (Some(";"), Some("")) => Some(String::new()),
        (Some(":"), Some("")) => None,
        (Some(":"), Some(content)) => Some(value("--header", content)?),
        _ => return Err(Error::invalid("--header", format!("{text:?} has no colon; write 'NAME: VALUE'"))),
    };
    if !is_token(name) {
        let reason = format!("{name:?} is not the name of a header field; write 'NAME: VALUE'");
        return Err(Error::invalid("--header", reason));
    }
    Ok((name.to_owned(), content))
}

/// A value that does not end its line.
fn value(option: &str, text: &str) -> Result<String> {
    if text.contains(['\r', '\n', '\0']) {
        return Err(Error::invalid(option, format!("{text:?} has a line end or a zero byte; remove it")));
    }
    Ok(text.trim().to_owned())
}

/// A token (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

impl Request {
    /// Whether the response has no body.
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// The request as it is sent.
    pub fn encode(&self, target: &Target) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, target.path());
        let mut add = |name: &str, value: &str| {
            text.push_str(name);
            text.push_str(if value.is_empty() { ":" } else { ": " });
            text.push_str(value);
            text.push_str("\r\n");
        };
        let (host, length) = (target.host(), self.body.as_ref().map(|body| body.len().to_string()));
        let defaults = [
            ("Host", Some(host.as_str())),
            ("User-Agent", Some(concat!("crafter/", env!("CARGO_PKG_VERSION")))),
            ("Accept", Some("*/*")),
            // Without the field, any coding is acceptable (RFC 9110, section 12.5.3).
            ("Accept-Encoding", Some("identity")),
            ("Connection", Some("close")),
            ("Content-Type", length.is_some().then_some("application/x-www-form-urlencoded")),
            ("Content-Length", length.as_deref()),
        ];
        // A field of the user takes the place of the default one.
        for (name, value) in defaults {
            let mut given = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name)).peekable();
            if let Some(value) = value.filter(|_| given.peek().is_none()) {
                add(name, value);
            }
            given.for_each(|(name, value)| value.iter().for_each(|value| add(name, value)));
        }
        for (name, value) in &self.fields {
            if !defaults.iter().any(|(default, _)| default.eq_ignore_ascii_case(name)) {
                value.iter().for_each(|value| add(name, value));
            }
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }

    /// The request that follows a redirect (RFC 9110, section 15.4): 303 changes the method to GET, and so do 301 and
    /// 302 if it was POST. Another host gets no header field that names the former one or proves who asks.
    pub fn redirected(mut self, status: u16, is_same_host: bool) -> Self {
        if status == 303 && !self.is_head() || matches!(status, 301 | 302) && self.method == "POST" {
            self.method = "GET".to_owned();
            self.body = None;
            self.fields.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("content-"));
        }
        if !is_same_host {
            let private = ["host", "authorization", "cookie", "proxy-authorization"];
            self.fields.retain(|(name, _)| !private.contains(&name.to_ascii_lowercase().as_str()));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn request(args: &[&str]) -> Result<Request> {
        Command::try_parse_from([&["x"], args].concat()).expect("valid options").args.request()
    }

    fn lines(args: &[&str]) -> Vec<String> {
        let bytes = request(args).unwrap().encode(&Target::parse("192.0.2.1:8080/a?b").unwrap());
        String::from_utf8(bytes).unwrap().split("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn options_change_the_request() {
        let agent = concat!("User-Agent: crafter/", env!("CARGO_PKG_VERSION"));
        let rest = [agent, "Accept: */*", "Accept-Encoding: identity", "Connection: close"];
        let default = [&["GET /a?b HTTP/1.1", "Host: 192.0.2.1:8080"], &rest[..], &["", ""]].concat();
        assert_eq!(lines(&[]), default);
        assert_eq!(lines(&["-I"])[0], "HEAD /a?b HTTP/1.1");
        assert_eq!(lines(&["-X", "PURGE"])[0], "PURGE /a?b HTTP/1.1");
        let sent = lines(&["-d", "a=1"]);
        assert_eq!(sent[0], "POST /a?b HTTP/1.1");
        let end = ["Content-Type: application/x-www-form-urlencoded", "Content-Length: 3", "", "a=1"];
        assert_eq!(sent[sent.len() - 4..], end);
        let sent = lines(&["--host", "web.test", "-H", "accept: text/html", "-H", "User-Agent:", "-H", "X-Empty;"]);
        let expected = ["accept: text/html", "Accept-Encoding: identity", "Connection: close", "X-Empty:", "", ""];
        assert_eq!((sent[1].as_str(), &sent[2..]), ("Host: web.test", &expected.map(str::to_owned)[..]));
    }

    #[test]
    fn fields_that_cannot_be_sent_are_rejected() {
        for args in [
            &["-H", "no colon"][..],
            &["-H", "a b: c"],
            &["-H", "A: b\r\nC: d"],
            &["-H", ": x"],
            &["-H", "a;b"],
            &["--host", "a\nb"],
            &["-X", "GET /"],
            &["-X", ""],
        ] {
            assert!(matches!(request(args), Err(Error::Invalid { .. })), "{args:?}");
        }
        assert!(matches!(request(&["-d", "@/nowhere/file"]), Err(Error::Io { .. })));
    }

    #[test]
    fn redirected_request_keeps_no_secret_for_another_host() {
        let args = ["-d", "a", "-H", "Cookie: c", "-H", "X-Y: z", "-H", "Content-Type: text/plain", "--host", "h"];
        let text = |request: Request| {
            let bytes = request.encode(&Target::parse("192.0.2.9").unwrap());
            String::from_utf8(bytes).unwrap()
        };
        let same = text(request(&args).unwrap().redirected(307, true));
        assert!(same.starts_with("POST / ") && same.contains("Cookie: c") && same.contains("Host: h"), "{same}");
        let other = text(request(&args).unwrap().redirected(302, false));
        assert!(
            other.starts_with("GET / ") && other.contains("X-Y: z") && other.contains("Host: 192.0.2.9"),
            "{other}"
        );
        assert!(!other.contains("Cookie") && !other.contains("Content-"), "{other}");
        assert!(text(request(&["-I"]).unwrap().redirected(303, true)).starts_with("HEAD / "));
        assert!(text(request(&["-X", "PUT"]).unwrap().redirected(302, true)).starts_with("PUT / "));
    }
}
