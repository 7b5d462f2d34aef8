//! The lab's web server: HTTP/1.1 over kernel sockets, port 80.

use std::{
    convert::Infallible,
    io,
    net::Ipv6Addr,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};

use super::{
    netns::NetNs,
    rst_tap::RstTap,
    server_thread::ServerThread,
    web_content::{self, Content},
};
use crate::Result;

const PORT: u16 = 80;
/// Longest delay of `/slow`.
const MAX_DELAY: Duration = Duration::from_secs(60);

const INDEX: &str = "<!doctype html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><title>crafter lab</title></head>
<body>
<h1>It works</h1>
<p>This page was served over a temporary network.</p>
<ul>
<li>/bytes/N: N bytes (K, M, G allowed), always the same; ?chunked=1 without Content-Length
<li>/sha256/N: their SHA-256
<li>/status/CODE: an empty answer with that status
<li>/slow?ms=N: answers after N milliseconds
<li>/close: closes without an answer; /reset: closes with a RST
<li>/rsts: RST segments that arrived here, as JSON; /rsts/clear: forget them
</ul>
</body>
</html>
";

/// Starts the server on all addresses of `server`, IPv4 and IPv6.
///
/// # Errors
/// Those of the sockets.
pub(super) fn start(server: &NetNs, tap: Arc<RstTap>) -> Result<ServerThread> {
    ServerThread::start(server, "web server", async move || {
        // One socket for both versions: IPV6_V6ONLY is off unless a sysctl says otherwise.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await?;
        Ok(serve(listener, tap))
    })
}

async fn serve(listener: TcpListener, tap: Arc<RstTap>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, Arc::clone(&tap)))),
            Err(error) => {
                log::warn!("lab web server: accept: {error}");
                // Most likely out of descriptors: wait for connections to end.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, tap: Arc<RstTap>) {
    // A second descriptor for /reset, as hyper owns the stream. Both are closed at the end of the connection.
    let socket = match stream.set_nodelay(true).and_then(|()| stream.as_fd().try_clone_to_owned()) {
        Ok(socket) => Arc::new(socket),
        Err(error) => return log::warn!("lab web server: {error}"),
    };
    let service = service_fn(move |request| answer(request, Arc::clone(&tap), Arc::clone(&socket)));
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
        log::debug!("lab web server: {error}");
    }
}

/// The response to a request. An error closes the connection without a response.
async fn answer(request: Request<Incoming>, tap: Arc<RstTap>, socket: Arc<OwnedFd>) -> io::Result<Response<Reply>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    let path = request.uri().path().trim_start_matches('/');
    let query = |name: &str| {
        let pairs = url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let (head, tail) = path.split_once('/').unwrap_or((path, ""));
    Ok(match (head, tail) {
        ("", "") => with_type(StatusCode::OK, "text/html; charset=utf-8", INDEX.into()),
        ("bytes", size) => match web_content::parse_size(size) {
            Some(size) => {
                let body = Reply::Content { content: Content::new(size), chunked: query("chunked").is_some() };
                let mut response = Response::new(body);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
                response
            }
            None => bad("a size, e.g. /bytes/100M, is needed"),
        },
        ("sha256", size) => match web_content::parse_size(size) {
            Some(size) => {
                // Takes long; other connections use this thread.
                let digest = tokio::task::spawn_blocking(move || web_content::sha256(size));
                text(StatusCode::OK, digest.await.map_err(io::Error::other)? + "\n")
            }
            None => bad("a size, e.g. /sha256/100M, is needed"),
        },
        ("status", code) => match code.parse().ok().and_then(|code| StatusCode::from_u16(code).ok()) {
            // 1xx are not final responses (RFC 9110, section 15.2).
            Some(code) if code.as_u16() >= 200 => text(code, ""),
            _ => bad("a status code, e.g. /status/404, is needed"),
        },
        ("slow", "") => match query("ms").and_then(|ms| ms.parse().ok()).map(Duration::from_millis) {
            Some(wait) if wait <= MAX_DELAY => {
                tokio::time::sleep(wait).await;
                text(StatusCode::OK, format!("waited {} ms\n", wait.as_millis()))
            }
            _ => bad("a time of at most 60000 ms, e.g. /slow?ms=100, is needed"),
        },
        ("close", "") => return Err(io::Error::other("asked to close without an answer")),
        ("reset", "") => {
            // With a linger time of zero, close() sends a RST (`tcp_close()`).
            setsockopt(&*socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            return Err(io::Error::other("asked to reset"));
        }
        ("rsts", "") => match tap.segments() {
            Ok(segments) => with_type(StatusCode::OK, "application/json", serde_json::to_vec(&segments)?.into()),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        ("rsts", "clear") => match tap.clear() {
            Ok(()) => text(StatusCode::OK, "cleared\n"),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "no such page, see /\n"),
    })
}

fn bad(sentence: &str) -> Response<Reply> {
    text(StatusCode::BAD_REQUEST, format!("{sentence}\n"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Reply> {
    with_type(status, "text/plain; charset=utf-8", body.into())
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Reply> {
    let mut response = Response::new(Reply::Whole(Some(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A response body: bytes, or content generated while it is sent.
enum Reply {
    Whole(Option<Bytes>),
    Content { content: Content, chunked: bool },
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Whole(bytes) => bytes.take().filter(|bytes| !bytes.is_empty()),
            Self::Content { content, .. } => content.next(),
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            // Without a length, hyper sends the body chunked (RFC 9112, section 7.1).
            Self::Content { chunked: true, .. } => SizeHint::new(),
            Self::Content { content, .. } => SizeHint::with_exact(content.remaining()),
        }
    }
}
