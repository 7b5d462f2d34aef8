//! One HTTP/1.1 exchange over a stream.

use std::{io, pin::pin};

use crafter::{Error, Result, Stream};
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    response::{Decoder, Head, Piece},
    sink::Sink,
    target::Target,
};

/// The maximum number of bytes that one read returns.
const READ_SIZE: usize = 256 << 10;

/// The maximum number of bytes of an unneeded body, such as that of a redirect, that are received before the connection
/// is reset.
const UNWANTED_LIMIT: usize = 64 << 10;

/// What happens to the body of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The body is written to the sink.
    Body,
    /// The body is received and dropped.
    Nothing,
}

/// Sends `request`, calls `on_head` with the head of the response, and writes the body to `sink`, after the head if
/// `includes_head` is set. The response may come before the whole request is sent. Returns whether all of the response
/// was received; if not, the connection is of no more use.
///
/// # Errors
/// Those of the sink; [`Error::Io`] if the stream or the response is broken ([`Stream::error`] has the cause).
pub async fn exchange(
    stream: &mut Stream,
    (target, request): (&Target, &[u8]),
    mut decoder: Decoder,
    sink: &mut Sink,
    includes_head: bool,
    mut on_head: impl FnMut(&Head, &mut Sink) -> Use,
) -> Result<bool> {
    let failed =
        |kind, reason| Error::Io { action: format!("fetch {}", target.url), source: io::Error::new(kind, reason) };
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut sending = pin!(async { writer.write_all(request).await.and(writer.flush().await) });
    let (mut is_sent, mut use_of, mut dropped) = (false, Use::Body, 0);
    let mut pieces = Vec::new();
    while !decoder.is_done() && dropped < UNWANTED_LIMIT {
        let mut bytes = Vec::with_capacity(READ_SIZE);
        let count = tokio::select! {
            // The reason why the request cannot be sent is in the response, or in the error of reading it.
            _ = &mut sending, if !is_sent => {
                is_sent = true;
                continue;
            }
            count = reader.read_buf(&mut bytes) => count.map_err(|error| failed(error.kind(), error.to_string()))?,
        };
        if count == 0 {
            return decoder.end().map(|()| true).map_err(|missing| {
                failed(io::ErrorKind::UnexpectedEof, format!("the server closed the connection {missing}; try again"))
            });
        }
        decoder.push(Bytes::from(bytes), &mut pieces).map_err(|reason| {
            failed(io::ErrorKind::InvalidData, format!("the response is not valid HTTP/1: {reason}; check the port"))
        })?;
        for piece in pieces.drain(..) {
            match piece {
                Piece::Head(head) => {
                    use_of = on_head(&head, sink);
                    if includes_head {
                        sink.write_head(head.text).await?;
                    }
                }
                Piece::Body(bytes) if use_of == Use::Body => sink.write(bytes).await?,
                Piece::Body(bytes) => dropped += bytes.len(),
            }
        }
    }
    Ok(decoder.is_done())
}
