//! gzip and deflate of HTTP bodies, bounded: a small body must not become a large one.
//! Which paths take bodies is the router's.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderValue, header};
use prost::bytes::Bytes;

/// Undoes `Content-Encoding`; at most `limit` bytes come out.
pub(super) fn decompress(headers: &HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, String> {
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else { return Ok(body) };
    let mut plain = Vec::new();
    let bound = limit as u64 + 1;
    let read = match encoding.as_bytes() {
        b"identity" => return Ok(body),
        b"gzip" => MultiGzDecoder::new(&body[..]).take(bound).read_to_end(&mut plain),
        b"deflate" => ZlibDecoder::new(&body[..]).take(bound).read_to_end(&mut plain),
        _ => return Err("Content-Encoding: gzip, deflate and identity are understood".to_owned()),
    };
    read.map_err(|error| format!("the compressed body is damaged: {error}"))?;
    if plain.len() > limit {
        return Err(format!("the body has more than {limit} bytes once it is decompressed"));
    }
    Ok(plain.into())
}

/// Compresses a body where `Accept-Encoding` names gzip or deflate, and says so in the reply's headers.
pub(super) fn compress(request: &HeaderMap, body: Bytes, reply: &mut HeaderMap) -> Bytes {
    let accepted = request.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let accepts = |name: &str| {
        accepted.split(',').any(|part| {
            let (encoding, weight) = part.split_once(';').map_or((part, ""), |(encoding, weight)| (encoding, weight));
            encoding.trim() == name && !matches!(weight.trim(), "q=0" | "q=0.0")
        })
    };
    // Many clients accept everything; a small body gains nothing.
    const SMALLEST: usize = 1024;
    let (name, compressed) = if body.len() < SMALLEST {
        return body;
    } else if accepts("gzip") {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        ("gzip", encoder.write_all(&body).and_then(|()| encoder.finish()))
    } else if accepts("deflate") {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        ("deflate", encoder.write_all(&body).and_then(|()| encoder.finish()))
    } else {
        return body;
    };
    // Writing to memory does not fail; if it did, the plain body would be right too.
    let Ok(compressed) = compressed else { return body };
    reply.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
    compressed.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn with(name: http::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn what_is_compressed_comes_out_again() {
        let body = Bytes::from(vec![7; 5000]);
        for encoding in ["gzip", "deflate"] {
            let mut reply = HeaderMap::new();
            let packed = compress(&with(header::ACCEPT_ENCODING, encoding), body.clone(), &mut reply);
            assert!(packed.len() < 100);
            assert_eq!(reply[header::CONTENT_ENCODING], encoding);
            assert_eq!(decompress(&reply, packed.clone(), 5000).unwrap(), body);
            assert!(decompress(&reply, packed.clone(), 4999).unwrap_err().contains("4999"));
            assert!(decompress(&reply, packed.slice(..packed.len() / 2), 5000).is_err());
        }
        let mut reply = HeaderMap::new();
        assert_eq!(compress(&with(header::ACCEPT_ENCODING, "br, gzip;q=0"), body.clone(), &mut reply), body);
        assert!(reply.is_empty() && decompress(&with(header::CONTENT_ENCODING, "br"), body, 5000).is_err());
    }
}
