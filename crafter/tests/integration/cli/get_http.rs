//! `crafter get` and HTTP: responses that curl accepts, options of the request, redirects. The servers send given bytes;
//! curl, over the kernel's TCP, is the control.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::Command,
    sync::{Arc, Mutex},
};

use crafter::lab::Lab;
use crafter_tests::exit;

use super::{Done, crafter, lab, run};

/// A server in the lab that answers the path `/N` with the response number N, and records its requests.
struct Server {
    requests: Arc<Mutex<Vec<String>>>,
    url: String,
}

impl Server {
    fn new(lab: &Lab, port: u16, responses: Vec<Vec<u8>>) -> Self {
        let listener = lab.server().run(|| TcpListener::bind(("192.0.2.1", port)).unwrap()).unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let recorded = requests.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.expect("a connection");
                let mut reader = BufReader::new(client.try_clone().expect("a second descriptor"));
                let mut request = String::new();
                while !request.ends_with("\r\n\r\n") && reader.read_line(&mut request).is_ok_and(|count| count > 0) {}
                let length = request.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
                reader.read_exact(&mut body).expect("the body");
                request.push_str(&String::from_utf8_lossy(&body));
                let path =
                    request.split(' ').nth(1).and_then(|path| path.trim_start_matches('/').parse::<usize>().ok());
                recorded.lock().unwrap().push(request);
                // The client may have enough of it.
                let _ = client.write_all(&responses[path.expect("the number of a response")]);
            }
        });
        Self { requests, url: format!("192.0.2.1:{port}") }
    }

    fn get(&self, lab: &Lab, number: usize, options: &[&str]) -> Done {
        crafter(lab, &[&["get", "-q"], options, &[&format!("{}/{number}", self.url)]].concat())
    }

    fn last(&self) -> String {
        self.requests.lock().unwrap().last().cloned().expect("a request")
    }
}

fn curl(lab: &Lab, arguments: &[&str]) -> Done {
    let mut command: Command = lab.command("curl");
    command.args(["--silent", "--show-error", "--max-time", "10"]).args(arguments);
    run(command)
}

#[test]
fn responses_that_curl_accepts_are_accepted() {
    let lab = lab();
    let many = |count| (0..count).map(|number| format!("X-{number}: y\r\n")).collect::<String>();
    let responses = [
        ("101 fields", format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok", many(101))),
        ("2,000 fields", format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok", many(2000))),
        ("folded field", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("space before the colon", "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("control byte", "HTTP/1.1 200 OK\r\nX: a\x01\x7fb\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("lines ended by LF", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_owned()),
        ("no reason", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("interim responses", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("until the end", "HTTP/1.0 200 OK\r\n\r\nok".to_owned()),
        ("chunks ended by LF", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\no\n1\nk\n0\n\n".to_owned()),
        (
            "chunks with extensions and trailers",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nX: y\r\n\r\n".to_owned(),
        ),
        ("other status", "HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok".to_owned()),
    ];
    let bytes = responses.iter().map(|(_, response)| response.clone().into_bytes()).collect();
    let server = Server::new(&lab, 8000, bytes);
    for (number, (name, response)) in responses.iter().enumerate() {
        let ours = server.get(&lab, number, &[]);
        let control = curl(&lab, &[&format!("{}/{number}", server.url)]);
        assert_eq!((control.code, control.text()), (0, "ok"), "curl, {name}: {control:?}");
        assert_eq!((ours.code, ours.text()), (0, "ok"), "{name}: {ours:?}");
        // `-i` shows the head as it was sent.
        let head = &response[response.rfind("HTTP/").unwrap()..];
        let head = &head[..head.find("\r\n\r\n").map_or_else(|| head.find("\n\n").unwrap() + 2, |end| end + 4)];
        let shown = server.get(&lab, number, &["-i"]);
        assert_eq!(shown.text(), format!("{head}ok"), "{name}");
    }
    // curl refuses this version unless HTTP/2 is allowed, or accepts it, by its age.
    let server = Server::new(&lab, 8001, vec![b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()]);
    assert_eq!(server.get(&lab, 0, &[]).text(), "ok");
}

#[test]
fn broken_responses_are_named() {
    let lab = lab();
    // The response, what crafter says, and whether curl fails, too: it takes a head without an end as a response.
    let rows: [(&[u8], &str, bool); 6] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "after 2 of 9 bytes of the body", true),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok", "before its last chunk", true),
        (b"HTTP/1.1 200 OK\r\nContent", "before the head of its response was complete", false),
        (b"", "without a response", true),
        (b"220 mail.test ESMTP\r\n", "not valid HTTP/1: it begins with", true),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "its Content-Length is \"many\", not a number", true),
    ];
    let server = Server::new(&lab, 8000, rows.iter().map(|(response, ..)| response.to_vec()).collect());
    for (number, (_, expected, curl_fails)) in rows.iter().enumerate() {
        server.get(&lab, number, &[]).fails(exit::FAILURE, expected);
        let control = curl(&lab, &[&format!("{}/{number}", server.url)]);
        assert_eq!(control.code != 0, *curl_fails, "curl: {control:?}");
    }
}

#[test]
fn encoded_body_is_noted() {
    let lab = lab();
    let response = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b".to_vec();
    let server = Server::new(&lab, 8000, vec![response]);
    let done = crafter(&lab, &["get", &format!("{}/0", server.url)]);
    done.succeeds();
    assert_eq!(done.stdout, [0x1f, 0x8b]);
    assert!(done.stderr.contains("the body is encoded (gzip)"), "{done:?}");
    assert!(server.last().contains("\r\nAccept-Encoding: identity\r\n"), "{}", server.last());
}

#[test]
fn options_change_the_request() {
    let lab = lab();
    let server = Server::new(&lab, 8000, vec![b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()]);
    let data = "x".repeat(300_000);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &data).unwrap();
    let from_file = format!("@{}", file.path().display());
    // The option, the beginning of the request, a field, the end of the request.
    for (options, begin, field, end) in [
        (&["-H", "X-Test: a b", "-H", "Accept:"][..], "GET /0 HTTP/1.1\r\n", "X-Test: a b", "\r\n\r\n"),
        (&["--host", "web.test"], "GET /0 HTTP/1.1\r\n", "Host: web.test", "\r\n\r\n"),
        (&["-X", "PURGE"], "PURGE /0 HTTP/1.1\r\n", "Host: 192.0.2.1:8000", "\r\n\r\n"),
        (&["-d", "a=1"], "POST /0 HTTP/1.1\r\n", "Content-Length: 3", "\r\n\r\na=1"),
        (&["--data", &from_file, "-X", "PUT"], "PUT /0 HTTP/1.1\r\n", "Content-Length: 300000", &data),
    ] {
        let done = server.get(&lab, 0, options);
        assert_eq!((done.code, done.text()), (0, "ok"), "{options:?}: {done:?}");
        let request = server.last();
        let has_field = request.contains(&format!("\r\n{field}\r\n"));
        assert!(request.starts_with(begin) && has_field && request.ends_with(end), "{options:?}: {request:.500}");
    }
    assert!(!server.requests.lock().unwrap()[0].contains("Accept: "), "a removed field is sent");
    let head = server.get(&lab, 0, &["-I"]);
    assert_eq!((head.code, head.text()), (0, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"), "{head:?}");
    assert!(server.last().starts_with("HEAD "));
    server.get(&lab, 0, &["-H", "no colon"]).fails(exit::USAGE, "has no colon; write 'NAME: VALUE'");
    server.get(&lab, 0, &["-X", "GET /"]).fails(exit::USAGE, "is not a method");
}

#[test]
fn redirects_are_followed_on_request() {
    let lab = lab();
    let to = |status: &str, location: &str, body: usize| {
        let body = "m".repeat(body);
        let head = format!("HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: {}\r\n\r\n", body.len());
        (head + &body).into_bytes()
    };
    let other = Server::new(&lab, 8001, vec![b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother".to_vec()]);
    let server = Server::new(
        &lab,
        8000,
        vec![
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
            to("302 Found", "/0", 5),
            to("301 Moved", "../1", 5),
            to("307 Temporary Redirect", "http://192.0.2.1:8001/0", 5),
            to("302 Found", "/4", 5),
            to("302 Found", "https://192.0.2.1/", 5),
            // More than is received of a body that nobody wants.
            to("302 Found", "/0", 10_000_000),
        ],
    );
    for (number, body, redirects) in [(0, "ok", 0), (1, "ok", 1), (2, "ok", 2), (3, "other", 1), (6, "ok", 1)] {
        let done = server.get(&lab, number, &["-L", "-H", "Cookie: secret"]);
        let control = curl(&lab, &["-L", "-H", "Cookie: secret", &format!("{}/{number}", server.url)]);
        assert_eq!((done.code, done.text()), (0, body), "{number}: {done:?}");
        assert_eq!(control.text(), body, "curl, {number}: {control:?}");
        let report = crafter(&lab, &["get", "-L", "--json", "-o", "/dev/null", &format!("{}/{number}", server.url)]);
        assert_eq!(report.object("get")["redirects"].as_array().unwrap().len(), redirects, "{report:?}");
    }
    assert!(!other.last().contains("Cookie"), "another server got the cookie: {}", other.last());
    // Without -L, a redirect is a response as others are.
    let done = server.get(&lab, 1, &[]);
    assert_eq!((done.code, done.text()), (0, "mmmmm"), "{done:?}");
    server.get(&lab, 4, &["-L"]).fails(exit::FAILURE, "10 redirects came before it; raise --max-redirs");
    server.get(&lab, 5, &["-L"]).fails(exit::FAILURE, "scheme 'https' is not supported");
    // The heads of all responses, then the body.
    let heads = server.get(&lab, 1, &["-L", "-i"]);
    let expected = "HTTP/1.1 302 Found\r\nLocation: /0\r\nContent-Length: 5\r\n\r\n\
                    HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!(heads.text(), expected);
}
