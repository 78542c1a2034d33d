//! Keeps the unread rest of a request's body until its reply has gone out. Dropped before, it cancels the stream of HTTP/2, and the
//! caller sees a broken stream in place of the 403 or 413. What is read, and how much, is the handlers' matter.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use prost::bytes::Bytes;
use tokio_stream::Stream;

/// Lets the rest of the router answer, and ties what it left of the body to the end of the reply.
pub(super) async fn keep(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let body = Arc::new(Mutex::new(body));
    let shared = Body::from_stream(Shared(Arc::clone(&body)));
    let reply = next.run(Request::from_parts(parts, shared)).await;
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
