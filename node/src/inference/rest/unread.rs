//! What becomes of a body that nobody read, since the answer was clear before: over HTTP/2 a body that is dropped resets its stream,
//! and the caller sees a broken stream in place of the 403 or 413. What is read of a body otherwise is the handlers' matter.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use prost::bytes::Bytes;
use tokio_stream::{Stream, StreamExt};

/// Bytes that are read and thrown away before a reply goes out, at most. What is more is reset once the reply is out,
/// which curl 7.88 takes for a broken stream.
const THROWN_AWAY: usize = 2 << 20;
/// Longest time for that.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lets the rest of the router answer, reads what it left of a small body, and ties a large one to the end of the reply.
pub(super) async fn keep(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let body = Arc::new(Mutex::new(body));
    let shared = Body::from_stream(Shared(Arc::clone(&body)));
    let reply = next.run(Request::from_parts(parts, shared)).await;
    let mut left = Shared(Arc::clone(&body));
    let read = async {
        let mut bytes = 0;
        while bytes < THROWN_AWAY
            && let Some(Ok(data)) = left.next().await
        {
            bytes += data.len();
        }
    };
    // Whether or not all of it came: the reply goes out.
    let _ = tokio::time::timeout(PATIENCE, read).await;
    reply.map(|reply| {
        Body::new(reply.map_err(move |error| {
            // The closure lives as long as the reply's body, and the request's with it.
            let _unread = &body;
            error
        }))
    })
}

/// A body that somebody else holds too.
struct Shared(Arc<Mutex<Body>>);

impl Stream for Shared {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                // Trailers say nothing here.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    Err(_) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}
