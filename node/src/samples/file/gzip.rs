//! The gzip format: one compressed member with its checksum, as gzip and Python's module write it.
//! Source: RFC 1952. Decompression itself is shared with `zip`.

use super::zip::inflate;

/// Whether the bytes begin as a gzip file does.
pub(super) fn is_compressed(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// The decompressed content, at most `limit` bytes. Problems say what is wrong, for the caller to add the file's name.
pub(super) fn decompress(bytes: &[u8], limit: usize) -> Result<Vec<u8>, String> {
    const CUT: &str = "it is cut off; copy the file again";
    let [0x1f, 0x8b, method, flags, ..] = *bytes else {
        return Err("it is no gzip file".to_owned());
    };
    if method != 8 || flags & 0xe0 != 0 {
        return Err(format!("it is compressed by method {method} with flags {flags:#x}; compress it with gzip"));
    }
    let body = skip_header(bytes, flags).ok_or(CUT)?;
    let (data, trailer) = body.split_last_chunk::<8>().ok_or(CUT)?;
    let [a, b, c, d, e, f, g, h] = *trailer;
    let (crc32, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]) as usize);
    if len > limit {
        return Err(format!("it holds {len} bytes, above the limit of {limit}; split the file"));
    }
    let content = inflate(data, len)?;
    if crc32fast::hash(&content) != crc32 {
        return Err("it does not match its checksum; the file is damaged, so copy it again".to_owned());
    }
    Ok(content)
}

/// What follows the header and its optional fields (section 2.3).
fn skip_header(bytes: &[u8], flags: u8) -> Option<&[u8]> {
    const HEADER_CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let mut rest = bytes.get(10..)?;
    if flags & EXTRA != 0 {
        let (len, after) = rest.split_first_chunk::<2>()?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            rest = rest.get(rest.iter().position(|&byte| byte == 0)? + 1..)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}
