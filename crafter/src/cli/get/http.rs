//! One HTTP/1.1 exchange over a stream, with hyper.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::Poll,
};

use crafter::{Error, Result, Stream};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;

use super::{sink::Sink, target::Target};

/// The head of a response.
pub struct Head {
    pub status: StatusCode,
    /// Length of the body in bytes, if the server states it.
    pub length: Option<u64>,
    /// The status line, the header fields and the empty line after them (RFC 9112, section 2.1).
    pub text: Vec<u8>,
}

impl Head {
    fn new<B: hyper::body::Body>(response: &hyper::Response<B>) -> Self {
        let status = response.status();
        let reason = status.canonical_reason().unwrap_or_default();
        let mut text = format!("{:?} {} {reason}\r\n", response.version(), status.as_str()).into_bytes();
        for (name, value) in response.headers() {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        Self { status, length: response.body().size_hint().exact(), text }
    }
}

/// Requests `target`, calls `on_head` with the head of the response, and writes the body to `sink`, after the head if
/// `includes_head` is set.
///
/// # Errors
/// Those of the sink; [`Error::Io`] if the stream or the response is broken ([`Stream::error`] has the cause).
pub async fn get(
    stream: &mut Stream,
    target: &Target,
    sink: &mut Sink,
    includes_head: bool,
    on_head: impl FnOnce(&Head, &mut Sink),
) -> Result<()> {
    let failed = |error: hyper::Error| {
        let (kind, reason) = match &error {
            e if e.is_incomplete_message() => (
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection before its response was complete; try again".to_owned(),
            ),
            e if e.is_parse() => {
                (io::ErrorKind::InvalidData, format!("the response is not HTTP/1 ({e}); check the port"))
            }
            e => (io::ErrorKind::Other, e.to_string()),
        };
        Error::Io { action: format!("fetch {}", target.url), source: io::Error::new(kind, reason) }
    };
    let request = Request::get(target.path())
        .header(header::HOST, target.host())
        .header(header::USER_AGENT, concat!("crafter/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| Error::invalid("URL", e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let exchange = async move {
        let mut response = sender.send_request(request).await.map_err(failed)?;
        let head = Head::new(&response);
        on_head(&head, sink);
        if includes_head {
            sink.write_head(head.text.into()).await?;
        }
        let body = response.body_mut();
        while let Some(frame) = body.frame().await {
            if let Ok(bytes) = frame.map_err(failed)?.into_data() {
                sink.write(bytes).await?;
            }
        }
        Ok(())
    };
    // hyper must not close the stream: the caller closes it after the body and checks the result.
    let mut connection = pin!(connection.without_shutdown());
    let mut exchange = pin!(exchange);
    let mut ended = None;
    poll_fn(|cx| {
        if let Poll::Ready(result) = exchange.as_mut().poll(cx) {
            // An error of the connection is the cause of the error of the exchange.
            return Poll::Ready(match (result, ended.take()) {
                (Err(_), Some(Err(cause))) => Err(failed(cause)),
                (result, _) => result,
            });
        }
        if ended.is_none()
            && let Poll::Ready(result) = connection.as_mut().poll(cx)
        {
            ended = Some(result.map(drop));
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}
