//! The bytes beneath the encodings: plain or compressed, written to and read from anywhere.
//! What they mean is in the encodings' own files.

use std::io::{self, BufRead, BufReader, Read, Write};

use zstd::stream::{read, write};

use super::decoder::DecodeError;
use super::encoder::EncodeError;

/// Speed counts: the bytes that compress at all do so at the lowest level.
const LEVEL: i32 = 1;
/// Farthest that a compressed byte refers back, as a power of 2: 512 KiB, which bounds the reader's memory.
const WINDOW_LOG: u32 = 19;
const BUFFER_BYTES: usize = 1 << 16;

pub(super) enum Sink<'w> {
    Plain(&'w mut dyn Write),
    Zstd(write::Encoder<'static, &'w mut dyn Write>),
}

impl<'w> Sink<'w> {
    pub(super) fn new(compress: bool, out: &'w mut dyn Write) -> Result<Sink<'w>, EncodeError> {
        if !compress {
            return Ok(Sink::Plain(out));
        }
        let mut encoder = write::Encoder::new(out, LEVEL)?;
        encoder.window_log(WINDOW_LOG)?;
        Ok(Sink::Zstd(encoder))
    }

    pub(super) fn compresses(&self) -> bool {
        matches!(self, Sink::Zstd(_))
    }

    pub(super) fn finish(self) -> Result<(), EncodeError> {
        if let Sink::Zstd(encoder) = self {
            encoder.finish()?;
        }
        Ok(())
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Plain(out) => out.write(bytes),
            Sink::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) enum Source<R: Read> {
    Plain(BufReader<R>),
    /// The outer buffer makes small reads cheap.
    Zstd(BufReader<read::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Source<R> {
    pub(super) fn new(payload: R, compressed: bool) -> Result<Source<R>, DecodeError> {
        let payload = BufReader::with_capacity(BUFFER_BYTES, payload);
        if !compressed {
            return Ok(Source::Plain(payload));
        }
        let mut decoder = read::Decoder::with_buffer(payload).map_err(DecodeError::Io)?.single_frame();
        decoder.window_log_max(WINDOW_LOG).map_err(DecodeError::Io)?;
        Ok(Source::Zstd(BufReader::with_capacity(BUFFER_BYTES, decoder)))
    }

    pub(super) fn compresses(&self) -> bool {
        matches!(self, Source::Zstd(_))
    }

    /// Reads exactly these bytes. Nothing is decompressed beyond them and a buffer, whatever the payload claims.
    pub(super) fn read_exact(&mut self, into: &mut [u8]) -> Result<(), DecodeError> {
        let compressed = self.compresses();
        let read = match self {
            Source::Plain(payload) => payload.read_exact(into),
            Source::Zstd(decoder) => decoder.read_exact(into),
        };
        read.map_err(|error| refusal(error, compressed))
    }

    /// Whether the payload ends here.
    pub(super) fn ends(&mut self) -> Result<bool, DecodeError> {
        match self {
            Source::Plain(payload) => at_end(payload).map_err(DecodeError::Io),
            Source::Zstd(decoder) => {
                // Looking for more values first makes the decompressor read, and check, the end of its frame.
                if !at_end(decoder).map_err(|error| refusal(error, true))? {
                    return Ok(false);
                }
                at_end(decoder.get_mut().get_mut()).map_err(DecodeError::Io)
            }
        }
    }
}

fn at_end(source: &mut impl BufRead) -> io::Result<bool> {
    loop {
        match source.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(<[u8]>::is_empty),
        }
    }
}

fn refusal(error: io::Error, compressed: bool) -> DecodeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => DecodeError::Truncated,
        // The decompressor's own errors have no number of the operating system.
        _ if compressed && error.raw_os_error().is_none() => DecodeError::Compression(error.to_string()),
        _ => DecodeError::Io(error),
    }
}
