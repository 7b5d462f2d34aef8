//! One HTTP/1.1 exchange over a stream, by hyper.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::Poll,
};

use crafter::{Error, Result, Stream};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode,
    body::{Body as _, Bytes},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;

use super::{sink::Sink, target::Target};

/// What stands before the body.
pub struct Head {
    pub status: StatusCode,
    /// Bytes of the body, where the server says so.
    pub length: Option<u64>,
}

/// Asks for `target` and writes the body to `sink`; `on_head` is told first.
///
/// # Errors
/// Those of the sink as they are; a failed stream says its own reason by [`Stream::error`].
pub async fn get(
    stream: &mut Stream,
    target: &Target,
    sink: &mut Sink,
    on_head: impl FnOnce(&Head, &mut Sink),
) -> Result<()> {
    let failed = |error: hyper::Error| {
        let (kind, reason) = match &error {
            e if e.is_incomplete_message() => {
                (io::ErrorKind::UnexpectedEof, "the server closed before its answer was complete".to_owned())
            }
            e if e.is_parse() => (io::ErrorKind::InvalidData, format!("this is not HTTP/1: {e}")),
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
        let mut body = sender.send_request(request).await.map_err(failed)?.map(|body| {
            let length = body.size_hint().exact();
            (body, length)
        });
        let head = Head { status: body.status(), length: body.body().1 };
        on_head(&head, sink);
        let body = &mut body.body_mut().0;
        while let Some(frame) = body.frame().await {
            if let Ok(bytes) = frame.map_err(failed)?.into_data() {
                sink.write(bytes).await?;
            }
        }
        Ok(())
    };
    // Closing is not hyper's: the stream does it when all is read, and is asked how it went.
    let mut connection = pin!(connection.without_shutdown());
    let mut exchange = pin!(exchange);
    let mut ended = None;
    poll_fn(|cx| {
        if let Poll::Ready(result) = exchange.as_mut().poll(cx) {
            // The connection's end is the cause, the exchange's the consequence.
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
